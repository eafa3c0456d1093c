"""An adapter that breaks one promise of the contract at a time: what the conformance suite must not let through.

    async with serve_flawed(Flaw.NO_FINISH) as address:
        ...                                   # prove(address) fails at Flaw.NO_FINISH.case, and nowhere else

Chat is served without the kit's servicer, which would turn most of its faults into clean errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection as grpc_reflection

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    CountTokensResponse,
    StreamChatResponse,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer
from maestro.llm.v1.message_pb2 import Role
from maestro.llm.v1.model_pb2 import (
    Feature,
    GetInfoRequest,
    GetInfoResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
    Support,
)
from maestro.llm.v1.model_pb2_grpc import ModelServiceServicer
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import price
from maestro_sdk.errors import (
    STATUS_DETAILS_KEY,
    CapabilityUnavailable,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    to_status,
)
from maestro_sdk.service.validation import validate
from maestro_sdk.testing.flawed_extras_servicer import FlawedBatches, FlawedEmbeddings, FlawedFiles
from maestro_sdk.testing.flaws import Flaw, FlawedModel, spoil
from maestro_sdk.testing.obliging import (
    EMBEDDER,
    MODEL,
    ObligingProvider,
    count_tokens,
    obliging_embedder,
    obliging_model,
)
from maestro_sdk.testing.servers import serve

_SERVICES = ("maestro.llm.v1.ChatService", "maestro.llm.v1.ModelService")
_health: Any = grpc_health  # the asyncio halves have no types
_reflection: Any = grpc_reflection


@asynccontextmanager
async def serve_flawed(flaw: Flaw | None) -> AsyncGenerator[str]:
    """Serves the obliging model with one flaw, or with none, on a free port; gives the address."""
    statuses: Any = _health.aio.HealthServicer()
    values = health_pb2.HealthCheckResponse
    for name in ("", *_SERVICES):
        await statuses.set(name, values.NOT_SERVING if flaw is Flaw.NOT_SERVING else values.SERVING)
    named = _SERVICES[1:] if flaw is Flaw.NOT_REFLECTED else _SERVICES
    reflected: Any = _reflection.aio.ReflectionServicer(named)
    provider = ObligingProvider()
    extras = (FlawedEmbeddings(flaw, provider), FlawedFiles(flaw, provider), FlawedBatches(flaw, provider))
    async with serve(FlawedChat(flaw), FlawedModels(flaw), *extras, statuses, reflected, interceptors=()) as address:
        yield address


class FlawedModels(ModelServiceServicer):
    """Tells of one model, wrongly where the flaw says so."""

    def __init__(self, flaw: Flaw | None) -> None:
        self._flaw = flaw

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        models = sorted((_model(self._flaw), obliging_embedder()), key=lambda model: model.id)
        page = [model for model in models if model.id > request.page_token][: request.page_size or None]
        more = page[-1].id if page and page[-1].id != models[-1].id else ""
        return ListModelsResponse(models=page, next_page_token=more)

    async def GetInfo(self, request: GetInfoRequest, context: Any) -> GetInfoResponse:
        spi = "maestro.llm.v0" if self._flaw is Flaw.OTHER_CONTRACT else "maestro.llm.v1"
        return GetInfoResponse(
            name="adapter-flawed", version="1", spi_versions=[spi], ready=True, providers=["obliging", "other"]
        )


def _model(flaw: Flaw | None) -> Model:
    model = obliging_model()
    match flaw:
        case Flaw.FEATURE_TWICE:
            model.features.add(feature=Feature.FEATURE_TOOLS, support=Support.SUPPORT_NONE)
        case Flaw.WRONG_ID:
            model.provider = "other"
        case Flaw.MALFORMED_PRICE:
            model.price.input = "3,00"
        case Flaw.UNMARKED_CALLS | Flaw.UNMARKED_JSON:
            kind = Feature.FEATURE_TOOLS if flaw is Flaw.UNMARKED_CALLS else Feature.FEATURE_JSON_SCHEMA
            claim = next(entry for entry in model.features if entry.feature == kind)
            claim.support = Support.SUPPORT_POLYFILLED
        case Flaw.TEMPERATURE_UNTRUE:
            model.features.add(feature=Feature.FEATURE_TEMPERATURE, support=Support.SUPPORT_NATIVE)
        case _:
            pass
    return model


class FlawedChat(ChatServiceServicer):
    """Answers as the obliging model, but for the flaw."""

    def __init__(self, flaw: Flaw | None) -> None:
        self._flaw = flaw
        self._provider = ObligingProvider()
        self._provider.brain = FlawedModel(flaw)
        self._model = obliging_model()
        self._stuck = False
        self._active = 0
        self._latest = ChatRequest()

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:
        try:
            response = fold(await self._answer(self._admit(request, context)))
        except MaestroError as error:
            return await self._refuse(error, context)
        if self._flaw is Flaw.OTHER_WHEN_WHOLE and response.parts:
            response.parts[0].text.text += "!"
        return response

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:
        stuck = self._stuck
        self._active += 1
        try:
            if stuck:
                await asyncio.Event().wait()
            held: list[ChatEvent] = []
            async for event in self._events(self._admit(request, context)):
                held.append(event)
                if self._flaw is not Flaw.ONE_MESSAGE or event.HasField("finish"):
                    await context.write(StreamChatResponse(events=held))
                    held = []
        except MaestroError as error:
            await self._refuse(error, context)
        except asyncio.CancelledError:
            self._stuck = self._flaw is Flaw.STUCK_AFTER_CANCEL and not stuck
            raise
        finally:
            self._active -= 1

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> CountTokensResponse:
        counted = 1 if self._flaw is Flaw.WRONG_COUNT else count_tokens(request.request)
        return CountTokensResponse(input_tokens=counted, provider=self._model.provider, model=self._model.name)

    async def _answer(self, request: ChatRequest) -> list[ChatEvent]:
        events = [event async for batch in self._provider.stream(request) for event in batch]
        price(events, self._model)
        return events

    async def _events(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The streamed answer, with what is wrong in it."""
        flaw = self._flaw
        if flaw is Flaw.MIXED_STREAMS:
            self._latest = request
            await asyncio.sleep(0.01)
            request = self._latest if self._active > 4 else request
        for number, event in enumerate(spoil(flaw, await self._answer(request))):
            if flaw is Flaw.STALL and number:
                await asyncio.Event().wait()
            if (flaw is Flaw.ERROR_BEFORE_CONTENT and number == 1) or (
                flaw is Flaw.ERROR_AFTER_CONTENT and number == 2
            ):
                raise Overloaded("it fails on demand")
            yield event

    def _admit(self, request: ChatRequest, context: Any) -> ChatRequest:
        """Refuses what has to be refused; changes the request where the flaw overlooks something."""
        flaw = self._flaw
        copy = ChatRequest()
        copy.CopyFrom(request)
        left = context.time_remaining()
        if flaw is Flaw.HURRY_IS_INTERNAL and left is not None and left < 0.5:
            raise MaestroError("no time")
        if flaw is not Flaw.NO_VALIDATION:
            validate(copy)
        elif not copy.messages:
            copy.messages.add(role=Role.ROLE_USER).parts.add().text.text = "nothing"
        if copy.model == EMBEDDER and flaw is not Flaw.CHATS_ANYWAY:
            raise CapabilityUnavailable(f"{EMBEDDER} has no CHAT")
        if copy.model not in {MODEL, EMBEDDER} and flaw is not Flaw.ANY_MODEL:
            raise NotFound(f"there is no model {copy.model!r}")
        copy.model = MODEL
        if flaw is Flaw.DROPS_PARTS:
            for message in copy.messages:
                kept = [part for part in message.parts if not part.HasField("audio")]
                del message.parts[:]
                message.parts.extend(kept)
        if flaw is Flaw.SILENT_PARAMETERS:
            copy.ClearField("temperature")
        if flaw is Flaw.LENIENT_STRICT or flaw is Flaw.TEMPERATURE_UNTRUE:
            copy.strict = False
        return copy

    async def _refuse(self, error: MaestroError, context: Any) -> Any:
        """Ends the call with the status of `error`, as far as the flaw tells it."""
        if self._flaw is Flaw.NO_PATHS and type(error) is InvalidRequest:
            error.violations = ()
        status = to_status(error)
        if error.reason in {"NOT_FOUND", "INVALID_REQUEST"}:
            _blur(self._flaw, status)
        await context.abort(error.code, error.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


def _blur(flaw: Flaw | None, status: status_pb2.Status) -> None:
    """Spoils the ErrorInfo of a status."""
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    match flaw:
        case Flaw.NO_ERROR_INFO:
            del status.details[0]
        case Flaw.NO_VERDICTS:
            info.metadata.clear()
            status.details[0].Pack(info)
        case Flaw.FOREIGN_DOMAIN:
            info.domain = "example.com"
            status.details[0].Pack(info)
        case _:
            pass
