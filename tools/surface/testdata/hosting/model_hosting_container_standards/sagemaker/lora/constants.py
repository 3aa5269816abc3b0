from enum import Enum


class LoRAHandlerType(str, Enum):
    REGISTER_ADAPTER = "register_adapter"


class AdapterHeader:
    IDENTIFIER = "X-Adapter-Identifier"
    ALIAS = "X-Adapter-Alias"
