"""Answers that are given again: at every door, on every gateway, free, and never to anybody else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, cast

import nats
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason, Switched
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.cache import AnswerStore, replay
from maestro_gateway.cache.store import BUCKET, caching
from maestro_gateway.limits import Limiter
from maestro_gateway.shelf import Shelf
from maestro_sdk.adapter.fold import fold
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.strategies import answers

from .answering import good_answers
from .conftest import KEY, OTHER_KEY, Gateway, Reply, Start, metadata, question

CALLS = [("c1", "weather", '{"city": "Paris"}')]
DOORS = ("rest", "sse", "openai", "openai stream", "anthropic", "anthropic stream", "websocket", "grpc", "grpc stream")


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class Others:
    """A shelf that other gateways share; it may hang or be away."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.asked = 0
        self.away = self.hangs = False

    async def offer(self, key: str, data: bytes) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        self.kept[key] = data

    async def replace(self, key: str, data: bytes) -> None:
        await self.offer(key, data)

    async def take(self, key: str) -> bytes | None:
        self.asked += 1
        if self.away:
            raise LookupError
        if self.hangs:
            await asyncio.Event().wait()
        return self.kept.get(key)


def native(text: str = "hello", **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])], **more)


async def send(gateway: Gateway, body: Mapping[str, Any], key: str = KEY, **headers: str) -> Reply:
    """A chat by REST with some headers more."""
    request = HttpBody(content_type="application/json", data=orjson.dumps(body))
    call = gateway.rest.Chat(request, metadata=[*metadata(key), *headers.items()])
    data = b"".join([message.data async for message in call])
    sent = {name: str(value) for name, value in await call.initial_metadata()}
    return Reply(int(sent.get("x-http-status", "200")), sent, data)


async def ask(gateway: Gateway, door: str, text: str = "hello", key: str = KEY) -> str:
    """Asks the same question at a door; what came."""
    told = metadata(key)
    body: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": 9}
    match door:
        case "grpc":
            return str(await gateway.chats.Chat(native(text, model="default", max_tokens=9), metadata=told))
        case "grpc stream":
            stream = gateway.chats.StreamChat(native(text, model="default", max_tokens=9), metadata=told)
            return str(fold([event async for batch in stream for event in batch.events]))
        case "websocket":
            async with gateway.socket(key) as socket:
                await socket.send_json({"type": "chat", "id": "c", "request": body})
                frames = [await socket.receive_json()]
                while frames[-1]["type"] not in ("finish", "error"):
                    frames.append(await socket.receive_json())
            return str(frames)
        case "rest" | "sse":
            method = gateway.rest.Chat
        case "openai" | "openai stream":
            method = gateway.openai.CreateChatCompletion
        case _:
            method = gateway.anthropic.CreateMessage
    if door == "sse" or door.endswith("stream"):
        body["stream"] = True
    call = method(HttpBody(content_type="application/json", data=orjson.dumps(body)), metadata=told)
    return b"".join([message.data async for message in call]).decode()


@pytest.mark.parametrize("first", ["rest", "grpc stream"])
async def test_every_door_gives_the_answer_of_every_other(start: Start, first: str) -> None:
    provider = ScriptedProvider(answer("Hello", " there", calls=CALLS))
    gateway = await start(provider, cache=600, store=AnswerStore())
    assert "weather" in await ask(gateway, first)
    for door in DOORS:
        found = await ask(gateway, door)
        assert "Hello" in found, door
        assert "weather" in found, door
    assert len(provider.requests) == 1
    ends = [event.request_completed for event in gateway.events if event.kind == "request.completed"]
    assert [end.cached for end in ends] == [False] + [True] * len(DOORS)
    assert {(end.attempts, end.cost.usd, end.route, end.model) for end in ends[1:]} == {(0, "0", "default", "model")}
    assert not any(end.HasField("usage") for end in ends[1:])


async def test_a_hit_is_marked_and_free(start: Start) -> None:
    gateway = await start(ScriptedProvider(), cache=600, store=AnswerStore())
    first, again = await send(gateway, question()), await send(gateway, question())
    assert (first.headers["x-maestro-cache"], again.headers["x-maestro-cache"]) == ("miss", "hit")
    assert (first.json["cached"], again.json["cached"]) == (False, True)
    assert again.json == {**first.json, "cached": True, "cost_usd": "0"}
    stream = await send(gateway, question(stream=True))
    assert stream.headers["x-maestro-cache"] == "hit"
    assert b'"cached":true' in stream.data
    assert stream.data.endswith(b"data: [DONE]\n\n")


async def test_routes_without_a_cache_say_nothing_of_it(start: Start) -> None:
    provider = ScriptedProvider()
    gateway = await start(provider, store=AnswerStore())
    replies = [await send(gateway, question()), await send(gateway, question())]
    assert all("x-maestro-cache" not in reply.headers for reply in replies)
    assert len(provider.requests) == 2


async def test_a_model_that_is_named_has_no_cache(start: Start) -> None:
    provider = ScriptedProvider()
    gateway = await start(provider, cache=600, store=AnswerStore())
    for _ in range(2):
        assert (await send(gateway, question(model="p0/model"))).status == 200
    assert len(provider.requests) == 2


async def test_two_tenants_never_share_an_answer(start: Start) -> None:
    provider = ScriptedProvider()
    store = AnswerStore()
    gateway = await start(provider, cache=600, store=store)
    prompts = [f"question {number}" for number in range(5)]
    tries = 0
    for text in prompts:
        await ask(gateway, "rest", text)
    for text in prompts:
        for door in DOORS:
            before = len(provider.requests)
            await ask(gateway, door, text, OTHER_KEY)
            # The first one of the other tenant is its own miss; the rest are its own hits.
            assert len(provider.requests) - before == (door == DOORS[0])
            tries += 1
    events = [event for event in gateway.events if event.kind == "request.completed"]
    hits = [event for event in events if event.request_completed.cached]
    assert {event.tenant for event in hits} == {"globex"}
    assert (tries, len(hits), len(provider.requests)) == (45, 40, 10)


@pytest.mark.parametrize(
    "other",
    [
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"max_tokens": 7},
        {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        {"response_format": {"type": "json"}},
        {"model": "first"},
        {"routing": {"persona": "other"}},
        {"provider_options": {"p0": {"x": 1}}},
    ],
)
async def test_another_request_is_asked_anew(start: Start, other: dict[str, Any]) -> None:
    provider = ScriptedProvider()
    gateway = await start(provider, cache=600, store=AnswerStore())
    await send(gateway, question())
    assert (await send(gateway, question(**other))).headers["x-maestro-cache"] == "miss"
    assert (await send(gateway, question(metadata={"team": "red"}))).headers["x-maestro-cache"] == "hit"
    assert len(provider.requests) == 2


async def test_a_changed_route_begins_anew(start: Start) -> None:
    store = AnswerStore()
    one = await start(ScriptedProvider(), cache=600, store=store)
    other = await start(ScriptedProvider(), cache=600, store=store, max_attempts=2)
    await send(one, question())
    assert (await send(one, question())).headers["x-maestro-cache"] == "hit"
    assert (await send(other, question())).headers["x-maestro-cache"] == "miss"


async def test_a_caller_can_go_round_it(start: Start) -> None:
    provider = ScriptedProvider()
    gateway = await start(provider, cache=600, store=AnswerStore())
    misses = ("no-store", "", "no-store", "no-cache", "max-age=60, No-Cache", "max-age=0")
    hits = ("max-age=60", "no-cache-at-all, x-no-store", ",")
    replies = [await send(gateway, question(), **{"cache-control": wish}) for wish in (*misses, *hits)]
    assert [reply.headers["x-maestro-cache"] for reply in replies] == ["miss"] * 6 + ["hit"] * 3
    assert len(provider.requests) == 6


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("flaw", ["length", "filter", "other", "switched", "large", "cut", "empty"])
async def test_only_whole_answers_are_kept(start: Start, flaw: str, streamed: bool) -> None:
    events = answer("Hello", " there")
    match flaw:
        case "length" | "filter" | "other":
            names = {"length": "LENGTH", "filter": "CONTENT_FILTER", "other": "OTHER"}
            events[-1].finish.reason = FinishReason.Value(f"FINISH_REASON_{names[flaw]}")
        case "switched":
            events.insert(2, ChatEvent(switched=Switched(from_model="a/b", to_model="p0/model", why="OVERLOADED")))
        case "large":
            events[1].text.text = "x" * 20_000
        case "empty":
            events = answer()
        case _:
            pass
    provider = ScriptedProvider(events, fault=Fault.ERROR_AFTER_CONTENT if flaw == "cut" else None)
    gateway = await start(provider, cache=600, store=AnswerStore(), max_attempts=1)
    for _ in range(2):
        await send(gateway, question(stream=streamed))
    provider.fault = None
    before = len(provider.requests)
    await send(gateway, question(stream=streamed))
    assert len(provider.requests) == before + 1


async def test_hits_take_requests_but_no_tokens(start: Start) -> None:
    limits = {"every_tenant": {"requests": 3, "tokens": 40}, "usual_output": 25, "headers_on_success": True}
    limiter = Limiter(LimitsConfig.model_validate(limits))
    provider = ScriptedProvider(answer("Hello", usage=Usage(input_tokens=10, output_tokens=20)))
    gateway = await start(provider, cache=600, store=AnswerStore(), limiter=limiter)
    first = await send(gateway, question())
    # 30 of 40 tokens are gone: nothing new may be asked.
    assert (first.status, (await send(gateway, question("other"))).status) == (200, 429)
    again = await send(gateway, question())
    assert (again.status, again.headers["x-maestro-cache"]) == (200, "hit")
    assert again.headers["x-ratelimit-remaining-requests"] == "1"
    assert (await send(gateway, question())).status == 200
    assert (await send(gateway, question())).status == 429


async def test_answers_go_after_their_time_and_the_least_used_first() -> None:
    clock, others = Clock(), Others()
    store = AnswerStore(others, room=3000, clock=clock)
    await store.put("a", b"a" * 1000, 60)
    await store.put("b", b"b" * 1000, 60)
    assert await store.find("a") == b"a" * 1000
    await store.put("c", b"c" * 1000, 60)
    others.away = True
    assert (await store.find("b"), await store.find("a")) == (None, b"a" * 1000)
    clock.now += 61
    others.away = False
    # Neither this process nor the shelf gives what is over.
    assert [await store.find(key) for key in "abc"] == [None, None, None]
    assert (await AnswerStore(others, clock=clock).find("b")) is None


async def test_nobody_waits_for_a_silent_shelf() -> None:
    clock, others = Clock(), Others()
    store = AnswerStore(others, clock=clock)
    others.hangs = True
    begun = asyncio.get_running_loop().time()
    for number in range(50):
        assert await store.find(f"k{number}") is None
    assert asyncio.get_running_loop().time() - begun < 0.5
    assert others.asked == 1
    await store.put("own", b"mine", 60)
    assert await store.find("own") == b"mine"
    assert asyncio.get_running_loop().time() - begun < 1
    clock.now += 2
    others.hangs = False
    await AnswerStore(others, clock=clock).put("k0", b"x", 60)
    assert await store.find("k0") == b"x"


async def test_gateways_share_by_nats(start: Start, nats_url: str) -> None:
    provider = ScriptedProvider()
    async with Shelf(nats_url, 600, bucket=BUCKET) as shelf, Shelf(nats_url, 600, bucket=BUCKET) as second:
        async with asyncio.timeout(10):
            while not (await shelf.settle() and await second.settle()):
                await asyncio.sleep(0.01)
        one = await start(provider, cache=600, store=AnswerStore(shelf))
        # The same table: only its adapter's address, which is no part of the route, differs.
        other = await start(provider, cache=600, store=AnswerStore(second))
        first = await send(one, question())
        async with asyncio.timeout(5):
            while (again := await send(other, question())).headers["x-maestro-cache"] != "hit":
                provider.requests.clear()
                await send(one, question(), **{"cache-control": "no-cache"})
        assert again.json == {**first.json, "cached": True, "cost_usd": "0"}
        assert (await send(other, question(), OTHER_KEY)).headers["x-maestro-cache"] == "miss"


async def test_a_new_answer_takes_the_place_of_the_old_one_everywhere(start: Start, nats_url: str) -> None:
    provider = ScriptedProvider(answer("old"))
    async with caching(nats_url) as one, caching(nats_url) as two:
        first, second = [await start(provider, cache=600, store=store) for store in (one, two)]
        numbers, shared = itertools.count(), False
        async with asyncio.timeout(10):
            while not shared:
                number = str(next(numbers))
                await send(first, question(number))
                shared = (await send(second, question(number))).headers["x-maestro-cache"] == "hit"
        await send(first, question())
        assert (await send(second, question())).json["text"] == "old"
        provider.events, provider.requests = answer("new"), []
        await send(first, question(), **{"cache-control": "no-cache"})
        async with asyncio.timeout(5):
            while (again := await send(second, question())).json["text"] != "new":
                await asyncio.sleep(0.01)
        assert again.headers["x-maestro-cache"] == "hit"
        # Who asked anew does not forget what it has by its own word.
        assert (await send(first, question())).headers["x-maestro-cache"] == "hit"
        assert len(provider.requests) == 1


async def test_a_bucket_that_is_deleted_is_made_anew(nats_url: str) -> None:
    async with Shelf(nats_url, 600, bucket="MAESTRO_DELETED") as shelf:
        async with asyncio.timeout(10):
            while not await shelf.settle():
                await asyncio.sleep(0.01)
        client = await cast("Any", nats).connect(nats_url)
        try:
            await client.jetstream().delete_stream("KV_MAESTRO_DELETED")
        finally:
            await client.close()
        with pytest.raises(LookupError, match="gone"):
            await shelf.take("a")
        assert await shelf.take("a") is None
        await shelf.put("a", b"kept")
        assert await shelf.take("a") == b"kept"


async def test_damaged_answers_are_misses(start: Start) -> None:
    others = Others()
    gateway = await start(ScriptedProvider(), cache=600, store=AnswerStore(others))
    await send(gateway, question())
    (key,) = others.kept
    for damaged in (b"", b"\x00", others.kept[key][:8] + b"\xff\xff"):
        others.kept[key] = damaged
        fresh = await start(ScriptedProvider(), cache=600, store=AnswerStore(others))
        reply = await send(fresh, question())
        assert (reply.status, reply.headers["x-maestro-cache"]) == (200, "miss")


@given(good_answers(interleaved=True) | answers())
def test_a_replay_folds_to_the_answer_byte_for_byte(events: list[ChatEvent]) -> None:
    whole = fold(events)
    stored = ChatResponse.FromString(whole.SerializeToString())
    again = fold(replay(stored).events)
    assert again.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
