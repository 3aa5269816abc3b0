"""Prints, as JSON, what one release of vLLM serves and reads. Standard library only; the release is never imported."""

import argparse
import ast
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cond as C  # noqa: E402
from guard import Guard  # noqa: E402
from handlers import Handlers  # noqa: E402
from index import Index, import_targets  # noqa: E402
from models import Models  # noqa: E402
from servers import Servers  # noqa: E402
from walk import Walker  # noqa: E402

PACKAGES = ["vllm", "model_hosting_container_standards"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True, help="folder with the packages' Python files")
    parser.add_argument("--release", required=True)
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--hosting", default="", help="version of model-hosting-container-standards")
    parser.add_argument("--installed", default="", help="packages the release requires, comma separated")
    args = parser.parse_args()
    sys.setrecursionlimit(10000)
    index = Index(args.root, [p for p in PACKAGES if os.path.isdir(os.path.join(args.root, p))])
    installed = {re.sub(r"[-.]", "_", p.strip()).lower() for p in args.installed.split(",") if p.strip()}
    out = extract(index, installed)
    out = {"release": args.release, "wheel": args.wheel, "hosting_standards": args.hosting, **out}
    sys.stdout.write(pretty(out, 0) + "\n")


def pretty(value, depth):
    """JSON with what has nothing nested in it on one line: one field, one line of a diff."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value:
        return flat
    inside = value.values() if isinstance(value, dict) else value
    if depth > 0 and not any(isinstance(x, dict) for x in inside) and (depth > 3 or len(flat) < 120):
        return flat
    pad = " " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{json.dumps(k)}: {pretty(v, depth + 1)}" for k, v in value.items()]
    else:
        lines = [pretty(v, depth + 1) for v in value]
    body = (",\n" + pad).join(lines)
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n{pad}{body}\n{' ' * depth}{right}"


def extract(index, installed):
    walker = Walker(index, installed)
    models = Models(index, walker.report)
    handlers = Handlers(index, models, walker.report)
    servers = Servers(index, walker).find()
    guard = Guard(index, walker.report)
    prefixes, middleware = guard.read([app for name, app in servers if name == "api"])
    routes = {}
    for name, app in servers:
        for reg in app.regs:
            for method in reg.methods:
                add_route(routes, name, method, reg, handlers, prefixes)
    finish = [finish_route(r, walker, models) for _, r in sorted(routes.items())]
    invocations(index, models, finish)
    seen = {a for r in routes.values() for c in r["conds"].values() for a in C.atoms(c)}
    for rel, text in index.broken:
        walker.report("file", rel, 0, text)
    return {
        "guarded_prefixes": prefixes,
        "env": sorted({a.split()[1].split("=")[0] for a in seen if a.startswith("env ")}),
        "flags": sorted({a.split()[1].split("=")[0] for a in seen if a.startswith("flag ")}),
        "middleware": middleware,
        "routes": finish,
        "models": {k: models.out[k] for k in sorted(models.out)},
        "external_types": {k: models.external[k] for k in sorted(models.external)},
        "unresolved": [{"kind": k, "at": at, "text": t} for k, at, t in sorted(set(walker.unresolved))],
    }


def add_route(routes, server, method, reg, handlers, prefixes):
    key = (server != "api", server, reg.path, method, reg.kind)
    if reg.cond is False:
        return
    route = routes.setdefault(key, {
        "server": server, "method": method, "path": reg.path, "kind": reg.kind, "conds": {}, "sources": [],
        "guarded": server == "api" and any(reg.path.startswith(p) for p in prefixes), "readings": [],
    })
    # Two registrations in one file are two branches of one decision; in two files they are independent.
    same = (reg.rel, reg.note)
    route["conds"][same] = C.either(route["conds"].get(same, False), reg.cond)
    if reg.rel not in route["sources"]:
        route["sources"].append(reg.rel)
    route["readings"].append(handlers.read(reg))


def finish_route(route, walker, models):
    texts = set()
    for (_, note), c in route["conds"].items():
        texts.add(C.text(c) + (": " + note if note else ""))
        for a in C.atoms(c):
            if a.startswith("`"):
                at, _, line = walker.opaque.get(a, "?:0").rpartition(":")
                walker.report("condition", at, int(line), a)
    out = {k: route[k] for k in ("server", "method", "path", "kind")}
    out["conditions"] = ["always"] if "always" in texts else sorted(texts)
    out["guarded_by_key"] = route["guarded"]
    out["sources"] = sorted(route["sources"])
    kinds = [r.kind for r in route["readings"] if r.kind != "none"]
    names = sorted({r.model for r in route["readings"] if r.model})
    model = names[0] if names else ""
    if len(names) > 1:  # which of them depends on which registration it is
        model = f"either:{route['method']} {route['path']}"
        models.out[model] = {"source": sorted(route["sources"])[0], "kind": "union", "members": names}
    out["request_kind"] = kinds[0] if kinds and route["method"] not in ("GET", "HEAD", "WEBSOCKET", "ANY") else "none"
    if model and out["request_kind"] != "none":
        out["request_model"] = model
    for name in ("query", "headers"):
        values = sorted(set().union(*[getattr(r, name) for r in route["readings"]]))
        if values:
            out[name] = values
    return out


def invocations(index, models, routes):
    """The models that /invocations tries in turn: the tables named *invocation_types, INVOCATION_TYPES, TASK_HANDLERS."""
    route = next((r for r in routes if r["path"] == "/invocations" and r["method"] == "POST"), None)
    if route is None:
        return
    members = []
    for name, rel in index.paths():
        module = index.module(name) if "entrypoints" in name else None
        for node in ast.walk(module.tree) if module else []:
            old, new = assigned(node) == "TASK_HANDLERS", assigned(node) == "INVOCATION_TYPES"
            new = new or isinstance(node, ast.FunctionDef) and node.name.endswith("invocation_types")
            for entry in ast.walk(node) if old or new else []:
                # (Request, (get_handler, endpoint)) in the new tables, (Request, endpoint) in the old one
                if not isinstance(entry, ast.Tuple) or len(entry.elts) != 2 or not isinstance(entry.elts[0], ast.Name):
                    continue
                if isinstance(entry.elts[1], ast.Name if old else ast.Tuple):
                    key = add_member(index, models, module, local_imports(index, module, module.tree), entry.elts[0])
                    if key and key not in members:
                        members.append(key)
    if members:
        raw = models.out.pop(route.get("request_model"), {})
        models.out["invocations"] = {"source": route["sources"][-1], "kind": "union", "members": members}
        if raw:
            models.out["invocations"]["also_reads"] = [f["name"] for f in raw["fields"]]
        route["request_model"] = "invocations"
        # It hands the request on to the routes that have these models, which read their own headers.
        others = [r for r in routes if r.get("request_model") in members and r["server"] == "api"]
        headers = set().union(route.get("headers", []), *[r.get("headers", []) for r in others])
        route.pop("headers", None)
        if headers:
            route["headers"] = sorted(headers)


def assigned(node):
    """The name that a statement assigns, or ""."""
    target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
    return target.id if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and isinstance(target, ast.Name) else ""


def local_imports(index, module, func):
    """What the imports inside functions bind: these tables are built where they are used."""
    found = {}
    for node in ast.walk(func):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(import_targets(module, node))
    return found


def add_member(index, models, module, local, name):
    if name.id in local:
        found = index.follow(module, local[name.id])
        if found and found[0] != "external" and found[1] == "class":
            return models.add_class(found[0], found[2])
        if found and found[0] != "external" and found[1] == "assign":
            return models.add_alias(found[0], found[2], name.id)
    return models.add(module, name)


if __name__ == "__main__":
    main()
