"""The same request at the same time: one call of the provider, whatever becomes of it; and files that are gone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason
from maestro.llm.v1.file_pb2 import FileHeader, FilePurpose
from maestro.llm.v1.message_pb2 import DocumentPart, Message, Part, Role, TextPart
from maestro_gateway.cache import AnswerStore
from maestro_gateway.cache.flight import Flight, Flights
from maestro_gateway.files.depot import Depot
from maestro_gateway.files.files import Files
from maestro_sdk.errors import Overloaded, Timeout
from maestro_sdk.service.files import FilesConfig
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.scripted import ScriptedProvider, answer

from .conftest import KEY, OTHER_KEY, Gateway, Reply, Start, metadata, question
from .test_cache import send

MANY = 20


class Held(ScriptedProvider):
    """Every call waits for its own gate; `failing` are the numbers of those that fail."""

    def __init__(self, failing: Sequence[int] = (), **more: Any) -> None:
        super().__init__(**more)
        self._failing = failing
        self._gates: list[asyncio.Event] = []
        self._open = False

    def let(self, number: int) -> None:
        """Lets the call of that number go on."""
        self._gates[number].set()

    def open(self) -> None:
        """Lets all calls go on, those to come too."""
        self._open = True
        for gate in self._gates:
            gate.set()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        gate = asyncio.Event()
        self._gates.append(gate)
        number = len(self.requests)
        self.requests.append(request)
        if not self._open:
            await gate.wait()
        if number in self._failing:
            raise Overloaded("not now")
        for event in self.events:
            yield (event,)


class Bench:
    """A gateway whose only route keeps answers, and requests that are under way."""

    def __init__(self, gateway: Gateway, provider: Held, store: AnswerStore) -> None:
        self.gateway, self.provider, self.store = gateway, provider, store
        self.sent: list[asyncio.Task[Reply]] = []

    def send(self, count: int = 1, key: str = KEY, text: str = "hello", **headers: str) -> list[asyncio.Task[Reply]]:
        """Sends the same chat so often at once."""
        body = question(text, model="default")
        tasks = [asyncio.create_task(send(self.gateway, body, key, **headers)) for _ in range(count)]
        self.sent += tasks
        return tasks

    async def until(self, *, asked: int, waiting: int) -> None:
        """Until the provider was asked so often, and so many requests wait for the answer of another one."""
        async with asyncio.timeout(5):
            while (len(self.provider.requests), self.store.flights.waiting) != (asked, waiting):
                await asyncio.sleep(0.005)

    async def replies(self) -> Counter[tuple[int, str]]:
        """Status of all answers, and what they say of the cache."""
        replies = await asyncio.gather(*self.sent)
        return Counter((reply.status, reply.headers.get("x-maestro-cache", "")) for reply in replies)


async def bench(start: Start, provider: Held, **limits: Any) -> Bench:
    store = AnswerStore()
    gateway = await start(provider, cache=600, store=store, max_attempts=1, **limits)
    return Bench(gateway, provider, store)


async def test_requests_at_once_make_one_call(start: Start) -> None:
    stage = await bench(start, Held())
    stage.send(MANY)
    await stage.until(asked=1, waiting=MANY - 1)
    stage.provider.open()
    assert await stage.replies() == {(200, "miss"): 1, (200, "hit"): MANY - 1}
    assert len(stage.provider.requests) == 1
    ends = [event.request_completed for event in stage.gateway.events if event.kind == "request.completed"]
    assert Counter(end.cached for end in ends) == {False: 1, True: MANY - 1}
    assert {end.cost.usd for end in ends if end.cached} == {"0"}
    assert stage.store.flights.waiting == 0


async def test_when_a_call_fails_one_of_those_who_wait_asks(start: Start) -> None:
    stage = await bench(start, Held(failing=[0]))
    stage.send(MANY)
    await stage.until(asked=1, waiting=MANY - 1)
    stage.provider.let(0)
    await stage.until(asked=2, waiting=MANY - 2)
    stage.provider.let(1)
    assert await stage.replies() == {(503, "miss"): 1, (200, "miss"): 1, (200, "hit"): MANY - 2}
    assert len(stage.provider.requests) == 2


async def test_after_two_failed_calls_nobody_waits_any_more(start: Start) -> None:
    stage = await bench(start, Held(failing=[0, 1]))
    stage.send(5)
    await stage.until(asked=1, waiting=4)
    stage.provider.let(0)
    await stage.until(asked=2, waiting=3)
    stage.provider.let(1)
    await stage.until(asked=5, waiting=0)
    stage.provider.open()
    assert await stage.replies() == {(503, "miss"): 2, (200, "miss"): 3}


async def test_when_who_asks_leaves_the_next_one_asks(start: Start) -> None:
    stage = await bench(start, Held())
    (first,) = stage.send()
    await stage.until(asked=1, waiting=0)
    stage.send(5)
    await stage.until(asked=1, waiting=5)
    first.cancel()
    stage.sent.remove(first)
    await stage.until(asked=2, waiting=4)
    stage.provider.open()
    assert await stage.replies() == {(200, "miss"): 1, (200, "hit"): 4}


async def test_who_waits_may_leave(start: Start) -> None:
    stage = await bench(start, Held())
    stage.send()
    await stage.until(asked=1, waiting=0)
    (second,) = stage.send()
    await stage.until(asked=1, waiting=1)
    second.cancel()
    stage.sent.remove(second)
    await stage.until(asked=1, waiting=0)
    stage.provider.open()
    assert await stage.replies() == {(200, "miss"): 1}


async def test_an_answer_that_is_not_kept_is_given_to_nobody_else(start: Start) -> None:
    cut = answer("Hello")
    cut[-1].finish.reason = FinishReason.FINISH_REASON_LENGTH
    stage = await bench(start, Held(events=cut))
    stage.send(5)
    await stage.until(asked=1, waiting=4)
    stage.provider.let(0)
    # All at once: one after the other would take five times as long.
    await stage.until(asked=5, waiting=0)
    stage.provider.open()
    assert await stage.replies() == {(200, "miss"): 5}


async def test_only_the_same_request_of_the_same_tenant_waits(start: Start) -> None:
    stage = await bench(start, Held())
    stage.send(2)
    stage.send(2, OTHER_KEY)
    stage.send(2, text="hello!")
    await stage.until(asked=3, waiting=3)
    stage.send(2, **{"cache-control": "no-cache"})
    stage.send(2, **{"cache-control": "no-store"})
    await stage.until(asked=7, waiting=3)
    stage.provider.open()
    assert (await stage.replies())[200, "hit"] == 3


async def test_streams_wait_for_nobody(start: Start) -> None:
    stage = await bench(start, Held())
    stage.send()
    await stage.until(asked=1, waiting=0)
    body = question(model="default", stream=True)
    streams = [asyncio.create_task(send(stage.gateway, body)) for _ in range(3)]
    await stage.until(asked=4, waiting=0)
    # Nor does anybody wait for a stream, which goes as slowly as it is read.
    stage.provider.open()
    assert [reply.headers["x-maestro-cache"] for reply in await asyncio.gather(*streams)] == ["miss"] * 3
    assert await stage.replies() == {(200, "miss"): 1}


async def test_nobody_waits_longer_than_its_deadline(start: Start) -> None:
    stage = await bench(start, Held())
    stage.send()
    await stage.until(asked=1, waiting=0)
    request = ChatRequest(
        model="default", messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])]
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stage.gateway.chats.Chat(request, metadata=metadata(KEY), timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await stage.until(asked=1, waiting=0)
    stage.provider.open()
    assert await stage.replies() == {(200, "miss"): 1}


def about(file_id: str) -> ChatRequest:
    parts = [Part(document=DocumentPart(file_id=file_id)), Part(text=TextPart(text="What does it say?"))]
    return ChatRequest(model="default", messages=[Message(role=Role.ROLE_USER, parts=parts)])


async def test_what_was_said_about_a_file_goes_with_it(start: Start, nats_server: NatsServer) -> None:
    depot = Depot(nats_server.url)
    async with depot.connected():
        files, provider = Files(depot, FilesConfig()), ScriptedProvider()
        gateway = await start(provider, cache=600, store=AnswerStore(), files=files, features=("DOCUMENTS",))
        kept = await files.store("acme", FileHeader(filename="a.pdf", purpose=CONTENT), one(b"%PDF-1.7 secret"))
        request = about(kept.file_id)
        found = [await gateway.chats.Chat(request, metadata=metadata(KEY)) for _ in range(2)]
        assert [answered.cached for answered in found] == [False, True]
        await files.delete("acme", kept.file_id)
        with pytest.raises(grpc.aio.AioRpcError, match="there is no file") as caught:
            await gateway.chats.Chat(request, metadata=metadata(KEY))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match="there is no file"):
            async for _ in gateway.chats.StreamChat(request, metadata=metadata(KEY)):
                pass
        assert len(provider.requests) == 1


CONTENT = FilePurpose.FILE_PURPOSE_CONTENT


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def test_a_thousand_wait_for_one_each_up_to_its_own_deadline() -> None:
    flights, clock = Flights(), asyncio.get_running_loop().time
    flight = await flights.join("k", None)
    assert isinstance(flight, Flight)
    patient = [asyncio.create_task(flights.join("k", clock() + 60 if number % 2 else None)) for number in range(900)]
    hasty = [asyncio.create_task(flights.join("k", clock() + 0.05)) for _ in range(100)]
    ended = await asyncio.gather(*hasty, return_exceptions=True)
    assert [type(error) for error in ended] == [Timeout] * 100
    assert flights.waiting == 900
    # Whoever asks leaves: one of the others asks, and nobody else.
    flight.fail()
    done, _ = await asyncio.wait(patient, return_when=asyncio.FIRST_COMPLETED)
    (next_one,) = (task.result() for task in done)
    assert isinstance(next_one, Flight)
    next_one.land(b"answer")
    next_one.fail()
    assert Counter(await asyncio.gather(*patient)) == {next_one: 1, b"answer": 899}
    assert flights.waiting == 0
