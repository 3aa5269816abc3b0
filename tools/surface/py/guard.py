"""The key middleware: which path prefixes it guards. And the headers that middlewares read."""

import ast

import cond as C
from values import Class, Func


class Guard:
    def __init__(self, index, report):
        self.index, self.report = index, report

    def read(self, apps):
        """Guarded prefixes, and every middleware with its condition and the headers it reads."""
        prefixes, listed = [], {}
        for app in apps:
            for cond, value, rel, line in app.middleware:
                if not isinstance(value, (Class, Func)):
                    continue
                name, text = value.node.name, C.text(cond)
                listed[(name, text)] = {"name": name, "condition": text, "source": value.module.rel, "headers": self.headers(value)}
                if "auth" in name.lower():
                    prefixes += [p for p in self.prefixes(value) if p not in prefixes]
        if not prefixes:
            self.report("guard", "vllm", 0, "no key middleware found, or its prefixes are not constant")
        return sorted(prefixes), [listed[k] for k in sorted(listed)]

    def headers(self, value):
        found = set()
        for node in ast.walk(value.node):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
                target = ast.unparse(node.func.value).lower()
                key = self.index.constant(value.module, node.args[0])
                if "headers" in target and "response" not in target and isinstance(key, str):
                    found.add(key.lower())
        return sorted(found)

    def prefixes(self, value):
        out = []
        for node in ast.walk(value.node):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr != "startswith" or not node.args or "path" not in ast.unparse(node.func.value):
                continue
            if ast.unparse(node.args[0]).endswith("root_path"):
                continue  # the root path is taken off first, it guards nothing
            found = self.constant(value, node.args[0])
            if found is None:
                self.report("guard", value.module.rel, node.lineno, f"prefix not constant: {ast.unparse(node)}")
            out += found or []
        return out

    def constant(self, value, node):
        if isinstance(node, ast.JoinedStr):  # f"{root_path}/v1"
            tail = node.values[-1]
            return [tail.value] if isinstance(tail, ast.Constant) else None
        found = self.index.constant(value.module, node)
        if isinstance(found, str):
            return [found]
        return list(found) if isinstance(found, tuple) else None
