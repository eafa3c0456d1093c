"""What every API of HTTP bodies shares: who calls, how much, one answer or a stream, and errors in its own shape.

The HTTP status of an error travels as initial metadata `x-http-status`, which Envoy turns into the status line; other
initial metadata become headers.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol
from urllib.parse import parse_qsl

import grpc
from google.api.httpbody_pb2 import HttpBody

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse
from maestro_gateway.chats import Chat
from maestro_gateway.headers import circumstances, retry_after
from maestro_gateway.identity import admitted, current_caller
from maestro_gateway.limits import LimitHeaders, current_ticket, openai_headers
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_gateway.pulse import Pulse
from maestro_sdk.errors import Internal, InvalidRequest, MaestroError, TooLarge, Unauthenticated
from maestro_sdk.tracing import REQUEST_ID_KEY

log = logging.getLogger(__name__)

JSON = "application/json"
_SSE = "text/event-stream"
# Without `x-accel-buffering` a proxy such as nginx collects the events.
_SSE_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
_PATH = "x-envoy-original-path"
_PASSED = ("beta", "api-version")
"""Parameters that clients of Anthropic and Azure say beside their headers: Envoy passes over them, too."""

EncodeError = Callable[[MaestroError, str], bytes]
"""(error, request id) gives the body of an error in the shape of an API."""
Note = Callable[[Iterable[ChatEvent]], Awaitable[None] | None]
"""Takes events of an answer before they are sent on, and gives what has to be awaited before that."""


class Batch(Protocol):
    """Events that came together."""

    @property
    def events(self) -> Iterable[ChatEvent]:
        """The events, in order."""
        ...


class Source(Protocol):
    """What answers."""

    @property
    def route(self) -> str:
        """The route that was taken, known from the first event on; empty when the model was named directly."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the last events that were handed on hold the end, behind which nothing is waited for."""
        ...


class Frames(Protocol):
    """One answer as server-sent events in the shape of an API."""

    route: str
    """Set before the first frames; empty when the model was named directly."""

    def frames(self, events: Iterable[ChatEvent]) -> bytes:
        """The frames of some events; after `finish` also what ends the stream."""
        ...

    def error(self, error: MaestroError, request_id: str) -> bytes:
        """The frame of an error that ends a stream."""
        ...

    def idle(self) -> bytes:
        """A sign of life while nothing comes."""
        ...


class Facade:
    """Runs chats for one API."""

    def __init__(
        self,
        mesh: Mesh,
        encode_error: EncodeError,
        *,
        max_body: int,
        ping: float,
        statuses: Mapping[str, int] | None = None,
        id_headers: Sequence[str] = (REQUEST_ID_KEY,),
        limit_headers: LimitHeaders = openai_headers,
    ) -> None:
        """`max_body` in bytes; `ping` in seconds: the pause after which an idle stream gets a sign of life.

        `statuses` are HTTP statuses by reason, where the API has others than the mesh; `id_headers` are the headers
        in which its clients look for the identifier of their request, `limit_headers` those in which they look for
        what is left of their limits.
        """
        self._mesh = mesh
        self._encode_error = encode_error
        self._max_body = max_body
        self._ping = ping
        self._statuses = statuses or {}
        self._id_headers = id_headers
        self._limit_headers = limit_headers

    async def answer(self, context: Any, make: Callable[[], Awaitable[HttpBody | bytes]]) -> HttpBody:
        """What `make` gives, for a caller who was admitted; or an error in the shape of the API. Bytes are JSON."""
        try:
            admitted()
            made = await make()
            if headers := self._late_headers(made):
                await context.send_initial_metadata(headers)
            return made if isinstance(made, HttpBody) else HttpBody(content_type=JSON, data=made)
        except grpc.aio.InternalError:
            # Nothing can be written any more: the caller has gone, and nobody is left to tell.
            raise
        except Exception as error:  # noqa: BLE001 - the border: every error gets the shape of this API
            return await self._refused(context, error)

    def measure(self, body: HttpBody) -> bytes:
        """The bytes of a body, which says everything. Raises `TooLarge`, and `InvalidRequest` for a query beside it."""
        if "?" in (path := current_caller().header(_PATH)):
            _refuse_query(path)
        if len(body.data) > self._max_body:
            raise TooLarge(f"the body has {len(body.data)} bytes, more than the {self._max_body} that are allowed")
        return body.data

    async def complete(self, request: ChatRequest, context: Any) -> tuple[ChatResponse, str]:
        """The whole answer, and the route that it took; empty when the model was named directly."""
        chat = Chat(self._mesh, request, deadline_of(context))
        return await chat.complete(), chat.route

    async def stream(self, request: ChatRequest, frames: Frames, context: Any, note: Note | None = None) -> HttpBody:
        """Server-sent events, of which the last ones are returned. Errors as `send`."""
        chat = Chat(self._mesh, request, deadline_of(context))
        return await self.send(chat, chat.stream(), frames, context, note)

    async def send(
        self, source: Source, batches: AsyncGenerator[Batch], frames: Frames, context: Any, note: Note | None = None
    ) -> HttpBody:
        """The `batches` of a `source` as server-sent events, of which the last ones are returned.

        An error before the first byte is raised; later ones become an event of the stream.
        """
        call = calling()
        begun = False
        last = HttpBody()

        async def piece(data: bytes) -> HttpBody:
            nonlocal begun
            if begun:
                return HttpBody(data=data)
            begun = True
            await context.send_initial_metadata((*_SSE_HEADERS, *self._ids()))
            return HttpBody(content_type=_SSE, data=data)

        async def send(data: bytes) -> None:
            await context.write((await piece(data)).SerializeToString())

        try:
            async with Pulse(lambda: send(frames.idle()), self._ping) as pulse, aclosing(batches):
                async for batch in batches:
                    frames.route = frames.route or source.route
                    if note is not None and (noting := note(batch.events)) is not None:
                        await noting
                    data = frames.frames(batch.events)
                    if data and source.finished:
                        # Nothing is waited for from here on: it goes out with the end of the call.
                        last = await pulse.write(piece(data))
                    elif data:
                        await pulse.write(send(data))
        except Exception as error:
            if not begun or isinstance(error, grpc.aio.InternalError):
                raise
            last.data += frames.error(known(error), call.request_id)
        return last

    async def begin(self, context: Any, *headers: tuple[str, str]) -> None:
        """Sends the headers of an answer that comes in pieces."""
        await context.send_initial_metadata((*headers, *self._ids()))

    def _late_headers(self, made: HttpBody | bytes) -> list[tuple[str, str]]:
        """The headers that a good answer still has to get: what came in pieces had its own before the first one."""
        ticket = current_ticket()
        headers = [] if ticket is None or ticket.told else [*self._limit_headers(ticket)]
        if isinstance(made, HttpBody) and made.content_type in ("", _SSE):
            return headers
        return headers + circumstances(self._mesh)

    def _ids(self) -> list[tuple[str, str]]:
        """The headers that name the request, that tell of its limits, and that nobody renews the routes."""
        ids = [(name, calling().request_id) for name in self._id_headers] + circumstances(self._mesh)
        ticket = current_ticket()
        if ticket is None:
            return ids
        ticket.told = True
        return [*ids, *self._limit_headers(ticket)]

    async def _refused(self, context: Any, error: Exception) -> HttpBody:
        """Sends the headers of an error and gives its body."""
        told, call = known(error), calling()
        status = self._statuses.get(told.reason, told.http_status)
        headers = [("x-http-status", str(status)), *self._ids(), *retry_after(told)]
        if isinstance(told, Unauthenticated):
            headers.append(("www-authenticate", "Bearer"))
        await context.send_initial_metadata(headers)
        return HttpBody(content_type=JSON, data=self._encode_error(told, call.request_id))


def known(error: Exception) -> MaestroError:
    """The error as the contract knows it; what is none of it is logged."""
    if isinstance(error, MaestroError):
        return error
    call = calling()
    log.error("unexpected error while serving %s", call.request_id, exc_info=error)
    return Internal(f"internal error; the log of the gateway tells more under {call.request_id}")


def _refuse_query(path: str) -> None:
    """Raises for parameters behind which Envoy found a field: that of the path, or of the body that it makes."""
    for name, _ in parse_qsl(path.partition("?")[2], keep_blank_values=True):
        if name not in _PASSED:
            raise InvalidRequest.at(name[:64], "is no parameter here; send what it says in the body")
