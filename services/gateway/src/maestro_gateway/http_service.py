"""`maestro.gateway.v1.HttpService`: REST behind Envoy's transcoder. Every answer is an `HttpBody` of our own making.

The HTTP status of an error travels as initial metadata `x-http-status`, which Envoy turns into the status line; other
initial metadata become headers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody

from maestro.gateway.v1.http_pb2 import GetProviderHealthRequest, ListBackendsRequest, ListModelsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceServicer
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_gateway.identity import Keys
from maestro_gateway.json_codec.answer import PING, Frames, encode_answer, encode_error
from maestro_gateway.json_codec.chat_request import ChatBody, decode_chat, read_chat
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.mesh import encode_backends, encode_decision, encode_health, encode_models
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_gateway.pulse import Pulse
from maestro_sdk.errors import Internal, MaestroError, TooLarge, Unauthenticated
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.service.interceptors import returns_last
from maestro_sdk.tracing import REQUEST_ID_KEY

log = logging.getLogger(__name__)

SERVICE = "/maestro.gateway.v1.HttpService/"
"""What the methods begin with."""

_JSON = "application/json"
_SSE = "text/event-stream"
# Without `x-accel-buffering` a proxy such as nginx collects the events.
_SSE_HEADERS = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
_ROUTER_PATIENCE = 1.0


class HttpService(HttpServiceServicer):
    """Answers REST. Callers that came through without a tenant are refused here, with a body of our shape."""

    def __init__(self, mesh: Mesh, keys: Keys, router: grpc.aio.Channel, *, max_body: int, ping: float) -> None:
        """`max_body` in bytes, `ping` in seconds."""
        self._mesh = mesh
        self._keys = keys
        self._router = RouterServiceStub(router)
        self._max_body = max_body
        self._ping = ping

    @returns_last
    async def Chat(self, request: HttpBody, context: Any) -> HttpBody:
        try:
            self._identify(context)
            self._measure(request)
            body = decode_chat(request.data)
            return await (self._stream(body, context) if body.stream else self._complete(body, context))
        except Exception as error:  # noqa: BLE001 - the border: every error gets the shape of this API
            return await _refused(context, error)

    async def ListModels(self, request: ListModelsRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            return encode_models(self._mesh.source.table)

        return await self._answer(context, answer)

    async def ListBackends(self, request: ListBackendsRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            source = self._mesh.source
            told, trouble = await self._ask_router()
            last = [found.message for found in source.table.backends.values()]
            backends, adapters = (told.backends, told.adapters) if told is not None else (last, None)
            return encode_backends(backends, adapters, source.table, source.local, time.time(), trouble)

        return await self._answer(context, answer)

    async def Explain(self, request: HttpBody, context: Any) -> HttpBody:
        async def answer() -> bytes:
            self._measure(request)
            document = parse_object(request.data)
            # A decision depends on the conversation only for what parts it holds, so it may be left out here.
            document.setdefault("messages", [{"role": "user", "content": ""}])
            body = read_chat(document)
            needs = needs_of(body.request, calling().tenant, streaming=body.stream)
            plan = self._mesh.plan(needs)
            refused = None if plan.kept else refusal(plan, needs, time.time())
            return encode_decision(plan.message(), needs, refused)

        return await self._answer(context, answer)

    async def GetProviderHealth(self, request: GetProviderHealthRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            source = self._mesh.source
            told, _ = await self._ask_router()
            adapters = told.adapters if told is not None else None
            return encode_health(source.table, adapters, source.local, time.time(), self._mesh.switched_off)

        return await self._answer(context, answer)

    async def _complete(self, body: ChatBody, context: Any) -> HttpBody:
        call, request = calling(), body.request
        with self._mesh.accountant.open(request, call, streamed=False) as account:
            needs = needs_of(request, call.tenant)
            trail = account.trail
            response = await self._mesh.dispatcher.complete(request, needs, trail, deadline_of(context))
        route = trail.plan.route.name if trail.plan is not None else ""
        return HttpBody(content_type=_JSON, data=encode_answer(response, route, body.warnings))

    async def _stream(self, body: ChatBody, context: Any) -> HttpBody:
        """Server-sent events, of which the last ones are returned.

        An error before the first byte is raised; later ones become an event of the stream.
        """
        call, request = calling(), body.request
        frames = Frames(body.warnings)
        begun = False

        async def send(data: bytes) -> None:
            nonlocal begun
            if begun:
                await context.write(HttpBody(data=data).SerializeToString())
                return
            begun = True
            await context.send_initial_metadata((*_SSE_HEADERS, (REQUEST_ID_KEY, call.request_id)))
            await context.write(HttpBody(content_type=_SSE, data=data).SerializeToString())

        try:
            async with Pulse(lambda: send(PING), self._ping) as pulse:
                with self._mesh.accountant.open(request, call, streamed=True) as account:
                    trail = account.trail
                    needs = needs_of(request, call.tenant, streaming=True)
                    stream = self._mesh.dispatcher.stream(request, needs, trail, deadline_of(context))
                    async with aclosing(stream) as batches:
                        async for batch in batches:
                            account.note_attempts()
                            if not frames.route and trail.plan is not None:
                                frames.route = trail.plan.route.name
                            await pulse.write(send(frames.frames(batch.events)))
        except Exception as error:
            if not begun:
                raise
            return HttpBody(data=frames.error(_known(error), call.request_id))
        # Whoever reads has all events by now: they were not held back for the end of the call.
        return HttpBody()

    async def _answer(self, context: Any, make: Callable[[], Awaitable[bytes]]) -> HttpBody:
        """The JSON that `make` gives, or the JSON of its error."""
        try:
            self._identify(context)
            return HttpBody(content_type=_JSON, data=await make())
        except Exception as error:  # noqa: BLE001 - the border: every error gets the shape of this API
            return await _refused(context, error)

    def _identify(self, context: Any) -> None:
        if not calling().tenant:
            # Raises: had the key been good, the interceptor would have named its tenant.
            self._keys.authenticate(dict(context.invocation_metadata()))
            raise Unauthenticated("the key was not accepted")

    def _measure(self, request: HttpBody) -> None:
        if len(request.data) > self._max_body:
            raise TooLarge(f"the body has {len(request.data)} bytes, more than the {self._max_body} that are allowed")

    async def _ask_router(self) -> tuple[pb.ListBackendsResponse | None, str]:
        """The router's own view; None and the reason when it does not answer."""
        try:
            return await self._router.ListBackends(pb.ListBackendsRequest(), timeout=_ROUTER_PATIENCE), ""
        except grpc.aio.AioRpcError as error:
            return None, f"the router does not answer ({error.code().name}); this is the last table that it sent"


async def _refused(context: Any, error: Exception) -> HttpBody:
    """Sends the headers of an error and gives its body."""
    known, call = _known(error), calling()
    headers = [("x-http-status", str(known.http_status)), (REQUEST_ID_KEY, call.request_id)]
    if known.retry_after is not None:
        headers.append(("retry-after", str(math.ceil(known.retry_after))))
    if isinstance(known, Unauthenticated):
        headers.append(("www-authenticate", "Bearer"))
    await context.send_initial_metadata(headers)
    return HttpBody(content_type=_JSON, data=encode_error(known, call.request_id))


def _known(error: Exception) -> MaestroError:
    if isinstance(error, MaestroError):
        return error
    call = calling()
    log.error("unexpected error while serving %s", call.request_id, exc_info=error)
    return Internal(f"internal error; the log of the gateway tells more under {call.request_id}")
