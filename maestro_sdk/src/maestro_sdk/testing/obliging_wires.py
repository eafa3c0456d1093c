"""The obliging model behind providers' wires: replies for the fault server that look at what an adapter sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
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
from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import FaultServer, Reply, Seen, SendJson, Sse, Step, Wait
from maestro_sdk.testing.obliging import Obliged, ObligingModel
from maestro_sdk.testing.wire import Wire

PACE = 0.0005
"""Seconds between two pieces: a reader sees them one after the other."""

_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
_MODES = {
    "none": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
    "auto": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "any": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
    "required": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
    "tool": ToolChoiceMode.TOOL_CHOICE_MODE_NAMED,
    "function": ToolChoiceMode.TOOL_CHOICE_MODE_NAMED,
}
_STOPS: Mapping[str, Mapping[FinishReason.ValueType, str]] = {
    anthropic_messages.PATH: {
        FinishReason.FINISH_REASON_LENGTH: "max_tokens",
        FinishReason.FINISH_REASON_STOP_SEQUENCE: "stop_sequence",
    },
    openai_chat.PATH: {FinishReason.FINISH_REASON_LENGTH: "length"},
}


def oblige_anthropic(server: FaultServer) -> None:
    """Lets `server` answer `POST /v1/messages`."""
    server.on("POST", anthropic_messages.PATH, anthropic_reply())


def anthropic_reply() -> Reply:
    """The reply to a request of Anthropic's messages."""
    return _reply(anthropic_messages.WIRE, read_anthropic)


def oblige_openai(server: FaultServer) -> None:
    """Lets `server` answer `POST /v1/chat/completions`."""
    server.on("POST", openai_chat.PATH, openai_reply())


def openai_reply() -> Reply:
    """The reply to a request of OpenAI's chat completions."""
    reply = _reply(openai_chat.WIRE, read_openai)

    def answered(seen: Seen) -> Sequence[Step]:
        steps = reply(seen)
        return [_with_logprobs(step) for step in steps] if seen.json().get("logprobs") else steps

    return answered


def _reply(wire: Wire, read: Callable[[Any], ChatRequest]) -> Reply:
    model = ObligingModel()

    def reply(seen: Seen) -> Sequence[Step]:
        obliged: Obliged = model.answer(read(seen.json()))
        answer = replace(
            obliged.answer, stop=_STOPS[wire.path].get(obliged.reason), signature=_signature(obliged, wire)
        )
        return [Wait(PACE), *wire.answer(answer, PACE)(seen)]

    return reply


def _signature(obliged: Obliged, wire: Wire) -> str:
    return "c2lnbmVk" if obliged.answer.thoughts and wire is anthropic_messages.WIRE else ""


def read_anthropic(body: Any) -> ChatRequest:
    """What an Anthropic request asks for."""
    request = ChatRequest(system=_text(body.get("system", "")), stop=body.get("stop_sequences", ()))
    request.max_tokens = body["max_tokens"]
    for message in body["messages"]:
        parts = [part for block in _blocks(message["content"]) for part in _anthropic_part(block)]
        request.messages.append(Message(role=_ROLES[message["role"]], parts=parts))
    for tool in body.get("tools", ()):
        request.tools.append(Tool(name=tool["name"], input_schema=json.dumps(tool["input_schema"])))
    if choice := body.get("tool_choice"):
        names = [choice["name"]] if "name" in choice else []
        request.tool_choice.CopyFrom(ToolChoice(mode=_MODES[choice["type"]], names=names))
    if schema := body.get("output_config", {}).get("format"):
        request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=json.dumps(schema["schema"])))
    if body.get("thinking", {}).get("type") in {"adaptive", "enabled"}:
        request.reasoning.CopyFrom(Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))
    return request


def _anthropic_part(block: Mapping[str, Any]) -> list[Part]:
    match block:
        case {"type": "text", "text": text}:
            return [Part(text=TextPart(text=text))]
        case {"type": "image", "source": {"data": data}}:
            return [Part(image=ImagePart(data=base64.b64decode(data)))]
        case {"type": "document", "source": {"data": data}}:
            return [Part(document=DocumentPart(data=base64.b64decode(data)))]
        case {"type": "tool_use", "id": call_id, "name": name, "input": given}:
            return [Part(tool_call=ToolCallPart(call_id=call_id, name=name, arguments_json=json.dumps(given)))]
        case {"type": "tool_result", "tool_use_id": call_id}:
            told = Part(text=TextPart(text=_text(block.get("content", ""))))
            return [Part(tool_result=ToolResultPart(call_id=call_id, parts=[told]))]
        case _:
            return []


def read_openai(body: Any) -> ChatRequest:
    """What an OpenAI request asks for."""
    stop = body.get("stop") or ()
    request = ChatRequest(stop=[stop] if isinstance(stop, str) else stop, seed=body.get("seed"))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit:
        request.max_tokens = limit
    for message in body["messages"]:
        if message["role"] in {"system", "developer"}:
            request.system += _text(message["content"])
            continue
        parts: list[Part] = []
        if message["role"] == "tool":
            told = Part(text=TextPart(text=_text(message["content"])))
            parts.append(Part(tool_result=ToolResultPart(call_id=message["tool_call_id"], parts=[told])))
        else:
            parts += [part for block in _blocks(message.get("content") or "") for part in _openai_part(block)]
        for call in message.get("tool_calls", ()):
            made = call["function"]
            parts.append(
                Part(tool_call=ToolCallPart(call_id=call["id"], name=made["name"], arguments_json=made["arguments"]))
            )
        role = _ROLES[message["role"]]
        if role == Role.ROLE_TOOL and request.messages and request.messages[-1].role == role:
            request.messages[-1].parts.extend(parts)
        else:
            request.messages.append(Message(role=role, parts=parts))
    if request.messages[-1].role == Role.ROLE_ASSISTANT and not body.get("continue_final_message"):
        # A turn that is over; the model begins a new one.
        del request.messages[-1]
    for tool in body.get("tools", ()):
        function = tool["function"]
        request.tools.append(Tool(name=function["name"], input_schema=json.dumps(function["parameters"])))
    match body.get("tool_choice"):
        case str(word):
            request.tool_choice.mode = _MODES[word]
        case {"type": "function", "function": {"name": name}}:
            request.tool_choice.CopyFrom(ToolChoice(mode=_MODES["function"], names=[name]))
        case _:
            pass
    form: dict[str, Any] = body.get("response_format") or {}
    if schema := form.get("json_schema"):
        request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=json.dumps(schema["schema"])))
    if body.get("reasoning_effort") not in {None, "none"}:
        request.reasoning.CopyFrom(Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))
    return request


def _openai_part(block: Mapping[str, Any]) -> list[Part]:
    match block:
        case {"type": "text", "text": text}:
            return [Part(text=TextPart(text=text))]
        case {"type": "image_url", "image_url": {"url": url}}:
            return [Part(image=ImagePart(data=_data(url)))]
        case {"type": "file", "file": {"file_data": url}}:
            return [Part(document=DocumentPart(data=_data(url)))]
        case _:
            return []


def _data(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def _with_logprobs(step: Step) -> Step:
    """The step with a probability for each piece of its text."""
    match step:
        case Sse(event, {"choices": [{"delta": {"content": str(piece)}} as choice]} as chunk) if piece:
            return Sse(event, {**chunk, "choices": [{**choice, "logprobs": _probable([piece])}]})
        case SendJson({"choices": [{"message": {"content": str(text)}} as choice]} as document):
            return SendJson({**document, "choices": [{**choice, "logprobs": _probable([text])}]})
        case _:
            return step


def _probable(pieces: Sequence[str]) -> dict[str, Any]:
    top = [{"token": "other", "logprob": -2.5, "bytes": None}]
    found = [{"token": piece, "logprob": -0.25, "bytes": None, "top_logprobs": top} for piece in pieces]
    return {"content": found, "refusal": None}
