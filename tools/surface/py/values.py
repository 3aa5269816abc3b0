"""What an expression can be, to a reader who knows routers, flags and environment variables and little else."""


class Value:
    pass


class Unknown(Value):
    def __init__(self, text):
        self.text = text


class Const(Value):
    def __init__(self, value):
        self.value = value


class Bool(Value):
    """A boolean known only as a condition."""

    def __init__(self, cond):
        self.cond = cond


class Param(Value):
    """An argument of an entry function, known by its name."""

    def __init__(self, name):
        self.name = name


class Args(Value):
    """The parsed command line."""


class Flag(Value):
    """One option of the command line, or something read out of it."""

    def __init__(self, name, part=""):
        self.name, self.part = name, part

    def text(self):
        text = "flag --" + self.name.replace("_", "-")
        return f"{text} with a {self.part}" if self.part else text


class EnvModule(Value):
    """vllm.envs."""


class Env(Value):
    def __init__(self, name):
        self.name = name


class Task(Value):
    """model_config.get_pooling_task(...): the one task a pooling model serves."""


class State(Value):
    """app.state."""


class Mod(Value):
    def __init__(self, module):
        self.module = module


class Ext(Value):
    """Something of a package that is not in the release."""

    def __init__(self, dotted):
        self.dotted = dotted


class Func(Value):
    def __init__(self, module, node, scope=None, owner=None, bound=None):
        self.module, self.node, self.scope, self.owner, self.bound = module, node, scope, owner, bound
        self.marks = []  # decorators of the hosting standards that it was given to
        self.alias = ""  # the name it was bound to by `x = f("kind")`


class Class(Value):
    def __init__(self, module, node):
        self.module, self.node = module, node


class Obj(Value):
    """An instance whose attributes are followed: a server class that owns its app."""

    def __init__(self, cls):
        self.cls, self.attrs = cls, {}


class Items(Value):
    def __init__(self, items):
        self.items = items


class Reg:
    """One registration of a route."""

    def __init__(self, cond, methods, path, kind, handler, rel, line, note="", depends=()):
        self.cond, self.methods, self.path, self.kind = cond, methods, path, kind
        self.handler, self.rel, self.line, self.note = handler, rel, line, note
        self.depends = list(depends)
        self.hosted = ""  # the handler type, when the hosting standards registered it

    def under(self, cond, prefix=""):
        return Reg(cond, self.methods, prefix + self.path, self.kind, self.handler, self.rel, self.line, self.note, self.depends)


class Router(Value):
    """A router or an application: what has been registered on it so far."""

    def __init__(self, is_app=False, prefix="", depends=()):
        self.is_app, self.prefix, self.depends = is_app, prefix, list(depends)
        self.regs, self.middleware, self.opaque = [], [], []

    def merge(self, other):
        """Both branches of an `if` assigned one name: the registrations carry their conditions."""
        self.regs += [r for r in other.regs if r not in self.regs]
        self.middleware += [m for m in other.middleware if m not in self.middleware]
        self.opaque += [o for o in other.opaque if o not in self.opaque]
        self.is_app = self.is_app or other.is_app


class Method(Value):
    """A bound method of a router, before the call."""

    def __init__(self, router, name):
        self.router, self.name = router, name


class Registrar(Value):
    """`router.post("/x")` before it is given the handler."""

    def __init__(self, router, make):
        self.router, self.make = router, make


class RouteList(Value):
    def __init__(self, router):
        self.router = router


class RouteValue(Value):
    def __init__(self, reg):
        self.reg = reg


class Mount(Value):
    def __init__(self, path, target, reg):
        self.path, self.target, self.reg = path, target, reg


class Scope:
    """Names of one function run, chained to the function it was defined in."""

    def __init__(self, module, parent=None):
        self.module, self.parent, self.names = module, parent, {}

    def get(self, name):
        scope = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None
