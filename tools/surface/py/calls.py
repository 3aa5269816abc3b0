"""Expressions and calls of the walk: what they evaluate to, and which of them run code of the release."""

import ast

import cond as C
from hosting import PACKAGE, Hosting
from routing import Routing, registrations
from values import *

# Calls that are handed an application and register nothing that a client could call.
HARMLESS = {
    "add_middleware", "middleware", "exception_handler", "add_exception_handler", "on_event", "add_event_handler",
    "instrument", "Config", "isinstance", "cast", "serve_http", "print", "getattr", "hasattr", "setattr",
}


class Calls(Hosting, Routing):
    # -- truth -------------------------------------------------------------

    def truth(self, node, scope):
        if isinstance(node, ast.BoolOp):
            fold = C.both if isinstance(node.op, ast.And) else C.either
            return fold(*[self.truth(x, scope) for x in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return C.negate(self.truth(node.operand, scope))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self.compare(node, scope)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self.truth(node.generators[0].iter, scope)
        if isinstance(node, ast.NamedExpr):
            scope.names[node.target.id] = Unknown(node.target.id)
            return self.truth(node.value, scope)
        value = self.eval(node, scope, deep=True)
        return self.truth_of(value, scope.module, node)

    def truth_of(self, value, module=None, node=None):
        if isinstance(value, Bool):
            return value.cond
        if isinstance(value, Const):
            return bool(value.value)
        if isinstance(value, Flag):
            return C.atom(value.text())
        if isinstance(value, Env):
            return C.atom(self.env_text(value.name))
        if isinstance(value, Task):
            return C.atom("task:any pooling")
        if isinstance(value, Items):
            return C.either(*[self.truth_of(x, module, node) for x in value.items])
        if isinstance(value, (Router, Obj, Args, State, Func, Class, Mod, RouteList, RouteValue)):
            return True
        text = ast.unparse(node) if node is not None else getattr(value, "text", "?")
        return self.not_understood(text, module, node)

    def not_understood(self, text, module, node):
        """A condition kept as source text; whoever prints a route that depends on it reports it."""
        text = " ".join(text.split())
        if module is not None:
            self.opaque.setdefault(f"`{text}`", f"{module.rel}:{node.lineno}")
        return C.atom(f"`{text}`")

    def env_text(self, name):
        """A switch is on with 1; a path or a number only has to be set."""
        module = self.index.module("vllm.envs")
        for node in ast.walk(module.tree) if module else []:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                return f"env {name}=1" if ast.unparse(node.annotation) == "bool" else f"env {name} set"
        return f"env {name} set"

    def compare(self, node, scope):
        op, right_node = node.ops[0], node.comparators[0]
        left = self.eval(node.left, scope, deep=True)
        right = self.eval(right_node, scope, deep=True)
        if isinstance(op, (ast.NotIn, ast.IsNot, ast.NotEq)):
            positive = {ast.NotIn: ast.In, ast.IsNot: ast.Is, ast.NotEq: ast.Eq}[type(op)]()
            return C.negate(self.holds(left, positive, right, node, scope))
        return self.holds(left, op, right, node, scope)

    def holds(self, left, op, right, node, scope):
        tasks = isinstance(right, (Param, Unknown)) and "tasks" in ast.unparse(node.comparators[0])
        if isinstance(op, ast.In) and tasks and isinstance(left, Const):
            return C.atom(f"task:{left.value}")
        if isinstance(left, Task) and isinstance(right, Const):
            if right.value is None:
                return C.negate(C.atom("task:any pooling"))
            wanted = right.value if isinstance(op, ast.In) else (right.value,)
            return C.either(*[C.atom(f"task:{w}") for w in wanted])
        if isinstance(left, Const) and isinstance(right, Const) and isinstance(op, (ast.Eq, ast.Is)):
            return left.value == right.value
        if isinstance(right, Const) and right.value is None and isinstance(op, (ast.Is, ast.Eq)):
            return self.is_none(left, node, scope)
        if isinstance(op, ast.Eq) and isinstance(left, (Flag, Env)) and isinstance(right, Const):
            name = left.text() if isinstance(left, Flag) else f"env {left.name}"
            return C.atom(f"{name}={right.value}")
        text = ast.unparse(ast.Compare(node.left, [op], node.comparators))
        if "num_labels" in text:
            return C.atom("num_labels=1" if "1" in text else text)
        return self.not_understood(text, scope.module, node)

    def is_none(self, left, node, scope):
        if isinstance(left, Const):
            return left.value is None
        if isinstance(left, Flag):
            return C.negate(C.atom(left.text()))
        if isinstance(left, Env):
            return C.negate(C.atom(self.env_text(left.name)))
        # A server has a model, an engine and arguments: only `vllm launch render` goes without, and says so by task.
        return False if isinstance(left, (Param, Args, Router, State, Obj, Func, Class, Unknown)) else C.atom(f"`{ast.unparse(node)}`")

    # -- expressions ---------------------------------------------------------

    def eval(self, node, scope, deep=False):
        step = getattr(self, "eval_" + type(node).__name__, None)
        if step is None:
            return Unknown(ast.unparse(node))
        return step(node, scope, deep)

    def eval_Constant(self, node, scope, deep):
        return Const(node.value)

    def eval_Await(self, node, scope, deep):
        return self.eval(node.value, scope, deep)

    def eval_NamedExpr(self, node, scope, deep):
        value = self.eval(node.value, scope, deep)
        scope.names[node.target.id] = value
        return value

    def eval_Name(self, node, scope, deep):
        value = scope.get(node.id)
        return value if value is not None else self.global_name(scope.module, node.id)

    def eval_IfExp(self, node, scope, deep):
        test = self.truth(node.test, scope)
        a, b = self.eval(node.body, scope), self.eval(node.orelse, scope)
        if test is True or test is False:
            return a if test else b
        return self.join(test, {"x": a}, {"x": b})["x"]

    def eval_BoolOp(self, node, scope, deep):
        return Bool(self.truth(node, scope)) if deep or self.boolish(node, scope) else Unknown(ast.unparse(node))

    def boolish(self, node, scope):
        return all(isinstance(self.eval(x, scope), (Bool, Flag, Env, Const)) for x in node.values)

    def eval_UnaryOp(self, node, scope, deep):
        if isinstance(node.op, ast.Not):
            return Bool(self.truth(node, scope))
        return Unknown(ast.unparse(node))

    def eval_Compare(self, node, scope, deep):
        if len(node.ops) != 1:
            return Unknown(ast.unparse(node))
        return Bool(self.compare(node, scope))

    def eval_BinOp(self, node, scope, deep):
        a, b = self.eval(node.left, scope), self.eval(node.right, scope)
        if isinstance(node.op, ast.Add) and isinstance(a, Const) and isinstance(b, Const):
            if isinstance(a.value, str) and isinstance(b.value, str):
                return Const(a.value + b.value)
        return Unknown(ast.unparse(node))

    def eval_JoinedStr(self, node, scope, deep):
        out = ""
        for part in node.values:
            value = self.eval(part.value if isinstance(part, ast.FormattedValue) else part, scope)
            if not isinstance(value, Const):
                return Unknown(ast.unparse(node))
            out += str(value.value)
        return Const(out)

    def eval_Tuple(self, node, scope, deep):
        items = []
        for x in node.elts:
            if isinstance(x, ast.Starred):
                items += self.iterate(self.eval(x.value, scope)) or []
            else:
                items.append(self.eval(x, scope))
        if items and all(isinstance(i, Const) for i in items):
            return Const(tuple(i.value for i in items))
        return Items(items)

    eval_List = eval_Tuple

    def eval_Attribute(self, node, scope, deep):
        owner, name = self.eval(node.value, scope), node.attr
        if isinstance(owner, Router):
            return self.router_attribute(owner, name)
        if isinstance(owner, (State, Param)) and name in ("args", "cli_args"):
            return Args()
        if isinstance(owner, Args):
            return Flag(name)
        if isinstance(owner, Flag):
            return Flag(owner.name, name)
        if isinstance(owner, EnvModule):
            return Env(name)
        if isinstance(owner, Mod):
            return self.global_name(owner.module, name)
        if isinstance(owner, Ext):
            return EnvModule() if owner.dotted + "." + name == "vllm.envs" else Ext(owner.dotted + "." + name)
        if isinstance(owner, Obj):
            return self.object_attribute(owner, name)
        if isinstance(owner, RouteValue) and name in ("path", "methods"):
            return Const(owner.reg.path if name == "path" else tuple(owner.reg.methods))
        found = self.index.resolve_expr(scope.module, node)
        if found and found[0] != "external" and found[1] == "assign":
            return self.of_resolved(found, name)
        return Unknown(ast.unparse(node))

    def router_attribute(self, router, name):
        if name == "routes":
            return RouteList(router)
        if name == "router":
            return router
        if name == "state":
            return State()
        if name == "swagger_ui_oauth2_redirect_url":
            return Const("/docs/oauth2-redirect")
        return Method(router, name)

    def object_attribute(self, obj, name):
        if name in obj.attrs:
            return obj.attrs[name]
        for stmt in obj.cls.node.body:
            if isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef)) and stmt.name == name:
                return Func(obj.cls.module, stmt, None, obj.cls, obj)
        return Unknown(name)

    # -- calls -----------------------------------------------------------------

    def eval_Call(self, node, scope, deep):
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "any", "sorted", "list", "tuple", "isinstance"):
            value = self.builtin(node.func.id, node, scope)
            if value is not None:
                return value
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get_pooling_task":
            return Task()
        if isinstance(node.func, ast.Attribute) and node.func.attr == "exists":
            return Const(True)  # the release ships its own files
        callee = self.callee(node.func, scope)
        args = []
        for a in node.args:
            if isinstance(a, ast.Starred):
                args += self.iterate(self.eval(a.value, scope)) or [Unknown(ast.unparse(a))]
            else:
                args.append(self.eval(a, scope))
        kwargs = {k.arg: self.eval(k.value, scope) for k in node.keywords if k.arg}
        return self.apply(callee, args, kwargs, node, scope, deep=deep)

    def callee(self, node, scope):
        if isinstance(node, ast.Attribute):
            owner = self.eval(node.value, scope)
            if isinstance(owner, RouteList) and node.attr in ("append", "insert", "extend"):
                return Method(owner.router, "routes." + node.attr)
            if isinstance(owner, Unknown):
                return Unknown(owner.text + "." + node.attr)
        return self.eval(node, scope)

    def builtin(self, name, node, scope):
        if name == "getattr" and len(node.args) > 1:
            key = self.eval(node.args[1], scope)
            if isinstance(key, Const) and isinstance(key.value, str):
                return self.eval(ast.copy_location(ast.Attribute(node.args[0], key.value, ast.Load()), node), scope)
        if name in ("sorted", "list", "tuple") and node.args:
            return self.eval(node.args[0], scope)
        if name == "isinstance":
            return Const(True)
        if name == "any" and node.args and isinstance(node.args[0], ast.GeneratorExp):
            return self.any_of(node.args[0], scope)
        return None

    def any_of(self, gen, scope):
        test, loop = gen.elt, gen.generators[0]
        if isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.In):
            sides = [test.comparators[0], loop.iter]
            tasks = [s for s in sides if "supported_tasks" in ast.unparse(s)]
            names = [s for s in sides if s not in tasks]
            if tasks and names:
                if ast.unparse(names[0]) == "POOLING_TASKS":
                    return Bool(C.atom("task:any pooling"))
                value = self.eval(names[0], scope)
                if isinstance(value, Const) and isinstance(value.value, tuple):
                    return Bool(C.either(*[C.atom(f"task:{x}") for x in value.value]))
        values = self.iterate(self.eval(loop.iter, scope))
        if values is None:
            return None
        if values and isinstance(values[0], RouteValue) and isinstance(test, ast.Compare):
            wanted = self.eval(test.comparators[0], scope)
            hits = [v.reg.cond for v in values if isinstance(wanted, Const) and v.reg.path == wanted.value]
            return Bool(C.either(*hits))
        return None

    def apply(self, callee, args, kwargs, node, scope, deep=False, decorating=False):
        touches = [a for a in args + list(kwargs.values()) if isinstance(a, (Router, State, RouteList))]
        if isinstance(callee, Registrar):
            return callee.make(args[0] if args else Unknown("?"))
        if isinstance(callee, Method):
            return self.on_router(callee.router, callee.name, args, kwargs, node, scope)
        if isinstance(callee, Ext):
            return self.external(callee, args, kwargs, node, scope, touches)
        if isinstance(callee, Class):
            return self.construct(callee, args, kwargs)
        if isinstance(callee, Func):
            if callee.module.name.startswith(PACKAGE):
                return self.hosting_call(callee, args, node, scope)
            makes = callee.node.returns is not None and any(w in ast.unparse(callee.node.returns) for w in ("APIRouter", "FastAPI"))
            if not decorating and (touches or makes or deep or isinstance(callee.bound, Obj) or registrations(callee.node)):
                return self.run(callee, args, kwargs)
            return args[0] if decorating and args else Unknown(ast.unparse(node))
        if decorating:
            return args[0] if args else Unknown(ast.unparse(node))
        if touches:
            return self.opaque_call(callee, args, kwargs, node, scope)
        return Unknown(ast.unparse(node))

    def opaque_call(self, callee, args, kwargs, node, scope):
        """A call that is handed a router and whose code is not known."""
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ast.unparse(node)
        tail = name.rsplit(".", 1)[-1]
        routers = [a for a in args if isinstance(a, Router)]
        if tail == "expose" and routers:
            endpoint = kwargs.get("endpoint")
            path = endpoint.value if isinstance(endpoint, Const) else "/metrics"
            self.register(routers[0], ["GET"], path, "http", None, node, scope)
        elif tail not in HARMLESS and (routers or any(isinstance(a, RouteList) for a in args)):
            self.report("call", scope.module.rel, node.lineno, f"the application is handed to {name}, whose routes are not known")
        return Unknown(name)

    def construct(self, cls, args, kwargs):
        for stmt in cls.node.body:
            if isinstance(stmt, ast.FunctionDef) and stmt.name == "__init__" and "FastAPI(" in ast.unparse(stmt):
                obj = Obj(cls)
                self.run(Func(cls.module, stmt, None, cls, obj), args, kwargs)
                return obj
        return Unknown(cls.node.name + "()")

    def external(self, callee, args, kwargs, node, scope, touches):
        tail = callee.dotted.rsplit(".", 1)[-1]
        if tail == "FastAPI":
            return self.new_app(kwargs, node, scope)
        if tail == "APIRouter":
            prefix = kwargs.get("prefix")
            depends = self.depends(node, scope)
            return Router(False, prefix.value if isinstance(prefix, Const) else "", depends)
        if tail == "Mount" and args and isinstance(args[0], Const):
            return Mount(args[0].value, args[1] if len(args) > 1 else Unknown("app"), None)
        if tail == "StaticFiles":
            return Ext("StaticFiles()")
        if touches:
            return self.opaque_call(callee, args, kwargs, node, scope)
        return Unknown(ast.unparse(node)) if not tail.endswith("StaticFiles") else Ext("StaticFiles()")

    def new_app(self, kwargs, node, scope):
        """FastAPI serves its own documentation, for GET and HEAD, unless told not to."""
        app = Router(True)
        given = lambda k, d: kwargs[k].value if isinstance(kwargs.get(k), Const) else d
        openapi = given("openapi_url", "/openapi.json")
        docs, redoc = given("docs_url", "/docs"), given("redoc_url", "/redoc")
        if openapi:
            paths = [openapi] + ([docs, docs + "/oauth2-redirect"] if docs else []) + ([redoc] if redoc else [])
            for path in paths:
                self.register(app, ["GET", "HEAD"], path, "http", None, node, scope)
        return app
