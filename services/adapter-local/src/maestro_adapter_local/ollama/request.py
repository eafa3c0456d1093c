"""A request of the contract as the body of `POST /api/chat` or `POST /api/embed`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    ReasoningEffort,
    Tool,
    ToolChoiceMode,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.message_pb2 import ImageDetail
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_local.ollama.conversation import to_messages
from maestro_adapter_local.ollama.failure import PROVIDER
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_options
from maestro_sdk.adapter.plain_schema import Limits, plain_schema
from maestro_sdk.adapter.tool_schema import parse_any_schema
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

JSON_INSTRUCTION = "Answer with exactly one JSON object and nothing else."
"""Ollama's JSON mode lets a model that is not told to write JSON write blanks until its tokens are used up."""
_LEVELS: Mapping[ReasoningEffort.ValueType, str] = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: "low",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
    ReasoningEffort.REASONING_EFFORT_MAX: "high",
}
_INEXACT = frozenset({ReasoningEffort.REASONING_EFFORT_MINIMAL, ReasoningEffort.REASONING_EFFORT_MAX})
_SAMPLING: Mapping[str, Feature.ValueType] = {
    "temperature": Feature.FEATURE_TEMPERATURE,
    "top_p": Feature.FEATURE_TEMPERATURE,
    "seed": Feature.FEATURE_SEED,
}
# Its types have no `$ref`, and no booleans in place of a schema.
_LIMITS = Limits(references=False, booleans=False)
_DETAILS = frozenset({ImageDetail.IMAGE_DETAIL_LOW, ImageDetail.IMAGE_DETAIL_HIGH})
_RESERVED: Mapping[str, str] = {
    "model": "the model is chosen by `model`",
    "messages": "the conversation stands in `messages`",
    "input": "the inputs stand in `inputs`",
    "stream": "the kind of the call decides",
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the operator sets for all requests to a server; a request's own fields come first."""

    keep_alive: str = ""
    """How long a model stays in memory after a call: "10m", seconds, "-1" for ever; empty leaves it to the server."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Ollama's `options`, `num_ctx` among them."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides what may be sent to a model: its features, and whether `think` takes a level."""

    model: Model
    levels: bool = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A translated request, and what the way back needs. `body` is for `orjson.dumps`: it holds its fragments."""

    body: dict[str, Any]
    model: str
    """The model's name without the provider."""
    warnings: Sequence[Warning] = ()
    logprobs: bool = False


def to_wire(request: ChatRequest, facts: Facts, defaults: Defaults) -> Outgoing:
    """The wire's form of `request`, without `stream`; fields that are unset are not sent.

    What the wire can't carry becomes a warning, or under `strict` one `UnsupportedParameter` for all of it. A part that
    can't be sent is always an `UnsupportedParameter`: an answer that ignores it would be wrong.
    """
    notes = Notes(request.strict)
    name = request.model.removeprefix(f"{PROVIDER}/")
    system = request.system
    if request.response_format.WhichOneof("kind") == "json":
        system = f"{system}\n\n{JSON_INSTRUCTION}" if system else JSON_INSTRUCTION
    body: dict[str, Any] = {
        "model": name,
        "messages": to_messages(request, system, facts.model, notes.foreign),
        # Else Ollama silently forgets the first turns of a conversation that is too long.
        "truncate": False,
    }
    _tell_details(request, notes)
    if tools := _tools(request, facts, notes):
        body["tools"] = tools
    _format(request, facts, body, notes)
    if "tools" in body and "format" in body:
        notes.unsupported("tools", "Ollama holds the whole answer to response_format, so that no tool is called")
    _think(request, facts, body, notes)
    options = {**defaults.options, **_options(request, facts, notes)}
    if options:
        body["options"] = options
    if defaults.keep_alive:
        body["keep_alive"] = _keep_alive(defaults.keep_alive)
    if request.HasField("logprobs"):
        if supports(facts.model, Feature.FEATURE_LOGPROBS):
            body["logprobs"] = True
            if request.logprobs.top:
                body["top_logprobs"] = request.logprobs.top
        else:
            notes.unsupported("logprobs", "this model returns no log probabilities")
    if request.HasField("cache"):
        notes.unsupported("cache", "Ollama keeps the prompt of the last call by itself")
    merge_options(request.provider_options, PROVIDER, body, _RESERVED)
    notes.settle()
    return Outgoing(body, name, notes.warnings, "logprobs" in body)


def to_embed_wire(request: EmbedRequest, defaults: Defaults) -> Outgoing:
    """The body of `POST /api/embed`, for texts only."""
    notes = Notes(request.strict)
    texts: list[str] = []
    for position, entry in enumerate(request.inputs):
        kind = entry.WhichOneof("kind")
        if kind != "text":
            raise UnsupportedParameter.at(f"inputs[{position}].{kind}", "Ollama embeds texts only")
        texts.append(entry.text)
    name = request.model.removeprefix(f"{PROVIDER}/")
    body: dict[str, Any] = {"model": name, "input": texts}
    if request.HasField("truncate"):
        body["truncate"] = request.truncate
    if request.HasField("dimensions"):
        body["dimensions"] = request.dimensions
    if request.HasField("normalize") and not request.normalize:
        notes.unsupported("normalize", "Ollama's vectors always have length 1")
    if request.purpose:
        notes.unsupported("purpose", "Ollama is not told what vectors are for; some models want it within the text")
    if defaults.options:
        body["options"] = dict(defaults.options)
    if defaults.keep_alive:
        body["keep_alive"] = _keep_alive(defaults.keep_alive)
    merge_options(request.provider_options, PROVIDER, body, _RESERVED)
    notes.settle()
    return Outgoing(body, name, notes.warnings)


def _keep_alive(text: str) -> str | int:
    # Ollama takes a number without a unit only as a number.
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _options(request: ChatRequest, facts: Facts, notes: Notes) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if request.HasField("max_tokens"):
        options["num_predict"] = request.max_tokens
    sampled = {found.name: value for found, value in request.ListFields() if found.name in _SAMPLING}
    for name, value in sampled.items():
        if supports(facts.model, _SAMPLING[name]):
            options[name] = value
        else:
            notes.unsupported(name, f"this model takes no {name}")
    if request.stop:
        if supports(facts.model, Feature.FEATURE_STOP_SEQUENCES):
            options["stop"] = list(request.stop)
        else:
            notes.unsupported("stop", "this model takes no stop texts")
    return options


def _format(request: ChatRequest, facts: Facts, body: dict[str, Any], notes: Notes) -> None:
    match request.response_format.WhichOneof("kind"):
        case None | "text":
            pass
        case "json":
            body["format"] = "json"
        case "json_schema":
            asked = request.response_format.json_schema
            parse_any_schema(asked.schema, "response_format.json_schema.schema")
            if supports(facts.model, Feature.FEATURE_JSON_SCHEMA):
                body["format"] = orjson.Fragment(asked.schema)
            else:
                notes.unsupported("response_format.json_schema", "this model can't be held to a JSON Schema")


def _think(request: ChatRequest, facts: Facts, body: dict[str, Any], notes: Notes) -> None:
    if not request.HasField("reasoning"):
        return
    reasoning, effort = request.reasoning, request.reasoning.effort
    off = effort == ReasoningEffort.REASONING_EFFORT_OFF
    if reasoning.HasField("budget_tokens"):
        notes.unsupported("reasoning.budget_tokens", "Ollama bounds an answer as a whole, by max_tokens")
    if not supports(facts.model, Feature.FEATURE_REASONING):
        if not off and effort:
            notes.unsupported("reasoning.effort", "this model does not reason")
    elif not facts.levels:
        # On or off is all that most models know: any effort is on.
        body["think"] = not off
    elif off:
        notes.unsupported("reasoning.effort", "this model can't answer without reasoning; low is its least")
        body["think"] = "low"
    else:
        body["think"] = _LEVELS.get(effort, True)
        if effort in _INEXACT:
            notes.unsupported("reasoning.effort", f"this model reasons low, medium or high: {body['think']} was sent")


def _tell_details(request: ChatRequest, notes: Notes) -> None:
    for number, message in enumerate(request.messages):
        for position, part in enumerate(message.parts):
            if part.HasField("image") and part.image.detail in _DETAILS:
                path = f"messages[{number}].parts[{position}].image.detail"
                notes.unsupported(path, "the model chooses the resolution")


def _tools(request: ChatRequest, facts: Facts, notes: Notes) -> list[dict[str, Any]]:
    choice, names = request.tool_choice, list(request.tool_choice.names)
    known = {tool.name for tool in request.tools}
    for position, name in enumerate(names):
        if name not in known:
            raise InvalidRequest.at(f"tool_choice.names[{position}]", f"no tool is named {name!r}")
    match choice.mode:
        case ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
            # Without tools none can be called.
            return []
        case ToolChoiceMode.TOOL_CHOICE_MODE_NAMED if len(names) != 1:
            raise InvalidRequest.at("tool_choice.names", "the mode NAMED needs exactly one name")
        case ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED if not request.tools:
            raise InvalidRequest.at("tool_choice.mode", "REQUIRED needs tools; give `tools` or leave `tool_choice` out")
        case ToolChoiceMode.TOOL_CHOICE_MODE_NAMED | ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED:
            notes.unsupported("tool_choice.mode", "Ollama can't make a model call a tool; it decides by itself")
        case ToolChoiceMode.TOOL_CHOICE_MODE_UNSPECIFIED | ToolChoiceMode.TOOL_CHOICE_MODE_AUTO:
            pass
        case _:
            raise UnsupportedParameter.at("tool_choice.mode", "the contract is newer than this adapter")
    if not request.tools:
        return []
    if not supports(facts.model, Feature.FEATURE_TOOLS):
        raise UnsupportedParameter.at("tools", "this model can't call tools here; choose one with the feature TOOLS")
    if choice.HasField("parallel") and not choice.parallel:
        notes.unsupported("tool_choice.parallel", "the model decides by itself whether calls stand side by side")
    # Offering only a subset says the same as naming it.
    return [
        _tool(tool, f"tools[{position}]", notes)
        for position, tool in enumerate(request.tools)
        if not names or tool.name in names
    ]


def _tool(tool: Tool, path: str, notes: Notes) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    here = f"{path}.input_schema"
    plain = plain_schema(tool.input_schema, here, _LIMITS)
    notes.lost(here, [(loss.field.removeprefix(f"{here}#"), loss.message) for loss in plain.losses])
    function["parameters"] = plain.fragment
    if tool.strict:
        notes.unsupported(f"{path}.strict", "Ollama does not hold arguments to their schema")
    return {"type": "function", "function": function}
