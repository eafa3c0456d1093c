"""The obliging model behind Bedrock's wire: replies for the fault server that look at what an adapter sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    FinishReason,
    JsonSchemaFormat,
    Reasoning,
    ReasoningEffort,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import (
    DocumentPart,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro_sdk.testing import bedrock_converse
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Step, Wait
from maestro_sdk.testing.obliging import ObligingModel, count_tokens
from maestro_sdk.testing.obliging_embeddings import DIMENSIONS, vector

PACE = 0.0005
"""Seconds between two pieces: a reader sees them one after the other."""

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT}
STOPS = {
    FinishReason.FINISH_REASON_LENGTH: "max_tokens",
    FinishReason.FINISH_REASON_STOP_SEQUENCE: "stop_sequence",
}


def oblige_bedrock(server: FaultServer) -> None:
    """Lets `server` answer Converse, ConverseStream, CountTokens, and InvokeModel of models that embed."""
    model = ObligingModel()

    def converse(seen: Seen) -> Sequence[Step]:
        obliged = model.answer(read_bedrock(seen.json()))
        signature = "c2lnbmVk" if obliged.answer.thoughts else ""
        answer = replace(obliged.answer, stop=STOPS.get(obliged.reason), signature=signature)
        return [Wait(PACE), *bedrock_converse.answer(answer, PACE)(seen)]

    def count(seen: Seen) -> Sequence[Step]:
        return [SendJson({"inputTokens": count_tokens(read_bedrock(seen.json()["input"]["converse"]))})]

    server.on("POST", bedrock_converse.PATH, converse)
    server.on("POST", "/model/*/count-tokens", count)
    server.on("POST", "/model/*/invoke", embed)


def embed(seen: Seen) -> Sequence[Step]:
    """Vectors as Titan gives them, one per call, or Cohere."""
    match seen.json():
        case {"inputText": str(text), **rest}:
            values = vector(text, rest.get("dimensions", DIMENSIONS))
            return (SendJson({"embedding": values, "inputTextTokenCount": _tokens(text)}),)
        case {"texts": [*texts], **rest}:
            values = [vector(text, rest.get("output_dimension", DIMENSIONS)) for text in texts]
            head = Headers(200, {"x-amzn-bedrock-input-token-count": str(sum(map(_tokens, texts)))})
            return (head, SendJson({"embeddings": {"float": values} if "embedding_types" in rest else values}))
        case _:
            refusal = {"message": "Malformed input request, please reformat your input and try again."}
            return (Headers(400, {"x-amzn-errortype": "ValidationException"}), SendJson(refusal))


def _tokens(text: str) -> int:
    return 1 + len(text) // 4


def read_bedrock(body: Any) -> ChatRequest:
    """What a request of Converse asks for."""
    request = ChatRequest(system="".join(block.get("text", "") for block in body.get("system", ())))
    inference = body.get("inferenceConfig", {})
    request.stop.extend(inference.get("stopSequences", ()))
    if "maxTokens" in inference:
        request.max_tokens = inference["maxTokens"]
    for message in body["messages"]:
        parts = [part for block in message["content"] for part in _part(block)]
        request.messages.append(Message(role=_ROLES[message["role"]], parts=parts))
    tools = body.get("toolConfig", {})
    for spec in (tool["toolSpec"] for tool in tools.get("tools", ()) if "toolSpec" in tool):
        request.tools.append(Tool(name=spec["name"], input_schema=json.dumps(spec["inputSchema"]["json"])))
    match tools.get("toolChoice", {}):
        case {"any": _}:
            request.tool_choice.mode = ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
        case {"tool": {"name": name}}:
            request.tool_choice.CopyFrom(ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=[name]))
        case _:
            pass
    match body.get("outputConfig", {}):
        case {"textFormat": {"structure": {"jsonSchema": {"schema": schema}}}}:
            request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=schema))
        case _:
            pass
    if _reasons(body.get("additionalModelRequestFields", {})):
        request.reasoning.CopyFrom(Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))
    return request


def _reasons(fields: Mapping[str, Any]) -> bool:
    match fields:
        case {"thinking": {"type": "enabled" | "adaptive"}} | {"reasoningConfig": {"type": "enabled"}}:
            return True
        case _:
            return "reasoning_effort" in fields


def _part(block: Mapping[str, Any]) -> list[Part]:
    match block:
        case {"text": text}:
            return [Part(text=TextPart(text=text))]
        case {"image": {"source": {"bytes": data}}}:
            return [Part(image=ImagePart(data=base64.b64decode(data)))]
        case {"document": {"source": {"bytes": data}}}:
            return [Part(document=DocumentPart(data=base64.b64decode(data)))]
        case {"toolUse": {"toolUseId": call_id, "name": name, "input": given}}:
            return [Part(tool_call=ToolCallPart(call_id=call_id, name=name, arguments_json=json.dumps(given)))]
        case {"toolResult": {"toolUseId": call_id, "content": content}}:
            told = "".join(inner.get("text", "") for inner in content)
            return [Part(tool_result=ToolResultPart(call_id=call_id, parts=[Part(text=TextPart(text=told))]))]
        case _:
            return []
