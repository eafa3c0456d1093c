"""`maestro.gateway.v1.HttpService`: REST behind Envoy's transcoder. Every answer is an `HttpBody` of our own making."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message

from maestro.gateway.v1.http_pb2 import (
    EndChatRequest,
    FollowChatRequest,
    GetModelRequest,
    GetProviderHealthRequest,
    JobCall,
    KeyCall,
    ListBackendsRequest,
    ListModelsRequest,
    WebhookCall,
)
from maestro.gateway.v1.http_pb2_grpc import HttpServiceServicer
from maestro.gateway.v1.key_pb2 import CreateKeyRequest, RevokeKeyRequest, RotateKeyRequest
from maestro.gateway.v1.webhook_pb2 import ReplayDeadLettersRequest, TestWebhookRequest
from maestro.job.v1.job_pb2 import CancelJobRequest, ListJobResultsRequest
from maestro.router.v1 import router_pb2 as pb
from maestro.usage.v1.usage_pb2 import EstimateCostRequest, QueryUsageRequest
from maestro_gateway.budgets.estimate import estimates_of
from maestro_gateway.facade import JSON, Facade
from maestro_gateway.identity import current_caller, permit
from maestro_gateway.jobs import JobRest, JobService
from maestro_gateway.json_codec.answer import Frames, encode_answer, encode_error
from maestro_gateway.json_codec.chat_request import decode_chat, read_chat
from maestro_gateway.json_codec.contract import encode_message, read_body
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.estimate import encode_estimates
from maestro_gateway.json_codec.mesh import RouterView, encode_backends, encode_decision, encode_health
from maestro_gateway.json_codec.record import encode_record, read_record_query
from maestro_gateway.key_service import KeyService
from maestro_gateway.ledger import Usage
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_gateway.model_service import ModelRest
from maestro_gateway.records import Records
from maestro_gateway.resume.service import read_after, require_streams
from maestro_gateway.usage_service import UsageService
from maestro_gateway.webhooks.service import WebhookService
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.service.interceptors import returns_last
from maestro_sdk.service.validation import VALIDATED

Asked = TypeVar("Asked", bound=Message)
_ROUTER_PATIENCE = 1.0
_CSV = "text/csv; charset=utf-8"
_CSV_NAME = ("content-disposition", 'attachment; filename="usage.csv"')


@dataclass(frozen=True, slots=True)
class Natives:
    """The services of gRPC whose methods REST has, too: those that take a body are asked from here."""

    jobs: JobService
    keys: KeyService
    usage: UsageService
    webhooks: WebhookService


class HttpService(HttpServiceServicer):
    """Answers REST. Callers who were not admitted come through, and are refused here with a body of our shape."""

    def __init__(
        self, mesh: Mesh, records: Records, usage: Usage, natives: Natives, *, max_body: int, ping: float
    ) -> None:
        """`max_body` in bytes, `ping` in seconds."""
        self._mesh = mesh
        self._records = records
        self._usage = usage
        self._natives = natives
        self._jobs = JobRest(natives.jobs)
        self._facade = Facade(mesh, encode_error, max_body=max_body, ping=ping)
        self._models = ModelRest(mesh, max_body=max_body, ping=ping)

    @returns_last
    async def Chat(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> HttpBody | bytes:
            body = decode_chat(facade.measure(request))
            if body.stream and body.request.resumable and (streams := self._mesh.streams) is not None:
                reading = await streams.begin(body.request, calling(), deadline_of(context), body.warnings)
                return await facade.send(reading, reading.pieces(), Frames([], 0), context)
            if body.stream:
                return await facade.stream(body.request, Frames(body.warnings), context)
            response, route = await facade.complete(body.request, context)
            return encode_answer(response, route, body.warnings)

        return await facade.answer(context, answer)

    async def EstimateChat(self, request: HttpBody, context: Any) -> HttpBody:
        async def answer() -> bytes:
            body = decode_chat(self._facade.measure(request))
            permit(body.request)
            needs = needs_of(body.request, calling().tenant, streaming=body.stream)
            plan = self._mesh.plan(needs)
            if not plan.kept:
                raise refusal(plan, needs, time.time())
            return encode_estimates(estimates_of(plan, body.request), body.warnings)

        return await self._facade.answer(context, answer)

    @returns_last
    async def FollowChat(self, request: FollowChatRequest, context: Any) -> HttpBody:
        async def answer() -> HttpBody:
            after = read_after(request, current_caller().header("last-event-id"))
            reading = require_streams(self._mesh.streams).resume(calling().tenant, request.stream, after)
            return await self._facade.send(reading, reading.pieces(), Frames([], after), context)

        return await self._facade.answer(context, answer)

    async def EndChat(self, request: EndChatRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            await require_streams(self._mesh.streams).cancel(calling().tenant, request.stream)
            return b"{}"

        return await self._facade.answer(context, answer)

    async def ListModels(self, request: ListModelsRequest, context: Any) -> HttpBody:
        return await self._models.list(request, context)

    async def GetModel(self, request: GetModelRequest, context: Any) -> HttpBody:
        return await self._models.get(request, context)

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
            return encode_decision(plan.message(), needs, refused, body.warnings)

        return await self._facade.answer(context, answer)

    async def GetProviderHealth(self, request: GetProviderHealthRequest, context: Any) -> HttpBody:
        async def answer() -> bytes:
            source = self._mesh.source
            told, trouble = await self._ask_router()
            adapters = told.adapters if told is not None else None
            router = RouterView.of(self._mesh.routers, trouble)
            return encode_health(source.table, adapters, source.local, time.time(), self._mesh.switched_off, router)

        return await self._facade.answer(context, answer)

    @returns_last
    async def ExportUsage(self, request: QueryUsageRequest, context: Any) -> HttpBody:
        async def answer() -> HttpBody:
            return await self._send(await self._usage.export(request), _CSV, context, _CSV_NAME)

        return await self._facade.answer(context, answer)

    async def CreateJob(self, request: HttpBody, context: Any) -> HttpBody:
        return await self._facade.answer(context, lambda: self._jobs.create(self._facade.measure(request), context))

    @returns_last
    async def ListJobResults(self, request: ListJobResultsRequest, context: Any) -> HttpBody:
        async def answer() -> HttpBody:
            return await self._send(await self._jobs.results(request, context), JSON, context)

        return await self._facade.answer(context, answer)

    async def CancelJob(self, request: JobCall, context: Any) -> HttpBody:
        asked = CancelJobRequest(job_id=request.job_id)
        return await self._ask(self._natives.jobs.CancelJob, asked, request.body, context)

    async def EstimateCost(self, request: HttpBody, context: Any) -> HttpBody:
        ask = self._natives.usage.EstimateCost
        return await self._ask(ask, EstimateCostRequest(), request, context, optional=False)

    async def CreateKey(self, request: HttpBody, context: Any) -> HttpBody:
        return await self._ask(self._natives.keys.CreateKey, CreateKeyRequest(), request, context)

    async def RotateKey(self, request: KeyCall, context: Any) -> HttpBody:
        asked = RotateKeyRequest(key_id=request.key_id)
        return await self._ask(self._natives.keys.RotateKey, asked, request.body, context)

    async def RevokeKey(self, request: KeyCall, context: Any) -> HttpBody:
        asked = RevokeKeyRequest(key_id=request.key_id)
        return await self._ask(self._natives.keys.RevokeKey, asked, request.body, context)

    async def ReplayDeadLetters(self, request: WebhookCall, context: Any) -> HttpBody:
        asked = ReplayDeadLettersRequest(webhook=request.webhook)
        return await self._ask(self._natives.webhooks.ReplayDeadLetters, asked, request.body, context)

    async def TestWebhook(self, request: WebhookCall, context: Any) -> HttpBody:
        asked = TestWebhookRequest(webhook=request.webhook)
        return await self._ask(self._natives.webhooks.TestWebhook, asked, request.body, context)

    async def _ask(
        self,
        ask: Callable[[Asked, Any], Awaitable[Message]],
        asked: Asked,
        body: HttpBody,
        context: Any,
        *,
        optional: bool = True,
    ) -> HttpBody:
        """What a method of gRPC answers to `asked`, of which a body says the rest; `optional`: or nothing."""

        async def answer() -> bytes:
            request = read_body(self._facade.measure(body), asked, optional=optional)
            return encode_message(await ask(request, context))

        return await self._facade.answer(context, answer)

    async def _send(self, pieces: Iterable[bytes], kind: str, context: Any, *headers: tuple[str, str]) -> HttpBody:
        """An answer that comes in pieces: nothing can fail from here on but the connection."""
        await self._facade.begin(context, *headers)
        for piece in pieces:
            await context.write(HttpBody(content_type=kind, data=piece).SerializeToString())
            kind = ""
        return HttpBody()

    async def _ask_router(self) -> tuple[pb.ListBackendsResponse | None, str]:
        """The router's own view; None and the reason when it does not answer."""
        router = self._mesh.routers.router
        if router is None:
            return None, "no router answers; this is the last table that one sent"
        try:
            request = pb.ListBackendsRequest()
            return await router.ListBackends(request, metadata=(VALIDATED,), timeout=_ROUTER_PATIENCE), ""
        except grpc.aio.AioRpcError as error:
            return None, f"the router does not answer ({error.code().name}); this is the last table that it sent"
        except asyncio.CancelledError:
            # The channel was closed under the call, since the router is gone; unless it is our own caller who left.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return None, "the router has just gone; this is the last table that it sent"
