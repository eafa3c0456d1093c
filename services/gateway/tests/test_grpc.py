"""Generated stubs against the gateway: the same answers as from an adapter, with identity and cancellation."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, CountTokensRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro_gateway.identity.keys import configured
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    Cancelled,
    CapabilityUnavailable,
    InvalidRequest,
    MaestroError,
    ProviderAuth,
    Unauthenticated,
    UpstreamError,
    from_rpc_error,
)
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, Start, metadata


def request(text: str = "hello", **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])], **more)


async def test_chat_is_the_fold_of_the_stream(start: Start) -> None:
    events = answer("Hello", " there", calls=[("a", "f", '{"x":1}'), ("b", "g", "{}")])
    gateway = await start(ScriptedProvider(events))
    whole = await gateway.chats.Chat(request(), metadata=metadata(KEY))
    streamed = [
        event async for batch in gateway.chats.StreamChat(request(), metadata=metadata(KEY)) for event in batch.events
    ]
    assert fold(streamed).SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert gateway.kinds() == ["request.started", "request.completed"] * 2
    assert [event.request_completed.streamed for event in gateway.events[1::2]] == [False, True]


async def test_errors_are_the_same_exceptions_as_anywhere(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    for call, expected in (
        (gateway.chats.Chat(request(), metadata=metadata("")), Unauthenticated),
        (gateway.chats.Chat(ChatRequest(), metadata=metadata(KEY)), InvalidRequest),
        (
            gateway.chats.Chat(request(routing={"require_native": True, "required": [9]}), metadata=metadata(KEY)),
            CapabilityUnavailable,
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert type(from_rpc_error(caught.value)) is expected


async def test_a_stream_that_fails_after_content_ends_with_a_status(start: Start) -> None:
    gateway = await start(ScriptedProvider(fault=Fault.ERROR_AFTER_CONTENT), ScriptedProvider())
    kinds = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for batch in gateway.chats.StreamChat(request(), metadata=metadata(KEY)):
            kinds += [event.WhichOneof("kind") for event in batch.events]
    assert kinds == ["started", "text"]
    assert from_rpc_error(caught.value).metadata["after_content"] == "true"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
async def test_a_caller_that_leaves_cancels_the_adapter(start: Start, fault: Fault, *, stream: bool) -> None:
    provider = ScriptedProvider(answer("Hello", " there"), fault=fault)
    gateway = await start(provider)
    stub = gateway.chats.StreamChat if stream else gateway.chats.Chat
    call = stub(request(), metadata=metadata(KEY))
    if stream and fault is Fault.STALL_AFTER_CONTENT:
        await call.read()
    else:
        async with asyncio.timeout(5):
            while not provider.requests:
                await asyncio.sleep(0.005)
    begun = time.monotonic()
    call.cancel()
    async with asyncio.timeout(5):
        await provider.abandoned.wait()
    assert time.monotonic() - begun < 2
    failed = (await gateway.event("request.failed")).request_failed
    assert failed.failure.http_status == 499
    assert failed.after_content is (stream and fault is Fault.STALL_AFTER_CONTENT)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_callers_deadline_travels_on(start: Start, *, stream: bool) -> None:
    provider = ScriptedProvider(fault=Fault.STALL_BEFORE_CONTENT)
    gateway = await start(provider)
    begun = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if stream:
            await gateway.chats.StreamChat(request(), metadata=metadata(KEY), timeout=1.0).read()
        else:
            await gateway.chats.Chat(request(), metadata=metadata(KEY), timeout=1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await provider.abandoned.wait()
    assert time.monotonic() - begun < 5
    assert len(provider.requests) == 1


async def test_tokens_are_estimated_where_no_backend_can_count(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    count = await gateway.chats.CountTokens(CountTokensRequest(request=request("x" * 400)), metadata=metadata(KEY))
    assert (count.input_tokens, count.estimated, count.provider, count.model) == (100, True, "p0", "model")


class Counting(ScriptedProvider):
    async def count_tokens(self, request: ChatRequest) -> int:
        return len(request.messages[0].parts[0].text.text)


async def test_tokens_are_counted_by_the_planned_backend(start: Start) -> None:
    gateway = await start(Counting())
    count = await gateway.chats.CountTokens(CountTokensRequest(request=request("12345")), metadata=metadata(KEY))
    assert (count.input_tokens, count.estimated) == (5, False)


class Refusing(ScriptedProvider):
    """An adapter of another mesh, or one that goes down."""

    def __init__(self, error: MaestroError) -> None:
        super().__init__()
        self.refusal = error

    async def count_tokens(self, request: ChatRequest) -> int:
        raise self.refusal


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (Unauthenticated("the call is not from this mesh", failover=True), ProviderAuth),
        (Unauthenticated("who is that?"), ProviderAuth),
        (Cancelled("shutting down"), UpstreamError),
    ],
)
async def test_a_count_refused_to_the_gateway_is_not_the_callers_fault(
    start: Start, refusal: MaestroError, told: type[MaestroError]
) -> None:
    asked = CountTokensRequest(request=request("12345"))
    gateway = await start(Refusing(refusal), Refusing(refusal))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.CountTokens(asked, metadata=metadata(KEY))
    error = from_rpc_error(caught.value)
    assert type(error) is told
    assert refusal.message in error.message
    gateway = await start(Refusing(refusal), Counting())
    assert (await gateway.chats.CountTokens(asked, metadata=metadata(KEY))).input_tokens == 5


async def test_models_of_the_whole_mesh_by_pages(start: Start) -> None:
    gateway = await start(ScriptedProvider(), ScriptedProvider(), ScriptedProvider())
    seen, token = [], ""
    while True:
        page = await gateway.models.ListModels(ListModelsRequest(page_size=2, page_token=token), metadata=metadata(KEY))
        seen += [model.id for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["p0/model", "p1/model", "p2/model"]
    info = await gateway.models.GetInfo(GetInfoRequest(), metadata=metadata(KEY))
    assert (info.name, info.ready, list(info.providers)) == ("gateway", True, ["p0", "p1", "p2"])


async def test_events_name_the_key_and_never_hold_it(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("hi", model="p0/model")))
    await gateway.chats.Chat(request(), metadata=metadata(KEY))
    done = await gateway.event("request.completed")
    assert done.request_completed.key_id == configured("acme", KEY).key_id
    assert gateway.events[0].request_started.key_id == done.request_completed.key_id
    assert not any(KEY.encode() in event.SerializeToString() for event in gateway.events)
