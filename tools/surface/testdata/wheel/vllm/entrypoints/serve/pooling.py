from fastapi import APIRouter, FastAPI, Request

from vllm.entrypoints.serve.serving import ServingScore

router = APIRouter()
score = APIRouter(prefix="/v1")


@router.post("/pooling")
async def pooling():
    return None


@score.post("/score")
async def scoring(raw_request: Request):
    handler: ServingScore = raw_request.app.state.score
    return await handler(None, raw_request)


def scoring_enabled(supported_tasks, model_config=None) -> bool:
    if model_config is None:
        return False
    task = model_config.get_pooling_task(supported_tasks)
    if task == "embed":
        return True
    if task == "classify":
        if getattr(model_config.hf_config, "num_labels", 0) != 1:
            return False
        return True
    return False


def register_pooling(app: FastAPI, supported_tasks, model_config):
    if model_config.get_pooling_task(supported_tasks) is not None:
        app.include_router(router)
    if scoring_enabled(supported_tasks, model_config):
        app.include_router(score)
    if strange(model_config):
        app.include_router(router, prefix="/strange")
