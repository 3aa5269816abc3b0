# Written for the extractor's test: the shapes of registration that it has to follow, none of them vLLM's code.
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    VLLM_DEV: bool = False
    VLLM_DIR: str | None = None
    VLLM_API_KEY: str | None = None
