"""A request of the contract as the body of `POST /v1/messages`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest
from maestro_adapter_claude.conversation import to_messages
from maestro_adapter_claude.models import PROVIDER, ClaudeModel
from maestro_adapter_claude.prefill import refuse_prefill
from maestro_adapter_claude.reasoning import reason
from maestro_adapter_claude.schema import fit_schema
from maestro_adapter_claude.tools import to_tool_choice, to_tools
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_patch, own_options, refuse_reserved
from maestro_sdk.adapter.tool_names import ToolNames
from maestro_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    # Importing the SDK takes seconds and 85 MB, so only the type checker does.
    from anthropic.types import CacheControlEphemeralParam

MAX_CACHE_POINTS = 4
MAX_TOOL_NAME = 128
_RESERVED: Mapping[str, str] = {"model": "the model is chosen by `model`", "stream": "the kind of the call decides"}
JSON_INSTRUCTION = "Answer with exactly one JSON object and nothing else: no other text and no code fence around it."

_TTL: Mapping[CacheTtl.ValueType, Literal["5m", "1h"]] = {CacheTtl.CACHE_TTL_5M: "5m", CacheTtl.CACHE_TTL_1H: "1h"}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A translated request, and what the way back needs. `body` is for `orjson.dumps`: it may hold its fragments."""

    body: dict[str, Any]
    model: str
    """The model's name without the provider."""
    warnings: Sequence[chat_pb2.Warning] = ()
    tool_names: Mapping[str, str] = field(default_factory=dict[str, str])
    """The contract's name by the wire's, for the tools whose names the wire does not take."""
    betas: Sequence[str] = ()
    """Names for the header `anthropic-beta`."""
    provider: str = PROVIDER
    """Who answers, as the mesh calls it."""


def to_wire(request: ChatRequest, model: ClaudeModel, default_max_tokens: int) -> Outgoing:
    """The wire's form of `request`; fields that are unset are not sent.

    What the wire can't carry becomes a warning, or under `strict` one `UnsupportedParameter` for all of it. A part that
    can't be sent is always an `UnsupportedParameter`: an answer that ignores it would be wrong.
    """
    notes = Notes(request.strict)
    cache = _Cache(request, notes)
    name = model.model.name
    names = ToolNames([tool.name for tool in request.tools], MAX_TOOL_NAME)
    tools = to_tools(request, names, model, cache.control if cache.tools else None, notes)
    choice = to_tool_choice(request, names, model, notes)
    messages = to_messages(request, name, names.__getitem__, cache.messages, cache.control, notes)
    refuse_prefill(request, model, messages)
    reasoning = reason(request, model, default_max_tokens, messages, choice, notes)
    body: dict[str, Any] = {"model": name, "max_tokens": reasoning.max_tokens, "messages": messages}
    if system := _system(request, cache, notes):
        body["system"] = system
    if tools:
        body["tools"] = tools
    if choice is not None:
        body["tool_choice"] = choice
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    if cache.automatic is not None:
        body["cache_control"] = cache.automatic
    config: dict[str, Any] = {}
    if reasoning.thinking is not None:
        body["thinking"] = reasoning.thinking
    if reasoning.effort:
        config["effort"] = reasoning.effort
    if request.response_format.WhichOneof("kind") == "json_schema":
        config["format"] = _schema_format(request, notes)
    if config:
        body["output_config"] = config
    _refuse_sampling(request, notes)
    betas = _merge_options(request, body)
    notes.settle()
    return Outgoing(body, name, notes.warnings, names.renamed, betas)


class _Cache:
    """The places of `cache_control`. At most four may be sent; the last ones hold the most, so they stay."""

    def __init__(self, request: ChatRequest, notes: Notes) -> None:
        self.tools = self.system = False
        self.messages: set[int] = set()
        self.automatic: CacheControlEphemeralParam | None = None
        self.control: CacheControlEphemeralParam = {"type": "ephemeral"}
        if not request.HasField("cache"):
            return
        if ttl := _TTL.get(request.cache.ttl):
            self.control["ttl"] = ttl
        if not request.cache.points:
            self.automatic = self.control
            return
        # Position in the prompt: tools stand before the system text, that before all messages.
        places: set[int] = set()
        for number, point in enumerate(request.cache.points):
            match point.WhichOneof("after"):
                case "tools" if request.tools:
                    places.add(-2)
                case "system" if request.system:
                    places.add(-1)
                case "message":
                    if point.message >= len(request.messages):
                        raise InvalidRequest.at(f"cache.points[{number}].message", "there is no such message")
                    places.add(point.message)
                case _:
                    continue
        kept = sorted(places)[-MAX_CACHE_POINTS:]
        if len(kept) < len(places):
            notes.unsupported("cache.points", f"at most {MAX_CACHE_POINTS} places are kept; the last ones are")
        self.tools, self.system = -2 in kept, -1 in kept
        self.messages = {place for place in kept if place >= 0}


def _system(request: ChatRequest, cache: _Cache, notes: Notes) -> str | list[dict[str, Any]]:
    system = request.system
    instruction = ""
    if request.response_format.WhichOneof("kind") == "json":
        notes.unsupported("response_format.json", "JSON is asked for by an instruction, not enforced; json_schema is")
        instruction = JSON_INSTRUCTION
    if not cache.system:
        return "\n\n".join(text for text in (system, instruction) if text)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": system, "cache_control": cache.control}]
    if instruction:
        blocks.append({"type": "text", "text": instruction})
    return blocks


def _schema_format(request: ChatRequest, notes: Notes) -> dict[str, Any]:
    wanted = request.response_format.json_schema
    path = "response_format.json_schema.schema"
    fitted, losses = fit_schema(wanted.schema, path)
    notes.lost(path, losses)
    schema = dict(fitted)
    # The wire has no name and no description for a schema; the schema itself has.
    if wanted.name:
        schema.setdefault("title", wanted.name)
    if wanted.description:
        schema.setdefault("description", wanted.description)
    return {"type": "json_schema", "schema": schema}


def _refuse_sampling(request: ChatRequest, notes: Notes) -> None:
    for name in ("temperature", "top_p", "seed", "logprobs"):
        if request.HasField(name):
            notes.unsupported(name, "Claude's API does not take it")


def _merge_options(request: ChatRequest, body: dict[str, Any]) -> Sequence[str]:
    """Merges the caller's own parameters into `body`; returns the `betas` of them."""
    options = own_options(request.provider_options, PROVIDER)
    refuse_reserved(options, PROVIDER, _RESERVED)
    betas = options.pop("betas", ())
    if not isinstance(betas, list | tuple):
        raise InvalidRequest.at(f"provider_options.{PROVIDER}.betas", "is not a list")
    merge_patch(body, options)
    return [str(beta) for beta in cast("Sequence[Any]", betas)]
