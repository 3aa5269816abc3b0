"""The package model-hosting-container-standards, whose decorators put handlers of vLLM on routes of its own.

Its handlers go through a registry at run time, so its tables are read instead: which decorator means which handler
type, and which route a handler type has.
"""

import ast

import cond as C
from values import *

PACKAGE = "model_hosting_container_standards"


class Hosting:
    def hosting_call(self, callee, args, node, scope):
        """A call of the package's code: bootstrap, a decorator, or a call that makes a decorator."""
        name = callee.alias or callee.node.name
        if name == "bootstrap" and args and isinstance(args[0], Router):
            return self.hosting_bootstrap(args[0], node, scope)
        mark = (name, callee.module, callee.node)
        if args and isinstance(args[0], Func):
            return self.hosting_mark(mark, args[0])
        return Registrar(None, lambda handler: self.hosting_mark(mark, handler))

    def hosting_mark(self, mark, handler):
        """Notes that a handler of vLLM was given to a decorator of the package."""
        kind = self.hosting_kind(mark[0])
        if kind and mark[0].startswith("register_"):
            self.hosting.setdefault(kind, []).append((self.cond, handler))
        if isinstance(handler, Func):
            handler.marks.append(mark)
        return handler

    def hosting_kind(self, decorator):
        """The handler type behind a decorator of the package: from its body, or from `x = register_handler("type")`."""
        module = self.index.module(PACKAGE + ".sagemaker")
        found = module and self.index.resolve(module, decorator)
        if not found or found[0] == "external":
            return None
        owner, _, body = found
        for sub in ast.walk(body):
            if isinstance(sub, ast.Attribute) and isinstance(sub.value, ast.Name) and sub.value.id.endswith("HandlerType"):
                return self.index.constant(owner, sub)
        if isinstance(body, ast.Call) and body.args:
            return self.index.constant(owner, body.args[0])
        return None

    def hosting_routes(self):
        """Handler type -> (method, path, file, line), from every RouteConfig in the package."""
        routes = {}
        for name, rel in self.index.paths():
            if not name.startswith(PACKAGE):
                continue
            module = self.index.module(name)
            for sub in ast.walk(module.tree) if module else []:
                if isinstance(sub, ast.Dict):
                    for key, value in zip(sub.keys, sub.values):
                        self._route_entry(routes, module, self.index.constant(module, key), value)
                elif isinstance(sub, ast.If) and isinstance(sub.test, ast.Compare):
                    kind = self.index.constant(module, sub.test.comparators[0])
                    for stmt in sub.body:
                        if isinstance(stmt, ast.Return):
                            self._route_entry(routes, module, kind, stmt.value)
        return routes

    def _route_entry(self, routes, module, kind, value):
        if not isinstance(kind, str) or not isinstance(value, ast.Call) or ast.unparse(value.func) != "RouteConfig":
            return
        given = {k.arg: self.index.constant(module, k.value) for k in value.keywords}
        if given.get("path") and given.get("method"):
            routes[kind] = (given["method"], given["path"], module.rel, value.lineno)

    def hosting_bootstrap(self, app, node, scope):
        """`bootstrap(app)` mounts every handler that was registered and has a route."""
        if self.index.module(PACKAGE + ".sagemaker") is None:
            self.report("call", scope.module.rel, node.lineno, f"{PACKAGE} was not read: its routes are missing")
            return app
        routes = self.hosting_routes()
        for kind, handlers in sorted(self.hosting.items()):
            if kind not in routes:
                continue
            method, path, rel, line = routes[kind]
            for cond, handler in handlers:
                reg = Reg(C.both(self.cond, cond), [method], path, "http", handler, rel, line)
                reg.hosted = kind
                app.regs.append(reg)
        self.report(
            "plugin", scope.module.rel, node.lineno,
            "bootstrap also loads middlewares and handlers named by environment variables or a model's own model.py",
        )
        return app
