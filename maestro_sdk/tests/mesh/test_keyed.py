"""Calls with a key: they end at the provider when their caller gives them up, and stand when it shall be taken over."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.adapter.standing_servicer import StandingCallServicer
from maestro_sdk.mesh.backends import Backends, ChatCall
from maestro_sdk.mesh.table import Backend, compile_table
from maestro_sdk.testing import tables
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call, enter_call

QUESTION = ChatRequest(
    model="scripted/model", messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="Hello?"))])]
)
CALL = Call("req-1", "acme", "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "key-1")


@asynccontextmanager
async def mesh(provider: ScriptedProvider, *, stands: bool = True) -> AsyncGenerator[tuple[Backends, Backend]]:
    """A backend with and without standing calls. The current call has a key."""
    enter_call(CALL)
    standing = StandingCalls()
    servicers = (ChatServicer(provider, standing=standing), StandingCallServicer(standing))
    async with serve(*(servicers if stands else (ChatServicer(provider),))) as address:
        found = tables.backend("adapter", tables.model("scripted/model"), address)
        backends = Backends()
        yield backends, next(iter(compile_table(tables.message([found], {})).backends.values()))
        await backends.close()
        await standing.close()


async def abandoned(provider: ScriptedProvider) -> bool:
    try:
        async with asyncio.timeout(0.5):
            await provider.abandoned.wait()
    except TimeoutError:
        return False
    return True


async def test_a_stream_that_is_given_up_ends_at_the_provider():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with mesh(provider) as (backends, backend):
        call = backends.stream_chat(backend, QUESTION, 10.0)
        assert isinstance(await call.read(), StreamChatResponse)
        assert await backends.standing.stands(backend, CALL)
        assert call.cancel()
        assert await abandoned(provider)
        assert not await backends.standing.stands(backend, CALL)


async def test_so_does_one_whose_read_was_cancelled():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_BEFORE_CONTENT)
    async with mesh(provider) as (backends, backend):
        call = backends.stream_chat(backend, QUESTION, 10.0)
        await call.read()
        reading = asyncio.create_task(asyncio.wait_for(call.read(), 0.05))
        with pytest.raises((TimeoutError, asyncio.CancelledError)):
            await reading
        call.cancel()
        assert await abandoned(provider)


async def test_a_whole_answer_that_is_given_up_ends_at_the_provider():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with mesh(provider) as (backends, backend):

        async def ask() -> ChatResponse:
            return await backends.chat(backend, QUESTION, 10.0)

        asking = asyncio.create_task(ask())
        async with asyncio.timeout(5):
            while not provider.requests:
                await asyncio.sleep(0.005)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await abandoned(provider)


async def test_what_shall_be_taken_over_stands_and_a_whole_answer_does_too():
    provider = ScriptedProvider(answer("a", "b"), pace=0.02)
    async with mesh(provider) as (backends, backend):
        backends.standing.let_stand(CALL.key)
        call = backends.stream_chat(backend, QUESTION, 10.0)
        await call.read()
        call.cancel()
        assert await backends.standing.stands(backend, CALL)
        call = backends.stream_chat(backend, QUESTION, 10.0)
        messages = [message async for message in _rest(call)]
        assert "".join(event.text.text for message in messages for event in message.events) == "ab"
        call.cancel()
        assert await backends.standing.stands(backend, CALL)
        assert len(provider.requests) == 1


async def _rest(call: ChatCall) -> AsyncIterator[StreamChatResponse]:
    while isinstance(message := await call.read(), StreamChatResponse):
        yield message


async def test_an_adapter_that_knows_nothing_of_keys_is_asked_nothing_twice():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with mesh(provider, stands=False) as (backends, backend):
        call = backends.stream_chat(backend, QUESTION, 10.0)
        await call.read()
        assert not await backends.standing.stands(backend, CALL)
        call.cancel()
        assert await abandoned(provider)
        assert len(provider.requests) == 1
