"""A dispatcher on real adapters: scripted providers, and adapters that break the contract, behind gRPC sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.table import Table, compile_table
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.tables import backend, message, model

from .raw_servicer import RawServicer


@dataclass
class Source:
    """A fixed table."""

    table: Table
    local: LocalState = field(default_factory=LocalState)
    outcomes: list[pb.Outcome] = field(default_factory=list[pb.Outcome])

    def report(self, outcome: pb.Outcome) -> None:
        self.outcomes.append(outcome)


Adapter = ScriptedProvider | RawServicer


@dataclass
class Mesh:
    """Adapters under one route, and a dispatcher on them. `trail` is that of the last request."""

    providers: Sequence[Any]
    source: Source
    dispatcher: Dispatcher
    failures: list[Attempt]
    trail: Trail = field(default_factory=Trail)

    async def stream(self, request: ChatRequest | None = None, **arguments: Any) -> list[ChatEvent]:
        """The events of one streamed answer."""
        seen: list[ChatEvent] = []
        await self.watch(seen, request, **arguments)
        return seen

    async def watch(self, seen: list[ChatEvent], request: ChatRequest | None = None, **arguments: Any) -> None:
        """Adds the events of one streamed answer to `seen` as they come."""
        request, self.trail = request or ask(), Trail()
        batches = self.dispatcher.stream(request, needs_of(request, streaming=True), self.trail, **arguments)
        async with aclosing(batches):
            async for batch in batches:
                seen += batch.events

    async def complete(self, request: ChatRequest | None = None, **arguments: Any) -> ChatResponse:
        """One answer as a whole."""
        request, self.trail = request or ask(), Trail()
        return await self.dispatcher.complete(request, needs_of(request), self.trail, **arguments)

    def idle(self) -> bool:
        """Whether no call is under way, as far as the process knows."""
        return not any(self.source.local.load.in_flight.values())

    def breaches(self) -> list[str]:
        """The breaches that were reported."""
        return [outcome.breach for outcome in self.source.outcomes if outcome.breach]


def ask(words: str = "hello", **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=words))])], **more)


def named(number: int, *pieces: str, window: int = 0, price: Price | None = None, **options: Any) -> ScriptedProvider:
    """The scripted provider "pN/m", which says who it is unless `pieces` say something else."""
    name = f"p{number}/m"
    described = model(name, window=window)
    if price is not None:
        described.price.CopyFrom(price)
    return ScriptedProvider(answer(*(pieces or (f"I am {number}", ".")), model=name), models=[described], **options)


@asynccontextmanager
async def mesh(*providers: Adapter, gate: Any = None, **limits: Any) -> AsyncGenerator[Mesh]:
    async with AsyncExitStack() as stack:
        backends: list[pb.Backend] = []
        for provider in providers:
            if isinstance(provider, RawServicer):
                servicer: ChatServiceServicer = provider
                described = provider.described
            else:
                servicer = ChatServicer(provider)
                described = (await provider.models())[0]
            address = await stack.enter_async_context(serve(servicer))
            backends.append(backend(described.provider, described, address))
        targets = [(found.model.id, 1.0) for found in backends]
        source = Source(compile_table(message(backends, {"default": targets}, **limits)))
        source.local.adopt(source.table, time.time())
        remote = Backends()
        stack.push_async_callback(remote.close)
        failures: list[Attempt] = []
        dispatcher = Dispatcher(source, remote, failures.append, dice=lambda: 0.0, last_words=0.3, gate=gate)
        yield Mesh(providers, source, dispatcher, failures)


async def until(done: Callable[[], bool], limit: float = 5.0) -> None:
    """Waits until `done`; `TimeoutError` after `limit` seconds."""
    async with asyncio.timeout(limit):
        while not done():
            await asyncio.sleep(0.002)


def text(events: Sequence[ChatEvent]) -> str:
    return "".join(event.text.text for event in events)


def kinds(events: Sequence[ChatEvent]) -> list[str | None]:
    return [event.WhichOneof("kind") for event in events]
