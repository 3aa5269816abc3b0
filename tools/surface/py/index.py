"""The Python files of a release as parsed modules, and what a name in one of them means.

Nothing is imported or run: names are followed through the import statements.
"""

import ast
import os


class Module:
    def __init__(self, name, path, rel, is_package):
        self.name, self.path, self.rel, self.is_package = name, path, rel, is_package
        with open(path, encoding="utf-8", errors="replace") as f:
            self.tree = ast.parse(f.read(), filename=rel)
        self.names, self.stars = {}, []
        self._bind(self.tree.body)

    def _bind(self, body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.names[node.name] = ("def", node)
            elif isinstance(node, ast.ClassDef):
                self.names[node.name] = ("class", node)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for bound, target in import_targets(self, node):
                    if bound == "*":
                        self.stars.append(target[1])
                    else:
                        self.names[bound] = target
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        self.names[target.id] = ("assign", node.value)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.names[node.target.id] = ("assign", node.value)
            elif hasattr(ast, "TypeAlias") and isinstance(node, ast.TypeAlias):
                self.names[node.name.id] = ("assign", node.value)
            elif isinstance(node, ast.If):
                # The names under TYPE_CHECKING are the ones that annotations mean,
                # so they are bound last: `else: X = object` must not hide them.
                self._bind(node.orelse)
                self._bind(node.body)
            elif isinstance(node, ast.Try):
                for handler in node.handlers:
                    self._bind(handler.body)
                self._bind(node.body)
                self._bind(node.orelse)
            elif isinstance(node, ast.With):
                self._bind(node.body)


def import_targets(module, node):
    """What an import statement binds: (name, ("module", dotted)) or (name, ("from", dotted, name)); the name may be *."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname:
                yield alias.asname, ("module", alias.name)
            else:
                yield alias.name.split(".")[0], ("module", alias.name.split(".")[0])
        return
    base = node.module or ""
    if node.level:
        parts = module.name.split(".")
        drop = node.level - (1 if module.is_package else 0)
        parts = parts[: len(parts) - drop]
        base = ".".join(parts + ([node.module] if node.module else []))
    for alias in node.names:
        yield alias.asname or alias.name, ("from", base, alias.name)


class Index:
    def __init__(self, root, packages):
        self.root, self.packages = root, packages
        self.modules = {}
        self.broken = []

    def paths(self):
        """Every Python file of the packages, as (module name, relative path)."""
        for package in self.packages:
            for folder, dirs, files in os.walk(os.path.join(self.root, package)):
                dirs.sort()
                for file in sorted(files):
                    if file.endswith(".py"):
                        rel = os.path.relpath(os.path.join(folder, file), self.root)
                        name = rel[: -len(".py")].replace(os.sep, ".")
                        if name.endswith(".__init__"):
                            name = name[: -len(".__init__")]
                        yield name, rel

    def module(self, name):
        """The parsed module, or None when the release does not hold it."""
        if name in self.modules:
            return self.modules[name]
        found = None
        if name.split(".")[0] in self.packages:
            stem = os.path.join(self.root, *name.split("."))
            for path, is_package in ((stem + ".py", False), (os.path.join(stem, "__init__.py"), True)):
                if os.path.isfile(path):
                    found = self._parse(name, path, is_package)
                    break
        self.modules[name] = found
        return found

    def _parse(self, name, path, is_package):
        rel = os.path.relpath(path, self.root)
        try:
            return Module(name, path, rel, is_package)
        except SyntaxError as error:
            self.broken.append((rel, f"not parsed: {error}"))
            return None

    def resolve(self, module, name, depth=0):
        """Follow a name to (module, kind, node), ("external", dotted) or None."""
        if depth > 20:
            return None
        bound = module.names.get(name)
        if bound is None:
            sub = self.module(module.name + "." + name) if module.is_package else None
            return (sub, "module", None) if sub else self.through_stars(module, name, depth)
        return self.follow(module, bound, depth)

    def through_stars(self, module, name, depth):
        """`from x import *` hands on the public names of x."""
        for base in module.stars if not name.startswith("_") else []:
            target = self.module(base)
            found = self.resolve(target, name, depth + 1) if target else None
            if found:
                return found
        return None

    def follow(self, module, bound, depth=0):
        if bound[0] == "module":
            target = self.module(bound[1])
            return (target, "module", None) if target else ("external", bound[1])
        if bound[0] == "from":
            base, name = bound[1], bound[2]
            sub = self.module(base + "." + name)
            target = self.module(base)
            if target is not None and (name in target.names or sub is None):
                return self.resolve(target, name, depth + 1)
            if sub is not None:
                return (sub, "module", None)
            return ("external", base + "." + name)
        if bound[0] == "assign" and isinstance(bound[1], ast.Name) and bound[1].id != "":
            if bound[1].id in module.names and module.names[bound[1].id] is not bound:
                return self.resolve(module, bound[1].id, depth + 1)
        return (module, bound[0], bound[1])

    def resolve_expr(self, module, node):
        """The same for a dotted expression such as `protocol.ChatRequest`."""
        if isinstance(node, ast.Name):
            return self.resolve(module, node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve_expr(module, node.value)
            if base is None:
                return None
            if base[0] == "external":
                return ("external", base[1] + "." + node.attr)
            if base[1] == "module":
                return self.resolve(base[0], node.attr)
            if base[1] == "class":
                return self.class_attribute(base[0], base[2], node.attr)
        return None

    def class_attribute(self, module, cls, name):
        for stmt in cls.body:
            if isinstance(stmt, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in stmt.targets):
                return (module, "assign", stmt.value)
            if isinstance(stmt, ast.AnnAssign) and isinstance(stmt.target, ast.Name) and stmt.target.id == name:
                return (module, "assign", stmt.value) if stmt.value else None
        return None

    def constant(self, module, node, depth=0):
        """The value of a constant expression, or None: strings, numbers, tuples, names of such, get_args(Literal)."""
        if depth > 10 or node is None:
            return None
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            items = [self.constant(module, x, depth + 1) for x in node.elts]
            return None if any(x is None for x in items) else tuple(items)
        if isinstance(node, (ast.UnaryOp, ast.BinOp)):
            return self.number(module, node, depth)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("get_args", "frozenset", "set"):
            return self.constant(module, node.args[0], depth + 1) if node.args else None
        if isinstance(node, ast.Subscript) and isinstance(node.value, (ast.Name, ast.Attribute)):
            name = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if name == "Literal":
                value = self.constant(module, node.slice, depth + 1)
                return value if isinstance(value, tuple) else None if value is None else (value,)
        if isinstance(node, (ast.Name, ast.Attribute)):
            found = self.resolve_expr(module, node)
            if found and found[0] != "external" and found[1] == "assign":
                return self.constant(found[0], found[2], depth + 1)
        return None

    def number(self, module, node, depth):
        """-(2**63), 5 * 1024: small arithmetic of integers."""
        if isinstance(node, ast.UnaryOp):
            value = self.constant(module, node.operand, depth + 1)
            return -value if isinstance(node.op, ast.USub) and isinstance(value, (int, float)) else None
        left, right = self.constant(module, node.left, depth + 1), self.constant(module, node.right, depth + 1)
        if type(left) is not int or type(right) is not int or abs(right) > 2**63:
            return None
        if isinstance(node.op, ast.Pow):
            return left**right if 0 <= right <= 128 and abs(left) <= 1024 else None
        steps = {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}
        return steps.get(type(node.op))
