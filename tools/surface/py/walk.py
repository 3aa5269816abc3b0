"""Reads what a release registers, by following the statements from where an application is made.

Every `if` on the way becomes part of the condition of the registrations behind it. Anything that takes a router
and cannot be followed is reported, never passed over.
"""

import ast

import cond as C
from calls import Calls
from hosting import PACKAGE
from index import import_targets
from values import *

MAX_DEPTH = 25


class Returned(Exception):
    pass


class Walker(Calls):
    def __init__(self, index, installed):
        self.index, self.installed = index, installed
        self.cond = True
        self.depth = 0
        self.scopes = {}
        self.unresolved = []
        self.opaque = {}  # text of a condition that was not understood -> where it stands
        self.hosting = {}  # handler type of the hosting standards -> [(condition, Func)]
        self.stack = []

    # -- modules -----------------------------------------------------------

    def module_scope(self, module):
        """A module's names after its top level ran; a module runs once, unconditionally."""
        if module.name in self.scopes:
            return self.scopes[module.name]
        scope = Scope(module)
        self.scopes[module.name] = scope
        if not self._registers(module):
            return scope
        saved, self.cond = self.cond, True
        self.block(module.tree.body, scope)
        self.cond = saved
        return scope

    def _registers(self, module):
        """Only modules that make routers are run; names of the others are looked up one by one."""
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in ("APIRouter", "FastAPI"):
                    return True
        return False

    def global_name(self, module, name):
        scope = self.module_scope(module)
        if name in scope.names:
            return scope.names[name]
        found = self.index.resolve(module, name)
        return self.of_resolved(found, name)

    def of_resolved(self, found, name):
        if found is None:
            return Unknown(name)
        if found[0] == "external":
            return EnvModule() if found[1] == "vllm.envs" else Ext(found[1])
        module, kind, node = found
        if kind == "module":
            return EnvModule() if module.name == "vllm.envs" else Mod(module)
        if module.name == "vllm.envs":
            return Env(name)
        if kind in ("def", "class"):
            live = self.module_scope(module).names.get(node.name)
            if live is not None:
                return live
            return Func(module, node) if kind == "def" else Class(module, node)
        for bound, target in module.names.items():
            if target == (kind, node) and bound in self.module_scope(module).names:
                return self.module_scope(module).names[bound]
        if module.name.startswith(PACKAGE) and isinstance(node, ast.Call):
            maker = self.index.resolve_expr(module, node.func)
            if maker and maker[0] != "external" and maker[1] == "def":
                func = Func(maker[0], maker[2])
                func.alias = name
                return func
        value = self.index.constant(module, node)
        return Unknown(name) if value is None else Const(value)

    # -- statements ----------------------------------------------------------

    def block(self, body, scope):
        """Runs statements; False when control never leaves at the end. Narrows self.cond on the way."""
        for node in body:
            if self.cond is False:
                return False
            if not self.statement(node, scope):
                return False
        return True

    def statement(self, node, scope):
        name = type(node).__name__
        step = getattr(self, "on_" + name, None)
        return True if step is None else step(node, scope) is not False

    def on_Expr(self, node, scope):
        self.eval(node.value, scope)

    def on_Return(self, node, scope):
        value = Const(None) if node.value is None else self.eval(node.value, scope)
        if self.stack:
            self.stack[-1].append((self.cond, value))
        return False

    def on_Raise(self, node, scope):
        return False

    def on_Assign(self, node, scope):
        value = self.eval(node.value, scope)
        for target in node.targets:
            self.assign(target, value, scope)

    def on_AnnAssign(self, node, scope):
        if node.value is not None:
            self.assign(node.target, self.eval(node.value, scope), scope)

    def assign(self, target, value, scope):
        if isinstance(target, ast.Name):
            scope.names[target.id] = value
        elif isinstance(target, ast.Attribute):
            owner = self.eval(target.value, scope)
            if isinstance(owner, Obj):
                known = owner.attrs.get(target.attr)
                if isinstance(known, Router) and isinstance(value, Router):
                    known.merge(value)
                else:
                    owner.attrs[target.attr] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = value.items if isinstance(value, Items) else []
            for i, t in enumerate(target.elts):
                self.assign(t, items[i] if i < len(items) else Unknown(ast.unparse(t)), scope)

    def on_Import(self, node, scope):
        for bound, target in import_targets(scope.module, node):
            if bound == "*":
                continue  # names come through the index
            scope.names[bound] = self.of_resolved(self.index.follow(scope.module, target), bound)

    on_ImportFrom = None

    def on_FunctionDef(self, node, scope):
        value = Func(scope.module, node, scope)
        for decorator in reversed(node.decorator_list):
            value = self.apply(self.eval(decorator, scope), [value], {}, decorator, scope, decorating=True)
            if not isinstance(value, Func):
                value = Func(scope.module, node, scope)
        scope.names[node.name] = value

    on_AsyncFunctionDef = on_FunctionDef

    def on_ClassDef(self, node, scope):
        scope.names[node.name] = Class(scope.module, node)

    def on_If(self, node, scope):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return self.block(node.orelse, scope)
        return self.branch(self.truth(node.test, scope), node.body, node.orelse, scope)

    def branch(self, test, body, orelse, scope):
        before, names = self.cond, dict(scope.names)
        then = C.both(before, test)
        other = C.both(before, C.negate(test))
        self.cond, alive_then = then, then is not False
        if alive_then:
            alive_then = self.block(body, scope)
        then_after, then_names = self.cond, scope.names
        scope.names = dict(names)
        self.cond, alive_other = other, other is not False
        if alive_other:
            alive_other = self.block(orelse, scope)
        other_after = self.cond
        if alive_then and alive_other:
            scope.names = self.join(test, then_names, scope.names)
            whole = then_after == then and other_after == other
            self.cond = before if whole else C.either(then_after, other_after)
        elif alive_then:
            scope.names, self.cond = then_names, then_after
        elif not alive_other:
            return False
        return True

    def join(self, test, a, b):
        """One name, assigned differently in two branches."""
        out = dict(b)
        for name, value in a.items():
            other = b.get(name)
            if other is None or other is value:
                out[name] = value
            elif isinstance(value, Router) and isinstance(other, Router):
                value.merge(other)
                out[name] = value
            elif isinstance(value, (Bool, Const, Flag, Env)) and isinstance(other, (Bool, Const, Flag, Env)):
                either = C.either(C.both(test, self.truth_of(value)), C.both(C.negate(test), self.truth_of(other)))
                out[name] = Bool(either)
            else:
                out[name] = value
        return out

    def on_Try(self, node, scope):
        optional = self.optional_import(node)
        if optional is None:
            alive = self.block(node.body + node.orelse, scope)
            after = self.cond
            self.block(node.finalbody, scope)
            self.cond = after
            return alive
        handler = node.handlers[0].body
        return self.branch(C.atom(f"pip package {optional} installed"), node.body + node.orelse, handler, scope)

    def optional_import(self, node):
        """The package a `try: import x` / `except ImportError` probes, when the release does not require it."""
        catches = [h for h in node.handlers if h.type is not None and "Import" in ast.unparse(h.type) or h.type is not None and "ModuleNotFound" in ast.unparse(h.type)]
        if not catches:
            return None
        for stmt in node.body:
            if isinstance(stmt, ast.Import):
                package = stmt.names[0].name.split(".")[0]
            elif isinstance(stmt, ast.ImportFrom) and not stmt.level:
                package = (stmt.module or "").split(".")[0]
            else:
                continue
            if package not in self.installed and package not in self.index.packages:
                return package
        return None

    def on_With(self, node, scope):
        return self.block(node.body, scope)

    on_AsyncWith = on_With

    def on_For(self, node, scope):
        values = self.iterate(self.eval(node.iter, scope))
        if values is None:
            values = [Unknown(ast.unparse(node.target))]
        for value in values:
            before = self.cond
            self.assign(node.target, value, scope)
            self.block(node.body, scope)
            self.cond = before
        return True

    def iterate(self, value):
        if isinstance(value, Items):
            return value.items
        if isinstance(value, RouteList):
            return [RouteValue(r) for r in value.router.regs]
        if isinstance(value, Const) and isinstance(value.value, (tuple, list)):
            return [Const(x) for x in value.value]
        return None

    def on_While(self, node, scope):
        before = self.cond
        self.block(node.body, scope)
        self.cond = before
        return True

    # -- running functions -----------------------------------------------------

    def run(self, func, args, kwargs, entry=False):
        """Runs a function of the release with these values and gives back what it returns."""
        if self.depth > MAX_DEPTH:
            self.report("depth", func.module.rel, func.node.lineno, f"{func.node.name}: calls nested too deeply")
            return Unknown(func.node.name)
        scope = Scope(func.module, func.scope)
        self.bind(func, args, kwargs, scope, entry)
        before, self.depth = self.cond, self.depth + 1
        self.stack.append([])
        self.block(func.node.body, scope)
        returns = self.stack.pop()
        self.cond, self.depth = before, self.depth - 1
        return self.returned(returns, before)

    def returned(self, returns, before):
        if len(returns) == 1:
            return returns[0][1]
        if returns and all(isinstance(v, (Const, Bool, Flag, Env)) for _, v in returns):
            cases = []
            for path, value in returns:
                relative = self.relative(path, before)
                cases.append(C.both(relative, self.truth_of(value)))
            return Bool(C.either(*cases))
        routers = [v for _, v in returns if isinstance(v, Router)]
        return routers[0] if routers else Unknown("return value")

    def relative(self, path, before):
        """The part of a path's condition that was added since `before`."""
        if before is True or not isinstance(path, tuple):
            return path
        known = before[1] if before[0] == "and" else [before]
        parts = path[1] if path[0] == "and" else [path]
        return C.both(*[p for p in parts if p not in known])

    def bind(self, func, args, kwargs, scope, entry):
        """Arguments to names. An entry function's are all left open: what it is called with is the question."""
        spec = func.node.args
        names = [a.arg for a in spec.posonlyargs + spec.args]
        values = list(args)
        if func.bound is not None and names:
            values.insert(0, func.bound)
        defaults = dict(zip(names[len(names) - len(spec.defaults) :], spec.defaults))
        defaults.update({a.arg: d for a, d in zip(spec.kwonlyargs, spec.kw_defaults) if d is not None})
        for i, name in enumerate(names + [a.arg for a in spec.kwonlyargs]):
            if name in kwargs:
                scope.names[name] = kwargs[name]
            elif i < len(values) and i < len(names):
                scope.names[name] = values[i]
            elif name in defaults and not entry:
                scope.names[name] = self.eval(defaults[name], func.scope or self.module_scope(func.module))
            elif name in ("args", "cli_args"):
                scope.names[name] = Args()
            else:
                scope.names[name] = Param(name)

    def report(self, kind, rel, line, text):
        entry = (kind, f"{rel}:{line}" if line else rel, text)
        if entry not in self.unresolved:
            self.unresolved.append(entry)


Walker.on_ImportFrom = Walker.on_Import
