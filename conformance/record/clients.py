"""Drives whatever Python clients this venv holds against the recorder.

usage: BASE=http://127.0.0.1:PORT python clients.py

Each client is called as its documentation calls it, at its defaults. A client
that is not installed is passed over; one that fails is said and passed over.
"""

import asyncio
import base64
import importlib.metadata
import importlib.util
import io
import os
import struct
import sys
import traceback
import wave
import zlib

BASE = os.environ["BASE"]
HELLO = [{"role": "user", "content": "Grüße 👋 hello"}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}, "days": {"type": "integer"}}, "required": ["city"]}


def version(package):
    return importlib.metadata.version(package)


def url(client, package, case, suffix=""):
    return f"{BASE}/{client}/{version(package)}/{case}{suffix}"


def present(package):
    try:
        version(package)
        return True
    except importlib.metadata.PackageNotFoundError:
        return False


failed = 0
LOOP = asyncio.new_event_loop()  # one for all: clients keep connections of a loop
asyncio.set_event_loop(LOOP)


def case(name, call):
    """Runs one case. An answer that the client does not like is no failure of
    the recording: the request was sent."""
    global failed
    try:
        result = call()
        if asyncio.iscoroutine(result):
            LOOP.run_until_complete(result)
    except Exception as e:
        failed += 1
        print(f"{name}: {type(e).__name__}: {str(e)[:300]}", file=sys.stderr)
        if os.environ.get("VERBOSE"):
            traceback.print_exc()


def png():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\xff\0\0" * 4 for _ in range(4))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def wav():
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setnchannels(1)
        w.setsampwidth(2)
        w.setframerate(8000)
        w.writeframes(b"\0\0" * 80)
    return out.getvalue()


PICTURE = "data:image/png;base64," + base64.b64encode(png()).decode()
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": WEATHER}}


def openai_official():
    import openai

    def client(name):
        return openai.OpenAI(base_url=url("openai-python", "openai", name, "/v1"), api_key="key", max_retries=0)

    def chat(name, **kw):
        case(name, lambda: client(name).chat.completions.create(**{"model": "tiny", "messages": HELLO} | kw))

    def drained(name, **kw):
        case(name, lambda: list(client(name).chat.completions.create(**{"model": "tiny", "messages": HELLO, "stream": True} | kw)))

    chat("plain")
    drained("stream")
    drained("stream-usage", stream_options={"include_usage": True})
    chat("parameters", temperature=0, top_p=1, n=1, stop=["\n", "END"], max_tokens=16, presence_penalty=0, frequency_penalty=0.5,
         seed=9223372036854775807, user="user-1", logprobs=True, top_logprobs=2, logit_bias={"50": -100})
    chat("standard", metadata={"a": "b"}, store=True, service_tier="auto", parallel_tool_calls=False, max_completion_tokens=16, reasoning_effort="low")
    chat("nulls", temperature=None, stop=None, max_tokens=None, tools=None)
    chat("json-object", response_format={"type": "json_object"})
    chat("json-schema", response_format={"type": "json_schema", "json_schema": {"name": "w", "strict": True, "schema": WEATHER | {"additionalProperties": False}}})
    chat("tool-choice", tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}})
    chat("picture", messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}]}])
    chat("developer", messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "name": "ann", "content": [{"type": "text", "text": "hi"}]}])
    chat("extra-body", extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}, "unknown_field": {"a": [1]}})

    def loop():
        c = client("tool-loop")
        messages = list(HELLO)
        for _ in range(2):
            reply = c.chat.completions.create(model="tiny", messages=messages, tools=[TOOL]).choices[0].message
            messages.append(reply)
            for call in reply.tool_calls or []:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})

    case("tool-loop", loop)

    def dumped():
        c = client("echo-dump")
        reply = c.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
        c.chat.completions.create(model="tiny", messages=HELLO + [reply.model_dump()] + HELLO)

    case("echo-dump", dumped)
    case("completions", lambda: client("plain").completions.create(model="tiny", prompt="hello", max_tokens=4))
    case("completions-tokens", lambda: client("tokens").completions.create(model="tiny", prompt=[[1, 2], [3]], max_tokens=4, echo=False, logprobs=1))
    case("completions-stream", lambda: list(client("stream").completions.create(model="tiny", prompt=["a", "b"], stream=True)))
    case("embeddings", lambda: client("plain").embeddings.create(model="tiny", input="hello"))
    case("embeddings-list", lambda: client("list").embeddings.create(model="tiny", input=["hello", "world"], encoding_format="float", user="u"))
    case("models", lambda: list(client("plain").models.list()))
    case("model", lambda: client("plain").models.retrieve("org/tiny"))
    case("audio", lambda: client("plain").audio.transcriptions.create(model="tiny", file=("a.wav", wav())))
    case("audio-options", lambda: client("options").audio.transcriptions.create(
        model="tiny", file=("größe.wav", wav()), language="de", prompt="p", temperature=0, response_format="json", timestamp_granularities=["segment"]))

    if hasattr(openai.OpenAI, "responses"):
        answer = lambda name, **kw: case(name, lambda: client(name).responses.create(**{"model": "tiny", "input": "hello"} | kw))
        answer("plain")
        answer("items", input=[{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], instructions="be brief", max_output_tokens=16, temperature=0.2)
        answer("options", store=False, metadata={"a": "b"}, include=[], reasoning={"effort": "low"}, truncation="disabled", user="u", tool_choice="auto", parallel_tool_calls=True)
        answer("schema", text={"format": {"type": "json_schema", "name": "w", "schema": WEATHER, "strict": False}})
        case("stream", lambda: list(client("stream").responses.create(model="tiny", input="hello", stream=True)))

        def responses_loop():
            c = client("tool-loop")
            tool = {"type": "function", "name": "weather", "description": "d", "parameters": WEATHER, "strict": False}
            items = list(HELLO)
            r = c.responses.create(model="tiny", input=items, tools=[tool])
            items += r.output
            items.append({"type": "function_call_output", "call_id": r.output[0].call_id, "output": "sunny"})
            c.responses.create(model="tiny", input=items, tools=[tool])

        case("responses-loop", responses_loop)

    try:
        from pydantic import BaseModel

        class Person(BaseModel):
            name: str
            age: int

        class Team(BaseModel):
            boss: Person
            staff: list[Person]

        parse = getattr(client("parse").chat.completions, "parse", None) or client("parse").beta.chat.completions.parse
        case("parse", lambda: parse(model="tiny", messages=HELLO, response_format=Team))
    except ImportError:
        pass

    azure = openai.AzureOpenAI(azure_endpoint=url("openai-python", "openai", "azure"), api_key="key", api_version="2024-10-21", max_retries=0)
    case("azure", lambda: azure.chat.completions.create(model="tiny", messages=HELLO))


def anthropic_official():
    import anthropic

    def client(name, **kw):
        return anthropic.Anthropic(base_url=url("anthropic-python", "anthropic", name), max_retries=0, **({"api_key": "key"} | kw))

    base = {"model": "tiny", "max_tokens": 16, "messages": HELLO}
    tool = {"name": "weather", "description": "d", "input_schema": WEATHER}

    def send(name, **kw):
        case(name, lambda: client(name).messages.create(**base | kw))

    send("plain")
    case("token", lambda: client("token", api_key=None, auth_token="key").messages.create(**base))
    send("system", system="be brief", stop_sequences=["x"], metadata={"user_id": "u"})
    send("system-blocks", system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}])
    send("tool-choice", tools=[tool | {"cache_control": {"type": "ephemeral"}}], tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True})
    send("thinking", max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 1024})
    send("picture", messages=[{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(png()).decode()}}, {"type": "text", "text": "what?"}]}])
    case("stream", lambda: list(client("stream").messages.create(stream=True, **base)))

    def helper():
        with client("stream-helper").messages.stream(**base) as s:
            s.get_final_message()

    case("stream-helper", helper)

    def loop():
        c = client("tool-loop")
        r = c.messages.create(tools=[tool], **base)
        c.messages.create(tools=[tool], **base | {"messages": HELLO + [
            {"role": "assistant", "content": r.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}], "is_error": False}]}]})

    case("tool-loop", loop)
    case("count", lambda: client("plain").messages.count_tokens(model="tiny", messages=HELLO))
    case("count-tools", lambda: client("tools").messages.count_tokens(model="tiny", messages=HELLO, system="s", tools=[tool]))
    case("models", lambda: list(client("plain").models.list()))
    case("beta", lambda: client("beta").beta.messages.create(betas=["context-management-2025-06-27"], **base))

    runner = getattr(client("tool-runner").beta.messages, "tool_runner", None)
    if runner:
        decorate = getattr(anthropic, "beta_tool")

        @decorate
        def weather(city: str) -> str:
            """The weather.

            Args:
                city: where
            """
            return "sunny"

        case("tool-runner", lambda: client("tool-runner").beta.messages.tool_runner(tools=[weather], **base).until_done())


def langchain():
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
    from pydantic import BaseModel

    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    @tool
    def weather(city: str) -> str:
        """The weather."""
        return "sunny"

    def at(name, suffix="/v1"):
        return url("langchain-openai", "langchain-openai", name, suffix)

    def model(name, **kw):
        return ChatOpenAI(model="tiny", base_url=at(name), api_key="key", max_retries=0, **kw)

    case("lc-plain", lambda: model("plain").invoke("hello"))
    case("lc-stream", lambda: list(model("stream").stream("hello")))
    case("lc-temperature", lambda: model("temperature", temperature=0).invoke("hello"))

    def loop():
        from langchain_core.messages import HumanMessage, ToolMessage

        bound = model("tool-loop").bind_tools([weather])
        first = bound.invoke([HumanMessage("hello")])
        bound.invoke([HumanMessage("hello"), first, ToolMessage("sunny", tool_call_id=first.tool_calls[0]["id"])])

    case("lc-loop", loop)
    case("lc-structured", lambda: model("structured").with_structured_output(Person).invoke("hello"))
    case("lc-functions", lambda: model("functions").with_structured_output(Person, method="function_calling").invoke("hello"))
    case("lc-responses", lambda: model("plain", use_responses_api=True).invoke("hello"))
    case("lc-completions", lambda: OpenAI(model="tiny", base_url=at("plain"), api_key="key").invoke("hello"))
    case("lc-embed", lambda: OpenAIEmbeddings(model="tiny", base_url=at("plain"), api_key="key", tiktoken_enabled=False, check_embedding_ctx_length=False).embed_documents(["hello", "world"]))
    if present("langchain-anthropic"):
        from langchain_anthropic import ChatAnthropic

        def claude(name):
            return ChatAnthropic(model="tiny", base_url=url("langchain-anthropic", "langchain-anthropic", name), api_key="key", max_retries=0)

        case("lca-plain", lambda: claude("plain").invoke("hello"))
        case("lca-stream", lambda: list(claude("stream").stream("hello")))
        case("lca-tools", lambda: claude("tools").bind_tools([weather]).invoke("hello"))
        case("lca-structured", lambda: claude("structured").with_structured_output(Person).invoke("hello"))


def instructor_client():
    import instructor
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    for mode in ("TOOLS", "JSON", "JSON_SCHEMA", "TOOLS_STRICT"):
        name = mode.lower().replace("_", "-")
        c = instructor.from_openai(
            openai.OpenAI(base_url=url("instructor", "instructor", name, "/v1"), api_key="key", max_retries=0), mode=getattr(instructor.Mode, mode))
        case("instructor-" + name, lambda: c.chat.completions.create(model="tiny", messages=HELLO, response_model=Person, max_retries=1))


def pydantic_ai():
    # Its Anthropic model does not start with the anthropic SDK of the same day.
    from pydantic import BaseModel
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class Person(BaseModel):
        name: str
        age: int

    def provider(name):
        return OpenAIProvider(base_url=url("pydantic-ai", "pydantic-ai-slim", name, "/v1"), api_key="key")

    case("pai-chat", lambda: Agent(OpenAIChatModel("tiny", provider=provider("plain")), system_prompt="be brief").run_sync("hello"))
    case("pai-output", lambda: Agent(OpenAIChatModel("tiny", provider=provider("output")), output_type=Person).run_sync("hello"))

    def weather(city: str) -> str:
        """The weather."""
        return "sunny"

    case("pai-tools", lambda: Agent(OpenAIChatModel("tiny", provider=provider("tools")), tools=[weather]).run_sync("hello"))
    case("pai-responses", lambda: Agent(OpenAIResponsesModel("tiny", provider=provider("plain"))).run_sync("hello"))

    async def streamed():
        async with Agent(OpenAIChatModel("tiny", provider=provider("stream"))).run_stream("hello") as s:
            await s.get_output()

    case("pai-stream", streamed)


def agents_sdk():
    from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)

    @function_tool
    def weather(city: str) -> str:
        """The weather."""
        return "sunny"

    def client(name):
        return AsyncOpenAI(base_url=url("openai-agents", "openai-agents", name, "/v1"), api_key="key", max_retries=0)

    def agent(name, kind, **kw):
        return Agent(name="a", instructions="be brief", model=kind(model="tiny", openai_client=client(name)), **kw)

    case("agents-responses", lambda: Runner.run_sync(agent("plain", OpenAIResponsesModel), "hello"))
    case("agents-tools", lambda: Runner.run_sync(agent("tools", OpenAIResponsesModel, tools=[weather]), "hello"))
    case("agents-chat", lambda: Runner.run_sync(agent("chat-tools", OpenAIChatCompletionsModel, tools=[weather]), "hello"))

    async def streamed():
        async for _ in Runner.run_streamed(agent("stream", OpenAIResponsesModel), "hello").stream_events():
            pass

    case("agents-stream", streamed)


def llama_index():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    def model(name, **kw):
        return OpenAILike(model="tiny", api_base=url("llama-index", "llama-index-llms-openai-like", name, "/v1"), api_key="key", max_retries=0, **kw)

    case("li-complete", lambda: model("plain").complete("hello"))
    case("li-chat", lambda: model("plain", is_chat_model=True).chat([ChatMessage(role="user", content="hello")]))
    case("li-stream", lambda: list(model("stream", is_chat_model=True).stream_chat([ChatMessage(role="user", content="hello")])))
    if present("llama-index-embeddings-openai-like"):
        from llama_index.embeddings.openai_like import OpenAILikeEmbedding

        e = OpenAILikeEmbedding(model_name="tiny", api_base=url("llama-index", "llama-index-llms-openai-like", "plain", "/v1"), api_key="key")
        case("li-embed", lambda: e.get_text_embedding("hello"))


def smol():
    from smolagents import OpenAIServerModel

    m = OpenAIServerModel("tiny", api_base=url("smolagents", "smolagents", "plain", "/v1"), api_key="key")
    case("smol", lambda: m.generate([{"role": "user", "content": [{"type": "text", "text": "hello"}]}], stop_sequences=["</code>"]))


def haystack_client():
    from haystack.components.embedders import OpenAITextEmbedder
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    at = lambda: url("haystack", "haystack-ai", "plain", "/v1")
    key = Secret.from_token("key")
    case("haystack", lambda: OpenAIChatGenerator(model="tiny", api_base_url=at(), api_key=key).run([ChatMessage.from_user("hello")]))
    case("haystack-embed", lambda: OpenAITextEmbedder(model="tiny", api_base_url=at(), api_key=key).run("hello"))


def litellm_client():
    import litellm

    litellm.telemetry = False
    litellm.num_retries = 0

    def at(name, suffix="/v1"):
        return url("litellm", "litellm", name, suffix)

    hosted = {"model": "hosted_vllm/tiny", "messages": HELLO, "api_key": "key"}
    case("ll-plain", lambda: litellm.completion(api_base=at("plain"), **hosted))
    case("ll-stream", lambda: list(litellm.completion(api_base=at("stream"), stream=True, **hosted)))
    case("ll-tools", lambda: litellm.completion(api_base=at("tools"), tools=[TOOL], tool_choice="auto", **hosted))
    case("ll-openai", lambda: litellm.completion(model="openai/tiny", messages=HELLO, api_base=at("openai"), api_key="key", temperature=0.1, max_tokens=8))
    case("ll-embed", lambda: litellm.embedding(model="hosted_vllm/tiny", input=["hello"], api_base=at("plain"), api_key="key"))
    case("ll-rerank", lambda: litellm.rerank(model="hosted_vllm/tiny", query="q", documents=["a", "b"], top_n=1, api_base=at("plain", ""), api_key="key"))
    case("ll-responses", lambda: litellm.responses(model="openai/tiny", input="hello", api_base=at("plain"), api_key="key"))
    case("ll-anthropic", lambda: litellm.completion(model="anthropic/tiny", messages=HELLO, api_base=at("plain", ""), api_key="key"))


def dspy_client():
    import dspy

    lm = dspy.LM("openai/tiny", api_base=url("dspy", "dspy", "plain", "/v1"), api_key="key", cache=False, num_retries=0)
    case("dspy", lambda: lm("hello"))

    def typed():
        try:
            dspy.Predict("question -> answer")(question="hello", lm=lm)
        except Exception as e:  # "hello" has not the fields it wants: both its adapters were tried
            if type(e).__name__ != "AdapterParseError":
                raise

    case("dspy-typed", typed)


CLIENTS = [
    ("langchain-openai", langchain),
    ("instructor", instructor_client),
    ("pydantic-ai-slim", pydantic_ai),
    ("openai-agents", agents_sdk),
    ("llama-index-llms-openai-like", llama_index),
    ("smolagents", smol),
    ("haystack-ai", haystack_client),
    ("litellm", litellm_client),
    ("dspy", dspy_client),
]


def main():
    frameworks = [(p, f) for p, f in CLIENTS if present(p)]
    if not frameworks:  # the SDKs are recorded in venvs of their own
        frameworks = [("openai", openai_official), ("anthropic", anthropic_official)]
    for package, drive in frameworks:
        case(package, drive)
    if failed:
        sys.exit(f"{failed} case(s) ended with an error")


main()
