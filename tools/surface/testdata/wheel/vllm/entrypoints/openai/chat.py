from typing import Annotated

from fastapi import APIRouter, Body, Depends, Form, Header, Request, WebSocket

from vllm.entrypoints.openai.protocol import ChatRequest, EitherRequest, UploadRequest
from vllm.entrypoints.serve.serving import ServingChat

router = APIRouter()

try:
    import optional_sdk  # noqa: F401
except ImportError:
    HAS_SDK = False
else:
    HAS_SDK = True


async def check_type(raw_request: Request):
    return raw_request.headers.get("content-type")


def chat(request: Request) -> ServingChat | None:
    return request.app.state.chat


@router.post("/v1/chat", dependencies=[Depends(check_type)])
async def create_chat(request: ChatRequest, raw_request: Request):
    handler = chat(raw_request)
    return await handler.create(request, raw_request)


@router.post("/v1/either")
async def either(request: EitherRequest, x_steer: Annotated[str | None, Header()] = None):
    return x_steer


@router.post("/v1/upload")
async def upload(request: Annotated[UploadRequest, Form()], raw_request: Request):
    return None


@router.get("/v1/chat/{chat_id}")
async def read_chat(chat_id: str, after: int | None = None):
    return after


@router.websocket("/v1/live")
async def live(websocket: WebSocket):
    return None


if HAS_SDK:

    @router.post("/v1/sdk")
    async def with_sdk(version: Annotated[str, Body(embed=True)], note: Annotated[str | None, Body(embed=True)] = None):
        return version
