"""Serves a `Provider` as `ChatService` and `ModelService`: the unary call, the order of events, cost, and readiness."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    CountTokensResponse,
    StreamChatResponse,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer
from maestro.llm.v1.model_pb2 import (
    Feature,
    GetInfoRequest,
    GetInfoResponse,
    ListModelsRequest,
    ListModelsResponse,
    Model,
)
from maestro.llm.v1.model_pb2_grpc import ModelServiceServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import is_unknown, warn_unknown
from maestro_sdk.adapter.provider import Completer, Provider, TokenCounter
from maestro_sdk.adapter.standing import Put, StandingCalls
from maestro_sdk.errors import StreamBroken, Unimplemented
from maestro_sdk.prices import cost_of, price_of
from maestro_sdk.tracing import current_call

SPI_VERSION = "maestro.llm.v1"


class ChatServicer(ChatServiceServicer):
    """Answers with a provider. One that breaks the order of events ends with `StreamBroken`, never with success."""

    def __init__(
        self, provider: Provider, catalogue: Catalogue | None = None, standing: StandingCalls | None = None
    ) -> None:
        """Calls with a key outlive their callers in `standing`; without it every call ends with its caller."""
        self.provider = provider
        self._completer = provider if isinstance(provider, Completer) else None
        self._catalogue = catalogue or Catalogue(provider)
        self._standing = standing

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:
        model = await self._catalogue.able(request.model, Feature.FEATURE_CHAT)
        if self._standing is None or (call := current_call()) is None or not self._standing.takes(call.key):
            return await self._answer(request, model)

        async def answer(put: Put) -> None:
            await put(await self._answer(request, model))

        async with aclosing(self._standing.follow(b"Chat", request, model.id, answer)) as messages:
            async for message in messages:
                return ChatResponse.FromString(message)
        raise StreamBroken("the adapter gave no answer")

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:
        model = await self._catalogue.able(request.model, Feature.FEATURE_CHAT)
        if self._standing is None or (call := current_call()) is None or not self._standing.takes(call.key):
            await self._stream(request, model, context.write)
            return

        async def answer(put: Put) -> None:
            await self._stream(request, model, put)

        async with aclosing(self._standing.follow(b"StreamChat", request, model.id, answer)) as messages:
            async for message in messages:
                await context.write(StreamChatResponse.FromString(message))

    async def _answer(self, request: ChatRequest, model: Model) -> ChatResponse:
        if self._completer is not None:
            events = await self._completer.complete(request)
        else:
            events = [event async for batch in self.provider.stream(request) for event in batch]
        if is_unknown(model):
            events = _warned(events, model)
        price(events, model)
        return fold(events)

    async def _stream(self, request: ChatRequest, model: Model, write: Put) -> None:
        begun = finished = False
        unknown = is_unknown(model)
        # Writing instead of yielding: when the call is cancelled, the generator is closed here and now, and with it the
        # provider's socket.
        async with aclosing(cast("AsyncGenerator[Sequence[ChatEvent]]", self.provider.stream(request))) as batches:
            async for events in batches:
                if not events:
                    continue
                for event in events:
                    kind = event.WhichOneof("kind")
                    if finished:
                        raise StreamBroken("the adapter went on after its finish event")
                    if begun is (kind == "started"):
                        raise StreamBroken("the adapter's first event, and only that, has to be `started`")
                    begun = True
                    finished = kind == "finish"
                if unknown:
                    events = _warned(events, model)  # noqa: PLW2901 - the same events and one more
                if finished:
                    price(events, model)
                await write(StreamChatResponse(events=events))
        if not finished:
            raise StreamBroken("the adapter's stream ended without a finish event")

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> CountTokensResponse:
        model = await self._catalogue.find(request.request.model)
        if not isinstance(self.provider, TokenCounter):
            raise Unimplemented(f"{self.provider.name} can't count tokens")
        count = await self.provider.count_tokens(request.request)
        return CountTokensResponse(input_tokens=count, provider=model.provider, model=model.name)


class ModelServicer(ModelServiceServicer):
    """Tells the provider's models and readiness."""

    def __init__(self, provider: Provider, distribution: str = "maestro-sdk") -> None:
        """`distribution` is the installed package whose version the adapter reports."""
        self.provider = provider
        self._started = time.time_ns()
        try:
            self._version = version(distribution)
        except PackageNotFoundError:
            self._version = "0"

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        models = sorted(map(_up_to_date, await self.provider.models()), key=lambda model: model.id)
        size = request.page_size or 1000
        page = [model for model in models if model.id > request.page_token]
        token = page[size - 1].id if len(page) > size else ""
        return ListModelsResponse(models=page[:size], next_page_token=token)

    async def GetInfo(self, request: GetInfoRequest, context: Any) -> GetInfoResponse:
        reason = await self.provider.check()
        info = GetInfoResponse(
            name=self.provider.name,
            version=self._version,
            spi_versions=[SPI_VERSION],
            ready=not reason,
            not_ready_reason=reason,
            providers=self.provider.providers,
        )
        info.started.FromNanoseconds(self._started)
        return info


def _up_to_date(model: Model) -> Model:
    """The model with the price that is in force now, should one have begun since it was read."""
    in_force = price_of(model)
    if in_force is None or (model.HasField("price") and in_force.effective_date == model.price.effective_date):
        return model
    fresh = Model()
    fresh.CopyFrom(model)
    fresh.price.CopyFrom(in_force)
    later = [each for each in model.announced_prices if each.effective_date > in_force.effective_date]
    del fresh.announced_prices[:]
    fresh.announced_prices.extend(later)
    return fresh


def price(events: Sequence[ChatEvent], model: Model) -> None:
    """Adds the cost to a finish event that has none, when the model's price is known. Unknown stays absent."""
    if not events:
        return
    last = events[-1]
    if last.WhichOneof("kind") == "finish" and last.finish.HasField("usage") and not last.finish.HasField("cost"):
        in_force = price_of(model)
        if in_force is not None:
            last.finish.cost.CopyFrom(cost_of(last.finish.usage, in_force))


def _warned(events: Sequence[ChatEvent], model: Model) -> Sequence[ChatEvent]:
    """The events with a warning behind `started`, where that is among them, that nothing is known of the model."""
    if not events or events[0].WhichOneof("kind") != "started":
        return events
    return [events[0], ChatEvent(warning=Warning(**warn_unknown(model))), *events[1:]]
