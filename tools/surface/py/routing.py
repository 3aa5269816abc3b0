"""Registrations: what a call of a router's method adds to it, under the condition of the moment."""

import ast

import cond as C
from values import *

VERBS = ("get", "post", "put", "delete", "patch", "head", "options", "trace")
ADDERS = ("include_router", "add_api_route", "add_route", "add_websocket_route", "add_api_websocket_route", "mount")


def registrations(tree):
    """Calls that look like a registration of a constant path, or of a router: [(call node, path or "")]."""
    found = []
    decorators = {d for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for d in f.decorator_list}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name = node.func.attr
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        path = first if isinstance(first, str) and first.startswith("/") else ""
        owner = ast.unparse(node.func.value)
        routed = node in decorators or "router" in owner.lower() or owner.split(".")[-1] == "app"
        if path and (name in ADDERS or routed and (name in VERBS or name in ("api_route", "route", "websocket", "websocket_route"))):
            found.append((node, path))
        elif name == "include_router":
            found.append((node, ""))
    return found


class Routing:
    def register(self, router, methods, path, kind, handler, node, scope, note="", depends=()):
        reg = Reg(self.cond, sorted(methods), router.prefix + path, kind, handler, scope.module.rel, node.lineno, note)
        reg.depends = list(router.depends) + list(depends)
        router.regs.append(reg)

    def depends(self, node, scope):
        """The functions in dependencies=[Depends(f)]."""
        found = []
        for k in getattr(node, "keywords", []):
            if k.arg == "dependencies":
                for call in ast.walk(k.value):
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("Depends", "Security") and call.args:
                        value = self.eval(call.args[0], scope)
                        found += [value] if isinstance(value, Func) else []
        return found

    def on_router(self, router, name, args, kwargs, node, scope):
        if name in VERBS or name in ("api_route", "route", "websocket", "websocket_route"):
            return self.decorator(router, name, args, kwargs, node, scope)
        if name in ("add_api_route", "add_route", "add_websocket_route", "add_api_websocket_route"):
            return self.add_route(router, name, args, kwargs, node, scope)
        if name == "include_router":
            return self.include(router, args, kwargs, node, scope)
        if name == "mount":
            return self.mount(router, Mount(args[0].value, args[1], None) if isinstance(args[0], Const) else None, node, scope)
        if name == "routes.append":
            return self.mount(router, args[0] if isinstance(args[0], Mount) else None, node, scope)
        if name in ("add_middleware", "middleware"):
            return self.middleware(router, name, args, node, scope)
        if name.startswith("routes.") or name in ("host", "add_websocket"):
            self.report("call", scope.module.rel, node.lineno, f"{ast.unparse(node)}: not read")
        return Unknown(ast.unparse(node))

    def path_of(self, args, kwargs, node, scope):
        value = args[0] if args else kwargs.get("path")
        if isinstance(value, Const) and isinstance(value.value, str):
            return value.value
        self.report("path", scope.module.rel, node.lineno, f"path not constant: {ast.unparse(node)[:120]}")
        return None

    def methods_of(self, kwargs, fallback, node, scope):
        value = kwargs.get("methods")
        if value is None:
            return fallback
        if isinstance(value, Const) and isinstance(value.value, (tuple, list)):
            return list(value.value)
        if isinstance(value, Items) and all(isinstance(x, Const) for x in value.items):
            return [x.value for x in value.items]
        self.report("path", scope.module.rel, node.lineno, f"methods not constant: {ast.unparse(node)[:120]}")
        return ["UNKNOWN"]

    def decorator(self, router, name, args, kwargs, node, scope):
        path, depends = self.path_of(args, kwargs, node, scope), self.depends(node, scope)
        socket = name.startswith("websocket")
        methods = ["WEBSOCKET"] if socket else self.methods_of(kwargs, [name.upper()] if name in VERBS else ["GET"], node, scope)
        cond = self.cond

        def make(handler):
            if path is not None:
                saved, self.cond = self.cond, C.both(self.cond, cond)
                self.register(router, methods, path, "websocket" if socket else "http", handler, node, scope, depends=depends)
                self.cond = saved
            return handler

        return Registrar(router, make)

    def add_route(self, router, name, args, kwargs, node, scope):
        path = self.path_of(args, kwargs, node, scope)
        handler = args[1] if len(args) > 1 else kwargs.get("endpoint")
        socket = "websocket" in name
        methods = ["WEBSOCKET"] if socket else self.methods_of(kwargs, ["GET", "HEAD"] if name == "add_route" else ["GET"], node, scope)
        if path is not None:
            note = self.stub_status(handler)
            self.register(router, methods, path, "websocket" if socket else "http", handler, node, scope, note, self.depends(node, scope))
        return Unknown(name)

    def stub_status(self, handler):
        """A handler without parameters that answers one error status says so in the route's condition."""
        if not isinstance(handler, Func) or handler.node.args.args or handler.bound:
            return ""
        codes = {"FORBIDDEN": 403, "NOT_FOUND": 404, "NOT_IMPLEMENTED": 501, "GONE": 410, "SERVICE_UNAVAILABLE": 503}
        for call in ast.walk(handler.node):
            for k in getattr(call, "keywords", []):
                if k.arg == "status_code":
                    code = k.value.value if isinstance(k.value, ast.Constant) else codes.get(getattr(k.value, "attr", ""))
                    if code and code >= 400:
                        return f"stub answering {code}"
        return ""

    def include(self, router, args, kwargs, node, scope):
        child = args[0] if args else kwargs.get("router")
        if not isinstance(child, Router):
            self.report("call", scope.module.rel, node.lineno, f"{ast.unparse(node)}: the router is not known")
            return Unknown("include_router")
        prefix = kwargs.get("prefix")
        if prefix is not None and not isinstance(prefix, Const):
            self.report("path", scope.module.rel, node.lineno, f"prefix not constant: {ast.unparse(node)}")
        depends = self.depends(node, scope)
        for reg in list(child.regs):
            cond = C.both(self.cond, reg.cond)
            if cond is not False:
                new = reg.under(cond, router.prefix + (prefix.value if isinstance(prefix, Const) else ""))
                new.depends += depends + router.depends
                router.regs.append(new)
        return Unknown("include_router")

    def mount(self, router, mount, node, scope):
        if mount is None:
            self.report("call", scope.module.rel, node.lineno, f"{ast.unparse(node)}: what is mounted is not known")
        elif isinstance(mount.target, Ext) and mount.target.dotted.endswith("StaticFiles()"):
            self.register(router, ["GET", "HEAD"], mount.path + "/*", "wildcard", None, node, scope)
        elif isinstance(mount.target, Router):
            for reg in mount.target.regs:
                router.regs.append(reg.under(C.both(self.cond, reg.cond), router.prefix + mount.path))
        else:
            self.register(router, ["ANY"], mount.path, "mount", None, node, scope)
        return Unknown("mount")

    def middleware(self, router, name, args, node, scope):
        if name == "add_middleware":
            router.middleware.append((self.cond, args[0] if args else Unknown("?"), scope.module.rel, node.lineno))
            return Unknown(name)

        def make(handler):
            router.middleware.append((self.cond, handler, scope.module.rel, node.lineno))
            return handler

        return Registrar(router, make)
