"""A provider around a provider: what the model inside lacks is made of what it has."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import cast

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.adapter.polyfill.plan import Abilities, Plan, plan_of, polyfilled
from maestro_sdk.adapter.polyfill.repair import MAX_REPAIRS, Session
from maestro_sdk.adapter.polyfill.tools_prompt import to_prompted
from maestro_sdk.adapter.provider import Completer, Provider, TokenCounter
from maestro_sdk.errors import MaestroError, Unimplemented


class Polyfilled:
    """A `Provider` and `Completer` whose models have TOOLS, TOOL_CHOICE and JSON_SCHEMA, natively or polyfilled.

    A request that the model meets natively goes to `inner` untouched. Embeddings, files and batches are not passed on:
    wrap what chats, and keep those beside it.
    """

    def __init__(self, inner: Provider, constrained: bool, *, max_repairs: int = MAX_REPAIRS) -> None:
        """`constrained`: the server can hold an answer to a JSON schema; then tools go by structured output.

        `max_repairs` is how often a model is asked again for calls that can't be read.
        """
        self.inner = inner
        self.name = inner.name
        self.providers: Sequence[str] = inner.providers
        self._constrained = constrained
        self._max_repairs = max_repairs
        self._completer = inner if isinstance(inner, Completer) else None
        self._abilities: dict[str, Abilities] = {}

    async def models(self) -> Sequence[Model]:
        """The models inside, with the features that the polyfills add."""
        models = await self.inner.models()
        # Remembered until the next look, so that an answer costs no look of its own.
        self._abilities = {model.id: Abilities.of(model) for model in models}
        return [polyfilled(model, self._constrained) for model in models]

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`. Raises `CapabilityUnavailable` and `OutputInvalid` besides."""
        abilities = self._abilities.get(request.model)
        if abilities is not None and self._is_met(request, abilities):
            return self.inner.stream(request)
        return self._stream(request, abilities)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, with the events that `stream` yields."""
        plan = await self._plan(request, self._abilities.get(request.model))
        if plan is None:
            return await self._complete(request)
        session = Session(request, plan, self._max_repairs)
        events: list[ChatEvent] = []
        while session.prompted is not None:
            events += session.feed(await self._complete(session.prompted))
            events += session.end()
        if session.failure is not None:
            raise session.failure
        return events

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of what is sent to the model for `request`. Raises `Unimplemented` where it can't count."""
        if not isinstance(self.inner, TokenCounter):
            raise Unimplemented(f"{self.name} can't count tokens")
        plan = await self._plan(request, self._abilities.get(request.model))
        return await self.inner.count_tokens(request if plan is None else to_prompted(request, plan))

    async def check(self) -> str:
        """What the provider inside says."""
        return await self.inner.check()

    async def close(self) -> None:
        """Closes the provider inside."""
        await self.inner.close()

    async def _stream(self, request: ChatRequest, abilities: Abilities | None) -> AsyncIterator[Sequence[ChatEvent]]:
        plan = await self._plan(request, abilities)
        if plan is None:
            async with self._opened(request) as batches:
                async for events in batches:
                    yield events
            return
        session = Session(request, plan, self._max_repairs)
        while session.prompted is not None:
            async with self._opened(session.prompted) as batches:
                async for events in batches:
                    if made := session.feed(events):
                        yield made
            if made := session.end():
                yield made
        if session.failure is not None:
            raise session.failure

    def _is_met(self, request: ChatRequest, abilities: Abilities) -> bool:
        try:
            return plan_of(request, abilities, self._constrained) is None
        except MaestroError:
            # Raised again where the answer is read, as every error of a stream is.
            return False

    def _opened(self, request: ChatRequest) -> aclosing[AsyncGenerator[Sequence[ChatEvent]]]:
        """The stream inside, closed at once when whoever reads leaves."""
        return aclosing(cast("AsyncGenerator[Sequence[ChatEvent]]", self.inner.stream(request)))

    async def _complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        if self._completer is not None:
            return await self._completer.complete(request)
        async with self._opened(request) as batches:
            return [event async for events in batches for event in events]

    async def _plan(self, request: ChatRequest, abilities: Abilities | None) -> Plan | None:
        if abilities is None:
            await self.models()
            abilities = self._abilities.get(request.model)
        # A model that is not listed is for the provider inside to refuse.
        return None if abilities is None else plan_of(request, abilities, self._constrained)
