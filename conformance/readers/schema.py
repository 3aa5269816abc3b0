"""Makes grammars of JSON schemas as vLLM's API server does, by each of the two
compilers that it asks, each in a process of its own.

usage: schema.py < SCHEMAS   (one JSON value per line, an object or a text)

Prints one line for each: "made", "refused" with vLLM's words, or "died" with
the signal that ended the process.
"""

import json
import os
import signal
import sys

from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.backend_guidance import validate_guidance_grammar
from vllm.v1.structured_output.backend_xgrammar import validate_xgrammar_grammar


def make(schema):
    said = "made"
    for validate in validate_xgrammar_grammar, validate_guidance_grammar:
        params = SamplingParams(structured_outputs=StructuredOutputsParams(json=schema))
        try:
            validate(params)
        except ValueError as e:
            said = f"refused: {str(e)[:200]}"
    return said


for line in sys.stdin:
    r, w = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(w, make(json.loads(line)).replace("\n", " ").encode())
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f:
        said = f.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        said = f"died: {signal.Signals(os.WTERMSIG(status)).name}"
    print(said, flush=True)
