"""Calls with a key on a real socket: the provider is asked once, whoever dies; and nothing stands for ever."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, StreamChatResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.standing_pb2 import GetStandingCallRequest, ReleaseStandingCallRequest
from maestro.llm.v1.standing_pb2_grpc import StandingCallServiceStub
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.adapter.standing import Put, StandingCalls
from maestro_sdk.adapter.standing_servicer import StandingCallServicer
from maestro_sdk.errors import Conflict, MaestroError, NotFound, Overloaded, from_rpc_error
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call, enter_call

PIECES = [f"piece {number} " for number in range(20)]
MODEL = "scripted/model"


class SteppedProvider(ScriptedProvider):
    """Gives one event for each permit."""

    def __init__(self, events: Sequence[ChatEvent]) -> None:
        super().__init__(events)
        self.permits = asyncio.Semaphore(0)
        self.given = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        async for events in super().stream(request):
            await self.permits.acquire()
            self.given += 1
            yield events

    def permit(self, count: int) -> None:
        """Lets `count` events through."""
        for _ in range(count):
            self.permits.release()


def question(text: str = "Hello?") -> ChatRequest:
    return ChatRequest(model=MODEL, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])])


def metadata(key: str, tenant: str = "acme") -> tuple[tuple[str, str], ...]:
    return Call("req-1", tenant, "00-" + "1" * 32 + "-" + "2" * 16 + "-01", key).metadata()


@dataclass
class Adapter:
    """A served provider, and how it is called."""

    channel: grpc.aio.Channel
    standing: StandingCalls
    calls: list[Any] = field(default_factory=list[Any])

    def open(self, key: str, text: str = "Hello?", tenant: str = "acme") -> Any:
        """A running stream."""
        return ChatServiceStub(self.channel).StreamChat(question(text), metadata=metadata(key, tenant), timeout=10)

    async def hear(self, key: str, text: str = "Hello?", tenant: str = "acme") -> str:
        """The text of a stream that is read to its end. Raises `MaestroError`."""
        try:
            return text_of([message async for message in self.open(key, text, tenant)])
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def whole(self, key: str) -> str:
        """The text of a unary answer."""
        answer = await ChatServiceStub(self.channel).Chat(question(), metadata=metadata(key), timeout=10)
        return "".join(part.text.text for part in answer.parts)

    async def hear_some(self, key: str, count: int) -> str:
        """The first messages of a stream, whose caller then hangs up."""
        call = self.open(key)
        heard = [await call.read() for _ in range(count)]
        call.cancel()
        return text_of(heard)

    async def release(self, key: str, tenant: str = "acme") -> None:
        stub = StandingCallServiceStub(self.channel)
        await stub.ReleaseStandingCall(
            ReleaseStandingCallRequest(key=key, model=MODEL), metadata=metadata("", tenant), timeout=5
        )

    async def finished(self, key: str, tenant: str = "acme") -> bool:
        """Whether the answer that stands is whole. Raises `NotFound`."""
        stub = StandingCallServiceStub(self.channel)
        request = GetStandingCallRequest(key=key, model=MODEL)
        try:
            return (await stub.GetStandingCall(request, metadata=metadata("", tenant), timeout=5)).finished
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


def text_of(messages: Sequence[StreamChatResponse]) -> str:
    return "".join(event.text.text for message in messages for event in message.events)


async def rest(call: Any) -> list[StreamChatResponse]:
    """The messages that are left of a stream that was read from."""
    found: list[StreamChatResponse] = []
    while isinstance(message := await call.read(), StreamChatResponse):
        found.append(message)
    return found


@asynccontextmanager
async def adapter(provider: ScriptedProvider, linger: float = 30.0, **bounds: int) -> AsyncGenerator[Adapter]:
    standing = StandingCalls(linger, **bounds)
    servicers = (ChatServicer(provider, standing=standing), StandingCallServicer(standing))
    async with serve(*servicers) as address, grpc.aio.insecure_channel(address) as channel:
        yield Adapter(channel, standing)
        await standing.close()


async def until(fits: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not fits():
            await asyncio.sleep(0.005)


async def test_the_next_call_takes_up_the_answer_of_one_that_died():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        provider.permit(6)
        assert await served.hear_some("k1", 6) == "".join(PIECES[:5])
        provider.permit(4)
        await until(lambda: provider.given == 10)
        provider.permit(100)
        assert await served.hear("k1") == "".join(PIECES)
        assert len(provider.requests) == 1
        assert not provider.abandoned.is_set()


async def test_a_whole_answer_is_taken_up_too_as_a_stream_and_as_a_whole():
    provider = ScriptedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        assert [await served.hear("k1") for _ in range(3)] == ["".join(PIECES)] * 3
        assert len(provider.requests) == 1
        assert [await served.whole("k2") for _ in range(3)] == ["".join(PIECES)] * 3
        assert len(provider.requests) == 2
        assert await served.finished("k1") is True


async def test_nobody_comes_so_the_provider_is_stopped():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider, linger=0.1) as served:
        provider.permit(3)
        await served.hear_some("k1", 3)
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        await until(lambda: not len(served.standing))
        assert served.standing.held == 0
        with pytest.raises(NotFound):
            await served.finished("k1")


async def test_an_answer_is_forgotten_after_its_time():
    provider = ScriptedProvider(answer(*PIECES))
    async with adapter(provider, linger=0.05) as served:
        await served.hear("k1")
        await until(lambda: not len(served.standing))
        assert await served.hear("k1") == "".join(PIECES)
        assert len(provider.requests) == 2


async def test_asking_for_a_call_keeps_it_for_another_while():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider, linger=0.2) as served:
        provider.permit(2)
        await served.hear_some("k1", 2)
        for _ in range(6):
            await asyncio.sleep(0.1)
            assert await served.finished("k1") is False
        provider.permit(100)
        assert await served.hear("k1") == "".join(PIECES)
        assert len(provider.requests) == 1


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE_CONTENT, Fault.ERROR_AFTER_CONTENT])
async def test_a_failed_call_is_forgotten(fault: Fault):
    provider = ScriptedProvider(answer(*PIECES), fault=fault)
    async with adapter(provider) as served:
        with pytest.raises(Overloaded):
            await served.hear("k1")
        provider.fault = None
        assert await served.hear("k1") == "".join(PIECES)
        assert len(provider.requests) == 2


async def test_a_key_is_good_for_one_request_of_one_shape():
    provider = ScriptedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        await served.hear("k1")
        with pytest.raises(Conflict, match="another request"):
            await served.hear("k1", "Another question")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.whole("k1")
        assert isinstance(from_rpc_error(refused.value), Conflict)
        assert len(provider.requests) == 1


async def test_keys_are_the_tenants_own():
    provider = ScriptedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        await served.hear("k1")
        with pytest.raises(NotFound):
            await served.finished("k1", "globex")
        await served.release("k1", "globex")
        assert await served.finished("k1") is True
        assert await served.hear("k1", "Another question", "globex") == "".join(PIECES)
        assert len(provider.requests) == 2


async def test_who_takes_up_a_call_takes_the_place_of_its_reader():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        provider.permit(4)
        former = served.open("k1")
        for _ in range(4):
            await former.read()
        second = served.open("k1")
        assert [event.WhichOneof("kind") for event in (await second.read()).events] == ["started"]
        with pytest.raises(grpc.aio.AioRpcError) as lost:
            await former.read()
        error: MaestroError = from_rpc_error(lost.value)
        assert isinstance(error, Conflict)
        assert error.metadata["standing"] == "taken"
        provider.permit(100)
        assert text_of(await rest(second)) == "".join(PIECES)
        assert len(provider.requests) == 1


async def test_a_released_call_ends_at_once():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        provider.permit(3)
        await served.hear_some("k1", 3)
        await served.release("k1")
        async with asyncio.timeout(1):
            await provider.abandoned.wait()
        assert len(served.standing) == 0
        await served.release("unknown")


async def test_without_a_key_a_call_ends_with_its_caller():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider) as served:
        provider.permit(3)
        await served.hear_some("", 3)
        async with asyncio.timeout(1):
            await provider.abandoned.wait()
        assert len(served.standing) == 0


async def test_where_nothing_stands_a_key_means_nothing():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider, linger=0.0) as served:
        provider.permit(3)
        await served.hear_some("k1", 3)
        async with asyncio.timeout(1):
            await provider.abandoned.wait()
        assert len(served.standing) == 0


async def test_a_drain_ends_what_nobody_reads_and_nothing_else():
    provider = ScriptedProvider(answer(*PIECES), pace=0.02)
    async with adapter(provider) as served:
        await served.hear_some("k1", 2)
        reading = served.open("k2")
        await reading.read()
        await served.standing.drain(1.0)
        async with asyncio.timeout(1):
            await provider.abandoned.wait()
        assert text_of(await rest(reading)) == "".join(PIECES)
        await until(lambda: not len(served.standing))


async def test_an_answer_without_room_goes_on_at_its_readers_pace_and_is_not_taken_up():
    pieces = [f"{number:04d}" + "x" * 1000 for number in range(200)]
    provider = ScriptedProvider(answer(*pieces))
    async with adapter(provider, each=20_000, ahead=5_000) as served:
        call = served.open("k1")
        heard: list[StreamChatResponse] = []
        for _ in range(100):
            heard.append(await call.read())
            assert served.standing.held <= 20_000
        with pytest.raises(Conflict, match="too long"):
            await served.hear("k1")
        heard += await rest(call)
        assert text_of(heard) == "".join(pieces)
        await until(lambda: served.standing.held == 0)


async def test_without_a_reader_the_provider_pauses_when_the_room_is_full():
    pieces = ["x" * 1000 for _ in range(100)]
    provider = SteppedProvider(answer(*pieces))
    async with adapter(provider, each=20_000) as served:
        provider.permit(1)
        await served.hear_some("k1", 1)
        provider.permit(1000)
        await until(lambda: provider.given >= 19)
        await asyncio.sleep(0.05)
        assert provider.given < 25
        assert served.standing.held <= 20_000
        assert await served.hear("k1") == "".join(pieces)
        assert len(provider.requests) == 1


async def test_all_together_are_bounded_and_the_oldest_whole_answers_go_first():
    provider = ScriptedProvider(answer("x" * 5_000))
    async with adapter(provider, room=20_000) as served:
        for number in range(20):
            assert await served.hear(f"k{number}") == "x" * 5_000
            assert served.standing.held <= 20_000
        assert await served.finished("k19") is True
        with pytest.raises(NotFound):
            await served.finished("k0")


async def test_the_number_of_calls_is_bounded_and_others_end_with_their_callers():
    provider = SteppedProvider(answer(*PIECES))
    async with adapter(provider, most=2) as served:
        provider.permit(1000)
        calls = [served.open(f"k{number}") for number in range(5)]
        texts = [text_of([message async for message in call]) for call in calls]
        assert len(served.standing) <= 2
        assert texts == ["".join(PIECES)] * 5


@settings(max_examples=40)
@given(leaves=st.lists(st.integers(0, 12), max_size=6), count=st.integers(0, 12), each=st.sampled_from([600, 10**6]))
def test_however_often_callers_die_the_answer_is_the_same(leaves: list[int], count: int, each: int):
    """Readers leave after so many messages; the one that stays gets all of them, or is told that it can't."""
    asyncio.run(_check_leaving(leaves, count, each))


async def _check_leaving(leaves: list[int], count: int, each: int) -> None:
    messages = [StreamChatResponse(events=answer(f"{number}")) for number in range(count)]
    asked = 0

    async def reply(put: Put) -> None:
        nonlocal asked
        asked += 1
        for message in messages:
            await asyncio.sleep(0)
            await put(message)

    standing = StandingCalls(5.0, each=each)
    enter_call(Call("r", "acme", "", "k"))
    wanted = [message.SerializeToString() for message in messages]
    for leave in leaves:
        seen: list[bytes] = []
        try:
            async with aclosing(standing.follow(b"s", question(), MODEL, reply)) as reading:
                async for message in reading:
                    seen.append(message)
                    if len(seen) > leave:
                        break
        except Conflict:
            assert each == 600
        assert seen == wanted[: len(seen)]
    async with asyncio.timeout(5):
        async with aclosing(standing.follow(b"s", question(), MODEL, reply)) as reading:
            assert [message async for message in reading] == wanted
    assert asked == 1 or each == 600
    await standing.close()
    assert standing.held == 0
