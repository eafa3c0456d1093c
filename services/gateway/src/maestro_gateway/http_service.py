"""`maestro.gateway.v1.HttpService`: REST behind Envoy's transcoder. Every answer is an `HttpBody` of our own making."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody

from maestro.gateway.v1.http_pb2 import GetProviderHealthRequest, ListBackendsRequest, ListModelsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceServicer
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.facade import Facade
from maestro_gateway.identity import permit
from maestro_gateway.json_codec.answer import Frames, encode_answer, encode_error
from maestro_gateway.json_codec.chat_request import decode_chat, read_chat
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.mesh import RouterView, encode_backends, encode_decision, encode_health, encode_models
from maestro_gateway.json_codec.record import encode_record, read_record_query
from maestro_gateway.mesh import Mesh, calling
from maestro_gateway.records import Records
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.service.interceptors import returns_last

_ROUTER_PATIENCE = 1.0


class HttpService(HttpServiceServicer):
    """Answers REST. Callers who were not admitted come through, and are refused here with a body of our shape."""

    def __init__(self, mesh: Mesh, records: Records, *, max_body: int, ping: float) -> None:
        """`max_body` in bytes, `ping` in seconds."""
        self._mesh = mesh
        self._records = records
        self._facade = Facade(mesh, encode_error, max_body=max_body, ping=ping)

    @returns_last
    async def Chat(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> HttpBody | bytes:
            body = decode_chat(facade.measure(request))
            if body.stream:
                return await facade.stream(body.request, Frames(body.warnings), context)
            response, route = await facade.complete(body.request, context)
            return encode_answer(response, route, body.warnings)

        return await facade.answer(context, answer)

    async def ListModels(self, request: ListModelsRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            return encode_models(self._mesh.source.table)

        return await self._facade.answer(context, answer)

    async def ListBackends(self, request: ListBackendsRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            source = self._mesh.source
            told, trouble = await self._ask_router()
            last = [found.message for found in source.table.backends.values()]
            backends, adapters = (told.backends, told.adapters) if told is not None else (last, None)
            router = RouterView.of(self._mesh.routers, trouble)
            return encode_backends(backends, adapters, source.table, source.local, time.time(), router)

        return await self._facade.answer(context, answer)

    async def Explain(self, request: HttpBody, context: Any) -> HttpBody:
        async def answer() -> bytes:
            document = parse_object(self._facade.measure(request))
            if "request_id" in document:
                request_id, after = read_record_query(document)
                record = await self._records.find(calling().tenant, request_id, after)
                return encode_record(record.end, record.failures)
            # A decision depends on the conversation only for what parts it holds, so it may be left out here.
            document.setdefault("messages", [{"role": "user", "content": ""}])
            body = read_chat(document)
            permit(body.request)
            needs = needs_of(body.request, calling().tenant, streaming=body.stream)
            plan = self._mesh.plan(needs)
            refused = None if plan.kept else refusal(plan, needs, time.time())
            return encode_decision(plan.message(), needs, refused)

        return await self._facade.answer(context, answer)

    async def GetProviderHealth(self, request: GetProviderHealthRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            source = self._mesh.source
            told, trouble = await self._ask_router()
            adapters = told.adapters if told is not None else None
            router = RouterView.of(self._mesh.routers, trouble)
            return encode_health(source.table, adapters, source.local, time.time(), self._mesh.switched_off, router)

        return await self._facade.answer(context, answer)

    async def _ask_router(self) -> tuple[pb.ListBackendsResponse | None, str]:
        """The router's own view; None and the reason when it does not answer."""
        router = self._mesh.routers.router
        if router is None:
            return None, "no router answers; this is the last table that one sent"
        try:
            return await router.ListBackends(pb.ListBackendsRequest(), timeout=_ROUTER_PATIENCE), ""
        except grpc.aio.AioRpcError as error:
            return None, f"the router does not answer ({error.code().name}); this is the last table that it sent"
        except asyncio.CancelledError:
            # The channel was closed under the call, since the router is gone; unless it is our own caller who left.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None, "the router has just gone; this is the last table that it sent"
