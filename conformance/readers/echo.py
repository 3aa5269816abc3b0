"""Answers with what uvicorn and Starlette made of a request.

usage: echo.py PORT VERSION   (vLLM's own uvicorn, httptools and Starlette)

GET anything answers {"path", "raw_path"} of the ASGI scope: what a vLLM route
is matched against. POST answers the form's parts as Starlette's parser, which
vLLM uses, gives them to a handler. With VERSION it passes for a vLLM of that
release, and GET /received answers the last form that came, for those who sent
it through somebody else.
"""

import hashlib
import json
import sys

import uvicorn
from starlette.requests import Request


received = {}


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["method"] == "POST":
        request = Request(scope, receive)
        out = await form(request) | {"text": "heard"}
        received.clear()
        received.update(out, headers=[f"{k}: {v}" for k, v in request.headers.items()])
    elif scope["path"] == "/received":
        out = received
    else:
        out = {"path": scope["path"], "raw_path": scope["raw_path"].decode("latin-1"), "version": sys.argv[2]}
    body = json.dumps(out).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


async def form(request):
    try:
        parts = []
        async with request.form() as fields:
            for name, value in fields.multi_items():
                part = {"name": name}
                if hasattr(value, "read"):
                    content = await value.read()
                    part |= {"file": value.filename, "type": value.content_type or "", "sha256": hashlib.sha256(content).hexdigest()}
                    part["headers"] = [f"{k}: {v}" for k, v in value.headers.items()]
                else:
                    part["value"] = value
                parts.append(part)
        return {"parts": parts}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), http="httptools", lifespan="off", log_level="error")
