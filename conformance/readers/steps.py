"""Makes grammars of JSON schemas by the compiler that vLLM asks first, with a
vocabulary as large as those of usual models, and walks a few tokens along.

usage: steps.py < SCHEMAS   (one JSON value per line)

Prints a line for each: the longest that a token took, in seconds, as the
engine would be kept by it.
"""

import random
import sys
import time

import numpy as np
import xgrammar

WORDS, TOKENS, LONGEST = 64_000, 8, 20.0

draw = random.Random(1)
letters = 'abcdefghijklmnopqrstuvwxyz ABCDEFG0123456789{}":,[]-.'
words = {chr(c) for c in range(32, 127)}
while len(words) < WORDS - 1:
    words.add("".join(draw.choice(letters) for _ in range(draw.randint(2, 8))))
info = xgrammar.TokenizerInfo(["<end>", *sorted(words)], vocab_size=WORDS, stop_token_ids=[0])

for line in sys.stdin:
    compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(line.strip()))
    mask = xgrammar.allocate_token_bitmask(1, WORDS)
    draw, longest, begun = random.Random(2), 0.0, time.monotonic()
    for _ in range(TOKENS):
        before = time.monotonic()
        matcher.fill_next_token_bitmask(mask, 0)
        longest = max(longest, time.monotonic() - before)
        bits = np.unpackbits(mask[0].numpy().view(np.uint8), bitorder="little")[:WORDS]
        fit = [t for t in np.nonzero(bits)[0] if t != 0]
        if not fit or time.monotonic() - begun > LONGEST:
            break
        before = time.monotonic()
        matcher.accept_token(int(draw.choice(fit)))
        longest = max(longest, time.monotonic() - before)
    print(f"{longest:.6f}", flush=True)
