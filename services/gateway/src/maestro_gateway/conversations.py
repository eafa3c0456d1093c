"""`GET /v1/chat/stream`: any number of conversations, one after another or at once, on one WebSocket.

    up    {"type":"chat","id":"c1","request":{…}}   {"type":"cancel","id":"c1"}   {"type":"ping"}
          {"type":"resume","id":"c1","stream":"req_…","after":12}
    down  {"id":"c1","type":"started",…}  {"id":"c1","type":"text",…}  …  {"id":"c1","type":"finish" or "error",…}

The first frame of an answer, and an `error`, have `headers` where an answer over HTTP would tell something there.

The frames of a resumable chat carry their number as `seq`. Such a chat goes on without its socket for a while; a
`cancel` ends it.

Every conversation ends with exactly one `finish` or `error`. A reader that is slow holds up its conversations, and with
them the providers; nothing is collected in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, cast

from aiohttp import ClientConnectionError, WSMsgType, web

from maestro_gateway.chats import Chat
from maestro_gateway.headers import with_headers
from maestro_gateway.json_codec.answer import PONG, numbered_frames, quoted, socket_error, socket_frames
from maestro_gateway.json_codec.chat_request import read_chat
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.mesh import Mesh, calling
from maestro_gateway.resume.reading import Reading
from maestro_gateway.resume.service import require_streams
from maestro_sdk.errors import (
    Cancelled,
    Internal,
    InvalidRequest,
    MaestroError,
    NoBackend,
    TenantConcurrency,
    UpstreamError,
)
from maestro_sdk.tracing import Call, enter_call, is_request_id, new_request_id

log = logging.getLogger(__name__)

MOST = 32
"""Conversations at once on one socket."""
_LONGEST_ID = 128
_FAREWELL = 2.0
_ARRIVAL = 2.0
"""Seconds after its upgrade within which a socket may begin a conversation, however much the gateway wants to stop."""
_NONE = b"null"
GOING_AWAY = b"the gateway is shutting down; connect again"
DISMISSED = b"the key is not in force any more"


class ChatSocket:
    """One socket of one tenant."""

    def __init__(self, socket: web.WebSocketResponse, mesh: Mesh, call: Call) -> None:
        """`call` is that of the upgrade: its tenant and trace hold for every conversation."""
        self._socket = socket
        self._mesh = mesh
        self._call = call
        self._running: dict[str, asyncio.Task[None]] = {}
        # Names whose last frame was sent: free for the client, though the task may still be closing its call.
        self._over: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        # Whether it has begun a conversation, or is gone.
        self._begun = asyncio.Event()
        self._arrived = asyncio.get_running_loop().time()
        self._draining = self._cut = self._left = False

    async def run(self) -> None:
        """Serves until the peer leaves, which cancels whatever still runs."""
        async with asyncio.TaskGroup() as group:
            try:
                async for message in self._socket:
                    if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                        break
                    await self._take(message.data, group)
            except ClientConnectionError:
                log.debug("%s: the peer is gone", self._call.request_id)
            finally:
                self._left = True
                self._begun.set()
                self._cancel_all()

    async def finish(self, grace: float) -> None:
        """Takes no new conversation, gives those that run `grace` seconds to end, and closes.

        Who has just come gets the time to begin its first one: it was sent here, and nobody else can take it.
        """
        try:
            async with asyncio.timeout(grace):
                arriving = self._arrived + _ARRIVAL - asyncio.get_running_loop().time()
                with suppress(TimeoutError):
                    async with asyncio.timeout(arriving):
                        await self._begun.wait()
                self._draining = True
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d conversations were cut after %g s", len(self._running), grace)
            self._draining = self._cut = True
            self._cancel_all()
        # A reader that takes nothing does not hold up the end.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL):
                await self._idle.wait()
        await self._socket.close(code=1001, message=GOING_AWAY)

    async def dismiss(self) -> None:
        """Cuts what runs and closes: the key is not in force any more."""
        self._draining = self._left = True
        self._cancel_all()
        await self._socket.close(code=1008, message=DISMISSED)

    def _cancel_all(self) -> None:
        for task in self._running.values():
            task.cancel()

    async def _take(self, raw: bytes, group: asyncio.TaskGroup) -> None:
        """Handles one frame of the client."""
        name = ""
        try:
            frame = parse_object(raw)
            match frame.get("type"):
                case "chat" | "resume":
                    name = _name_of(frame)
                    if self._runs(name):
                        # Told without the name: the error under it would look like that conversation's end.
                        taken, name = name, ""
                        raise InvalidRequest.at("id", f"{taken!r} names a conversation that still runs")
                    self._begin(name, frame, group)
                    # A `cancel` may stand right behind it. A task that is cancelled before it ran would say nothing.
                    await asyncio.sleep(0)
                case "cancel":
                    # One that just ended is no error: the two frames crossed.
                    if (task := self._running.get(_name_of(frame))) is not None:
                        task.cancel()
                case "ping":
                    await self._socket.send_frame(PONG, WSMsgType.TEXT)
                case _:
                    raise InvalidRequest.at("type", "must be one of chat, resume, cancel, ping")
        except MaestroError as error:
            await self._tell(name, error, self._call.request_id)

    def _runs(self, name: str) -> bool:
        return name in self._running and name not in self._over

    def _begin(self, name: str, frame: dict[str, Any], group: asyncio.TaskGroup) -> None:
        if self._draining:
            raise NoBackend(GOING_AWAY.decode(), retry_after=1.0)
        if len(self._running) >= MOST:
            raise TenantConcurrency(f"{MOST} conversations run on this socket already; wait for one to end")
        answer = self._answer_to(name, frame)
        own = frame["type"] == "chat" and _stream_of(frame)
        self._idle.clear()
        self._begun.set()
        self._over.discard(name)
        previous = self._running.get(name)
        call = Call(own or new_request_id(), self._call.tenant, self._call.traceparent)
        task = group.create_task(self._converse(name, call, answer, previous))
        self._running[name] = task
        task.add_done_callback(lambda task: self._forget(name, task))

    def _answer_to(self, name: str, frame: dict[str, Any]) -> Callable[[], Awaitable[None]]:
        """What answers a frame. Raises `InvalidRequest`."""
        if frame["type"] == "resume":
            stream, after = _place_of(frame)
            return lambda: self._resume(name, stream, after)
        document = frame.get("request")
        if type(document) is not dict:
            raise InvalidRequest.at("request", "must be an object: the body of a chat request")
        return lambda: self._answer(name, cast("dict[str, Any]", document))

    async def _converse(
        self, name: str, call: Call, answer: Callable[[], Awaitable[None]], previous: asyncio.Task[None] | None
    ) -> None:
        enter_call(call)
        try:
            if previous is not None:
                await asyncio.wait((previous,))
            await answer()
        except ClientConnectionError:
            log.debug("%s: the peer left", call.request_id)
        except MaestroError as error:
            await self._tell(name, error, call.request_id)
        except asyncio.CancelledError:
            # By a `cancel` frame or a drain: the client is there and waits for the end. Otherwise nobody is.
            if self._left:
                raise
            why = UpstreamError(GOING_AWAY.decode()) if self._cut else Cancelled("the conversation was cancelled")
            await self._tell(name, why, call.request_id)
        except Exception:
            log.exception("unexpected error while serving %s", call.request_id)
            text = f"internal error; the log of the gateway tells more under {call.request_id}"
            await self._tell(name, Internal(text), call.request_id)

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._running.get(name) is task:
            del self._running[name]
            self._over.discard(name)
        if not self._running:
            self._idle.set()

    async def _answer(self, name: str, document: dict[str, Any]) -> None:
        body = read_chat(document)
        request, conversation, send = body.request, quoted(name), self._socket.send_frame
        if request.resumable and (streams := self._mesh.streams) is not None:
            call = calling()
            await self._send_pieces(name, await streams.begin(request, call, None, body.warnings), call.request_id)
            return
        chat, first = Chat(self._mesh, request), True
        async with aclosing(chat.stream()) as batches:
            async for batch in batches:
                if chat.finished:
                    self._over.add(name)
                frames = socket_frames(conversation, batch.events, chat.route, body.warnings)
                if first and frames:
                    first, frames[0] = False, with_headers(frames[0], self._mesh)
                for frame in frames:
                    await send(frame, WSMsgType.TEXT)

    async def _resume(self, name: str, stream: str, after: int) -> None:
        streams = require_streams(self._mesh.streams)
        await self._send_pieces(name, streams.resume(self._call.tenant, stream, after), stream)

    async def _send_pieces(self, name: str, reading: Reading, stream: str) -> None:
        conversation, send, first = quoted(name), self._socket.send_frame, True
        try:
            async with aclosing(reading.pieces()) as pieces:
                async for piece in pieces:
                    if piece.events[-1].WhichOneof("kind") == "finish":
                        self._over.add(name)
                    frames = numbered_frames(conversation, piece.events, reading.route, piece.before)
                    if first and frames:
                        first, frames[0] = False, with_headers(frames[0], self._mesh)
                    for frame in frames:
                        await send(frame, WSMsgType.TEXT)
        except asyncio.CancelledError:
            if not (self._left or self._cut):
                await require_streams(self._mesh.streams).cancel(self._call.tenant, stream)
            raise

    async def _tell(self, name: str, error: MaestroError, request_id: str) -> None:
        if self._running.get(name) is asyncio.current_task():
            self._over.add(name)
        frame = socket_error(quoted(name) if name else _NONE, error, request_id)
        try:
            await self._socket.send_frame(with_headers(frame, self._mesh, error), WSMsgType.TEXT)
        except ClientConnectionError:
            log.debug("%s: the peer left before its error", request_id)


def _name_of(frame: dict[str, Any]) -> str:
    name = frame.get("id")
    if type(name) is not str or not 0 < len(name) <= _LONGEST_ID:
        raise InvalidRequest.at("id", f"must be a string of 1 to {_LONGEST_ID} characters that names the conversation")
    return name


def _stream_of(frame: dict[str, Any]) -> str:
    """The name that the client gives a stream, by which it is taken up; empty when it leaves that to the gateway."""
    name = frame.get("stream")
    if name is None:
        return ""
    if type(name) is not str or not is_request_id(name):
        raise InvalidRequest.at("stream", "must be 1 to 128 letters, digits, `.`, `_`, `:` and `-`")
    return name


def _place_of(frame: dict[str, Any]) -> tuple[str, int]:
    """The stream that a frame takes up, and the number of the last event that the client has."""
    stream, after = _stream_of(frame), frame.get("after", 0)
    if not stream:
        raise InvalidRequest.at("stream", "is required: what `started` told as `stream`")
    if type(after) is not int or not 0 <= after < 2**31:
        raise InvalidRequest.at("after", "must be the number of the last event that arrived, or 0")
    return stream, after
