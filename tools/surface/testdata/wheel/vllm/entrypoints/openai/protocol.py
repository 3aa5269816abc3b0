from typing import Annotated, Any, ClassVar, Literal

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from .types import *
from vllm.nowhere import Missing

LIMIT = 2**3


class Base(BaseModel):
    model_config = ConfigDict(extra="allow")
    field_names: ClassVar[set | None] = None


class Sampling(Struct):
    n: int = 1
    _hidden: list[int] | None = None


class Mixin(BaseModel):
    priority: int = Field(default=0, ge=0, le=LIMIT, description="prose that is left out")
    user: str | None = None


class ChatRequest(Mixin, Base):
    messages: list[MessageParam]
    user: str = "anonymous"
    stream: bool | None = False
    tools: list["Tool"] = Field(default_factory=list)
    salt: Annotated[str, Field(min_length=1)] | None = None
    thought: str | None = Field(None, alias="reasoning", validation_alias="reasoning_content")
    sampling: Sampling | None = None
    odd: Missing | None = None
    _private: int = PrivateAttr(default=0)

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: Any) -> Any:
        if data.get("legacy_option") or data["stream"] or "older" in data:
            data.pop("model", None)
        return data


class StrictRequest(BaseModel, extra="forbid"):
    kind: Literal["a", "b"]


class UploadRequest(Base):
    file: bytes
    language: str = ""


EitherRequest = ChatRequest | StrictRequest
