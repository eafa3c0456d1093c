"""All wires behind one interface: a request in, the body that would be sent and its warnings out. Pure, as they are."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import orjson
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.adapter import chat_completions
from maestro_sdk.errors import MaestroError
from maestro_sdk.testing import strict_schemas
from maestro_sdk.testing.golden import plain
from maestro_sdk.testing.strict_schemas import Refusal

TODAY = datetime.date(2026, 11, 22)
"""Prices are those of this day, so that no test changes its mind later."""


class Reader(Protocol):
    """A stream of one answer."""

    def feed(self, raw: bytes, /) -> list[ChatEvent]:
        """The events that `raw` completes."""
        ...

    def end(self) -> list[ChatEvent] | None:
        """Tells that the bytes are over; the last events, where the wire holds some back."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """What a translation made of a request."""

    body: Any
    """The body as JSON values."""
    warnings: Sequence[Any]
    """The contract's warnings."""
    reader: Callable[[], Reader]
    """Begins to read the stream of the answer."""


@dataclass(frozen=True, slots=True)
class Wire:
    """One adapter's wire to one model."""

    name: str
    model: Model
    provider: str
    api: str
    """`Origin.api` of its parts."""
    send: Callable[[ChatRequest], Sent]
    to_error: Callable[[int, bytes, Mapping[str, str]], MaestroError]
    schemas: Callable[[Any], Sequence[Any]]
    """The schemas of the tools in a body."""
    refusals: Callable[[Any], list[Refusal]]
    """What the provider refuses in such a schema."""

    def ask(self, request: ChatRequest) -> Sent:
        """Sends a request to this wire's model, whatever model it names."""
        asked = ChatRequest()
        asked.CopyFrom(request)
        asked.model = self.model.id
        return self.send(asked)


CONVERSATIONS = Path(__file__).parents[1] / "fixtures" / "conversations"


def conversation(name: str) -> ChatRequest:
    """A conversation of the fixtures, for any model."""
    fields = json.loads((CONVERSATIONS / f"{name}.json").read_text(encoding="utf-8"))
    return ParseDict({"model": "any", **fields}, ChatRequest())


NAMES = ("anthropic", "openai", "azure", "vertex", "bedrock", "nova", "ollama", "vllm")
"""All wires; `bedrock` is a Claude model there, `nova` Amazon's own."""


@cache
def wire(name: str) -> Wire:
    """The wire with this name."""
    return _MAKERS[name]()


def _anthropic() -> Wire:
    from maestro_adapter_claude import models, translate
    from maestro_adapter_claude.conversation import API

    model = models.load(today=TODAY)["anthropic/claude-sonnet-5"]

    def send(request: ChatRequest) -> Sent:
        out = translate.to_wire(request, model, 16384)
        return Sent(plain(out.body), out.warnings, lambda: translate.Stream(out))

    return Wire(
        "anthropic",
        model.model,
        "anthropic",
        API,
        send,
        translate.to_error,
        lambda body: [tool["input_schema"] for tool in body["tools"]],
        strict_schemas.anthropic,
    )


def _functions(body: Any) -> Sequence[Any]:
    return [tool["function"]["parameters"] for tool in body["tools"]]


def _chat_completions(name: str, model: Model, dialect: chat_completions.Dialect, refusals: Any) -> Wire:
    def send(request: ChatRequest) -> Sent:
        out = chat_completions.to_wire(request, dialect, stream=True)
        return Sent(
            plain(out.body),
            out.warnings,
            lambda: chat_completions.Stream(dialect, model.name, warnings=out.warnings, tool_names=out.tool_names),
        )

    def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
        return chat_completions.to_error(status, body, headers, provider=dialect.provider)

    return Wire(name, model, dialect.provider, dialect.api, send, to_error, _functions, refusals)


def _openai() -> Wire:
    from maestro_adapter_openai.models import models

    found = models(today=TODAY)["gpt-5.1"]
    assert found.dialect is not None
    return _chat_completions("openai", found.model, found.dialect, strict_schemas.openai)


def _azure() -> Wire:
    from maestro_adapter_openai.models import azure_models

    found = azure_models({"gpt-4.1": "my-deployment"}, {}, today=TODAY)["gpt-4.1"]
    assert found.dialect is not None
    return _chat_completions("azure", found.model, found.dialect, strict_schemas.openai)


def _vertex() -> Wire:
    from maestro_adapter_vertex import models, translate
    from maestro_adapter_vertex.conversation import API

    model = models.load(today=TODAY)["vertex/gemini-3.5-flash"]

    def send(request: ChatRequest) -> Sent:
        out = translate.to_wire(request, model)
        return Sent(plain(out.body), out.warnings, lambda: translate.Stream(out))

    return Wire(
        "vertex",
        model.model,
        "vertex",
        API,
        send,
        translate.to_error,
        lambda body: [each.get("parameters") for each in body["tools"][0]["functionDeclarations"]],
        strict_schemas.gemini,
    )


def _bedrock(name: str, model_name: str, family: Any) -> Wire:
    from maestro_adapter_bedrock import models, translate
    from maestro_adapter_bedrock.conversation import API

    model = models.load(today=TODAY)[f"bedrock/{model_name}"]

    def send(request: ChatRequest) -> Sent:
        out = translate.to_wire(request, model)
        return Sent(plain(out.body), out.warnings, lambda: translate.Stream(out))

    return Wire(
        name,
        model.model,
        "bedrock",
        API,
        send,
        translate.to_error,
        lambda body: [each["toolSpec"]["inputSchema"]["json"] for each in body["toolConfig"]["tools"]],
        lambda schema: strict_schemas.bedrock(schema, family),
    )


_FULL = ("TOOLS", "PARALLEL_TOOLS", "VISION", "REASONING", "JSON_SCHEMA", "STREAMED_TOOL_ARGS")


def _served(api: str) -> Model:
    from maestro_adapter_local.models import BASIC_FEATURES, Served, describe
    from maestro_adapter_local.settings import ModelSettings, ServerSettings

    server = ServerSettings(name="box", base_url="http://127.0.0.1:1", api=api)  # pyright: ignore[reportArgumentType]
    extra = (*_FULL, "TOOL_CHOICE", "LOGPROBS") if api == "vllm" else _FULL
    return describe(Served("qwen3:8b", 40960, (*BASIC_FEATURES, *extra)), server, ModelSettings(match="*"))


def _ollama() -> Wire:
    from maestro_adapter_local.ollama import answer, failure
    from maestro_adapter_local.ollama import request as translation
    from maestro_adapter_local.ollama.conversation import API

    model = _served("ollama")

    def send(request: ChatRequest) -> Sent:
        out = translation.to_wire(request, translation.Facts(model), translation.Defaults())
        return Sent(plain(out.body), out.warnings, lambda: answer.Stream(out, "chat-1"))

    return Wire("ollama", model, "local", API, send, failure.to_error, _functions, strict_schemas.ollama)


def _vllm() -> Wire:
    from maestro_adapter_local.compatible import _DIALECTS

    model = _served("vllm")
    # vLLM compiles no grammar for tools unless it is asked to: whatever is a JSON Schema is taken.
    return _chat_completions("vllm", model, _DIALECTS["vllm"].for_model(model), strict_schemas.bedrock)


_MAKERS: Mapping[str, Callable[[], Wire]] = {
    "anthropic": _anthropic,
    "openai": _openai,
    "azure": _azure,
    "vertex": _vertex,
    "bedrock": lambda: _bedrock("bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic"),
    "nova": lambda: _bedrock("nova", "amazon.nova-lite-v1:0", "nova"),
    "ollama": _ollama,
    "vllm": _vllm,
}


def encoded(value: Any) -> bytes:
    """JSON as a provider sends it."""
    return orjson.dumps(value)
