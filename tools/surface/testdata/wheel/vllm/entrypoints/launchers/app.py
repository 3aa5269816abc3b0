from argparse import Namespace

from fastapi import FastAPI

import vllm.envs as envs
from vllm.entrypoints.serve.guard import KeyAuthentication
from vllm.entrypoints.serve.sagemaker import attach_router as attach_sagemaker
from vllm.entrypoints.serve.sagemaker import bootstrap
from vllm.plugins import load_plugins
from vllm.tasks import POOLING_TASKS


def build_app(args: Namespace, supported_tasks=None, model_config=None) -> FastAPI:
    if args.disable_docs:
        app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    else:
        app = FastAPI()
    app.state.args = args
    register(app, args, supported_tasks, model_config)
    for plugin in load_plugins():
        plugin.attach_router(app)
    if tokens := [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]:
        app.add_middleware(KeyAuthentication, tokens=tokens)
    app = bootstrap(app)
    return app


def register(app: FastAPI, args: Namespace, supported_tasks, model_config):
    from vllm.entrypoints.serve.basic import attach_router as attach_basic

    attach_basic(app)
    attach_sagemaker(app)
    if "generate" in supported_tasks:
        from vllm.entrypoints.openai.chat import router as chat_router

        app.include_router(chat_router)
    if any(task in POOLING_TASKS for task in supported_tasks):
        from vllm.entrypoints.serve.pooling import register_pooling

        register_pooling(app, supported_tasks, model_config)
    if "generate" in supported_tasks or "render" in supported_tasks:
        from vllm.entrypoints.serve.scale_out import register_scale_out

        register_scale_out(app, supported_tasks)
