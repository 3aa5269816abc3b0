from fastapi import APIRouter, FastAPI, Request

import vllm.envs as envs
from vllm.entrypoints.openai.protocol import ChatRequest, StrictRequest


def get_invocation_types():
    return [(ChatRequest, (None, None)), (StrictRequest, (None, None))]


def attach_router(app: FastAPI):
    import model_hosting_container_standards.sagemaker as standards

    router = APIRouter()

    @router.post("/invocations")
    @standards.register_invocation_handler
    @standards.inject_adapter_id(adapter_path="model")
    async def invocations(raw_request: Request):
        body = await raw_request.json()
        return body

    app.include_router(router)
    if envs.VLLM_DEV:

        @standards.register_load_adapter_handler(request_shape={"lora_name": "body.name"})
        async def load(raw_request: Request):
            return None


def bootstrap(app: FastAPI) -> FastAPI:
    import model_hosting_container_standards.sagemaker as standards

    app = standards.bootstrap(app)
    return app
