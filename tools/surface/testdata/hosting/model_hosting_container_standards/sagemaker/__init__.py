from .lora.constants import AdapterHeader, LoRAHandlerType
from .routes import ROUTES, make, register_handler

register_invocation_handler = register_handler("invoke")


def register_load_adapter_handler(request_shape):
    return make(LoRAHandlerType.REGISTER_ADAPTER, request_shape)


def inject_adapter_id(adapter_path):
    return make(None, f'headers."{AdapterHeader.IDENTIFIER}"')


def bootstrap(app):
    return app
