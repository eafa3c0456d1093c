"""The front doors of the mesh, each asked the same question: what comes out of it, in one form for all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import from_rpc_error, to_json
from maestro_sdk.testing.callers import Caller, question

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stand:
    """Where the doors are: one client over HTTP, one channel for gRPC, one tenant."""

    caller: Caller
    channel: grpc.aio.Channel


@dataclass(slots=True)
class Got:
    """What a caller got: the answer so far, how often it began and ended, and the error where there was one.

    `status` is that of HTTP where the door has one; elsewhere the one that the error names, and 200 without an error.
    """

    status: int = 200
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Tool calls as name and arguments, in order."""
    provider: str = ""
    attempt: int = 0
    began: int = 0
    ended: int = 0
    finish: str = ""
    kinds: list[str] = field(default_factory=list[str])
    switched: list[Json] = field(default_factory=list[Json])
    usage: dict[str, Any] = field(default_factory=dict[str, Any])
    error: dict[str, Any] = field(default_factory=dict[str, Any])
    retry_after: str = ""
    """The header, where the door has one."""

    @property
    def reason(self) -> str:
        """The error's reason, empty without an error."""
        return str(self.error.get("reason", ""))

    @property
    def after_content(self) -> bool:
        """Whether the error says that content was handed on before it."""
        return self.error.get("metadata", {}).get("after_content") == "true"


def take_error(got: Got, error: dict[str, Any]) -> None:
    """Notes an error that ended the answer."""
    got.error, got.status = error, int(error["code"])
    got.ended += 1


def take_event(got: Got, kind: str, data: Any) -> None:
    """Notes one event of a stream in its JSON form."""
    got.kinds.append(kind)
    match kind:
        case "started":
            got.began += 1
            got.provider, got.attempt = data["provider"], data["attempt"]
        case "text":
            got.text += data["text"]
        case "tool_call":
            if data.get("name"):
                got.calls.append((data["name"], ""))
            name, arguments = got.calls[-1]
            got.calls[-1] = (name, arguments + data["arguments_json"])
        case "switched":
            got.switched.append({name: data[name] for name in ("from_model", "to_model", "why")})
        case "finish":
            got.ended += 1
            got.finish, got.usage = data["finish_reason"], data["usage"]
        case "error":
            take_error(got, data["error"])
        case _:
            pass


async def ask_rest(stand: Stand, body: Json) -> Got:
    """`POST /v1/chat`, the whole answer at once."""
    answer = await stand.caller.chat(body)
    got = Got(status=answer.status, retry_after=answer.headers.get("retry-after", ""))
    document = answer.json()
    if answer.status != 200:
        take_error(got, document["error"])
        got.status = answer.status
        return got
    got.text, got.provider, got.attempt = document["text"], document["provider"], document["attempt"]
    got.began = got.ended = 1
    got.finish, got.usage, got.switched = document["finish_reason"], document["usage"], document["switches"]
    got.calls = [(call["name"], json.dumps(call["arguments"])) for call in document["tool_calls"]]
    return got


async def ask_sse(stand: Stand, body: Json) -> Got:
    """`POST /v1/chat` with `stream`: server-sent events; an error before the first byte is a plain answer."""
    got = Got()
    sent = json.dumps({**body, "stream": True}).encode()
    headers = {"content-type": "application/json"}
    async with stand.caller.session.post("/v1/chat", data=sent, headers=headers) as response:
        got.status, got.retry_after = response.status, response.headers.get("retry-after", "")
        if response.content_type != "text/event-stream":
            take_error(got, (await response.json())["error"])
            got.status = response.status
            return got
        done = 0
        async for block in _blocks(response.content.readany):
            name, data = _fields(block)
            if name:
                take_event(got, name, json.loads(data))
            elif data:
                assert data == "[DONE]", block
                done += 1
    # `[DONE]` says what `finish` said, and stands behind it only.
    assert done == got.kinds.count("finish"), got.kinds
    return got


async def ask_socket(stand: Stand, body: Json) -> Got:
    """One conversation on a WebSocket of its own."""
    got = Got()
    async with stand.caller.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c", "request": dict(body)})
        # What follows the end comes before the answer to a ping that is sent after it.
        while True:
            frame = await socket.receive_json()
            kind = frame["type"]
            if kind == "pong":
                return got
            take_event(got, kind, frame)
            if kind in ("finish", "error"):
                await socket.send_json({"type": "ping"})


async def ask_stream(stand: Stand, body: Json) -> Got:
    """`StreamChat` over gRPC."""
    got = Got()
    call = ChatServiceStub(stand.channel).StreamChat(as_message(body), metadata=stand.caller.metadata)
    try:
        async for message in call:
            for event in message.events:
                take_event(got, *_plain(event))
    except grpc.aio.AioRpcError as error:
        take_error(got, to_json(from_rpc_error(error))["error"])
    return got


async def ask_unary(stand: Stand, body: Json) -> Got:
    """`Chat` over gRPC."""
    got = Got()
    try:
        answer = await ChatServiceStub(stand.channel).Chat(as_message(body), metadata=stand.caller.metadata)
    except grpc.aio.AioRpcError as error:
        take_error(got, to_json(from_rpc_error(error))["error"])
        return got
    got.text = "".join(part.text.text for part in answer.parts)
    got.calls = [
        (part.tool_call.name, part.tool_call.arguments_json) for part in answer.parts if part.HasField("tool_call")
    ]
    got.provider, got.attempt = answer.provider, answer.attempt
    got.began = got.ended = 1
    got.finish, got.usage = _word(answer.finish_reason), _counts(answer.usage)
    return got


Door = Callable[[Stand, Json], Awaitable[Got]]
DOORS: Mapping[str, Door] = {
    "rest": ask_rest,
    "sse": ask_sse,
    "socket": ask_socket,
    "grpc-stream": ask_stream,
    "grpc-unary": ask_unary,
}
STREAMED = ("sse", "socket", "grpc-stream")
"""Doors that hand the answer on piece by piece."""


async def ask(stand: Stand, door: str, text: str, *, patience: float = 30.0, **fields: Any) -> Got:
    """Asks at a door. Raises `TimeoutError` when the answer has not ended after `patience` seconds."""
    async with asyncio.timeout(patience):
        return await DOORS[door](stand, question(text, **fields))


def as_message(body: Json) -> ChatRequest:
    """A body of `question` as the contract's message: text, model, required features and preferred providers."""
    text = body["messages"][0]["content"]
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    request = ChatRequest(model=body.get("model", ""), messages=[message])
    routing = body.get("routing", {})
    request.routing.prefer_providers.extend(routing.get("prefer_providers", ()))
    request.routing.persona = routing.get("persona", "")
    for name in routing.get("required", ()):
        request.routing.required.append(Feature.Value(f"FEATURE_{name.upper()}"))
    for tool in body.get("tools", ()):
        request.tools.add(name=tool["name"], input_schema=json.dumps(tool["input_schema"]))
    return request


def _plain(event: ChatEvent) -> tuple[str, Any]:
    kind = event.WhichOneof("kind") or ""
    match kind:
        case "started":
            return kind, {"provider": event.started.provider, "attempt": event.started.attempt}
        case "text":
            return kind, {"text": event.text.text}
        case "tool_call":
            return kind, {"name": event.tool_call.name, "arguments_json": event.tool_call.arguments_json}
        case "switched":
            switched = event.switched
            return kind, {"from_model": switched.from_model, "to_model": switched.to_model, "why": switched.why}
        case "finish":
            return kind, {"finish_reason": _word(event.finish.reason), "usage": _counts(event.finish.usage)}
        case _:
            return kind, {}


def _word(reason: FinishReason.ValueType) -> str:
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def _counts(usage: Usage) -> dict[str, Any]:
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


async def _blocks(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[str]:
    buffer = b""
    while chunk := await read():
        *blocks, buffer = (buffer + chunk).split(b"\n\n")
        for block in blocks:
            yield block.decode()
    assert not buffer, f"the stream ended inside an event: {buffer!r}"


def _fields(block: str) -> tuple[str, str]:
    fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
    return fields.get("event", ""), fields.get("data", "")
