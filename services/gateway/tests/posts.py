"""Gateways as far as resumable streams go, over a real NATS, on one adapter whose provider is led step by step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price
from maestro_gateway.account import Accountant
from maestro_gateway.mesh import Mesh
from maestro_gateway.resume.reading import Reading
from maestro_gateway.resume.streams import Streams
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.adapter.standing_servicer import StandingCallServicer
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.service.resume import ResumeConfig
from maestro_sdk.testing import tables
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call, enter_call

from .conftest import Routers, Source

CALL = Call("req-1", "acme", "00-" + "1" * 32 + "-" + "2" * 16 + "-01")


class SteppedProvider(ScriptedProvider):
    """Gives one event for each permit."""

    def __init__(self, events: Sequence[ChatEvent], model: str = "scripted/model") -> None:
        super().__init__(events, models=[scripted_model(model)])
        self.permits = asyncio.Semaphore(0)
        self.trouble: MaestroError | None = None
        """What the next event is instead."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        async for events in super().stream(request):
            await self.permits.acquire()
            if self.trouble is not None:
                raise self.trouble
            yield events

    def permit(self, count: int) -> None:
        for _ in range(count):
            self.permits.release()


@dataclass
class Post:
    """One gateway, as far as streams go. `events` are those that it told."""

    streams: Streams
    backends: Backends
    events: list[Event] = field(default_factory=list[Event])

    def ends(self) -> list[str]:
        return [event.kind for event in self.events if event.kind in ("request.completed", "request.failed")]

    async def begin(self, text: str = "hello", *, stream: str = CALL.request_id) -> Reading:
        call = replace(CALL, request_id=stream)
        enter_call(call)
        return await self.streams.begin(question(text), call)

    def resume(self, after: int = 0, tenant: str = "acme", *, stream: str = CALL.request_id) -> Reading:
        return self.streams.resume(tenant, stream, after)

    async def die(self) -> None:
        """The way a kill takes it: nothing is said to anybody, and its connections are gone."""
        await self.streams.journal.__aexit__(None, None, None)
        for generation in list(self.streams.running.values()):
            self.backends.standing.let_stand(generation.begun.call_key)
        await self.streams.close()
        await self.backends.close()


@dataclass
class Stage:
    """Gateways on one NATS and one adapter."""

    nats: NatsServer
    provider: SteppedProvider
    standing: StandingCalls
    address: str
    stack: AsyncExitStack
    heir: str = ""
    """Address of a second adapter, which is asked where the first one fails; empty without one."""

    async def gateway(
        self, window: float = 30.0, *, resume: bool = False, settled: bool = True, knows: bool = True
    ) -> Post:
        """With `resume` the route lets another backend go on with a broken answer.

        One that is not `settled` has not heard of NATS yet; the table of one that `knows` nothing has no backend.
        """
        backends = Backends()
        published: list[Event] = []
        model = tables.model("scripted/model")
        model.price.CopyFrom(Price(input="3", output="15", effective_date="2026-01-01"))
        found, targets = [tables.backend("adapter", model, self.address)], [(model.id, 1.0)]
        if self.heir:
            second = tables.model("other/model")
            found.append(tables.backend("heir", second, self.heir))
            targets.append((second.id, 1.0))
        source = Source(compile_table(tables.message(found if knows else [], {"default": targets}, resume=resume)))
        source.local.adopt(source.table, 0.0)
        mesh = Mesh(
            source=source,
            routers=Routers(),
            backends=backends,
            dispatcher=Dispatcher(source, backends),
            accountant=Accountant(published.append, lambda: False),
        )
        streams = Streams(ResumeConfig.model_construct(window=window), self.nats.url, published.append)
        streams.mesh = mesh
        await self.stack.enter_async_context(streams.journal)
        self.stack.push_async_callback(backends.close)
        self.stack.push_async_callback(streams.close)
        if settled:
            assert await streams.journal.settle()
        return Post(streams, backends, published)


@asynccontextmanager
async def staged(folder: Path, provider: SteppedProvider, heir: str = "") -> AsyncGenerator[Stage]:
    """Gateways on a NATS of their own, and the adapter of `provider`; `heir` is the address of another adapter."""
    nats, standing = NatsServer(folder), StandingCalls()
    await nats.start()
    servicers = (ChatServicer(provider, standing=standing), StandingCallServicer(standing))
    async with serve(*servicers) as address, AsyncExitStack() as stack:
        yield Stage(nats, provider, standing, address, stack, heir)
    await standing.close()
    await nats.kill()


def question(text: str = "hello") -> ChatRequest:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model="default", messages=[message], resumable=True)


async def read(reading: Reading, most: int = 10**6) -> list[ChatEvent]:
    """The next events, at most so many. Raises what ended the stream."""
    found: list[ChatEvent] = []
    async with asyncio.timeout(10), aclosing(reading.pieces()) as pieces:
        async for piece in pieces:
            found += piece.events
            if len(found) >= most:
                break
    return found


def text_of(events: Sequence[ChatEvent]) -> str:
    return "".join(event.text.text for event in events)


async def until(fits: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not fits():
            await asyncio.sleep(0.005)
