"""Vectors from the mesh on real sockets: comparable ones only, in order, each call paid once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.chat_pb2 import Routing
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest, EmbedResponse, TokenInput
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import (
    CapabilityUnavailable,
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NoBackend,
    RateLimited,
    StreamBroken,
    Timeout,
    TooLarge,
    UpstreamError,
)
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.embed import EmbedDispatcher
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import needs_of_embedding
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.mesh.vectors import MOST_NUMBERS, split, vector_model
from maestro_sdk.testing.plain_embedding_servicer import PlainEmbedder
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.tables import backend, message, model, table

from .dispatching import Source, until

ANSWERED, FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
ABANDONED = AttemptFate.ATTEMPT_FATE_ABANDONED


@dataclass
class Mesh:
    """Adapters under one route, and a dispatcher on them. `trail` is that of the last request."""

    source: Source
    dispatcher: EmbedDispatcher
    trail: Trail = field(default_factory=Trail)

    async def embed(self, request: EmbedRequest, **arguments: Any) -> EmbedResponse:
        self.trail = Trail()
        return await self.dispatcher.embed(request, needs_of_embedding(request), self.trail, **arguments)


@asynccontextmanager
async def mesh(
    *adapters: PlainEmbedder,
    routes: Mapping[str, Sequence[tuple[str, float]]] | None = None,
    chats: Sequence[str] = (),
    **limits: Any,
) -> AsyncGenerator[Mesh]:
    """`chats` are models that don't embed, behind an address where nobody is."""
    async with AsyncExitStack() as stack:
        backends: list[pb.Backend] = [backend(f"chat-{name.replace('/', '-')}", model(name)) for name in chats]
        for number, adapter in enumerate(adapters):
            address = await stack.enter_async_context(serve(adapter))
            backends.append(backend(f"a{number}", adapter.model, address))
        names = list(dict.fromkeys(adapter.model.id for adapter in adapters))
        described = message(backends, routes or {"default": [(name, 1.0) for name in names]}, **limits)
        source = Source(compile_table(described), LocalState())
        source.local.adopt(source.table, time.time())
        remote = Backends()
        stack.push_async_callback(remote.close)
        yield Mesh(source, EmbedDispatcher(source, remote, dice=lambda: 0.0))


def ask(*texts: str, **more: Any) -> EmbedRequest:
    return EmbedRequest(inputs=[EmbedInput(text=text) for text in texts], **more)


def many(count: int, **more: Any) -> EmbedRequest:
    return ask(*(f"text {number}" for number in range(count)), **more)


def refuses(*errors: MaestroError | None):
    """Raises the errors in turn; None and what follows are answered."""

    def fail(number: int) -> None:
        error = errors[number] if number < len(errors) else None
        if error is not None:
            raise error

    return fail


def firsts(response: EmbedResponse) -> list[float]:
    return [vector.values[0] for vector in response.embeddings]


async def test_the_request_reaches_the_adapter_as_it_is():
    adapter = PlainEmbedder("p0/small")
    async with mesh(adapter) as running:
        tokens = EmbedInput(tokens=TokenInput(ids=[7, 8, 9]))
        request = EmbedRequest(
            inputs=[EmbedInput(text="text 4"), tokens], dimensions=5, truncate=False, metadata={"a": "b"}
        )
        answer = await running.embed(request)
    assert [list(vector.values) for vector in answer.embeddings] == [[4, 0.5, 0.5, 0.5, 0.5], [7, 0.5, 0.5, 0.5, 0.5]]
    assert (answer.provider, answer.model, answer.attempt) == ("p0", "small", 1)
    assert (answer.usage.input_tokens, answer.cost.usd) == (20, "0.000020")
    [asked] = adapter.asked
    assert asked.model == "p0/small"
    assert (asked.dimensions, asked.truncate, dict(asked.metadata)) == (5, False, {"a": "b"})
    assert asked.inputs[1] == tokens


async def test_another_adapter_of_the_same_model_takes_over():
    down = PlainEmbedder("p0/small", fail=refuses(*[UpstreamError("down")] * 9))
    other = PlainEmbedder("p1/small")
    async with mesh(down, other) as running:
        answer = await running.embed(ask("text 1"))
        assert (answer.provider, answer.attempt) == ("p1", 2)
        assert [attempt.fate for attempt in running.trail.attempts] == [FAILED, ANSWERED]
        assert running.trail.attempts[0].usage is None
        assert [outcome.backend_id for outcome in running.source.outcomes] == ["a0:p0/small", "a1:p1/small"]


async def test_no_other_model_takes_over():
    # Its vectors would look alike, and mean something else.
    down = PlainEmbedder("p0/small", fail=refuses(*[UpstreamError("down", retryable=False)] * 9))
    other = PlainEmbedder("p1/large")
    async with mesh(down, other) as running:
        with pytest.raises(UpstreamError):
            await running.embed(ask("text 1"))
        assert other.asked == []
        plan = running.trail.plan
        assert plan is not None
        assert [drop.reason for drop in plan.dropped] == [
            "its vectors can't be compared with those of small, which the route gives"
        ]
        # Whoever names it gets it.
        assert (await running.embed(ask("text 1", model="p1/large"))).model == "large"


async def test_only_other_models_left_is_a_refusal_that_says_why():
    other = PlainEmbedder("p1/large")
    async with mesh(other, routes={"default": [("p0/small", 1.0), ("p1/large", 1.0)]}) as running:
        with pytest.raises(NoBackend, match="p1/large: its vectors can't be compared with those of small"):
            await running.embed(ask("text 1"))
        assert other.asked == []


async def test_a_chat_model_does_not_decide_what_the_vectors_of_a_route_are():
    adapter = PlainEmbedder("p1/small")
    routes = {"default": [("p0/chat", 1.0), ("p1/small", 1.0)]}
    async with mesh(adapter, chats=["p0/chat"], routes=routes) as running:
        assert (await running.embed(ask("text 1"))).provider == "p1"
        with pytest.raises(CapabilityUnavailable, match="EMBEDDINGS"):
            await running.embed(ask("text 1", model="p0/chat"))


async def test_requests_that_name_nothing_take_the_route_for_embeddings():
    first, second = PlainEmbedder("p0/small"), PlainEmbedder("p1/large")
    routes = {"default": [("p0/small", 1.0)], "embeddings": [("p1/large", 1.0)]}
    async with mesh(first, second, routes=routes) as running:
        assert (await running.embed(ask("text 1"))).model == "large"
        assert (await running.embed(ask("text 1", model="default"))).model == "small"
        assert (await running.embed(ask("text 1", model="embeddings"))).model == "large"


def test_the_first_target_that_embeds_decides():
    embeds, other = model("p1/small", "EMBEDDINGS"), model("p2/large", "EMBEDDINGS")
    backends = [backend("a", embeds), backend("b", other), backend("c", model("p3/chat"))]
    routes = {
        "plain": [("p1/small", 1.0), ("p2/large", 1.0)],
        "after chat": [("p3/chat", 1.0), ("p2/large", 1.0), ("p1/small", 1.0)],
        "absent": [("p9/gone", 1.0), ("p2/large", 1.0)],
        "later absent": [("p2/large", 1.0), ("p9/gone", 1.0)],
        "none": [("p3/chat", 1.0)],
    }
    found = table(backends, routes)
    names = {name: vector_model(found.routes[name].targets) for name in routes}
    expected = {"plain": "small", "after chat": "large", "absent": "gone", "later absent": "large", "none": ""}
    assert names == expected


async def test_a_long_list_is_split_and_joined_in_order():
    adapter = PlainEmbedder("p0/small")
    async with mesh(adapter) as running:
        answer = await running.embed(many(5000), most=16_000_000)
        assert len(running.trail.attempts) == 1
    assert [len(asked.inputs) for asked in adapter.asked] == [512] * 9 + [392]
    assert firsts(answer) == list(range(5000))
    assert [vector.index for vector in answer.embeddings] == list(range(5000))
    assert (answer.usage.input_tokens, answer.cost.usd) == (50_000, "0.050000")


@pytest.mark.parametrize(
    ("count", "dimensions", "sizes"), [(700, 0, 512), (700, 12207, 512), (200, 65536, 95), (1, 65536, 95)]
)
def test_no_call_brings_more_than_a_message_holds(count: int, dimensions: int, sizes: int):
    calls = split(many(count, dimensions=dimensions or None))
    assert [place for call in calls for place in call] == list(range(count))
    assert max(map(len, calls)) == min(count, sizes)
    assert all(len(call) * dimensions <= MOST_NUMBERS for call in calls)


async def test_every_part_of_a_long_list_asks_for_the_same():
    adapter = PlainEmbedder("p0/small")
    request = many(600, dimensions=4, truncate=True, normalize=False, purpose="EMBED_PURPOSE_CLUSTERING", strict=True)
    request.provider_options["p0"].update({"x": {"y": [1, 2]}})
    request.metadata["team"] = "a"
    request.routing.session_key = "s"
    async with mesh(adapter) as running:
        await running.embed(request)
    parts = [EmbedRequest.FromString(asked.SerializeToString()) for asked in adapter.asked]
    assert [entry for part in parts for entry in part.inputs] == list(request.inputs)
    for part in parts:
        part.ClearField("inputs")
    rest = EmbedRequest.FromString(request.SerializeToString())
    rest.ClearField("inputs")
    rest.model = "p0/small"
    assert parts == [rest, rest]


async def test_who_takes_over_makes_the_calls_that_are_left():
    first = PlainEmbedder("p0/small", fail=refuses(None, None, UpstreamError("down", retryable=False)))
    second = PlainEmbedder("p1/small")
    async with mesh(first, second) as running:
        answer = await running.embed(many(2000, dimensions=3))
        trail = running.trail
    assert [len(asked.inputs) for asked in first.asked] == [512, 512, 512]
    assert [len(asked.inputs) for asked in second.asked] == [512, 464]
    assert firsts(answer) == list(range(2000))
    # What the first one did counts to the last token, and nothing twice.
    assert [(a.fate, a.usage.input_tokens if a.usage else 0) for a in trail.attempts] == [
        (FAILED, 10240),
        (ANSWERED, 9760),
    ]
    assert (answer.usage.input_tokens, answer.cost.usd, answer.usage.estimated) == (20_000, "0.020000", False)
    assert trail.usage is not None
    assert (trail.usage.input_tokens, trail.cost and trail.cost.usd) == (20_000, "0.020000")


async def test_the_same_backend_is_asked_again_after_a_pause():
    adapter = PlainEmbedder("p0/small", fail=refuses(RateLimited("slow down", retry_after=0.01)))
    async with mesh(adapter) as running:
        answer = await running.embed(ask("text 3"))
        assert answer.attempt == 2
        assert [attempt.fate for attempt in running.trail.attempts] == [FAILED, ANSWERED]


async def test_a_call_that_is_cut_is_reckoned_with():
    slow = PlainEmbedder("p0/small", stalls=[1])
    other = PlainEmbedder("p1/small")
    async with mesh(slow, other, attempt_timeout=0.2) as running:
        answer = await running.embed(many(600, dimensions=3))
        first = running.trail.attempts[0]
    assert isinstance(first.error, Timeout)
    # 5120 told for 512, and a rule of thumb for 88 texts of 8 letters.
    assert first.usage is not None
    assert (first.usage.input_tokens, first.usage.estimated) == (5120 + 88 * 2, True)
    assert answer.usage.input_tokens == 6000
    await until(lambda: slow.left == 1)


async def test_a_caller_who_leaves_cancels_the_call():
    slow = PlainEmbedder("p0/small", stalls=[0])
    async with mesh(slow) as running:
        task = asyncio.create_task(running.embed(ask("text 1")))
        await until(lambda: len(slow.asked) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: slow.left == 1)
        [attempt] = running.trail.attempts
        assert attempt.fate == ABANDONED
        assert attempt.usage is not None
        assert attempt.usage.estimated
        assert running.source.local.load.in_flight["a0:p0/small"] == 0


async def test_the_callers_deadline_holds_for_all_calls_together():
    slow = PlainEmbedder("p0/small", stalls=[1])
    async with mesh(slow) as running:
        begun = time.monotonic()
        with pytest.raises(Timeout):
            await running.embed(many(600, dimensions=3), deadline=begun + 0.3)
        assert 0.25 < time.monotonic() - begun < 2


async def test_too_much_is_refused_before_anything_is_sent():
    adapter = PlainEmbedder("p0/small")
    async with mesh(adapter) as running:
        with pytest.raises(TooLarge, match=r"at most 2034 inputs"):
            await running.embed(many(2035))
        with pytest.raises(TooLarge, match="or ask for fewer dimensions"):
            await running.embed(many(100, dimensions=65536))
        assert adapter.asked == []
        assert len((await running.embed(many(2034))).embeddings) == 2034


async def test_longer_vectors_than_reckoned_end_the_request_at_the_first_call():
    adapter = PlainEmbedder("p0/small", length=9000)
    async with mesh(adapter, PlainEmbedder("p1/small")) as running:
        with pytest.raises(TooLarge, match="at most 694 inputs"):
            await running.embed(many(700))
        assert [len(asked.inputs) for asked in adapter.asked] == [512]
        assert [attempt.usage and attempt.usage.input_tokens for attempt in running.trail.attempts] == [5120]


def _drop_last(answer: EmbedResponse) -> None:
    del answer.embeddings[-1]


def _swap(answer: EmbedResponse) -> None:
    answer.embeddings[0].index, answer.embeddings[1].index = 1, 0


def _shorten(answer: EmbedResponse) -> None:
    del answer.embeddings[1].values[-1]


@pytest.mark.parametrize(
    ("bend", "breach"),
    [
        (_drop_last, "not a vector per input"),
        (_swap, "vectors out of order"),
        (_shorten, "vectors of two lengths"),
    ],
)
async def test_an_adapter_that_mixes_vectors_up_is_not_believed(bend: Any, breach: str):
    liar, honest = PlainEmbedder("p0/small", bend=bend), PlainEmbedder("p1/small")
    async with mesh(liar, honest) as running:
        answer = await running.embed(many(3))
        assert (answer.provider, firsts(answer)) == ("p1", [0, 1, 2])
        # The answer costs what it cost; the request also what was thrown away.
        assert answer.usage.input_tokens == 30
        assert [attempt.usage and attempt.usage.input_tokens for attempt in running.trail.attempts] == [30, 30]
        assert isinstance(running.trail.attempts[0].error, StreamBroken)
        assert [outcome.breach for outcome in running.source.outcomes] == [breach, ""]


async def test_what_is_wrong_with_the_request_is_tried_nowhere_else():
    first = PlainEmbedder("p0/small", fail=refuses(InvalidRequest.at("inputs[0].text", "is no text")))
    second = PlainEmbedder("p1/small")
    async with mesh(first, second) as running:
        with pytest.raises(InvalidRequest) as caught:
            await running.embed(ask("text 1"))
        assert [violation.field for violation in caught.value.violations] == ["inputs[0].text"]
        assert second.asked == []


async def test_the_place_of_a_wrong_input_is_that_in_the_whole_list():
    wrong = InvalidRequest.at("inputs[3].text", "is no text")
    async with mesh(PlainEmbedder("p0/small", fail=refuses(None, wrong))) as running:
        with pytest.raises(InvalidRequest) as caught:
            await running.embed(many(600))
        assert caught.value.message == "inputs[515].text: is no text"
        assert [violation.field for violation in caught.value.violations] == ["inputs[515].text"]
        assert [attempt.usage and attempt.usage.input_tokens for attempt in running.trail.attempts] == [5120]


async def test_every_input_has_a_window_for_itself():
    adapter = PlainEmbedder("p0/small", window=100)
    async with mesh(adapter) as running:
        assert len((await running.embed(ask(*["x" * 300] * 50))).embeddings) == 50
        with pytest.raises(ContextTooLong):
            await running.embed(ask("short", "x" * 1000))
        assert len((await running.embed(ask("short", "x" * 1000, truncate=True))).embeddings) == 2
    assert len(adapter.asked) == 2


async def test_a_provider_that_does_not_count_is_estimated_and_said_so():
    async with mesh(PlainEmbedder("p0/small", counts=False)) as running:
        answer = await running.embed(ask("x" * 40, "y" * 80))
    assert (answer.usage.input_tokens, answer.usage.estimated, answer.cost.usd) == (30, True, "0.000030")


async def test_excluded_providers_and_sticky_keys_hold_as_for_chats():
    first, second = PlainEmbedder("p0/small"), PlainEmbedder("p1/small")
    async with mesh(first, second) as running:
        answer = await running.embed(ask("text 1", routing=Routing(exclude_providers=["p0"])))
        assert answer.provider == "p1"
        needs = needs_of_embedding(ask("text 1", routing=Routing(deterministic=True)))
        again = needs_of_embedding(ask("text 1", routing=Routing(deterministic=True), model="x", metadata={"a": "b"}))
        assert needs.key == again.key != ""
