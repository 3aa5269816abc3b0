from http import HTTPStatus

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

router = APIRouter()


@router.post("/v1/render")
async def render():
    return None


def register_scale_out(app: FastAPI, supported_tasks):
    args = getattr(app.state, "args", None)
    dedicated = "render" in supported_tasks or getattr(args, "tokens_only", False)
    enabled = dedicated or getattr(args, "enable_scale_out", False)
    if not enabled:

        async def disabled():
            return JSONResponse({}, status_code=HTTPStatus.FORBIDDEN)

        for route in (*router.routes,):
            if isinstance(route, APIRoute):
                app.add_api_route(route.path, disabled, methods=sorted(route.methods))
        return
    app.include_router(router)
