"""Servers of the test kit are real: a generated stub and an HTTP client reach them."""

import asyncio
import socket

import aiohttp
import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import GetInfoRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import RateLimited, from_rpc_error
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import Aimock, free_port, serve

QUESTION = ChatRequest(
    model="scripted/model", messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="Hello?"))])]
)


async def test_serves_all_servicers_on_one_address():
    provider = ScriptedProvider(answer("Hi"))
    servicers = (ChatServicer(provider), ModelServicer(provider))
    async with serve(*servicers) as address, grpc.aio.insecure_channel(address) as channel:
        reply = await ChatServiceStub(channel).Chat(QUESTION)
        info = await ModelServiceStub(channel).GetInfo(GetInfoRequest())
    assert (reply.parts[0].text.text, info.name) == ("Hi", "adapter-scripted")
    assert provider.requests[0].model == "scripted/model"


async def test_serves_behind_the_interceptor_of_the_kit():
    provider = ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT, error=RateLimited("slow down", retry_after=2.5))
    async with serve(ChatServicer(provider)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as limited:
            await stub.Chat(QUESTION)
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await stub.Chat(ChatRequest(model="scripted/model"))
    error = from_rpc_error(limited.value)
    assert (type(error), error.retry_after) == (RateLimited, 2.5)
    assert [violation.field for violation in from_rpc_error(empty.value).violations] == ["messages"]


async def test_refuses_what_is_no_servicer():
    with pytest.raises(TypeError, match="derives from no generated servicer"):
        async with serve(object()):
            pass


async def test_leaving_the_context_ends_the_server():
    async with serve(ModelServicer(ScriptedProvider())) as address:
        pass
    host, port = address.split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


def test_free_port_can_be_bound():
    port = free_port()
    with socket.socket() as server:
        server.bind(("127.0.0.1", port))
        server.listen()
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert client.getpeername() == ("127.0.0.1", port)


def _kinds(events: list[ChatEvent]) -> list[str | None]:
    return [event.WhichOneof("kind") for event in events]


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (None, ["started", "text", "text", "finish"]),
        (Fault.NO_STARTED, ["text", "text", "finish"]),
        (Fault.NO_FINISH, ["started", "text", "text"]),
        (Fault.TWO_FINISHES, ["started", "text", "text", "finish", "finish"]),
        (Fault.EVENTS_AFTER_FINISH, ["started", "text", "text", "finish", "text"]),
        (Fault.ERROR_BEFORE_CONTENT, ["started", "OVERLOADED"]),
        (Fault.ERROR_AFTER_CONTENT, ["started", "text", "OVERLOADED"]),
        (Fault.STALL_BEFORE_CONTENT, ["started", "stalled"]),
        (Fault.STALL_AFTER_CONTENT, ["started", "text", "stalled"]),
        (Fault.SLOW, ["started", "text", "text", "finish"]),
    ],
)
async def test_each_fault_breaks_what_it_is_named_for(fault: Fault | None, kinds: list[str]):
    provider = ScriptedProvider(answer("a", "b"), fault=fault)
    got: list[str | None] = []
    try:
        async with asyncio.timeout(0.2 if "stalled" in kinds else 10):
            async for batch in provider.stream(ChatRequest()):
                got += _kinds(list(batch))
    except TimeoutError:
        got.append("stalled")
    except Exception as error:  # noqa: BLE001 - the table names which one it has to be
        got.append(getattr(error, "reason", repr(error)))
    assert got == kinds
    assert provider.abandoned.is_set() is ("stalled" in kinds)


async def test_calls_of_a_scripted_answer_have_indexes_of_their_own():
    events = answer("Let me see.", calls=[("c1", "add", "{}"), ("c2", "add", '{"a":1}')])
    assert [event.tool_call.index for event in events if event.HasField("tool_call")] == [1, 2]


async def test_aimock_answers_both_wires_and_journals():
    fixtures = [{"match": {"userMessage": "hello"}, "response": {"content": "Hi there!"}}]
    question = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    async with Aimock(fixtures) as aimock, aiohttp.ClientSession() as client:
        async with client.post(f"{aimock.openai_url}/chat/completions", json=question) as response:
            assert (await response.json())["choices"][0]["message"]["content"] == "Hi there!"
        async with client.post(f"{aimock.url}/v1/messages", json=question) as response:
            assert (await response.json())["content"][0]["text"] == "Hi there!"
        unknown = {**question, "messages": [{"role": "user", "content": "?"}]}
        async with client.post(f"{aimock.openai_url}/chat/completions", json=unknown) as response:
            assert response.status == 503
        assert [entry["path"] for entry in await aimock.journal()][:2] == ["/v1/chat/completions", "/v1/messages"]
        url = aimock.url
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(url)
