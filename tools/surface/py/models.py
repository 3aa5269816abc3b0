"""Request models: fields with what they inherit, and everything that their annotations reach."""

import ast
import builtins

# Names that annotations use and that say nothing about a field's own content.
VOCABULARY = {
    "typing", "typing_extensions", "pydantic", "collections", "enum", "dataclasses", "datetime", "abc", "builtins",
    "types", "uuid", "annotated_types", "pydantic_core",
}
PROSE = {"description", "title", "examples", "json_schema_extra", "deprecated", "repr", "example"}
NAMES = {"alias", "validation_alias", "serialization_alias"}
KINDS = {
    "pydantic.BaseModel": "pydantic", "typing.TypedDict": "typed_dict", "typing_extensions.TypedDict": "typed_dict",
    "msgspec.Struct": "struct", "enum.Enum": "enum", "enum.IntEnum": "enum", "enum.StrEnum": "enum",
    "typing.NamedTuple": "named_tuple", "pydantic.RootModel": "pydantic",
}


class Models:
    def __init__(self, index, report):
        self.index, self.report = index, report
        self.out, self.keys, self.external = {}, {}, {}

    # -- entry -------------------------------------------------------------------

    def of_annotation(self, module, node):
        """The name of the model an annotation stands for, or "" when it is no model; collects what it reaches."""
        names = []
        self.reach(module, node, names)
        return names[0] if names else ""

    def reach(self, module, node, names=None):
        names = [] if names is None else names
        for name in self.mentioned(node):
            key = self.add(module, name)
            if key:
                names.append(key)
        return names

    def mentioned(self, node):
        """The name expressions in an annotation, forward references included, Field(...) and Literal contents not."""
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield node
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                yield from self.mentioned(ast.parse(node.value.strip(), mode="eval").body)
            except SyntaxError:
                return
        elif isinstance(node, ast.Subscript):
            if ast.unparse(node.value).split(".")[-1] == "Literal":
                return
            yield from self.mentioned(node.value)
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            for item in items:
                if not isinstance(item, ast.Constant) or isinstance(item.value, str) and item.value.isidentifier():
                    yield from self.mentioned(item)
        elif isinstance(node, ast.BinOp):
            yield from self.mentioned(node.left)
            yield from self.mentioned(node.right)
        elif isinstance(node, (ast.Tuple, ast.List)):
            for item in node.elts:
                yield from self.mentioned(item)

    def add(self, module, name):
        """Adds the class or alias behind a name; gives its key, or "" when it is not data of the release."""
        found = self.index.resolve_expr(module, name)
        if found is None or found[0] == "external" and found[1].split(".")[0] in self.index.packages:
            text = ast.unparse(name)
            if text not in dir(builtins):
                self.report("name", module.rel, name.lineno, f"{text}: what this annotation names was not found")
            return ""
        if found[0] == "external":
            return self.add_external(found[1], ast.unparse(name))
        owner, kind, node = found
        if kind == "class":
            return self.add_class(owner, node)
        if kind == "assign":
            return self.add_alias(owner, node, ast.unparse(name).split(".")[-1])
        return ""

    def add_external(self, dotted, name):
        """Notes a type of another package under the name that annotations use for it."""
        if dotted.split(".")[0] not in VOCABULARY and "." in dotted:
            taken = self.external.get(name, dotted)
            self.external[name if taken == dotted else dotted] = dotted
        return ""

    def key(self, module, name):
        """One name per class; a second class of the same name carries its module's name too."""
        identity = module.name + ":" + name
        if identity not in self.keys:
            taken = set(self.keys.values())
            key, parts = name, module.name.split(".")
            while key in taken and parts:
                key = parts.pop() + "." + key
            self.keys[identity] = key
        return self.keys[identity]

    # -- classes -------------------------------------------------------------------

    def bases(self, module, node):
        """In-tree bases as (module, node), and the dotted names of the others."""
        inside, outside = [], []
        for base in node.bases:
            expr = base.value if isinstance(base, ast.Subscript) else base
            found = self.index.resolve_expr(module, expr)
            if found and found[0] != "external" and found[1] == "class":
                inside.append((found[0], found[2]))
            elif found and found[0] == "external":
                outside.append(found[1])
        return inside, outside

    def mro(self, module, node):
        """Python's method resolution order over the in-tree classes."""
        inside, _ = self.bases(module, node)
        lists = [self.mro(*b) for b in inside] + [list(inside)]
        out = [(module, node)]
        while any(lists):
            lists = [x for x in lists if x]
            head = next((x[0] for x in lists if not any(x[0] in y[1:] for y in lists)), lists[0][0])
            out.append(head)
            lists = [[y for y in x if y != head] for x in lists]
        return out

    def kind(self, mro):
        for owner, node in mro:
            for dotted in self.bases(owner, node)[1]:
                if dotted in KINDS:
                    return KINDS[dotted]
                if dotted.split(".")[0] in ("openai", "anthropic", "cohere", "mcp"):
                    return "pydantic"
        if any("dataclass" in ast.unparse(d) for d in mro[0][1].decorator_list):
            return "dataclass"
        return ""

    def add_class(self, module, node):
        mro = self.mro(module, node)
        kind = self.kind(mro)
        if not kind:
            self.external[node.name] = module.name + "." + node.name
            return ""
        key = self.key(module, node.name)
        if key in self.out:
            return key
        model = {"source": module.rel, "kind": kind}
        self.out[key] = model
        outside = sorted({d for o, n in mro for d in self.bases(o, n)[1] if d.split(".")[0] not in VOCABULARY | {"msgspec"}})
        if outside:
            model["external_bases"] = outside
        if kind == "enum":
            model["members"] = self.enum_members(mro)
            return key
        if kind in ("pydantic", "typed_dict", "dataclass", "struct"):
            model["extra"] = self.extra(module, node) or "ignore"
        model["fields"] = self.fields(mro, kind)
        also = self.undeclared(mro, model["fields"])
        if also:
            model["also_reads"] = also
        return key

    def enum_members(self, mro):
        owner, node = mro[0]
        values = [self.index.constant(owner, s.value) for s in node.body if isinstance(s, ast.Assign)]
        return [str(v) for v in values if v is not None]

    def extra(self, owner, node):
        """What a class does with fields that are not declared; pydantic lets the last base that says so decide."""
        own = self.own_extra(owner, node)
        if own:
            return own
        for base in reversed(self.bases(owner, node)[0]):
            inherited = self.extra(*base)
            if inherited:
                return inherited
        return ""

    def own_extra(self, owner, node):
        for k in node.keywords:
            if k.arg == "forbid_unknown_fields" and getattr(k.value, "value", False):
                return "forbid"
            if k.arg == "extra":
                return str(self.index.constant(owner, k.value))
        for stmt in node.body:
            target = stmt.targets[0] if isinstance(stmt, ast.Assign) else getattr(stmt, "target", None)
            if isinstance(target, ast.Name) and target.id in ("model_config", "__pydantic_config__") and stmt.value:
                given = self.config(stmt.value)
                if "extra" in given:
                    return str(self.index.constant(owner, given["extra"]))
        return ""

    def config(self, node):
        if isinstance(node, ast.Call):
            return {k.arg: k.value for k in node.keywords}
        if isinstance(node, ast.Dict):
            return {k.value: v for k, v in zip(node.keys, node.values) if isinstance(k, ast.Constant)}
        return {}

    def fields(self, mro, kind):
        out = {}
        for owner, node in reversed(mro):
            total = not any(k.arg == "total" and getattr(k.value, "value", True) is False for k in node.keywords)
            for stmt in node.body:
                if isinstance(stmt, ast.AnnAssign) and isinstance(stmt.target, ast.Name):
                    field = self.field(owner, stmt.target.id, stmt.annotation, stmt.value, kind, total)
                    if field:
                        out[stmt.target.id] = field
                elif kind == "pydantic" and isinstance(stmt, ast.Assign) and isinstance(stmt.targets[0], ast.Name):
                    name = stmt.targets[0].id
                    if name in out:  # an override of the default alone
                        out[name] = dict(out[name], default=ast.unparse(stmt.value))
                        out[name].pop("required", None)
        return list(out.values())

    def field(self, module, name, annotation, value, kind, total):
        text = ast.unparse(annotation)
        if "ClassVar" in text or name == "model_config" or name.startswith("_") and kind != "struct":
            return None
        if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "PrivateAttr":
            return None
        field = {"name": name, "annotation": self.clean(annotation)}
        calls = [value] if self.is_field(value) else []
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).split(".")[-1] == "Annotated":
            calls += [x for x in annotation.slice.elts[1:] if self.is_field(x)]
        given = {}
        for call in calls:
            if call.args:
                given.setdefault("default", call.args[0])
            for k in call.keywords:
                if k.arg:
                    given.setdefault(k.arg, k.value)
        if getattr(given.get("init"), "value", True) is False:
            return None
        if value is not None and not self.is_field(value):
            given["default"] = value
        self.describe(field, given, kind, total, text, module)
        self.reach(module, annotation)
        return field

    def describe(self, field, given, kind, total, text, module):
        """Default, aliases and bounds of a field."""
        if kind == "typed_dict":
            if "NotRequired" not in text and (total or "Required" in text):
                field["required"] = True
        elif "default_factory" in given:
            body = given["default_factory"]
            field["default"] = ast.unparse(body.body) if isinstance(body, ast.Lambda) else ast.unparse(body) + "()"
        elif "default" in given and not (isinstance(given["default"], ast.Constant) and given["default"].value is ...):
            field["default"] = self.plain(module, given["default"])
        else:
            field["required"] = True
        aliases = []
        for name in ("alias", "validation_alias"):
            for sub in ast.walk(given[name]) if name in given else []:
                if isinstance(sub, ast.Constant) and isinstance(sub.value, str) and sub.value not in aliases:
                    aliases.append(sub.value)
        if aliases:
            field["aliases"] = aliases
        bounds = [f"{k}={self.plain(module, v)}" for k, v in sorted(given.items()) if k not in PROSE | NAMES | {"default", "default_factory", "init"}]
        if bounds:
            field["bounds"] = ", ".join(bounds)

    def plain(self, module, node):
        """A constant as its value, so that a bound means something without the file it stands in."""
        value = self.index.constant(module, node)
        return ast.unparse(node) if value is None or isinstance(value, tuple) else repr(value)

    def is_field(self, node):
        return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Field", "field")

    def clean(self, annotation):
        """The annotation without prose: Annotated[T, Field(...)] is T, its bounds are told beside it."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            return " ".join(annotation.value.split())
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).split(".")[-1] == "Annotated":
            rest = [x for x in annotation.slice.elts if not self.is_field(x)]
            if len(rest) == 1:
                return self.clean(rest[0])
        return " ".join(ast.unparse(annotation).split())

    def undeclared(self, mro, fields):
        """Names that a before-validator reads from the body although no field declares them."""
        known = {f["name"] for f in fields} | {a for f in fields for a in f.get("aliases", [])}
        found = set()
        for _, node in mro:
            for stmt in node.body:
                if isinstance(stmt, ast.FunctionDef) and any("model_validator" in ast.unparse(d) and "before" in ast.unparse(d) for d in stmt.decorator_list):
                    names = [a.arg for a in stmt.args.args if a.arg not in ("cls", "self")]
                    found |= read_keys(stmt, set(names[:1]))
        return sorted(found - known)

    # -- aliases ---------------------------------------------------------------------

    def add_alias(self, module, node, name):
        """`A = Union[B, C]`, `A = B | C`, `A: TypeAlias = Literal[...]`, `A = TypedDict("A", {...})`."""
        if isinstance(node, ast.Call) and "TypedDict" in ast.unparse(node.func):
            return self.add_functional(module, node, name)
        members = self.union(node)
        if members is None:
            return ""
        key = self.key(module, name)
        if key not in self.out:
            model = {"source": module.rel, "kind": "union", "members": [self.clean(m) for m in members]}
            bounds = self.alias_bounds(module, node)
            if bounds:
                model["bounds"] = bounds
            self.out[key] = model
            for member in members:
                self.reach(module, member)
        return key

    def alias_bounds(self, module, node):
        """The limits in `A = Annotated[T, Field(max_length=9)]`."""
        if not isinstance(node, ast.Subscript) or ast.unparse(node.value).split(".")[-1] != "Annotated":
            return ""
        calls = [x for x in node.slice.elts[1:] if self.is_field(x)]
        given = [(k.arg, self.plain(module, k.value)) for c in calls for k in c.keywords if k.arg not in PROSE | NAMES]
        return ", ".join(f"{k}={v}" for k, v in sorted(given))

    def union(self, node):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            left, right = self.union(node.left) or [node.left], self.union(node.right) or [node.right]
            return left + right
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("TypeAliasType", "NewType") and len(node.args) > 1:
            return self.union(node.args[1]) or [node.args[1]]
        if not isinstance(node, ast.Subscript):
            return None
        head = ast.unparse(node.value).split(".")[-1]
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if head in ("Union", "Optional"):
            return items
        if head == "Annotated":
            return self.union(items[0]) or [items[0]]
        return [node] if head in ("Literal", "list", "List", "dict", "Dict", "Iterable", "Sequence", "Mapping", "tuple") else None

    def add_functional(self, module, node, name):
        key = self.key(module, name)
        if key in self.out:
            return key
        total = not any(k.arg == "total" and getattr(k.value, "value", True) is False for k in node.keywords)
        self.out[key] = model = {"source": module.rel, "kind": "typed_dict", "extra": "ignore", "fields": []}
        entries = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], ast.Dict) else None
        for k, v in zip(entries.keys, entries.values) if entries else []:
            field = self.field(module, str(self.index.constant(module, k)), v, None, "typed_dict", total)
            if field:
                model["fields"].append(field)
        return key


def read_keys(func, names):
    """String keys that a function reads from the dicts of these names: d["k"], d.get("k"), d.pop("k"), "k" in d."""
    found = set()
    for node in ast.walk(func):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in names:
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            if node.func.value.id not in names or node.func.attr not in ("get", "pop", "setdefault", "getlist") or not node.args:
                continue
            key = node.args[0]
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
            if not isinstance(node.comparators[0], ast.Name) or node.comparators[0].id not in names:
                continue
            key = node.left
        else:
            continue
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            found.add(key.value)
    return found
