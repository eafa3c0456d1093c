"""The gateway's HTTP port for WebSockets, in the same loop as its gRPC server.

A key comes in the `authorization` or `x-api-key` header, or from browsers, which can't set headers, as the subprotocol
`bearer.KEY` beside `maestro`, or as `?access_token=KEY`. No key is ever logged: this server writes no access log.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from aiohttp import web

from maestro_gateway.conversations import ChatSocket
from maestro_gateway.event_stream import EventSocket, read_query
from maestro_gateway.identity import Caller, Keys, Principal, enter, enter_caller, key_in
from maestro_gateway.identity.keys import Unfamiliar
from maestro_gateway.identity.scopes import scope_of_path
from maestro_gateway.json_codec.answer import encode_error
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import Internal, InvalidRequest, MaestroError, NotFound, Unauthenticated, UpstreamError
from maestro_sdk.service.events import EventReader
from maestro_sdk.tracing import REQUEST_ID_KEY, TRACEPARENT_KEY, Call, call_from_metadata

log = logging.getLogger(__name__)

_PROTOCOL = "maestro"
_BEARER = "bearer."
_WRITE_LIMIT = 64 * 1024
_LOOK = 1.0
"""Seconds between two looks for keys that have expired."""
_CLOSING = 2.0
"""Seconds that a peer has to answer a close."""


class _Socket(Protocol):
    async def run(self) -> None: ...

    async def finish(self, grace: float) -> None: ...

    async def dismiss(self) -> None:
        """Ends it at once: its key is not in force any more."""
        ...


class SocketServer:
    """Serves WebSockets between `open` and `close`."""

    def __init__(
        self, mesh: Mesh, keys: Keys, events: EventReader, address: str, *, max_body: int, ping: float
    ) -> None:
        """`address` is "host:port", `max_body` in bytes per frame, `ping` in seconds."""
        self._mesh = mesh
        self._keys = keys
        self._events = events
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._max_body = max_body
        self._ping = ping
        self._sockets: dict[_Socket, Principal] = {}
        self._dismissing: asyncio.Task[None] | None = None
        self._keys_changed = asyncio.Event()
        self._draining = False
        application = web.Application(middlewares=[self._tell_errors])
        application.router.add_get("/v1/chat/stream", self._chat)
        application.router.add_get("/v1/events/stream", self._follow)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        self._site: web.TCPSite | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        addresses = self._runner.addresses
        return int(addresses[0][1]) if addresses else self._port

    async def open(self) -> None:
        """Listens. Raises `OSError` when the address is taken."""
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self._host.strip("[]"), self._port)
        await self._site.start()
        self._keys.changed.append(self._keys_changed.set)
        self._dismissing = asyncio.create_task(self._dismiss())

    async def close(self) -> None:
        """Ends everything that still runs."""
        if self._dismissing is not None:
            self._dismissing.cancel()
        await self._runner.cleanup()

    async def drain(self, grace: float) -> None:
        """Takes no new connection, gives conversations `grace` seconds to end, and closes every socket with 1001."""
        self._draining = True
        if self._site is not None:
            await self._site.stop()
        async with asyncio.TaskGroup() as group:
            for socket in tuple(self._sockets):
                group.create_task(socket.finish(grace))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        call, principal = await self._identify(request)
        socket = self._socket(request)
        await socket.prepare(request)
        await self._run(ChatSocket(socket, self._mesh, call), principal)
        return socket

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        call, principal = await self._identify(request)
        query = read_query(request.query.items())
        socket = self._socket(request)
        async with self._events.subscribe(
            call.tenant, kinds=query.kinds, job=query.job, after=query.after
        ) as subscription:
            await socket.prepare(request)
            await self._run(EventSocket(socket, subscription), principal)
        return socket

    async def _run(self, socket: _Socket, principal: Principal) -> None:
        self._sockets[socket] = principal
        try:
            await socket.run()
        finally:
            del self._sockets[socket]

    async def _dismiss(self) -> None:
        """Ends sockets whose key was revoked or has expired: they would else outlive it for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._keys_changed.wait()
            self._keys_changed.clear()
            over = [socket for socket, principal in self._sockets.items() if not self._keys.is_good(principal)]
            async with asyncio.TaskGroup() as group:
                for socket in over:
                    group.create_task(socket.dismiss())

    async def _identify(self, request: web.Request) -> tuple[Call, Principal]:
        call = call_from_metadata(
            (name, request.headers[name]) for name in (REQUEST_ID_KEY, TRACEPARENT_KEY) if name in request.headers
        )
        enter_caller(Caller(request.headers, request.path, request.remote or ""))
        key = key_in(request.headers) or _protocol_key(request) or request.query.get("access_token", "")
        try:
            principal = self._keys.principal_of(key) if key else self._keys.authenticate(request.headers)
        except Unfamiliar:
            principal = await self._keys.learn(key)
        principal.require(scope_of_path(request.path))
        enter(principal)
        return Call(call.request_id, principal.tenant, call.traceparent), principal

    def _socket(self, request: web.Request) -> web.WebSocketResponse:
        if self._draining:
            raise UpstreamError("the gateway is shutting down; connect again", retry_after=1.0)
        socket = web.WebSocketResponse(
            protocols=(_PROTOCOL,),
            heartbeat=self._ping,
            timeout=_CLOSING,
            max_msg_size=self._max_body,
            writer_limit=_WRITE_LIMIT,
            # Deltas are small, and compressing each costs more than it saves.
            compress=False,
            decode_text=False,
        )
        if not socket.can_prepare(request):
            raise InvalidRequest("this path speaks WebSocket: connect with `upgrade: websocket`")
        return socket

    @web.middleware
    async def _tell_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors before the upgrade get the shape of the REST API."""
        try:
            return await handler(request)
        except MaestroError as error:
            return _refusal(request, error)
        except web.HTTPException as error:
            if error.status == 404:
                return _refusal(request, NotFound(f"nothing is served at {request.path[:200]}"))
            if error.status == 405:
                return _refusal(request, NotFound(f"nothing is served at {request.method[:16]} {request.path[:200]}"))
            raise
        except Exception:
            log.exception("unexpected error on %s", request.path)
            return _refusal(request, Internal("internal error; the log of the gateway tells more"))


def _protocol_key(request: web.Request) -> str:
    offered = request.headers.get("sec-websocket-protocol", "")
    found = (protocol.strip() for protocol in offered.split(","))
    return next((protocol.removeprefix(_BEARER) for protocol in found if protocol.startswith(_BEARER)), "")


def _refusal(request: web.Request, error: MaestroError) -> web.Response:
    request_id = call_from_metadata(
        (name, request.headers[name]) for name in (REQUEST_ID_KEY,) if name in request.headers
    ).request_id
    headers = {REQUEST_ID_KEY: request_id}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return web.Response(
        status=error.http_status, body=encode_error(error, request_id), content_type="application/json", headers=headers
    )
