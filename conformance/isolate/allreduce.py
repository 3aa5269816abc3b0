"""One rank of an all-reduce over gloo that goes on until it is ended.

The flags are vLLM's, so that `vallum isolate exec --topology tp` can add them.
The tensor is MARK all over and stays so: it can be looked for on the wire.
"""

import argparse
import ctypes
import datetime
import time

import torch
import torch.distributed as dist

MARK = 0x5AC3E1B7

p = argparse.ArgumentParser()
p.add_argument("--master-addr", required=True)
p.add_argument("--master-port", type=int, required=True)
p.add_argument("--node-rank", type=int, required=True)
p.add_argument("--nnodes", type=int, required=True)
p.add_argument("--name", default="VLLM::Worker_TP0")
args, _ = p.parse_known_args()

PR_SET_NAME = 15
ctypes.CDLL(None).prctl(PR_SET_NAME, args.name.encode(), 0, 0, 0)

dist.init_process_group(
    "gloo",
    init_method=f"tcp://{args.master_addr}:{args.master_port}",
    rank=args.node_rank,
    world_size=args.nnodes,
    timeout=datetime.timedelta(seconds=90),
)
print("group formed", flush=True)
step = 0
while True:
    tensor = torch.full((1024,), MARK, dtype=torch.int32)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    assert bool((tensor == MARK).all())
    step += 1
    print("step", step, flush=True)
    time.sleep(0.05)
