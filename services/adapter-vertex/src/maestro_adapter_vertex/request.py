"""A request of the contract as the body of `:generateContent` and `:streamGenerateContent`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_vertex.conversation import to_contents
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_adapter_vertex.reasoning import to_thinking
from maestro_adapter_vertex.schema import check_form
from maestro_adapter_vertex.tools import to_tool_config, to_tools, tool_names
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_patch, own_options
from maestro_sdk.adapter.parts import json_object
from maestro_sdk.errors import InvalidRequest

MAX_STOPS = 5
"""Stop texts that the wire takes."""
_SEEDS = range(-(2**31), 2**31)
_SAMPLING: Sequence[tuple[Literal["temperature", "top_p", "seed"], str, Feature.ValueType]] = (
    ("temperature", "temperature", Feature.FEATURE_TEMPERATURE),
    ("top_p", "topP", Feature.FEATURE_TEMPERATURE),
    ("seed", "seed", Feature.FEATURE_SEED),
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A translated request, and what the way back needs. `body` is for `orjson.dumps`: it may hold its fragments."""

    body: dict[str, Any]
    model: str
    """The model's name without the provider."""
    warnings: Sequence[chat_pb2.Warning] = ()
    tool_names: Mapping[str, str] = field(default_factory=dict[str, str])
    """The contract's name by the wire's, for the tools whose names the wire does not take."""


def to_wire(request: ChatRequest, model: VertexModel) -> Outgoing:
    """The wire's form of `request`; fields that are unset are not sent.

    What the wire can't carry becomes a warning, or under `strict` one `UnsupportedParameter` for all of it. A part that
    can't be sent is always an `UnsupportedParameter`: an answer that ignores it would be wrong.
    """
    notes = Notes(request.strict)
    names = tool_names(request.tools)
    tools = to_tools(request, names, notes)
    body: dict[str, Any] = {"contents": to_contents(request, model, names, notes)}
    if request.system:
        body["systemInstruction"] = {"parts": [{"text": request.system}]}
    if tools:
        body["tools"] = tools
    if (config := to_tool_config(request, names, notes)) is not None:
        body["toolConfig"] = config
    if generation := _generation(request, model, bool(tools), notes):
        body["generationConfig"] = generation
    _note_cache(request, notes)
    _merge_options(request, body)
    notes.settle()
    return Outgoing(body, model.model.name, notes.warnings, {new: old for old, new in names.items()})


def _generation(request: ChatRequest, model: VertexModel, tools: bool, notes: Notes) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, wire, feature in _SAMPLING:
        if request.HasField(name):
            if model.has(feature):
                config[wire] = getattr(request, name)
            else:
                notes.unsupported(name, f"{model.model.name} is not known to take it")
    if config.get("seed", 0) not in _SEEDS:
        raise InvalidRequest.at("seed", "has to fit into 32 bits for Gemini")
    if request.HasField("max_tokens"):
        config["maxOutputTokens"] = _limit(request.max_tokens, model, notes)
    if request.stop:
        _stop(request, model, config, notes)
    if request.HasField("logprobs"):
        if model.has(Feature.FEATURE_LOGPROBS):
            config["responseLogprobs"] = True
            if request.logprobs.top:
                config["logprobs"] = request.logprobs.top
        else:
            notes.unsupported("logprobs", f"{model.model.name} is not known to return them")
    _form(request, model, tools, config, notes)
    if (thinking := to_thinking(request, model, notes)) is not None:
        config["thinkingConfig"] = thinking
    return config


def _limit(asked: int, model: VertexModel, notes: Notes) -> int:
    limit = model.max_output_tokens
    if limit is None or asked <= limit:
        return asked
    notes.unsupported("max_tokens", f"{model.model.name} gives at most {limit} tokens")
    return limit


def _stop(request: ChatRequest, model: VertexModel, config: dict[str, Any], notes: Notes) -> None:
    if not model.has(Feature.FEATURE_STOP_SEQUENCES):
        notes.unsupported("stop", f"{model.model.name} is not known to take it")
        return
    if len(request.stop) > MAX_STOPS:
        notes.unsupported("stop", f"the provider takes {MAX_STOPS} texts; the first ones are sent")
    config["stopSequences"] = list(request.stop)[:MAX_STOPS]


def _form(request: ChatRequest, model: VertexModel, tools: bool, config: dict[str, Any], notes: Notes) -> None:
    """The form of the answer: JSON of any kind, or after a schema, which goes out as it is."""
    kind = request.response_format.WhichOneof("kind")
    if kind in {None, "text"}:
        return
    if tools and not model.wire.json_with_tools:
        notes.unsupported(f"response_format.{kind}", f"{model.model.name} can't be held to a form beside tools")
        return
    config["responseMimeType"] = "application/json"
    if kind == "json":
        return
    wanted = request.response_format.json_schema
    path = "response_format.json_schema.schema"
    notes.lost(path, [(loss.pointer, loss.message) for loss in check_form(wanted.schema, path)])
    # The wire has no name and no description for a schema; the schema itself has.
    named = {"title": wanted.name, "description": wanted.description}
    schema = json_object(wanted.schema) or {}
    missing = {name: text for name, text in named.items() if text and name not in schema}
    config["responseJsonSchema"] = {**schema, **missing} if missing else orjson.Fragment(wanted.schema)


def _note_cache(request: ChatRequest, notes: Notes) -> None:
    if request.cache.points:
        notes.unsupported("cache.points", "the provider keeps the beginnings of prompts by itself, and takes no places")
    if request.cache.ttl != CacheTtl.CACHE_TTL_UNSPECIFIED:
        notes.unsupported("cache.ttl", "the provider decides how long it keeps a prompt")


def _merge_options(request: ChatRequest, body: dict[str, Any]) -> None:
    options = own_options(request.provider_options, PROVIDER)
    if "model" in options:
        raise InvalidRequest.at(f"provider_options.{PROVIDER}.model", "belongs to the request itself")
    merge_patch(body, options)
    generation = cast("dict[str, Any]", body.get("generationConfig", {}))
    if generation.get("candidateCount", 1) != 1:
        path = f"provider_options.{PROVIDER}.generationConfig.candidateCount"
        raise InvalidRequest.at(path, "an answer has one candidate here")
