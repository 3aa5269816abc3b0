import pathlib

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.staticfiles import StaticFiles
from prometheus_client import make_asgi_app
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.routing import Mount

import vllm.envs as envs

router = APIRouter()
forgotten = APIRouter(prefix="/never")


@router.get("/health")
async def health(raw_request: Request):
    return None


@forgotten.get("/included")
async def lost(raw_request: Request):
    return None


if envs.VLLM_DEV:

    @router.post("/sleep")
    async def sleep(raw_request: Request, level: int = Query(1)):
        tags = raw_request.query_params.getlist("tags")
        return tags

    @router.post("/rpc")
    async def rpc(raw_request: Request):
        body = await raw_request.json()
        method = body.get("method")
        if "args" in body:
            return method
        return read_rest(body)


def read_rest(body):
    return body["kwargs"]


def attach_router(app: FastAPI):
    app.include_router(router)
    Instrumentator().add().instrument(app).expose(app)
    app.routes.append(Mount("/metrics", make_asgi_app()))
    if envs.VLLM_DIR:
        app.add_api_route("/profile", health, methods=["PUT", "POST"])
    args = getattr(app.state, "args", None)
    if args is None or not getattr(args, "enable_static", False):
        return
    static = pathlib.Path(__file__).parent / "static"
    if not static.exists():
        return
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
