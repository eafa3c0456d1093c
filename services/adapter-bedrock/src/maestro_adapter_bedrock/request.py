"""A request of the contract as the body of Converse and ConverseStream, which is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock.cache import CachePlan
from maestro_adapter_bedrock.conversation import Conversation
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel
from maestro_adapter_bedrock.prefill import refuse_prefill
from maestro_adapter_bedrock.reasoning import Thinking, reason
from maestro_adapter_bedrock.tools import name_tools, plan_tools
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_options
from maestro_sdk.adapter.tool_schema import parse_any_schema

JSON_INSTRUCTION = "Answer with exactly one JSON object and nothing else: no other text and no code fence around it."
SCHEMA_INSTRUCTION = f"{JSON_INSTRUCTION} The object has to meet this JSON Schema:\n"

_RESERVED: Mapping[str, str] = {
    "model": "the request's model",
    "modelId": "the request's model",
    "messages": "the request's messages",
    "stream": "the call that was made",
}
"""What `provider_options` may not change, and what decides it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A translated request, and what the way back needs. `body` is for `orjson.dumps`: it may hold its fragments."""

    body: dict[str, Any]
    model: str
    """The model's name without the provider."""
    path: str
    """The wire's path without the operation."""
    lineage: str
    warnings: Sequence[chat_pb2.Warning] = ()
    tool_names: Mapping[str, str] = field(default_factory=dict[str, str])
    """The contract's name by the wire's, for the tools whose names the wire does not take."""
    streams: bool = True
    """Whether the model can stream this; else its unary answer is the stream."""
    stops: Sequence[str] = ()


def to_wire(request: ChatRequest, model: BedrockModel) -> Outgoing:
    """The wire's form of `request`; fields that are unset are not sent.

    What the wire can't carry becomes a warning, or under `strict` one `UnsupportedParameter` for all of it. A part that
    can't be sent is always an `UnsupportedParameter`: an answer that ignores it would be wrong.
    """
    notes = Notes(request.strict)
    cache = CachePlan(request, model, notes)
    names = name_tools(request)
    talk = Conversation(request, model, names, cache, notes)
    tools = plan_tools(request, names, talk.called, model, cache.point if cache.tools else None, notes)
    refuse_prefill(request, model, talk.messages)
    max_tokens = _max_tokens(request, model, notes)
    thinking = reason(request, model, max_tokens, talk.messages, tools.forced, notes)
    body: dict[str, Any] = {"messages": talk.messages}
    output = _output(request, model, thinking)
    if system := _system(request, model, cache, tools.instruction, notes):
        body["system"] = system
    if inference := _inference(request, model, max_tokens, thinking, notes):
        body["inferenceConfig"] = inference
    if tools.config is not None:
        body["toolConfig"] = tools.config
    if output:
        body["outputConfig"] = output
    if thinking.fields:
        body["additionalModelRequestFields"] = dict(thinking.fields)
    for name in ("seed", "logprobs"):
        if request.HasField(name):
            notes.unsupported(name, "Bedrock does not take it")
    merge_options(request.provider_options, PROVIDER, body, _RESERVED)
    notes.settle()
    return Outgoing(
        body,
        model.name,
        model.path,
        model.lineage,
        notes.warnings,
        names.renamed,
        streams=model.wire.streamed_tools or tools.config is None,
        stops=inference.get("stopSequences", ()),
    )


def _max_tokens(request: ChatRequest, model: BedrockModel, notes: Notes) -> int | None:
    if not request.HasField("max_tokens"):
        return None
    limit = model.max_output_tokens
    if limit is not None and request.max_tokens > limit:
        notes.unsupported("max_tokens", f"{model.name} gives at most {limit} tokens")
        return limit
    return request.max_tokens


def _system(request: ChatRequest, model: BedrockModel, cache: CachePlan, told: str, notes: Notes) -> list[Any]:
    blocks: list[Any] = []
    if request.system.strip():
        blocks.append({"text": request.system})
        if cache.system:
            blocks.append(cache.point)
    form = request.response_format
    match form.WhichOneof("kind"):
        case "json":
            notes.unsupported("response_format.json", "JSON is asked for by an instruction, not enforced")
            blocks.append({"text": JSON_INSTRUCTION})
        case "json_schema" if not model.has(Feature.FEATURE_JSON_SCHEMA):
            message = f"{model.name} does not enforce schemas; this one is asked for by an instruction"
            notes.unsupported("response_format.json_schema", message)
            parse_any_schema(form.json_schema.schema, "response_format.json_schema.schema")
            blocks.append({"text": SCHEMA_INSTRUCTION + form.json_schema.schema})
        case _:
            pass
    if told:
        blocks.append({"text": told})
    return blocks


def _inference(
    request: ChatRequest, model: BedrockModel, max_tokens: int | None, thinking: Thinking, notes: Notes
) -> dict[str, Any]:
    inference: dict[str, Any] = {}
    if max_tokens is not None:
        inference["maxTokens"] = max_tokens
    if request.HasField("temperature"):
        if request.temperature > 1:
            notes.unsupported("temperature", "Bedrock takes 1 at most; it is used")
        inference["temperature"] = _tidy(min(request.temperature, 1.0))
    if request.HasField("top_p"):
        inference["topP"] = _tidy(request.top_p)
    if request.stop:
        inference["stopSequences"] = list(request.stop)
    for wire, name, feature in (
        ("temperature", "temperature", Feature.FEATURE_TEMPERATURE),
        ("topP", "top_p", Feature.FEATURE_TEMPERATURE),
        ("stopSequences", "stop", Feature.FEATURE_STOP_SEQUENCES),
    ):
        if wire in inference and not model.has(feature):
            notes.unsupported(name, f"{model.name} is not known to take it")
            del inference[wire]
    for wire, name in (("temperature", "temperature"), ("topP", "top_p"), ("maxTokens", "max_tokens")):
        if wire in inference and name in thinking.refuses:
            notes.unsupported(name, f"{model.name} does not take it while it reasons")
            del inference[wire]
    if model.wire.sampling == "one" and {"temperature", "topP"} <= set(inference):
        notes.unsupported("top_p", f"{model.name} takes no top_p beside a temperature")
        del inference["topP"]
    return inference


def _output(request: ChatRequest, model: BedrockModel, thinking: Thinking) -> dict[str, Any]:
    output: dict[str, Any] = {}
    if request.response_format.WhichOneof("kind") == "json_schema" and model.has(Feature.FEATURE_JSON_SCHEMA):
        wanted = request.response_format.json_schema
        parse_any_schema(wanted.schema, "response_format.json_schema.schema")
        # The wire wants the schema as text: it goes as it was given.
        schema: dict[str, Any] = {"schema": wanted.schema}
        if wanted.name:
            schema["name"] = wanted.name
        if wanted.description:
            schema["description"] = wanted.description
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    if thinking.effort:
        output["effort"] = thinking.effort
    return output


def _tidy(number: float) -> float | int:
    return int(number) if number.is_integer() else number
