"""Every HTTP server of a release: the API server first, then whatever else makes an application."""

import ast
import re

from routing import registrations
from values import Class, Func, Obj, Router

# Where an application is made -> the name of its server. Others are named after their module and reported.
NAMES = (
    ("entrypoints.launchers.dp_supervisor", "dp-supervisor"),
    ("entrypoints.cli.preload", "weight-cache-preload"),
    ("hf3fs", "hf3fs-metadata"),
    ("mooncake", "mooncake-bootstrap"),
    ("dp_supervisor", "dp-supervisor"),
)
LEGACY = ("vllm.entrypoints.api_server",)
# Ways of serving HTTP that this program does not read.
OTHERS = ("aiohttp.web", "http.server", "flask", "quart", "sanic", "tornado.web", "wsgiref")


class Servers:
    def __init__(self, index, walker):
        self.index, self.walker = index, walker

    def find(self):
        """[(server, Router)], the API server first."""
        api, rest = [], []
        for name, rel in self.index.paths():
            if not name.startswith("vllm."):
                continue
            with open(self.index.root + "/" + rel, encoding="utf-8", errors="replace") as f:
                text = f.read()
            if "FastAPI(" in text or "Starlette(" in text:
                module = self.index.module(name)
                for found in self.makers(module) if module else []:
                    server = self.server(module, found)
                    (api if server == "api" else rest).append((server, module, found))
            self.other_frameworks(name, rel, text)
        if not api:
            self.walker.report("server", "vllm", 0, "no function build_app found: the API server was not read")
        out = []
        for server, module, maker in api + rest:
            out += [(server, app) for app in self.run(module, maker)]
        self.unreached({(reg.rel, reg.line) for _, app in out for reg in app.regs})
        return out

    def unreached(self, served):
        """Reports every registration in the release that ended in no server: none may be missing without a word."""
        for name, rel in self.index.paths():
            module = self.index.modules.get(name) or (self.index.module(name) if self.suspicious(rel) else None)
            for node, path in registrations(module.tree) if module and name.startswith("vllm.") else []:
                if path and (rel, node.lineno) not in served:
                    self.walker.report("route", rel, node.lineno, f"{path} is registered here, and no server was seen to include it")
        envs = self.index.module("vllm.envs")
        if envs and "VLLM_USE_RUST_FRONTEND" in ast.unparse(envs.tree):
            self.walker.report("server", "vllm/envs.py", 0, "VLLM_USE_RUST_FRONTEND=1 serves from a compiled program, which was not read")

    def suspicious(self, rel):
        with open(self.index.root + "/" + rel, encoding="utf-8", errors="replace") as f:
            text = f.read()
        return "APIRouter" in text or "FastAPI" in text or re.search(r"(router|app)\.(get|post|put|delete|patch|api_route|websocket|add_)", text)

    def other_frameworks(self, name, rel, text):
        if any(f"import {o}" in text or f"from {o} import" in text for o in OTHERS) or "import web\n" in text and "aiohttp" in text:
            self.walker.report("server", rel, 0, "serves HTTP by another framework, not read")

    def makers(self, module):
        """The outermost functions, classes or statements of a module that call FastAPI(...)."""
        for stmt in module.tree.body:
            calls = [n for n in ast.walk(stmt) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] in ("FastAPI", "Starlette")]
            if calls:
                yield stmt

    def server(self, module, maker):
        if getattr(maker, "name", "") == "build_app" and module.name not in LEGACY:
            return "api"
        if module.name in LEGACY:
            return "legacy-demo"
        for part, name in NAMES:
            if part in module.name:
                return name
        self.walker.report("server", module.rel, maker.lineno, "a server of its own that has no name here")
        return module.name.split(".")[-1].replace("_", "-")

    def before(self, module, maker):
        """Whoever calls build_app may register on the module's router first (0.10 to 0.12: tokenizer_info)."""
        functions = [s for s in module.tree.body if isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef))]
        for caller in functions:
            called = [n.func.id for n in ast.walk(caller) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
            for func in functions if maker.name in called and caller is not maker else []:
                if func.name in called and func is not maker and registrations(func):
                    self.walker.run(Func(module, func, self.walker.module_scope(module)), [], {}, entry=True)

    def run(self, module, maker):
        walker = self.walker
        walker.cond, walker.hosting = True, {}
        if isinstance(maker, (ast.FunctionDef, ast.AsyncFunctionDef)):
            walker.module_scope(module)
            self.before(module, maker)
            found = walker.run(Func(module, maker, walker.module_scope(module)), [], {}, entry=True)
            apps = [found] if isinstance(found, Router) else []
        elif isinstance(maker, ast.ClassDef):
            obj = walker.construct(Class(module, maker), [], {})
            apps = [v for v in obj.attrs.values() if isinstance(v, Router)] if isinstance(obj, Obj) else []
        else:
            apps = [v for v in walker.module_scope(module).names.values() if isinstance(v, Router) and v.is_app]
        if not apps:
            walker.report("server", module.rel, maker.lineno, "makes an application that could not be followed")
        return apps
