"""What the handler of a route reads from a request: model or form, query, headers, keys of a raw body."""

import ast

from hosting import PACKAGE
from models import read_keys
from values import Func

REQUESTS = {"Request", "WebSocket", "HTTPConnection"}
SKIPPED = REQUESTS | {"Response", "BackgroundTasks", "SecurityScopes"}


class Reading:
    def __init__(self):
        self.headers, self.query, self.keys, self.form_keys = set(), set(), set(), set()
        self.raw_json = False
        self.fields, self.model, self.kind = [], "", "none"


class Handlers:
    def __init__(self, index, models, report):
        self.index, self.models, self.report = index, models, report

    def read(self, reg):
        """What one registration's handler reads; its dependencies and hosting decorators count too."""
        out = Reading()
        handler = reg.handler
        if not isinstance(handler, Func):
            return out
        path = {p.strip("{}").split(":")[0] for p in reg.path.split("/") if p.startswith("{")}
        if reg.hosted.endswith("_adapter"):
            self.hosted(reg, out)
            return out
        self.parameters(handler, path, out)
        seen = set()
        for func in [handler] + reg.depends:
            self.follow(func.module, func.node, func.owner and (func.owner.module, func.owner.node), self.request_names(func.node), set(), seen, out)
        for mark in handler.marks:
            self.marked(mark, out)
        if out.kind == "none" and (out.raw_json or out.keys):
            out.kind = "json"
        if out.kind == "none" and out.form_keys:
            out.kind = "form"
        self.synthetic(handler, reg, out)
        return out

    def synthetic(self, handler, reg, out):
        """A body read key by key gets a model of its own, so that fields are found in one place."""
        declared = {f["name"] for f in out.fields}
        for name in sorted(out.keys - declared) if not out.model else []:
            out.fields.append({"name": name, "annotation": ""})
        if out.fields and not out.model:
            name = "body:" + reg.path
            before = self.models.out.get(name, {"fields": []})["fields"]
            fields = before + [f for f in out.fields if f["name"] not in {b["name"] for b in before}]
            self.models.out[name] = {"source": handler.module.rel, "kind": "raw", "extra": "ignore", "fields": fields}
            out.model = name

    # -- declared parameters ----------------------------------------------------------

    def parameters(self, handler, path, out):
        spec = handler.node.args
        params = spec.posonlyargs + spec.args + spec.kwonlyargs
        defaults = [None] * (len(spec.posonlyargs + spec.args) - len(spec.defaults)) + list(spec.defaults) + list(spec.kw_defaults)
        bodies = []
        for param, default in zip(params, defaults):
            if param.arg in path or param.annotation is None or param.arg in ("self", "cls"):
                continue
            self.parameter(handler, param, default, bodies, out)
        if not bodies:
            return
        embedded = len(bodies) > 1 or bodies[0][2]
        if not embedded:
            name, annotation, _, _ = bodies[0]
            out.model = self.models.of_annotation(handler.module, annotation)
            out.kind = "json"
            if out.model:
                return
            bodies = []
        for name, annotation, _, default in bodies:
            out.kind = "json"
            field = {"name": name, "annotation": self.models.clean(annotation)}
            field.update({"required": True} if default is None else {"default": ast.unparse(default)})
            out.fields.append(field)
            self.models.reach(handler.module, annotation)

    def parameter(self, handler, param, default, bodies, out):
        annotation, tail = param.annotation, ast.unparse(param.annotation).split(".")[-1]
        if tail.split(" ")[0] in SKIPPED:
            return
        marker = self.marker(annotation, default)
        where = marker and ast.unparse(marker.func).split(".")[-1]
        alias = next((k.value.value for k in marker.keywords if k.arg == "alias" and isinstance(k.value, ast.Constant)), None) if marker else None
        inner = annotation.slice.elts[0] if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).endswith("Annotated") else annotation
        if where in ("Depends", "Security"):
            return
        if where == "Header":
            out.headers.add((alias or param.arg.replace("_", "-")).lower())
        elif where in ("Form", "File") or "UploadFile" in tail:
            self.form(handler, param.arg, inner, out)
        elif where == "Body":
            embed = any(k.arg == "embed" and getattr(k.value, "value", False) for k in marker.keywords)
            bodies.append((param.arg, inner, embed, None if default is marker else default))
        elif where == "Query" or not self.is_body(handler.module, inner):
            out.query.add(alias or param.arg)
        else:
            bodies.append((param.arg, inner, False, default))

    def form(self, handler, name, annotation, out):
        out.kind = "form"
        out.model = self.models.of_annotation(handler.module, annotation) or out.model
        if not out.model:
            out.fields.append({"name": name, "annotation": self.models.clean(annotation)})

    def marker(self, annotation, default):
        options = [default]
        if isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple):
            options += annotation.slice.elts[1:]
        names = ("Query", "Header", "Body", "Form", "File", "Depends", "Security", "Path", "Cookie")
        for node in options:
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
                return node
        return None

    def is_body(self, module, annotation):
        """FastAPI takes a parameter from the body when its type is a model, a dataclass, a dict or a list of them."""
        text = ast.unparse(annotation)
        if text.split("[")[0].split(".")[-1].lower() in ("dict", "mapping") or text == "Any":
            return True
        for name in self.models.mentioned(annotation):
            found = self.index.resolve_expr(module, name)
            if found and found[0] != "external" and found[1] == "class":
                if self.models.kind(self.models.mro(found[0], found[2])) in ("pydantic", "dataclass", "typed_dict"):
                    return True
            if found and found[0] != "external" and found[1] == "assign" and self.models.union(found[2]):
                return any(self.is_body(found[0], m) for m in self.models.union(found[2]) if m is not found[2])
            if found and found[0] == "external" and found[1].split(".")[0] in ("openai", "anthropic", "cohere"):
                return True
        return False

    # -- what the code reads ------------------------------------------------------------

    def request_names(self, node):
        params = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        return {p.arg for p in params if p.annotation is not None and any(r in ast.unparse(p.annotation).replace("|", " ").split() for r in REQUESTS)}

    def follow(self, module, node, owner, requests, bodies, seen, out):
        """Reads one function, and the functions of the release that it hands the request or its parts to."""
        key = (module.name, node.lineno, tuple(sorted(requests)), tuple(sorted(bodies)))
        if key in seen or not (requests or bodies):
            return
        seen.add(key)
        requests = set(requests)
        headers, types = set(), {}
        bodies, forms = set(bodies), set()
        for sub in ast.walk(node):
            self.note_assignment(sub, module, owner, requests, headers, bodies, forms, types, out)
        out.keys |= read_keys(node, bodies)
        out.form_keys |= read_keys(node, forms)
        for sub in ast.walk(node):
            self.note_read(sub, module, requests, headers, out)
        for sub in ast.walk(node):
            if isinstance(sub, ast.Call):
                self.follow_call(sub, module, owner, requests, headers, bodies, types, seen, out)

    def note_assignment(self, sub, module, owner, requests, headers, bodies, forms, types, out):
        if isinstance(sub, ast.Assign) and len(sub.targets) == 1 and isinstance(sub.targets[0], ast.Name):
            name, value = sub.targets[0].id, sub.value
        elif isinstance(sub, (ast.AnnAssign, ast.NamedExpr)) and isinstance(sub.target, ast.Name) and sub.value is not None:
            name, value = sub.target.id, sub.value
            if isinstance(sub, ast.AnnAssign):
                types[name] = self.classes(module, sub.annotation)
        else:
            return
        text = ast.unparse(value.value if isinstance(value, ast.Await) else value)
        call = value.value if isinstance(value, ast.Await) else value
        if isinstance(call, ast.Call) and any(ast.unparse(a) in requests for a in call.args + [k.value for k in call.keywords]):
            requests.add(name + ".raw_request")  # a context that carries the request on
        if any(text in (r + ".headers", f"dict({r}.headers)") for r in requests):
            headers.add(name)
        elif isinstance(value, ast.Await) and isinstance(value.value, ast.Call):
            mentions = any(r in text for r in requests)
            if mentions and "json" in text.lower():
                out.raw_json = True
                bodies.add(name)
            elif mentions and text.endswith(".form()"):
                forms.add(name)
        elif isinstance(value, ast.Call):
            found = self.index.resolve_expr(module, value.func)
            if found and found[0] != "external" and found[1] == "def" and found[2].returns is not None:
                types.setdefault(name, self.classes(found[0], found[2].returns))
            elif found and found[0] != "external" and found[1] == "class":
                types.setdefault(name, [(found[0], found[2])])
            if "json.loads" in text or "orjson.loads" in text:
                bodies.add(name) if any(r in text for r in requests) else None

    def classes(self, module, annotation):
        found = [self.index.resolve_expr(module, n) for n in self.models.mentioned(annotation)]
        return [(f[0], f[2]) for f in found if f and f[0] != "external" and f[1] == "class"]

    def note_read(self, sub, module, requests, headers, out):
        target, key = None, None
        if isinstance(sub, ast.Call) and isinstance(sub.func, ast.Attribute) and sub.func.attr in ("get", "getlist") and sub.args:
            target, key = sub.func.value, sub.args[0]
        elif isinstance(sub, ast.Subscript):
            target, key = sub.value, sub.slice
        elif isinstance(sub, ast.Compare) and isinstance(sub.ops[0], (ast.In, ast.NotIn)):
            target, key = sub.comparators[0], sub.left
        if target is None:
            if isinstance(sub, ast.Call) and isinstance(sub.func, ast.Attribute) and sub.func.attr == "json" and isinstance(sub.func.value, ast.Name) and sub.func.value.id in requests:
                out.raw_json = True
            return
        text = ast.unparse(target)
        is_header = text in headers or any(text == r + ".headers" for r in requests)
        is_query = any(text == r + ".query_params" for r in requests)
        if not is_header and not is_query:
            return
        value = self.index.constant(module, key)
        if isinstance(value, str):
            (out.headers if is_header else out.query).add(value.lower() if is_header else value)
        elif not isinstance(sub, ast.Compare):
            self.report("header" if is_header else "query", module.rel, sub.lineno, f"name not constant: {ast.unparse(key)}")

    def follow_call(self, call, module, owner, requests, headers, bodies, types, seen, out):
        passed = []
        for i, arg in list(enumerate(call.args)) + [(k.arg, k.value) for k in call.keywords]:
            text = ast.unparse(arg)
            if isinstance(arg, ast.Starred):  # f(*args): whatever came in by position goes on by position
                inside = [r for r in requests if r.startswith(text + "[")]
                passed += [(i + int(r[len(text) + 1 : -1]), "request") for r in inside]
            elif text in requests:
                passed.append((i, "request"))
            elif text in headers or any(text == r + ".headers" for r in requests):
                passed.append((i, "headers"))
            elif text in bodies:
                passed.append((i, "body"))
            elif text + ".raw_request" in requests:
                passed.append((i, "context"))
        if not passed:
            return
        for target, func, cls in self.targets(call, module, owner, types):
            names = [a.arg for a in func.args.posonlyargs + func.args.args]
            if cls is not None and names and names[0] in ("self", "cls"):
                names = names[1:]
            inner = {"request": set(), "headers": set(), "body": set()}
            for where, what in passed:
                name = where if isinstance(where, str) else names[where] if where < len(names) else None
                if name is None and func.args.vararg:
                    name = f"*{func.args.vararg.arg}[{where - len(names)}]"
                if name and what == "context":
                    inner["request"].add(name + ".raw_request")
                elif name:
                    inner[what].add(name)
            self.follow_headers(target, func, inner["headers"], out)
            self.follow(target, func, cls, inner["request"], inner["body"], seen, out)

    def follow_headers(self, module, func, names, out):
        loops = self.header_lists(module, func, names, out)
        for sub in ast.walk(func) if names else []:
            if not isinstance(sub, ast.Subscript) or ast.unparse(sub.slice) not in loops:
                self.note_read(sub, module, set(), names, out)
            if isinstance(sub, ast.Call):
                for arg in sub.args:
                    if isinstance(arg, ast.Name) and arg.id in names:
                        found = self.index.resolve_expr(module, sub.func)
                        if found and found[0] != "external" and found[1] == "def" and found[2] is not func:
                            params = [a.arg for a in found[2].args.args]
                            position = sub.args.index(arg)
                            self.follow_headers(found[0], found[2], set(params[position : position + 1]), out)

    def header_lists(self, module, func, names, out):
        """`for h in TRACE_HEADERS: if h in headers`: the constant list names the headers. Gives the loop variables."""
        variables = set()
        for sub in ast.walk(func) if names else []:
            loops = [sub] if isinstance(sub, ast.For) else list(getattr(sub, "generators", []))
            for loop in loops:
                values = self.index.constant(module, loop.iter)
                body = ast.unparse(sub)
                if isinstance(values, tuple) and any(f"in {n}" in body or f"{n}[" in body or f"{n}.get" in body for n in names):
                    out.headers |= {v.lower() for v in values if isinstance(v, str)}
                    variables.add(ast.unparse(loop.target))
        return variables

    def targets(self, call, module, owner, types):
        """The functions of the release a call may run: (module, node, class or None)."""
        func = call.func
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            classes = [owner] if func.value.id in ("self", "cls") and owner else types.get(func.value.id, [])
            for cls in classes:
                yield from self.method(cls, func.attr)
            if classes:
                return
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Call) and ast.unparse(func.value) == "super()" and owner:
            for cls in self.models.mro(*owner)[1:]:
                found = list(self.method(cls, func.attr))
                if found:
                    yield from found[:1]
                    return
        if isinstance(func, ast.Name) and func.id in types:
            for cls in types[func.id]:
                yield from self.method(cls, "__call__")
            return
        if isinstance(func, ast.Attribute):
            base = self.index.resolve_expr(module, func.value)
            if base and base[0] != "external" and base[1] == "class":
                yield from self.method((base[0], base[2]), func.attr)
                return
        found = self.index.resolve_expr(module, func)
        if found and found[0] != "external" and found[1] == "def":
            yield found[0], found[2], None

    def method(self, cls, name):
        for owner, node in self.models.mro(*cls):
            for stmt in node.body:
                if isinstance(stmt, (ast.FunctionDef, ast.AsyncFunctionDef)) and stmt.name == name:
                    yield owner, stmt, cls
                    return

    # -- hosting standards -----------------------------------------------------------------

    def hosted(self, reg, out):
        """A route whose body the hosting standards read: their transform validates it, then calls the handler."""
        module = self.index.module(f"{PACKAGE}.sagemaker.lora.transforms." + reg.hosted.split("_")[0])
        if module is None:
            self.report("model", reg.rel, reg.line, f"{reg.path}: the transform that reads its body was not found")
            return
        for cls in [n for n in module.tree.body if isinstance(n, ast.ClassDef)]:
            for owner, base in self.models.mro(module, cls):
                for func in [n for n in base.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]:
                    self.follow(owner, func, (module, cls), self.request_names(func), set(), set(), out)
                    for call in [n for n in ast.walk(func) if isinstance(n, ast.Call)]:
                        for where, inner, _ in self.targets(call, owner, None, {}):
                            self.follow(where, inner, None, self.request_names(inner), set(), set(), out)
        for call in ast.walk(module.tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "model_validate":
                out.model = self.models.of_annotation(module, call.func.value)
        out.kind = "json" if out.model else "none"
        if out.model and "query_params" in ast.unparse(module.tree):
            out.query |= {f["name"] for f in self.models.out[out.model]["fields"]}

    def marked(self, mark, out):
        """Headers that a decorator of the hosting standards reads."""
        _, module, node = mark
        for sub in ast.walk(node):
            if isinstance(sub, ast.Attribute) and isinstance(sub.value, ast.Name) and sub.value.id.endswith("Header"):
                value = self.index.constant(module, sub)
                if isinstance(value, str):
                    out.headers.add(value.lower())
