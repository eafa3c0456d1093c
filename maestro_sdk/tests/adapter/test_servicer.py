"""A provider behind the kit's servicer on a real socket: the promises of `ChatService` hold, whatever it does."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, CountTokensRequest, StreamChatResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest, Model
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    RateLimited,
    StreamBroken,
    Unimplemented,
    from_rpc_error,
)
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer, scripted_model
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.strategies import answers, split

MESSAGES = [Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="Hello?"))])]
QUESTION = ChatRequest(model="scripted/model", messages=MESSAGES)


class BatchedProvider(ScriptedProvider):
    """Yields the given reads instead of one event per read."""

    reads: Sequence[Sequence[ChatEvent]] = ()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        for read in self.reads:
            yield read


class CompletingProvider(ScriptedProvider):
    """Has a unary endpoint."""

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        return answer("unary")


class CountingProvider(ScriptedProvider):
    """Counts tokens."""

    async def count_tokens(self, request: ChatRequest) -> int:
        return 42


async def chat(address: str, request: ChatRequest = QUESTION) -> ChatResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        return await ChatServiceStub(channel).Chat(request, timeout=5)


async def stream(address: str, request: ChatRequest = QUESTION) -> tuple[list[ChatEvent], MaestroError | None]:
    """The events, and the error that ended them."""
    events: list[ChatEvent] = []
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            async for message in ChatServiceStub(channel).StreamChat(request, timeout=5):
                events += message.events
        except grpc.aio.AioRpcError as error:
            return events, from_rpc_error(error)
    return events, None


async def test_a_good_answer_comes_both_ways():
    provider = ScriptedProvider(answer("Hello", " there", calls=[("c1", "add", '{"a":1}')]))
    async with serve(ChatServicer(provider)) as address:
        events, error = await stream(address)
        assert error is None
        assert events == provider.events
        assert await chat(address) == fold(provider.events)


class Written:
    """The call's context, as far as the servicer uses it."""

    def __init__(self) -> None:
        self.events: list[ChatEvent] = []

    async def write(self, message: StreamChatResponse) -> None:
        self.events += message.events


@given(st.data())
def test_unary_is_the_fold_of_the_stream(data: st.DataObject):
    events = data.draw(answers())
    provider = BatchedProvider()
    provider.reads = data.draw(split(events))
    written = Written()

    async def ask() -> ChatResponse:
        servicer = ChatServicer(provider)
        await servicer.StreamChat(QUESTION, written)
        return await servicer.Chat(QUESTION, None)

    unary = asyncio.run(ask())
    assert unary.SerializeToString(deterministic=True) == fold(written.events).SerializeToString(deterministic=True)


async def test_one_read_is_one_message():
    begin, *text, finish = answer("a", "b", "c")
    provider = BatchedProvider()
    provider.reads = [[begin], [], text, [finish]]
    async with serve(ChatServicer(provider)) as address, grpc.aio.insecure_channel(address) as channel:
        sizes = [len(message.events) async for message in ChatServiceStub(channel).StreamChat(QUESTION)]
    assert sizes == [1, 3, 1]


@pytest.mark.parametrize(
    ("fault", "pieces"),
    [
        (Fault.NO_STARTED, 0),
        (Fault.NO_FINISH, 2),
        (Fault.TWO_FINISHES, 2),
        (Fault.EVENTS_AFTER_FINISH, 2),
    ],
)
async def test_a_provider_that_breaks_the_order_never_succeeds(fault: Fault, pieces: int):
    async with serve(ChatServicer(ScriptedProvider(answer("a", "b"), fault=fault))) as address:
        events, error = await stream(address)
        assert sum(event.HasField("text") for event in events) == pieces
        assert type(error) is StreamBroken
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat(address)
        assert type(from_rpc_error(caught.value)) is StreamBroken


@pytest.mark.parametrize("broken", ["two finishes", "after finish", "two starts", "nothing"])
async def test_order_is_checked_inside_a_read_too(broken: str):
    begin, text, finish = answer("a")
    reads = {
        "two finishes": [[begin, text, finish, finish]],
        "after finish": [[begin], [text, finish, text]],
        "two starts": [[begin, begin, text, finish]],
        "nothing": [],
    }
    provider = BatchedProvider()
    provider.reads = reads[broken]
    async with serve(ChatServicer(provider)) as address:
        events, error = await stream(address)
        assert type(error) is StreamBroken
        assert not any(event.HasField("finish") for event in events)


@pytest.mark.parametrize(("fault", "pieces"), [(Fault.ERROR_BEFORE_CONTENT, 0), (Fault.ERROR_AFTER_CONTENT, 1)])
async def test_errors_keep_their_identity(fault: Fault, pieces: int):
    failure = RateLimited("slow down", retry_after=2.5, metadata={"provider": "scripted"}, failover=False)
    async with serve(ChatServicer(ScriptedProvider(answer("a", "b"), fault=fault, error=failure))) as address:
        events, error = await stream(address)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat(address)
    assert sum(event.HasField("text") for event in events) == pieces
    for received in (error, from_rpc_error(caught.value)):
        assert type(received) is RateLimited
        assert (received.message, received.retry_after, received.metadata) == (
            "slow down",
            2.5,
            {"provider": "scripted"},
        )
        assert (received.retryable, received.failover) == (True, False)


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
@pytest.mark.parametrize("unary", [True, False])
async def test_a_caller_who_leaves_closes_the_provider(fault: Fault, unary: bool):
    provider = ScriptedProvider(answer("a", "b"), fault=fault)
    async with serve(ChatServicer(provider)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ChatServiceStub(channel)
        if unary:
            call = stub.Chat(QUESTION)
            while not provider.requests:
                await asyncio.sleep(0.005)
        else:
            call = stub.StreamChat(QUESTION)
            first = await anext(aiter(call))
            assert first.events[0].HasField("started")
        call.cancel()
        async with asyncio.timeout(5):
            await provider.abandoned.wait()


async def test_a_unary_endpoint_is_preferred_for_the_unary_call():
    async with serve(ChatServicer(CompletingProvider(answer("streamed")))) as address:
        assert (await chat(address)).parts[0].text.text == "unary"
        events, _ = await stream(address)
        assert events[1].text.text == "streamed"


async def test_an_announced_price_comes_into_force_by_itself():
    """In a process that read its models before that day."""
    model = scripted_model()
    model.price.CopyFrom(Price(effective_date="2020-01-01", input="100", output="200"))
    for day, rate in (("2020-06-01", "50"), ("2020-07-01", "1"), ("2999-01-01", "7")):
        model.announced_prices.append(Price(effective_date=day, input=rate, output="2"))
    provider = ScriptedProvider(answer("a", usage=Usage(input_tokens=1000, output_tokens=500)), models=[model])
    async with (
        serve(ChatServicer(provider), ModelServicer(provider)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        cost = (await ChatServiceStub(channel).Chat(QUESTION)).cost
        assert (cost.usd, cost.price_date) == ("0.002000", "2020-07-01")
        (told,) = (await ModelServiceStub(channel).ListModels(ListModelsRequest())).models
        assert (told.price.effective_date, told.price.input) == ("2020-07-01", "1")
        assert [price.effective_date for price in told.announced_prices] == ["2999-01-01"]
    assert model.price.input == "100"


async def test_cost_is_added_once_the_price_is_known():
    priced = scripted_model()
    priced.price.CopyFrom(Price(effective_date="2026-01-01", input="1", output="2"))
    usage = Usage(input_tokens=1000, output_tokens=500)
    async with serve(ChatServicer(ScriptedProvider(answer("a", usage=usage), models=[priced]))) as address:
        events, _ = await stream(address)
        assert events[-1].finish.cost.usd == "0.002000"
        unary = await chat(address)
        assert (unary.cost.usd, unary.cost.price_date) == ("0.002000", "2026-01-01")
    async with serve(ChatServicer(ScriptedProvider(answer("a", usage=usage)))) as address:
        assert not (await chat(address)).HasField("cost")


async def test_a_cost_that_the_provider_reports_stays():
    priced = scripted_model()
    priced.price.CopyFrom(Price(effective_date="2026-01-01", input="1", output="2"))
    events = answer("a")
    events[-1].finish.cost.usd = "0.5"
    async with serve(ChatServicer(ScriptedProvider(events, models=[priced]))) as address:
        assert (await chat(address)).cost.usd == "0.5"


async def test_an_unknown_model_names_the_known_ones():
    provider = ScriptedProvider(models=[scripted_model("scripted/a"), scripted_model("scripted/b")])
    request = ChatRequest(model="scripted/c", messages=MESSAGES)
    async with serve(ChatServicer(provider)) as address:
        _, error = await stream(address, request)
    assert type(error) is NotFound
    assert "scripted/a, scripted/b" in error.message


async def test_an_empty_request_is_refused_with_its_field():
    async with serve(ChatServicer(ScriptedProvider())) as address:
        _, error = await stream(address, ChatRequest(model="scripted/model"))
    assert type(error) is InvalidRequest
    assert [violation.field for violation in error.violations] == ["messages"]


async def test_tokens_are_counted_only_by_who_can():
    request = CountTokensRequest(request=QUESTION)
    async with serve(ChatServicer(CountingProvider())) as address, grpc.aio.insecure_channel(address) as channel:
        counted = await ChatServiceStub(channel).CountTokens(request)
        assert (counted.input_tokens, counted.provider, counted.model) == (42, "scripted", "model")
    async with serve(ChatServicer(ScriptedProvider())) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ChatServiceStub(channel).CountTokens(request)
        assert type(from_rpc_error(caught.value)) is Unimplemented


async def test_models_are_paged_in_order():
    models = [scripted_model(f"scripted/{name}") for name in "dacb"]
    servicer = ModelServicer(ScriptedProvider(models=models))
    async with serve(servicer) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ModelServiceStub(channel)
        pages: list[list[Model]] = []
        token = ""
        while not pages or token:
            page = await stub.ListModels(ListModelsRequest(page_size=3, page_token=token))
            pages.append(list(page.models))
            token = page.next_page_token
        whole = await stub.ListModels(ListModelsRequest())
    assert [[model.name for model in page] for page in pages] == [["a", "b", "c"], ["d"]]
    assert [model.name for model in whole.models] == ["a", "b", "c", "d"]
    assert whole.next_page_token == ""


async def test_readiness_has_its_reason():
    provider = ScriptedProvider()
    async with serve(ModelServicer(provider)) as address, grpc.aio.insecure_channel(address) as channel:
        stub = ModelServiceStub(channel)
        ready = await stub.GetInfo(GetInfoRequest())
        assert (ready.ready, ready.not_ready_reason) == (True, "")
        assert (ready.name, list(ready.providers)) == ("adapter-scripted", ["scripted"])
        assert list(ready.spi_versions) == ["maestro.llm.v1"]
        provider.not_ready = "set ANTHROPIC_API_KEY"
        waiting = await stub.GetInfo(GetInfoRequest())
        assert (waiting.ready, waiting.not_ready_reason) == (False, "set ANTHROPIC_API_KEY")


async def test_a_provider_without_models_to_ask_says_so():
    class Down(ScriptedProvider):
        async def models(self) -> Sequence[Model]:
            raise Overloaded("the provider is down")

    async with serve(ChatServicer(Down())) as address:
        _, error = await stream(address)
    assert type(error) is Overloaded
