"""Runs a fixed list of calls with the official Python SDKs at their defaults.

usage: BASE_URL=http://… KEY=… MODEL=… client.py openai|anthropic|embeddings|audio

Prints one line of JSON per call: {"case", "result"} or {"case", "error"}. What
differs between two runs of the same server is taken out (ids, times), so that
two outputs can be compared line by line.
"""

import io
import json
import math
import os
import struct
import sys
import wave

BASE, KEY, MODEL = os.environ["BASE_URL"], os.environ["KEY"], os.environ["MODEL"]
TIMEOUT = 60

# Differ from run to run, or are hidden by a gateway on purpose.
VOLATILE = {
    "id", "created", "created_at", "completed_at", "system_fingerprint", "item_id", "call_id", "response_id",
    "prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "output_tokens_details",
    "cache_read_input_tokens", "cache_creation_input_tokens", "request_id", "_request_id", "root", "permission", "owned_by",
}


def plain(value):
    """A value without what is volatile, and without nulls: null equals absent."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", warnings=False)
    if isinstance(value, dict):
        if "cache_read_input_tokens" in value:
            # vLLM counts cached tokens apart on messages; a gateway may hide which were.
            value = dict(value)
            for part in ("cache_read_input_tokens", "cache_creation_input_tokens"):
                value["input_tokens"] += value.get(part) or 0
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE and v is not None}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 4)
    return value


def run(case, call):
    try:
        line = {"case": case, "result": plain(call())}
    except Exception as e:  # the class is the result: the SDK's mapping is what is tested
        line = {"case": case, "error": {"class": type(e).__name__, "status": getattr(e, "status_code", None)}}
        if line["error"]["status"] is None:
            line["error"]["text"] = str(e)[:200]
    print(json.dumps(line, sort_keys=True), flush=True)


HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}


def joined(stream, text):
    """A stream as what a user sees of it: its text, why it ended, its usage.

    The number of chunks is left out: vLLM joins tokens that wait for a slow
    reader into one.
    """
    chunks = list(stream)
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    usage = [c.usage for c in chunks if c.usage]
    return {"text": "".join(text(c) or "" for c in chunks), "end": ends[-1], "bare": sum(not c.choices for c in chunks), "usage": usage}


def types(stream):
    """The types of a stream's events, repetitions once."""
    out = []
    for e in stream:
        if not out or out[-1] != e.type:
            out.append(e.type)
    return out


def chat_text(chunk):
    return chunk.choices[0].delta.content if chunk.choices else ""


def openai_calls():
    import openai

    c = openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT)
    create = c.chat.completions.create
    zero = {"model": MODEL, "temperature": 0, "max_tokens": 8}

    run("models.list", lambda: sorted(m.id for m in c.models.list()))
    run("models.retrieve", lambda: c.models.retrieve(MODEL).id)
    run("chat", lambda: create(messages=HELLO, **zero))
    run("chat.parameters", lambda: create(
        messages=HELLO, n=2, logprobs=True, top_logprobs=2, seed=7, stop=["zzz"], user="u", metadata={"a": "b"}, store=False, **zero | {"temperature": 0.0001}))
    run("chat.echoed", lambda: create(messages=HELLO + [create(messages=HELLO, **zero).choices[0].message] + HELLO, **zero))
    run("chat.stream", lambda: joined(create(messages=HELLO, stream=True, **zero), chat_text))
    run("chat.stream.usage", lambda: joined(create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **zero), chat_text))
    run("chat.tools", lambda: create(messages=HELLO, tools=[TOOL], **zero))
    run("chat.json_schema", lambda: create(messages=HELLO, response_format={
        "type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}, **zero | {"max_tokens": 64}))
    with_raw = lambda: c.chat.completions.with_raw_response.create(messages=HELLO, **zero)
    run("chat.raw", lambda: [with_raw().http_response.status_code, with_raw().headers["content-type"]])
    run("completions", lambda: c.completions.create(prompt="hello", **zero))
    run("completions.list", lambda: c.completions.create(prompt=["hello", "world"], **zero))
    run("completions.stream", lambda: joined(c.completions.create(prompt="hello", stream=True, **zero), lambda e: e.choices[0].text))
    answer = {"model": MODEL, "temperature": 0, "max_output_tokens": 8}
    run("responses", lambda: c.responses.create(input="hello", **answer))
    run("responses.items", lambda: c.responses.create(input=[{"role": "user", "content": "hello"}], instructions="be brief", **answer))
    run("responses.stream", lambda: types(c.responses.create(input="hello", stream=True, **answer)))

    wrong = openai.OpenAI(base_url=BASE + "/v1", api_key="sk-wrong", max_retries=0, timeout=TIMEOUT)
    run("error.key", lambda: wrong.chat.completions.create(messages=HELLO, **zero))
    run("error.key.stream", lambda: list(wrong.chat.completions.create(messages=HELLO, stream=True, **zero)))
    run("error.model", lambda: create(messages=HELLO, model="no-such-model"))
    run("error.temperature", lambda: create(messages=HELLO, model=MODEL, temperature=-5))
    run("error.context", lambda: create(messages=[{"role": "user", "content": "0123456789" * 900}], model=MODEL))
    run("error.max_tokens", lambda: create(messages=HELLO, model=MODEL, max_tokens=100_000))
    run("error.path", lambda: openai.OpenAI(base_url=BASE + "/v1/v1", api_key=KEY, max_retries=0).models.list())


def anthropic_calls():
    import anthropic

    c = anthropic.Anthropic(base_url=BASE, auth_token=KEY, max_retries=0, timeout=TIMEOUT)
    base = {"model": MODEL, "max_tokens": 8, "messages": HELLO, "extra_body": {"temperature": 0}}

    run("messages", lambda: c.messages.create(**base))
    run("messages.api_key", lambda: anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0, timeout=TIMEOUT).messages.create(**base))
    run("messages.system", lambda: c.messages.create(system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}], **base))
    run("messages.tools", lambda: c.messages.create(tools=[{"name": "weather", "description": "d", "input_schema": SCHEMA}], **base))
    run("messages.stream", lambda: types(c.messages.create(stream=True, **base)))

    def helper():
        with c.messages.stream(**base) as s:
            return s.get_final_message()

    run("messages.stream.helper", helper)
    run("messages.count_tokens", lambda: c.messages.count_tokens(model=MODEL, messages=HELLO))
    run("models.list", lambda: sorted(m.id for m in c.models.list()))
    run("models.retrieve", lambda: c.models.retrieve(MODEL).id)

    wrong = anthropic.Anthropic(base_url=BASE, auth_token="sk-wrong", max_retries=0, timeout=TIMEOUT)
    run("error.key", lambda: wrong.messages.create(**base))
    run("error.model", lambda: c.messages.create(**base | {"model": "no-such-model"}))
    run("error.max_tokens", lambda: c.messages.create(**base | {"max_tokens": 100_000}))
    run("error.stop_sequences", lambda: c.messages.create(stop_sequences=["a", "b", "c", "d", "e", "f"], **base))


def embeddings_calls():
    import openai

    c = openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT)
    run("models.list", lambda: sorted(m.id for m in c.models.list()))
    run("embeddings", lambda: c.embeddings.create(model=MODEL, input="hello"))
    run("embeddings.list", lambda: c.embeddings.create(model=MODEL, input=["hello", "world"]))
    run("embeddings.float", lambda: c.embeddings.create(model=MODEL, input="hello", encoding_format="float"))
    run("embeddings.tokens", lambda: c.embeddings.create(model=MODEL, input=[[70, 71]]))
    run("error.dimensions", lambda: c.embeddings.create(model=MODEL, input="hello", dimensions=3))
    run("error.long", lambda: c.embeddings.create(model=MODEL, input="0123456789" * 900))


def tone():
    """Half a second of 440 Hz as a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(16000)
        w.writeframes(b"".join(struct.pack("<h", int(8000 * math.sin(2 * math.pi * 440 * i / 16000))) for i in range(8000)))
    return out.getvalue()


def delta_text(event):
    """The text of a chunk of vLLM's, which the SDK has no type for."""
    choices = event.model_dump(warnings=False).get("choices") or []
    return "".join(c["delta"].get("content") or "" for c in choices)


def audio_calls():
    import openai

    c = openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0, timeout=TIMEOUT)
    create = c.audio.transcriptions.create
    base = {"model": MODEL, "file": ("a.wav", tone())}

    run("models.list", lambda: sorted(m.id for m in c.models.list()))
    run("transcription", lambda: create(**base))
    run("transcription.parameters", lambda: create(language="en", prompt="hello", temperature=0, response_format="json", **base))
    run("transcription.verbose", lambda: create(response_format="verbose_json", timestamp_granularities=["segment"], **base))
    run("transcription.stream", lambda: "".join(delta_text(e) for e in create(stream=True, **base)))
    run("translation", lambda: c.audio.translations.create(**base))
    run("translation.verbose", lambda: c.audio.translations.create(response_format="verbose_json", **base))
    run("error.model", lambda: create(**base | {"model": "no-such-model"}))
    run("error.file", lambda: create(**base | {"file": ("a.wav", b"no sound")}))
    run("error.language", lambda: create(language="xx", **base))
    wrong = openai.OpenAI(base_url=BASE + "/v1", api_key="sk-wrong", max_retries=0, timeout=TIMEOUT)
    run("audio.key", lambda: wrong.audio.transcriptions.create(**base))


if __name__ == "__main__":
    {"openai": openai_calls, "anthropic": anthropic_calls, "embeddings": embeddings_calls, "audio": audio_calls}[sys.argv[1]]()
