#!/usr/bin/env python3
"""verify.py DIR KEY [HELD]: an independent verifier of Vallum's audit log, written from docs/audit.md alone."""
import base64, hashlib, os, re, sys

P, Q = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493  # Ed25519 by RFC 8032, section 5.1
D = -121665 * pow(121666, -1, P) % P

def add(a, b):
    A, B = (a[1] - a[0]) * (b[1] - b[0]), (a[1] + a[0]) * (b[1] + b[0])
    C, E = 2 * a[3] * b[3] * D, 2 * a[2] * b[2]
    e, f, g, h = B - A, E - C, E + C, B + A
    return e * f % P, g * h % P, f * g % P, e * h % P

def mul(s, p):
    q = (0, 1, 1, 0)
    while s:
        q, p, s = add(q, p) if s & 1 else q, add(p, p), s >> 1
    return q

def point(b):
    sign, y = b[31] >> 7, int.from_bytes(b, "little") & (1 << 255) - 1
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P: x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - x2) % P: raise ValueError("not a point")
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P

def signed(public, text, sig):
    G, k = point((4 * pow(5, -1, P) % P).to_bytes(32, "little")), hashlib.sha512(sig[:32] + public + text).digest()
    s, k = int.from_bytes(sig[32:], "little"), int.from_bytes(k, "little") % Q
    a, b = mul(s, G), add(point(sig[:32]), mul(k, point(public)))
    return s < Q and (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0

def checkpoint(text, sigs, name, public):
    keyhash = hashlib.sha256(name + b"\n\x01" + public).digest()[:4]
    lines = [l.split(b" ") for l in sigs.split(b"\n")]
    blobs = [base64.b64decode(l[2], validate=True) for l in lines if l[:2] == ["—".encode(), name]]
    origin, size, head, _ = text.split(b"\n")
    if origin != name or not signed(public, text + b"\n", [b[4:] for b in blobs if b[:4] == keyhash][0]): raise ValueError("not signed")
    return int(size), base64.b64decode(head).hex()

def verify(path, key, held):
    name, _, public = key.strip().encode().split(b"+", 2)
    points, pattern = {}, re.compile(rb'\{"seq":([1-9][0-9]{0,17}),"prev":"([0-9a-f]{64})","time":"')
    for file in filter(os.path.exists, [path + "/checkpoints", path + "/checkpoints.open"] + held):
        parts = open(file, "rb").read().split(b"\n\n")
        for text, sigs in zip(parts[0:-1:2], parts[1:-1:2]):
            try:
                size, head = checkpoint(text, sigs, name, base64.b64decode(public)[1:])
            except (ValueError, IndexError):
                return "broken 0"
            points.setdefault(size, set()).add(head)
    files = [f for f in os.listdir(path) if re.fullmatch(r"[0-9]{12,18}-[0-9]{8}T[0-9]{6}Z\.jsonl", f)]
    files.sort(key=lambda f: (int(f.split("-")[0]), f))
    first = nxt = max(int(files[0].split("-")[0]), 1) if files else 1
    sig, head, declared = 0, "0" * 64, 0
    for file in files:
        for line in open(os.path.join(path, file), "rb"):
            m, whole = pattern.match(line), line.endswith(b"\n")
            if not whole and file == files[-1] and len(line) <= 65536: break
            if not m or len(line) > 65537 or not line.endswith(b"}\n"): return f"broken {nxt}"
            seq, prev = int(m[1]), m[2].decode()
            if seq != nxt: return f"broken {min(seq, nxt)}"
            if seq == first > 1:
                head = prev
                if points.get(seq - 1, {head}) != {head}: return f"broken {first}"
                sig = seq - 1 if seq - 1 in points else 0
            elif prev != head: return f"broken {seq if seq == 1 or sig == seq - 1 else seq - 1}"
            head, nxt = hashlib.sha256(line[:-1]).hexdigest(), nxt + 1
            if p := re.compile(rb'.{30}","event":"pruned","pruned_through":([0-9]{1,18})').match(line, m.end()):
                declared = max(declared, int(p[1]))
            if points.get(seq, {head}) != {head}: return f"broken {max(sig + 1, first)}"
            sig = seq if seq in points else sig
    last = nxt - 1
    if max(points, default=0) > last: return f"shorter {last} {max(points)}"
    if first > 1 and declared < first - 1: return "broken 1"
    return "empty" if not last else f"signed {last}" if sig == last else f"unsigned {last} {last - max(sig, first - 1)}"

print(verify(sys.argv[1], open(sys.argv[2]).read(), sys.argv[3:]))
