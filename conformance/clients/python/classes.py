"""Says which exception the official Python SDKs raise for each refusal.

usage: BASE_URL=http://… classes.py openai|anthropic < codes

Each line of the input is a reason's code, which is sent as the key: the server
answers with that refusal. Prints one line of JSON per call.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

BASE = os.environ["BASE_URL"]
HELLO = [{"role": "user", "content": "hello"}]


def openai_call(key, stream):
    import openai

    client = openai.OpenAI(base_url=BASE + "/v1", api_key=key, max_retries=1)
    return client.chat.completions.create(model="m", messages=HELLO, stream=stream)


def anthropic_call(key, stream):
    import anthropic

    client = anthropic.Anthropic(base_url=BASE, api_key=key, max_retries=1)
    return client.messages.create(model="m", max_tokens=9, messages=HELLO, stream=stream)


CALL = {"openai": openai_call, "anthropic": anthropic_call}[sys.argv[1]]


def ask(job):
    code, stream = job
    line = {"code": code, "stream": stream}
    try:
        CALL(code, stream)
    except Exception as e:  # the class is the result
        headers = getattr(getattr(e, "response", None), "headers", {})
        line |= {
            "classes": [c.__name__ for c in type(e).__mro__],
            "said": getattr(e, "code", None),
            "reason": headers.get("x-vallum-reason"),
            "retry_after": headers.get("retry-after"),
            "request_id": getattr(e, "request_id", None),
        }
    return line


with ThreadPoolExecutor(128) as pool:
    for answer in pool.map(ask, [(code.strip(), stream) for code in sys.stdin for stream in (False, True)]):
        print(json.dumps(answer), flush=True)
