from typing import Literal, TypeAlias, Union

from openai.types.chat import ChatCompletionMessageParam as OpenAIMessage
from pydantic import BaseModel
from typing_extensions import Required, TypedDict


class TextPart(TypedDict, total=False):
    type: Required[Literal["text"]]
    text: str


class Tool(BaseModel):
    name: str
    parameters: dict | None = None


MessageParam: TypeAlias = Union[OpenAIMessage, "CustomMessage"]


class CustomMessage(TypedDict, total=False):
    role: Required[str]
    content: str | list[TextPart]
