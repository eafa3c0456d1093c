"""The gateway's HTTP port, for WebSockets and for events as server-sent events, in the loop of its gRPC server.

`GET /readyz` tells proxies whether to send requests here: 200, or 503 with the reason.

A key comes in the `authorization` or `x-api-key` header, or from browsers, which can't set headers, as the subprotocol
`bearer.KEY` beside `maestro`, or as `?access_token=KEY`. No key is ever logged: this server writes no access log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from aiohttp import web

from maestro_gateway.conversations import ChatSocket
from maestro_gateway.events import Feeds
from maestro_gateway.events.query import read_parameters, sees_callers, tenant_of
from maestro_gateway.events.server_sent import EventResponse
from maestro_gateway.events.socket import EventSocket
from maestro_gateway.identity import Caller, Keys, Principal, enter, enter_caller, key_in
from maestro_gateway.identity.door import Refused, owner_of, tell_nobody
from maestro_gateway.identity.keys import Unfamiliar
from maestro_gateway.identity.scopes import scope_of_path
from maestro_gateway.identity.sittings import Sittings
from maestro_gateway.mesh import Mesh
from maestro_gateway.reference import serve_reference
from maestro_gateway.refusal import nowhere, read_on, refuse, require_served
from maestro_sdk.errors import Internal, InvalidRequest, MaestroError
from maestro_sdk.service.health import Health
from maestro_sdk.tracing import REQUEST_ID_KEY, TRACEPARENT_KEY, Call, call_from_metadata

log = logging.getLogger(__name__)

_PROTOCOL = "maestro"
_BEARER = "bearer."
_PARAMETER = "access_token"
_WRITE_LIMIT = 64 * 1024
_CLOSING = 2.0
"""Seconds that a peer has to answer a close."""
_LONGEST_LINE = 64 * 1024
"""Bytes of the path with its query, and of a header. Envoy takes less of all headers together, and refuses more in the
API's shape; the HTTP library would quote what was too long, an access token for example, in its answer and the log."""


class _Socket(Protocol):
    async def run(self) -> None: ...

    async def finish(self, grace: float) -> None: ...

    async def dismiss(self) -> None:
        """Ends it at once: its key is not in force any more."""
        ...


Identify = Callable[[web.Request], Awaitable[tuple[Call, Principal]]]
"""Who asks. Raises when nobody does who may."""


class Door(Protocol):
    """What else is served on this port."""

    def routes(self, identify: Identify) -> Iterable[web.RouteDef]: ...

    async def drain(self, grace: float) -> None:
        """Waits until what is under way has ended, `grace` seconds at most."""
        ...


class SocketServer:
    """Serves WebSockets and streams of events between `open` and `close`."""

    def __init__(
        self,
        mesh: Mesh,
        keys: Keys,
        feeds: Feeds,
        address: str,
        *,
        max_body: int,
        ping: float,
        refused: Refused = tell_nobody,
        doors: Sequence[Door] = (),
        health: Health | None = None,
    ) -> None:
        """`address` is "host:port", `max_body` in bytes per frame, `ping` in seconds.

        `refused` is told of those who are not let in. `health` is that of the process.
        """
        self._refused = refused
        self.health = health or Health()
        self._doors = doors
        self._mesh = mesh
        self._keys = keys
        self._feeds = feeds
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._max_body = max_body
        self._ping = ping
        self._sockets: set[_Socket] = set()
        self._sittings = Sittings(keys)
        self._watching = False
        # While it drains: who says goodbye, and until when on the loop's clock.
        self._farewells: asyncio.TaskGroup | None = None
        self._until = 0.0
        application = web.Application(middlewares=[self._tell_errors])
        serve_reference(application.router)
        application.router.add_get("/readyz", self._tell_ready)
        application.router.add_get("/v1/chat/stream", self._chat)
        application.router.add_get("/v1/events/stream", self._follow)
        for door in doors:
            application.router.add_routes(door.routes(self._identify))
        self._runner = web.AppRunner(
            application,
            access_log=None,
            shutdown_timeout=1.0,
            handler_cancellation=True,
            auto_decompress=False,
            max_line_size=_LONGEST_LINE,
            max_field_size=_LONGEST_LINE,
        )
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
        await self._sittings.__aenter__()
        self._watching = True

    async def close(self) -> None:
        """Ends everything that still runs."""
        if self._watching:
            self._watching = False
            await self._sittings.__aexit__()
        await self._runner.cleanup()

    async def drain(self, grace: float) -> None:
        """Takes no new connection, gives conversations `grace` seconds to end, and closes every socket with 1001."""
        self._until = asyncio.get_running_loop().time() + grace
        async with asyncio.TaskGroup() as self._farewells:
            if self._site is not None:
                await self._site.stop()
            for socket in tuple(self._sockets):
                self._farewells.create_task(socket.finish(grace))
            for door in self._doors:
                self._farewells.create_task(door.drain(grace))
        self._farewells = None

    async def _tell_ready(self, request: web.Request) -> web.Response:
        """Whether this gateway takes requests, for the proxies before it."""
        place = request.transport.get_extra_info("peername") if request.transport is not None else None
        reason = self.health.ask(f"http:{place}")
        return web.json_response({"status": reason or "ok"}, status=503 if reason else 200)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        call, principal = await self._identify(request)
        for name in request.query:
            if name != _PARAMETER:
                raise InvalidRequest.at(name[:64], f"is no parameter here; there is {_PARAMETER}")
        socket = self._socket(request)
        await socket.prepare(request)
        await self._run(ChatSocket(socket, self._mesh, call), principal)
        return socket

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        call, principal = await self._identify(request)
        is_socket = request.headers.get("upgrade", "").lower() == "websocket"
        resumed = "" if is_socket else request.headers.get("last-event-id", "")
        query, callers = read_parameters(request.query.items(), resumed), sees_callers(principal)
        tenant = tenant_of(query, principal)
        if is_socket:
            socket = self._socket(request)
            async with self._feeds.follow(tenant, query) as follower:
                await socket.prepare(request)
                await self._run(EventSocket(socket, follower, callers=callers, transport=request.transport), principal)
            return socket
        async with self._feeds.follow(tenant, query) as follower:
            stream = EventResponse(request, follower, callers=callers, ping=self._ping, request_id=call.request_id)
            await self._run(stream, principal)
        return stream.response

    async def _run(self, socket: _Socket, principal: Principal) -> None:
        self._sockets.add(socket)
        if self._farewells is not None:
            # It came by a connection that was there before: it is served like those that came a moment earlier.
            left = self._until - asyncio.get_running_loop().time()
            self._farewells.create_task(socket.finish(max(0.0, left)))
        try:
            with self._sittings.hold(principal, socket.dismiss):
                await socket.run()
        finally:
            self._sockets.discard(socket)

    async def _identify(self, request: web.Request) -> tuple[Call, Principal]:
        call = call_from_metadata(
            (name, request.headers[name]) for name in (REQUEST_ID_KEY, TRACEPARENT_KEY) if name in request.headers
        )
        enter_caller(Caller(request.headers, request.path, request.remote or ""))
        key = key_in(request.headers) or _protocol_key(request) or request.query.get(_PARAMETER, "")
        principal = None
        try:
            try:
                principal = self._keys.principal_of(key) if key else self._keys.authenticate(request.headers)
            except Unfamiliar:
                principal = await self._keys.learn(key)
            principal.require(scope_of_path(request.path))
        except MaestroError as error:
            self._refused(error, owner_of(error, principal), call.request_id)
            raise
        enter(principal)
        return Call(call.request_id, principal.tenant, call.traceparent), principal

    def _socket(self, request: web.Request) -> web.WebSocketResponse:
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
        """Errors before the upgrade get the shape of the REST API, or of the API whose client asks."""
        try:
            require_served(request)
            return await handler(request)
        except MaestroError as error:
            return refuse(request, error)
        except web.HTTPException as error:
            if error.status in (404, 405):
                await read_on(request)
                return refuse(request, nowhere(request))
            raise
        except Exception:
            log.exception("unexpected error on %s", request.path)
            return refuse(request, Internal("internal error; the log of the gateway tells more"))


def _protocol_key(request: web.Request) -> str:
    offered = request.headers.get("sec-websocket-protocol", "")
    found = (protocol.strip() for protocol in offered.split(","))
    return next((protocol.removeprefix(_BEARER) for protocol in found if protocol.startswith(_BEARER)), "")
