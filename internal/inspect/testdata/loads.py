"""Answers each line of hex on standard input with what json.loads makes of those bytes, or "error".

The form is one that the Go test makes too: every token in order, strings as the hex of their UTF-8, numbers as written.
A duplicate name stays visible, because objects are kept as their pairs.
"""
import json
import sys


class Number(str):
    pass


def tokens(v, out):
    if isinstance(v, Number):
        out.append("n" + v)
    elif isinstance(v, str):
        out.append("s" + v.encode("utf-8").hex())
    elif v is None or v is True or v is False:
        out.append({None: "n", True: "t", False: "f"}[v])
    elif isinstance(v, tuple):
        out.append("{")
        for name, value in v:
            tokens(name, out)
            tokens(value, out)
        out.append("}")
    else:
        out.append("[")
        for value in v:
            tokens(value, out)
        out.append("]")


def refuse(word):
    raise ValueError(word)


for line in sys.stdin:
    try:
        value = json.loads(bytes.fromhex(line), parse_int=Number, parse_float=Number, parse_constant=refuse,
                           object_pairs_hook=tuple)
        words = []
        tokens(value, words)
        print(" ".join(words) + " ")
    except (ValueError, RecursionError):
        print("error")
