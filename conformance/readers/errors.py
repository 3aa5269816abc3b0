"""Reads bodies into vLLM's own request models, as FastAPI does.

usage: errors.py < BODIES   (a line each: path, tab, JSON)

Prints a line for each: how many errors vLLM keeps for it, 0 where it takes it,
or "none" where it serves no such path.
"""

import importlib
import json
import pkgutil
import sys

import vllm.entrypoints
from fastapi.routing import APIRoute

models = {}
for m in pkgutil.walk_packages(vllm.entrypoints.__path__, "vllm.entrypoints."):
    if not m.name.endswith("api_router"):
        continue
    try:
        router = getattr(importlib.import_module(m.name), "router", None)
    except ImportError:
        continue  # of a protocol whose package is not installed
    for route in getattr(router, "routes", []):
        if isinstance(route, APIRoute) and route.body_field is not None:
            models.setdefault(route.path, route.body_field)

for line in sys.stdin:
    path, body = line.rstrip("\n").split("\t", 1)
    if path not in models:
        print("none", flush=True)
        continue
    try:
        _, errors = models[path].validate(json.loads(body), {}, loc=("body",))
        print(len(errors) if isinstance(errors, list) else 1 if errors else 0, flush=True)
    except Exception:  # vLLM's own validators raise one
        print(1, flush=True)
