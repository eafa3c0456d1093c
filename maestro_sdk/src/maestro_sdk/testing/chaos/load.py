"""Callers at every door of a mesh, all at once, and what each of them was shown."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, StreamChatResponse
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.errors import from_rpc_error
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.chaos.provider import REFUSED
from maestro_sdk.tracing import new_request_id

DOORS = ("unary", "events", "socket", "grpc")
"""REST, server-sent events, WebSocket, and gRPC with generated code."""
PATIENCE = 30.0
"""Seconds after which a caller that was told nothing counts as left hanging."""
_STREAM = "/maestro.llm.v1.ChatService/StreamChat"


@dataclass(slots=True)
class Shown:
    """What one caller saw of one answer. Times are Unix time."""

    mark: str
    door: str
    refusable: bool
    """Whether the provider refuses the question as the caller's fault."""
    began: float
    ended: float = 0.0
    started: int = 0
    switched: int = 0
    text: str = ""
    terminals: list[str] = field(default_factory=list[str])
    """Each end that it was told: "finish", or the reason of an error."""
    message: str = ""
    """What the last error said, for a person."""
    broken: str = ""
    """What its connection did instead of telling an end; empty where that ended cleanly."""

    @property
    def answered(self) -> bool:
        """Whether it ended well."""
        return self.terminals == ["finish"]

    @property
    def failure(self) -> str:
        """What it got instead of an answer; empty for a good one."""
        return "" if self.answered else ", ".join(self.terminals) or self.broken or "nothing"


class Load:
    """Clients that ask one question after another until they are told to stop; an async context manager.

    A tenth of the questions is refused by the provider as the caller's fault.
    """

    def __init__(self, url: str, key: str, model: str, clients: int, pause: float = 0.02) -> None:
        """`clients` are spread evenly over the doors; each makes a `pause` in seconds between two questions."""
        self.shown: list[Shown] = []
        """What was seen, in the order of the ends."""
        self.name = new_request_id()
        """The label "load" of its requests, by which their events are told from others'."""
        self._url, self._key, self._pause = url, key, pause
        self._fields = {"model": model, "metadata": {"load": self.name}}
        self._clients = clients
        self._marks = itertools.count(1)
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask(DOORS[number % len(DOORS)])) for number in range(self._clients)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def answers(self, count: int, timeout: float = 30.0) -> None:
        """Waits until so many more questions were answered well. Raises `TimeoutError`."""
        wanted = sum(shown.answered for shown in self.shown) + count
        async with asyncio.timeout(timeout):
            while sum(shown.answered for shown in self.shown) < wanted:
                self._ended.clear()
                await self._ended.wait()

    async def _ask(self, door: str) -> None:
        ask = {"unary": _ask_unary, "events": _ask_events, "socket": _ask_socket, "grpc": _ask_grpc}[door]
        async with Caller(self._url, self._key) as caller:
            while not self._stop.is_set():
                number = next(self._marks)
                shown = Shown(f"r{number}", door, number % 10 == 0, time.time())
                words = f"[{shown.mark}] {REFUSED if shown.refusable else 'tell me'}"
                try:
                    async with asyncio.timeout(PATIENCE):
                        await ask(caller, shown, question(words, **self._fields))
                except TimeoutError:
                    shown.broken = ""  # Left hanging: that is no clear end.
                shown.ended = time.time()
                self.shown.append(shown)
                self._ended.set()
                # A failing mesh is not asked faster than a good one.
                await asyncio.sleep(self._pause if shown.answered else self._pause * 5)


async def _ask_unary(caller: Caller, shown: Shown, body: dict[str, Any]) -> None:
    try:
        answer = await caller.chat(body)
        told = answer.json()
    except (aiohttp.ClientError, OSError, json.JSONDecodeError) as error:
        shown.broken = f"{type(error).__name__}: {error}"
        return
    if answer.status == 200:
        shown.started, shown.text = 1, told["text"]
        shown.terminals.append("finish")
    else:
        _refuse(shown, told)


async def _ask_events(caller: Caller, shown: Shown, body: dict[str, Any]) -> None:
    try:
        async with caller.session.post("/v1/chat", json={**body, "stream": True}) as response:
            if response.content_type != "text/event-stream":
                _refuse(shown, await response.json())
                return
            name = ""
            async for line in response.content:
                kind, _, value = line.decode().rstrip("\n").partition(": ")
                if kind == "event":
                    name = value
                elif kind == "data" and value != "[DONE]":
                    _note(shown, name, json.loads(value))
    except (aiohttp.ClientError, OSError) as error:
        shown.broken = f"{type(error).__name__}: {error}"


async def _ask_socket(caller: Caller, shown: Shown, body: dict[str, Any]) -> None:
    try:
        async with caller.socket() as socket:
            await socket.send_json({"type": "chat", "id": "c", "request": body})
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                frame = json.loads(message.data)
                _note(shown, frame["type"], frame)
                if shown.terminals:
                    return
            # A socket that closes tells it by a code of its own.
            shown.broken = f"socket closed with {socket.close_code}"
    except aiohttp.WSServerHandshakeError as error:
        shown.broken = f"{type(error).__name__}: {error.status}"
    except (aiohttp.ClientError, OSError) as error:
        shown.broken = f"{type(error).__name__}: {error}"


async def _ask_grpc(caller: Caller, shown: Shown, body: dict[str, Any]) -> None:
    request = ChatRequest(
        model=body["model"],
        messages=[
            Message(role=Role.ROLE_USER, parts=[Part(index=0, text=TextPart(text=each["content"]))])
            for each in body["messages"]
        ],
        metadata=body["metadata"],
    )
    async with _channel(caller) as channel:
        method = channel.unary_stream(_STREAM, ChatRequest.SerializeToString, StreamChatResponse.FromString)
        try:
            async for batch in method(request, metadata=caller.metadata):
                for event in batch.events:
                    _note_event(shown, event)
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
            if shown.terminals and told.metadata.get("origin") == "transport":
                # The whole answer is there; only the connection went before it was closed.
                return
            shown.terminals.append(told.reason)
            shown.message = told.message


@asynccontextmanager
async def _channel(caller: Caller) -> AsyncGenerator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(caller.url.removeprefix("http://")) as channel:
        yield channel


def _refuse(shown: Shown, body: Any) -> None:
    shown.terminals.append(body["error"]["reason"])
    shown.message = body["error"]["message"]


def _note(shown: Shown, kind: str, data: Any) -> None:
    match kind:
        case "started":
            shown.started += 1
        case "switched":
            shown.switched += 1
        case "text":
            shown.text += data["text"]
        case "finish":
            shown.terminals.append("finish")
        case "error":
            _refuse(shown, data)
        case _:
            pass


def _note_event(shown: Shown, event: ChatEvent) -> None:
    match event.WhichOneof("kind"):
        case "started":
            shown.started += 1
        case "switched":
            shown.switched += 1
        case "text":
            shown.text += event.text.text
        case "finish":
            shown.terminals.append("finish")
        case _:
            pass
