"""The client against real servers: what it sends, what it returns, and how calls end."""

import asyncio
import gc
import math
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from opentelemetry.sdk.trace import TracerProvider

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    FinishReason,
    StreamChatResponse,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import (
    Cancelled,
    InvalidRequest,
    Overloaded,
    RateLimited,
    StreamBroken,
    Timeout,
    Unauthenticated,
    UpstreamError,
    Violation,
)
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer, scripted_model
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.strategies import answers
from maestro_sdk.tracing import Call, current_call, enter_call
from maestro_sdk.types import finish_of, text_of, user

MODEL = "scripted/model"


class Counting(ScriptedProvider):
    """Counts three tokens per message."""

    async def count_tokens(self, request: ChatRequest) -> int:
        return 3 * len(request.messages)


class Recording(ChatServiceServicer):
    """Notes who asks, and answers nothing worth reading."""

    def __init__(self) -> None:
        self.calls: list[Call | None] = []
        self.headers: list[dict[str, Any]] = []
        self.remaining: list[float | None] = []

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:  # noqa: N802
        self.calls.append(current_call())
        self.headers.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())
        return ChatResponse(finish_reason=FinishReason.FINISH_REASON_STOP)

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")


class Replaying(Recording):
    """Streams given messages, then ends well, whatever the contract says about them."""

    def __init__(self, *messages: Sequence[ChatEvent]) -> None:
        super().__init__()
        self.messages = messages

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:  # noqa: N802
        for events in self.messages:
            await context.write(StreamChatResponse(events=events))


async def test_a_text_is_asked_and_answered():
    provider = ScriptedProvider(answer("Hello", " there", "."))
    async with serve(ChatServicer(provider)) as address, LLMClient(f"http://{address}", model=MODEL) as client:
        response = await client.chat("Hi", system="Be brief.", temperature=0.0, max_tokens=9)
    assert (text_of(response), finish_of(response)) == ("Hello there.", "stop")
    [request] = provider.requests
    assert (request.model, request.system, request.max_tokens) == (MODEL, "Be brief.", 9)
    # Zero is a wish; what was not given stays unset.
    assert request.HasField("temperature")
    assert not request.HasField("top_p")
    assert request.messages == [user("Hi")]


async def test_a_request_is_sent_as_it_is_and_not_changed():
    provider = ScriptedProvider(models=[scripted_model(), scripted_model("scripted/other")])
    request = ChatRequest(messages=[user("Hi")], system="One.")
    before = request.SerializeToString()
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        await client.chat(request)
        await client.chat(request, model="scripted/other", system="Two.")
    assert [(sent.model, sent.system) for sent in provider.requests] == [(MODEL, "One."), ("scripted/other", "Two.")]
    assert request.SerializeToString() == before


async def test_events_text_and_the_whole_answer_come_from_one_stream():
    provider = ScriptedProvider(answer("Hello", " there", calls=[("c1", "add", '{"a":1}')]))
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        whole = await client.chat("Hi")
        async with client.stream("Hi") as stream:
            kinds = [event.WhichOneof("kind") async for event in stream]
            assert stream.complete
            folded = await stream.response()
        async with client.stream("Hi") as stream:
            pieces = [piece async for piece in stream.text()]
        unread = await client.stream("Hi").response()
    assert kinds == ["started", "text", "text", "tool_call", "finish"]
    assert pieces == ["Hello", " there"]
    assert folded.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert unread == whole


async def test_the_folded_stream_is_the_unary_answer_byte_for_byte():
    provider = ScriptedProvider()
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        loop = asyncio.get_running_loop()

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(answers())
        def check(events: list[ChatEvent]) -> None:
            async def both() -> tuple[bytes, bytes]:
                provider.events = events
                streamed = await client.stream("Hi").response()
                unary = await client.chat("Hi")
                return streamed.SerializeToString(deterministic=True), unary.SerializeToString(deterministic=True)

            streamed, unary = asyncio.run_coroutine_threadsafe(both(), loop).result(10)
            assert streamed == unary

        await asyncio.to_thread(check)


async def test_leaving_the_context_cancels_the_call():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        async with client.stream("Hi") as stream:
            async for piece in stream.text():
                assert piece == "a"
                break
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        # Never a clean end without `finish`.
        with pytest.raises(Cancelled, match="the stream was closed"):
            await anext(stream)
        with pytest.raises(Cancelled):
            await stream.response()


async def test_dropping_a_stream_cancels_the_call():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        async for _ in client.stream("Hi").text():
            break
        gc.collect()
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        assert len(provider.requests) == 1


@pytest.mark.parametrize("fault", [Fault.STALL_BEFORE_CONTENT, Fault.STALL_AFTER_CONTENT])
@pytest.mark.parametrize("unary", [True, False])
async def test_cancelling_the_task_cancels_the_call(fault: Fault, unary: bool):
    provider = ScriptedProvider(answer("a", "b"), fault=fault)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:

        async def ask() -> ChatResponse:
            return await (client.chat("Hi") if unary else client.stream("Hi").response())

        asking = asyncio.create_task(ask())
        while not provider.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
        assert not provider.closed


async def test_a_read_that_was_cancelled_ends_the_stream_for_good():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        stream = client.stream("Hi")
        pieces = stream.text()
        assert await anext(pieces) == "a"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(pieces)
        with pytest.raises(Cancelled):
            await anext(pieces)


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_keeps_class_facts_and_verdicts(streamed: bool):
    facts = {"provider": "scripted", "upstream_status": "429"}
    error = RateLimited("slow down", retry_after=2.5, metadata=facts, retryable=False)
    provider = ScriptedProvider(fault=Fault.ERROR_AFTER_CONTENT, error=error)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        if streamed:
            stream = client.stream("Hi", request_id="mine-1")
            with pytest.raises(RateLimited):
                await stream.response()
            with pytest.raises(RateLimited) as failed:
                await anext(stream)
        else:
            with pytest.raises(RateLimited) as failed:
                await client.chat("Hi", request_id="mine-1")
    found = failed.value
    assert (found.message, found.retry_after, found.retryable, found.failover) == ("slow down", 2.5, False, True)
    assert found.metadata == {**facts, "request_id": "mine-1"}
    assert isinstance(found.__cause__, grpc.RpcError)


async def test_the_text_before_an_error_is_delivered():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.ERROR_AFTER_CONTENT)
    pieces: list[str] = []
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        with pytest.raises(Overloaded):
            async for piece in client.stream("Hi").text():
                pieces.append(piece)  # noqa: PERF401 - what came before the error is the point
    assert pieces == ["a"]


async def test_violations_arrive_with_their_paths():
    async with serve(ChatServicer(ScriptedProvider())) as address, LLMClient(address, model=MODEL) as client:
        with pytest.raises(InvalidRequest) as failed:
            await client.chat([], temperature=3.0)
    assert {violation.field for violation in failed.value.violations} == {"messages", "temperature"}
    assert all(isinstance(violation, Violation) and violation.message for violation in failed.value.violations)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([answer("a")[:-1]], "without its last event"),
        ([], "without its last event"),
        ([answer("a"), answer("b")], "went on after its finish"),
        ([[*answer("a")[:-1], ChatEvent(), answer()[-1]]], "no kind"),
    ],
)
async def test_a_server_that_breaks_the_contract_is_no_success(messages: list[list[ChatEvent]], text: str):
    async with serve(Replaying(*messages)) as address, LLMClient(address) as client:
        stream = client.stream("Hi")
        for _ in range(2):
            with pytest.raises(StreamBroken, match=text) as broken:
                await stream.response()
            assert broken.value.metadata["request_id"] == stream.request_id


async def test_a_late_status_after_the_last_event_is_an_error():
    class Late(Replaying):
        async def StreamChat(self, request: ChatRequest, context: Any) -> None:  # noqa: N802
            await super().StreamChat(request, context)
            raise UpstreamError("lost")

    async with serve(Late(answer("a"))) as address, LLMClient(address) as client:
        with pytest.raises(UpstreamError, match="lost"):
            await client.stream("Hi").response()


@pytest.mark.parametrize("unary", [True, False])
async def test_the_deadline_ends_the_call_on_both_sides(unary: bool):
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL, timeout=1.0) as client:
        with pytest.raises(Timeout) as late:
            await (client.chat("Hi") if unary else client.stream("Hi").response())
        async with asyncio.timeout(5):
            await provider.abandoned.wait()
    assert late.value.message == "there was no answer in time"


async def test_a_deadline_travels_per_call_client_or_not_at_all():
    servicer = Recording()
    async with serve(servicer) as address, LLMClient(address, timeout=50.0) as client:
        await client.chat("Hi")
        await client.chat("Hi", timeout=5.0)
        await client.chat("Hi", timeout=math.inf)
    first, second, third = servicer.remaining
    assert first is not None
    assert second is not None
    # The wire rounds up.
    assert 45 < first < 51
    assert 4 < second < 6
    # gRPC's own word for no deadline.
    assert third is None or third > 1e6


async def test_the_key_is_sent_as_bearer_and_names_nobody_else(monkeypatch: pytest.MonkeyPatch):
    servicer = Recording()
    async with serve(servicer) as address:
        enter_call(Call("req_outer", "acme", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"))
        async with LLMClient(address, "mk-given") as client:
            await client.chat("Hi")
        async with LLMClient(address) as client:
            await client.chat("Hi", request_id="req_inner")
        monkeypatch.setenv("MAESTRO_KEY", "mk-environment\n")
        async with LLMClient(address) as client:
            await client.chat("Hi")
    given_, inside, environment = servicer.headers
    assert given_["authorization"] == "Bearer mk-given"
    assert "x-maestro-tenant" not in given_
    # Inside the mesh there is no key: the call goes on under its tenant, its trace and its id.
    assert "authorization" not in inside
    assert (inside["x-maestro-tenant"], inside["traceparent"][3:35]) == ("acme", "1" * 32)
    assert [call.request_id for call in servicer.calls if call] == ["req_outer", "req_inner", "req_outer"]
    assert environment["authorization"] == "Bearer mk-environment"


async def test_the_callers_own_span_is_the_parent_of_the_call():
    servicer = Recording()
    async with serve(servicer) as address, LLMClient(address) as client:
        with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("asking") as span:
            await client.chat("Hi")
        await client.chat("Hi")
    inside, outside = (headers["traceparent"] for headers in servicer.headers)
    context = span.get_span_context()
    assert inside[:-2] == f"00-{context.trace_id:032x}-{context.span_id:016x}-"
    assert outside[3:35] != inside[3:35]


async def test_a_refused_key_is_an_error_of_its_own():
    def authenticate(metadata: Any, method: str) -> str:
        if dict(metadata).get("authorization") != "Bearer mk-good":
            raise Unauthenticated("the key is not known here")
        return "acme"

    async with serve(
        ChatServicer(ScriptedProvider()), interceptors=[MeshInterceptor(authenticate=authenticate)]
    ) as address:
        async with LLMClient(address, "mk-bad", model=MODEL) as client:
            with pytest.raises(Unauthenticated, match="not known here"):
                await client.chat("Hi")
        async with LLMClient(address, "mk-good", model=MODEL) as client:
            assert text_of(await client.chat("Hi")) == "Hello there."


async def test_tokens_are_counted():
    async with serve(ChatServicer(Counting())) as address, LLMClient(address, model=MODEL) as client:
        count = await client.count_tokens([user("one"), user("two")])
    assert (count.input_tokens, count.provider) == (6, "scripted")


async def test_all_pages_of_models_are_listed():
    provider = ScriptedProvider(models=[scripted_model(f"scripted/{number:04}") for number in range(2100)])
    async with serve(ModelServicer(provider)) as address, LLMClient(address) as client:
        models = await client.models()
    assert [model.name for model in models] == [f"{number:04}" for number in range(2100)]
