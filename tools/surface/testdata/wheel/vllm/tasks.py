from typing import Literal, get_args

PoolingTask = Literal["embed", "classify"]
POOLING_TASKS = get_args(PoolingTask)
