from .lora.constants import LoRAHandlerType


class RouteConfig:
    def __init__(self, path, method):
        self.path, self.method = path, method


def register_handler(kind):
    return lambda handler: handler


def make(kind, shape):
    return lambda handler: handler


ROUTES = {LoRAHandlerType.REGISTER_ADAPTER: RouteConfig(path="/adapters", method="POST")}


def resolve(handler_type):
    if handler_type == "invoke":
        return RouteConfig(path="/invocations", method="POST")
