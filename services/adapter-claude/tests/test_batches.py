"""Message batches, through the provider's own SDK, against a strict emulator of its API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.batch_pb2 import (
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchItems,
    BatchState,
    CreateBatchRequest,
    ListBatchesRequest,
    StreamBatchResultsRequest,
)
from maestro.llm.v1.batch_pb2_grpc import BatchServiceStub
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_adapter_claude.batches import from_custom_id, model_name, to_custom_id, to_result
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.provider import Batcher
from maestro_sdk.errors import (
    Conflict,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    RateLimited,
    StreamBroken,
    UnsupportedParameter,
)
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.anthropic_auxiliary import BATCHES, AnthropicAuxiliary, answer
from maestro_sdk.testing.faults import Cut, FaultServer, Headers, Send, SendJson
from maestro_sdk.testing.servers import serve

MODEL = "anthropic/claude-sonnet-5"
MODELS = frozenset({"claude-sonnet-5", "claude-haiku-4-5"})


async def stream(*items: BatchItem) -> AsyncIterator[BatchItem]:
    for item in items:
        yield item


@pytest.fixture
def item(ask: Any) -> Any:
    """Makes an item of a batch."""

    def make(item_id: str, text: str = "hi", **fields: Any) -> BatchItem:
        return BatchItem(item_id=item_id, chat=ask(text, **fields))

    return make


async def results_of(batcher: Batcher, batch_id: str) -> dict[str, BatchItemResult]:
    found = [result async for some in batcher.batch_results(batch_id) for result in some]
    assert len({result.item_id for result in found}) == len(found)
    return {result.item_id: result for result in found}


def by_text(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses or is busy when it is told to, else answers with what it was told, line separators included."""
    told = params["messages"][0]["content"][0]["text"]
    if told == "busy":
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_7"}}
    made: Any = answer(params)
    if made["type"] == "succeeded":
        made["message"]["content"] = [{"type": "text", "text": f"You said:\u2028{told}"}]
    return made


async def test_the_life_of_a_batch(item: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        auxiliary = AnthropicAuxiliary(looks=2, make=by_text)
        auxiliary.install(server)
        assert isinstance(provider, Batcher)
        items = [
            item("one", "äöü"),
            item("two.dots", "hi", temperature=0.5),
            item("3", "busy"),
            item("four", "hi", max_tokens=7, provider_options={"anthropic": {"nonsense": 1}}),
        ]
        made = await provider.create_batch(BatchHeader(model=MODEL), stream(*items))
        assert (made.provider, made.model, made.raw_state) == ("anthropic", "claude-sonnet-5", "in_progress")
        assert made.state == BatchState.BATCH_STATE_RUNNING
        assert (made.counts.total, made.counts.pending) == (4, 4)
        assert made.expire_time.ToSeconds() - made.create_time.ToSeconds() == 24 * 3600
        assert not made.HasField("end_time")
        warnings: Any = made.provider_metadata["anthropic"]["warnings"]
        assert [(found["item_id"], found["field"]) for found in warnings] == [("two.dots", "temperature")]
        assert (await provider.get_batch(made.batch_id)).state == BatchState.BATCH_STATE_RUNNING
        with pytest.raises(Conflict, match="no results yet"):
            await results_of(provider, made.batch_id)
        over = await provider.get_batch(made.batch_id)
        assert (over.state, over.raw_state) == (BatchState.BATCH_STATE_COMPLETED, "ended")
        assert (over.counts.succeeded, over.counts.failed, over.counts.pending, over.counts.total) == (2, 2, 0, 4)
        assert over.HasField("end_time")
        found = await results_of(provider, made.batch_id)
        sent = server.requests[0].json()["requests"]
        assert await provider.cancel_batch(made.batch_id) == over
    assert set(found) == {"one", "two.dots", "3", "four"}
    assert found["one"].chat.parts[0].text.text == "You said:\u2028äöü"
    assert (found["one"].chat.provider, found["one"].chat.model) == ("anthropic", "claude-sonnet-5")
    assert found["one"].chat.usage.input_tokens == 10
    busy = found["3"].error
    assert (busy.reason, busy.retryable) == (ErrorReason.ERROR_REASON_OVERLOADED, True)
    assert dict(busy.metadata) == {
        "provider": "anthropic",
        "upstream_code": "overloaded_error",
        "request_id": "req_7",
    }
    wrong = found["four"].error
    assert wrong.reason == ErrorReason.ERROR_REASON_INVALID_REQUEST
    assert "nonsense: Extra inputs" in wrong.message
    assert [request["custom_id"] for request in sent] == ["one", "two_x2edots", "3", "four"]
    assert sent[0]["params"] == {
        "model": "claude-sonnet-5",
        "max_tokens": 16384,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "äöü"}]}],
    }


async def test_an_items_body_is_the_chats_body(item: Any, provider_at: Any) -> None:
    """Also where JSON readers lose something: large numbers stay as the caller wrote them."""
    arguments = '{"big": 98765432109876543210987}'
    call = {"tool_call": {"call_id": "c", "name": "t", "arguments_json": arguments}}
    result = {"tool_result": {"call_id": "c", "parts": [{"text": {"text": "done"}}]}}
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {"role": "ROLE_ASSISTANT", "parts": [call]},
        {"role": "ROLE_TOOL", "parts": [result]},
    ]
    wanted = item("a", messages=messages, tools=[{"name": "t"}])
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        server.on("POST", wire.PATH, wire.text())
        await provider.create_batch(BatchHeader(model=MODEL), stream(wanted))
        await provider.complete(wanted.chat)
        batch, chat = server.requests
    assert batch.body == b'{"requests":[{"custom_id":"a","params":' + chat.body + b"}]}"
    assert arguments.encode() in batch.body
    assert batch.headers["content-length"] == str(len(batch.body))


async def test_cancelled_and_expired(item: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        auxiliary = AnthropicAuxiliary(looks=9)
        auxiliary.install(server)
        one = await provider.create_batch(BatchHeader(model=MODEL), stream(item("a"), item("b")))
        other = await provider.create_batch(BatchHeader(model=MODEL), stream(item("a")))
        stopping = await provider.cancel_batch(one.batch_id)
        assert stopping.state == BatchState.BATCH_STATE_CANCELLING
        assert (await provider.cancel_batch(one.batch_id)).state == BatchState.BATCH_STATE_CANCELLING
        stopped = await provider.get_batch(one.batch_id)
        assert (stopped.state, stopped.counts.cancelled) == (BatchState.BATCH_STATE_CANCELLED, 2)
        auxiliary.expire(other.batch_id)
        late = await provider.get_batch(other.batch_id)
        assert (late.state, late.counts.expired) == (BatchState.BATCH_STATE_EXPIRED, 1)
        cancelled = await results_of(provider, one.batch_id)
        expired = await results_of(provider, other.batch_id)
    assert {result.error.reason for result in cancelled.values()} == {ErrorReason.ERROR_REASON_CANCELLED}
    assert {result.error.reason for result in expired.values()} == {ErrorReason.ERROR_REASON_TIMEOUT}


async def test_pages(item: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        made = [(await provider.create_batch(BatchHeader(model=MODEL), stream(item("a")))).batch_id for _ in range(5)]
        token, seen = "", list[str]()
        for size in (2, 2, 1):
            page = await provider.list_batches(ListBatchesRequest(page_size=2, page_token=token))
            assert len(page.batches) == size
            seen += [batch.batch_id for batch in page.batches]
            token = page.next_page_token
        assert (seen, token) == (made[::-1], "")


async def test_unknown_batches(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        for call in (provider.get_batch, provider.cancel_batch):
            with pytest.raises(NotFound):
                await call("msgbatch_nope")
        with pytest.raises(NotFound):
            await results_of(provider, "msgbatch_nope")


@pytest.mark.parametrize(
    ("fields", "error", "path"),
    [
        ({"embed": {"model": MODEL, "inputs": [{"text": "x"}]}}, UnsupportedParameter, "items[1].embed"),
        (
            {"chat": {"messages": [{"role": "ROLE_USER", "parts": [{"audio": {"data": "AA=="}}]}]}},
            UnsupportedParameter,
            "items[1].chat.messages[0].parts[0].audio",
        ),
        (
            {"chat": {"temperature": 0.5, "strict": True}},
            UnsupportedParameter,
            "items[1].chat.temperature",
        ),
        (
            {"chat": {"tools": [{"name": "t", "input_schema": '{"properties":{"x":{"type":"strin"}}}'}]}},
            InvalidRequest,
            "items[1].chat.tools[0].input_schema#/properties/x/type",
        ),
        ({"chat": {"tools": [{"name": "a.b"}]}}, UnsupportedParameter, "items[1].chat.tools"),
        ({"item_id": "." * 64, "chat": {}}, InvalidRequest, "items[1].item_id"),
    ],
)
async def test_items_that_can_not_be_sent(
    fields: dict[str, Any], error: type[MaestroError], path: str, item: Any, provider_at: Any
) -> None:
    if "chat" in fields:
        turn = {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]}
        fields = {**fields, "chat": {"model": MODEL, "messages": [turn], **fields["chat"]}}
    wrong = ParseDict({"item_id": "x", **fields}, BatchItem())
    async with FaultServer() as server, provider_at(server.url) as provider:
        with pytest.raises(MaestroError) as caught:
            await provider.create_batch(BatchHeader(model=MODEL), stream(item("a"), wrong))
        assert server.requests == []
    assert type(caught.value) is error
    assert [found.field for found in caught.value.violations] == [path]
    assert path in caught.value.message


async def test_headers(item: Any, provider_at: Any) -> None:
    wrong = BatchHeader(model=MODEL)
    wrong.completion_window.FromSeconds(3600)
    strange = BatchHeader(model=MODEL)
    strange.provider_options["anthropic"].update({"input_bucket": "x"})
    right = BatchHeader(model=MODEL, metadata={"a": "b"})
    right.completion_window.FromSeconds(24 * 3600)
    right.provider_options["anthropic"].update({"betas": ["b1"]})
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        for header, path in (
            (wrong, "header.completion_window"),
            (strange, "header.provider_options.anthropic.input_bucket"),
        ):
            with pytest.raises(UnsupportedParameter) as caught:
                await provider.create_batch(header, stream(item("a")))
            assert [found.field for found in caught.value.violations] == [path]
        assert server.requests == []
        asking = item("a", provider_options={"anthropic": {"betas": ["b2", "b1"]}})
        await provider.create_batch(right, stream(asking))
        assert server.requests[0].headers["anthropic-beta"] == "b1,b2"
        assert "betas" not in server.requests[0].json()["requests"][0]["params"]


async def test_items_that_end_in_an_error_start_nothing(item: Any, provider_at: Any) -> None:
    async def broken() -> AsyncIterator[BatchItem]:
        yield item("a")
        raise InvalidRequest("the caller's stream broke")

    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        with pytest.raises(InvalidRequest, match="broke"):
            await provider.create_batch(BatchHeader(model=MODEL), broken())
        assert server.requests == []


@pytest.mark.parametrize(("status", "expected"), [(429, RateLimited), (529, Overloaded)])
async def test_a_refused_batch(status: int, expected: Any, item: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", BATCHES, Headers(status, {"retry-after": "3"}), SendJson(wire.WIRE.refusal(status, "", "no")))
        with pytest.raises(expected) as caught:
            await provider.create_batch(BatchHeader(model=MODEL), stream(item("a")))
        assert len(server.requests) == 1
    assert caught.value.retry_after == 3.0


async def test_results_that_are_cut(item: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        auxiliary = AnthropicAuxiliary(looks=0)
        line = json.dumps({"custom_id": "a", "result": {"type": "expired"}}).encode()
        server.on("GET", f"{BATCHES}/*/results", Headers(200), Send(line + b'\n{"custom_id"'), Cut())
        auxiliary.install(server)
        made = await provider.create_batch(BatchHeader(model=MODEL), stream(item("a"), item("b")))
        got: list[str] = []
        with pytest.raises(StreamBroken):
            async for some in provider.batch_results(made.batch_id):
                got += [result.item_id for result in some]
    assert got == ["a"]


async def test_served(item: Any, provider_at: Any) -> None:
    """Over the contract: half the price, and names without a provider."""
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary(looks=0).install(server)
        async with serve(BatchServicer(provider, Catalogue(provider))) as address, open_channel(address) as channel:
            stub: Any = BatchServiceStub(channel)
            requests = [
                CreateBatchRequest(header=BatchHeader(model="claude-sonnet-5")),
                CreateBatchRequest(items=BatchItems(items=[item("a", model="")])),
            ]
            made = await stub.CreateBatch(iter(requests))
            await provider.get_batch(made.batch_id)
            replies = stub.StreamBatchResults(StreamBatchResultsRequest(batch_id=made.batch_id))
            found: Sequence[Any] = [result async for reply in replies for result in reply.results]
    # 10 tokens in at 2 dollars per million, 5 out at 10, and half of that.
    assert [(result.item_id, result.cost.usd) for result in found] == [("a", "0.000035")]


@given(st.from_regex(r"\A[a-zA-Z0-9_.-]{1,16}\Z"))
def test_names_of_items_come_back(item_id: str) -> None:
    name = to_custom_id(item_id)
    assert "." not in name
    assert from_custom_id(name) == item_id


def test_names_of_items_stay_different() -> None:
    names = ["a.b", "a_x2eb", "a_b", "a_xb", "a_x5fxb", "a__xb", "a-b"]
    assert len({to_custom_id(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("claude-sonnet-5", "claude-sonnet-5"),
        ("claude-new-9-20270101", "claude-new-9-20270101"),
    ],
)
def test_a_dated_model_is_the_model(told: str, expected: str) -> None:
    assert model_name(told, MODELS) == expected


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"type": "succeeded", "message": {"type": "message", "content": []}}, "STREAM_BROKEN"),
        ({"type": "succeeded", "message": {}}, "STREAM_BROKEN"),
        ({"type": "paused"}, "UPSTREAM_ERROR"),
        ({"type": "errored", "error": {"type": "error", "error": {"type": "billing_error"}}}, "PROVIDER_QUOTA"),
    ],
)
def test_a_result_that_is_no_answer_is_that_items_error(result: Any, reason: str) -> None:
    found = to_result(json.dumps({"custom_id": "a", "result": result}).encode(), MODELS)
    assert found.item_id == "a"
    assert ErrorReason.Name(found.error.reason) == f"ERROR_REASON_{reason}"


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"custom_id":"a"}'])
def test_a_line_that_is_no_result(line: bytes) -> None:
    with pytest.raises(StreamBroken, match="can't be read"):
        to_result(line, MODELS)
