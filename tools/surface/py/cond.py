"""Conditions under which a route is registered, as small boolean formulas.

A formula is True, False, ("atom", text), ("not", f), ("and", [f...]) or ("or", [f...]).
"""


def atom(text):
    return ("atom", text)


def negate(f):
    if f is True or f is False:
        return not f
    if f[0] == "not":
        return f[1]
    if f[0] == "and":
        return either(*[negate(x) for x in f[1]])
    if f[0] == "or":
        return both(*[negate(x) for x in f[1]])
    return ("not", f)


def _flat(kind, fs):
    out = []
    for f in fs:
        for x in f[1] if isinstance(f, tuple) and f[0] == kind else [f]:
            if x not in out:
                out.append(x)
    return out


POOLING = "task:any pooling"
NOT_POOLING = {"task:generate", "task:transcription", "task:realtime", "task:render", POOLING}


def _entails(f, g):
    """Whether f says more than the atom g: one pooling task, any pooling task; a part of a flag, the flag."""
    if not isinstance(f, tuple) or f == g or g[0] != "atom":
        return False
    if f[0] == "or":
        return all(_entails(x, g) for x in f[1])
    if f[0] == "and":
        return any(_entails(x, g) for x in f[1])
    if f[0] != "atom":
        return False
    if g[1] == POOLING:
        return f[1].startswith("task:") and f[1] not in NOT_POOLING
    return f[1].startswith(g[1] + " with a ")


def both(*fs):
    """The conjunction, simplified: duplicates, contradictions and what a literal already decides are gone."""
    parts = [f for f in _flat("and", fs) if f is not True]
    changed = True
    while changed:
        changed = False
        for i, f in enumerate(parts):
            if f is False:
                return False
            if not isinstance(f, tuple) or f[0] != "or":
                continue
            others = parts[:i] + parts[i + 1 :]
            kept = [_without(x, others) for x in f[1] if not _contradicts(x, others)]
            if any(x is True or _implied(x, others) for x in kept):
                parts, changed = others, True
                break
            if kept != f[1]:
                parts = _flat("and", others + [either(*kept)])
                changed = True
                break
    for f in parts:
        if negate(f) in parts:
            return False
    parts = _share([g for g in parts if not any(_entails(f, g) for f in parts)])
    if not parts:
        return True
    return parts[0] if len(parts) == 1 else ("and", parts)


def _share(parts):
    """(a or b) and (a or c) is a or (b and c)."""
    alternatives = [f for f in parts if f[0] == "or"]
    if len(alternatives) < 2:
        return parts
    a, b = alternatives[0], alternatives[1]
    common = [x for x in a[1] if x in b[1]]
    if not common:
        return parts
    rest = both(either(*[x for x in a[1] if x not in common]), either(*[x for x in b[1] if x not in common]))
    return _flat("and", [f for f in parts if f is not a and f is not b] + [either(*common, rest)])


def _without(f, known):
    """f where `known` holds: a conjunction loses what is known anyway."""
    return both(*[x for x in f[1] if x not in known]) if f[0] == "and" else f


def _implied(f, known):
    return all(x in known for x in f[1]) if f[0] == "and" else f in known


def _contradicts(f, known):
    return any(negate(x) in known for x in (f[1] if f[0] == "and" else [f]))


def either(*fs):
    parts = [f for f in _flat("or", fs) if f is not False]
    if any(f is True for f in parts):
        return True
    for f in parts:
        if negate(f) in parts:
            return True
    # absorption: a or (a and b) is a; a or (not a and b) is a or b
    reduced = []
    for f in parts:
        if f[0] == "and":
            if any(g is not f and _implied(g, f[1]) for g in parts):
                continue
            kept = [x for x in f[1] if negate(x) not in parts]
            f = both(*kept)
        reduced.append(f)
    parts = _merge_cases(_flat("or", reduced))
    if any(f is True for f in parts):
        return True
    if not parts:
        return False
    return parts[0] if len(parts) == 1 else ("or", parts)


def _merge_cases(parts):
    """(x and a) or (x and not a) is x."""
    for i, f in enumerate(parts):
        for j in range(i + 1, len(parts)):
            a = f[1] if f[0] == "and" else [f]
            g = parts[j]
            b = g[1] if g[0] == "and" else [g]
            only_a = [x for x in a if x not in b]
            only_b = [x for x in b if x not in a]
            if len(only_a) == 1 and len(only_b) == 1 and only_a[0] == negate(only_b[0]):
                rest = both(*[x for x in a if x in b])
                if rest is True:
                    return [True]
                return _merge_cases(_flat("or", parts[:i] + [rest] + parts[i + 1 : j] + parts[j + 1 :]))
    return parts


def text(f, nested=False):
    """Human text: `task:generate and (flag --a or flag --b)`."""
    if f is True:
        return "always"
    if f is False:
        return "never"
    if f[0] == "atom":
        return f[1]
    if f[0] == "not":
        inner = text(f[1], True)
        return "not " + (inner[len("flag ") :] if inner.startswith("flag --") else inner)
    joined = f" {f[0]} ".join(sorted_texts(f))
    return "(" + joined + ")" if nested else joined


ORDER = ("task:", "scoring", "flag ", "env ", "pip package", "(", "not ")


def sorted_texts(f):
    """Operands in one order, whatever order the source tests them in: tasks, flags, environment, the rest."""
    texts = [text(x, True) for x in f[1]]
    rank = lambda t: next((i for i, p in enumerate(ORDER) if t.startswith(p)), len(ORDER))
    return sorted(texts, key=lambda t: (rank(t), t))


def atoms(f):
    if f is True or f is False:
        return
    if f[0] == "atom":
        yield f[1]
    elif f[0] == "not":
        yield from atoms(f[1])
    else:
        for x in f[1]:
            yield from atoms(x)
