"""Limits of providers at every front door: who is asked instead, what is told when nobody is, and what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_gateway.limits import Limiter
from maestro_gateway.limits.rules import named_provider, provider_rules
from maestro_sdk.errors import RateLimited, TenantConcurrency, TenantRateLimited, from_rpc_error
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.service.store import StoreAway, Verdict
from maestro_sdk.testing import tables
from maestro_sdk.testing.plain_embedding_servicer import PlainEmbedder
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, OTHER_KEY, Reply, Start, metadata, question
from .test_embeddings import doors

HOUR: dict[str, Any] = {"limit": 1, "per": "1h"}


def limits(**sections: Any) -> LimitsConfig:
    return LimitsConfig.model_validate(sections)


def limiter(**sections: Any) -> Limiter:
    return Limiter(limits(headers_on_success=True, **sections))


def chat(text: str = "hello", **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])], **more)


class Away:
    """A store that does not answer."""

    def take(self, entry: str, claims: Any) -> Verdict:
        raise StoreAway("connection to 10.0.0.7 refused")

    def finish(self, entry: str, claims: Any, amounts: Any) -> None:
        raise AssertionError("nothing was taken")


def backend_of(adapter: str, model: str) -> Any:
    table = compile_table(tables.message([tables.backend(adapter, tables.model(model), "127.0.0.1:1")], {}))
    return next(iter(table.backends.values()))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, []),
        ({"providers": {"other": {"requests": 1}}}, []),
        ({"providers": {"openai": {"requests": 1}}}, ["provider openai"]),
        ({"providers": {"openai/small": {"requests": 1}}}, ["model openai/small"]),
        ({"providers": {"openai/large": {"requests": 1}}}, []),
        ({"providers": {"eu:openai": {"concurrency": 1}}}, ["account eu:openai"]),
        ({"providers": {"us:openai": {"concurrency": 1}}}, []),
        ({"providers": {"eu:openai/small": {"tokens": 1}}}, ["backend eu:openai/small"]),
        ({"every_tenant": {"providers": {"openai": {"requests": 1}}}}, ["tenant acme at provider openai"]),
        # What is said of one tenant stands in the place of what holds for every other one.
        ({"every_tenant": {"providers": {"openai": {"requests": 1}}}, "tenants": {"acme": {}}}, []),
        (
            {
                "providers": {"openai": {"requests": 9, "tokens": 9}, "openai/small": {"concurrency": 9}},
                "tenants": {"acme": {"providers": {"openai": {"requests": 9}}}},
            },
            ["provider openai", "provider openai", "model openai/small", "tenant acme at provider openai"],
        ),
    ],
)
def test_what_an_attempt_falls_under(sections: dict[str, Any], expected: list[str]) -> None:
    rules = provider_rules(limits(**sections), backend_of("eu", "openai/small"), "acme")
    assert [rule.whose for rule in rules] == expected
    assert all("{provider:openai}" in rule.key for rule in rules), "a store in several parts keeps them in one"
    assert len({rule.key for rule in rules}) == len(rules)


def test_the_provider_of_a_name() -> None:
    named = ("openai", "openai/a:b/c", "eu:openai", "eu:openai/a:b/c")
    assert [named_provider(name) for name in named] == ["openai"] * 4


async def test_the_next_provider_answers_and_the_decision_tells_why(start: Start) -> None:
    first, second = ScriptedProvider(answer("one")), ScriptedProvider(answer("two"))
    limiting = limiter(providers={"p0": {"requests": HOUR}})
    gateway = await start(first, second, limiter=limiting)
    replies = [await gateway.post(question()) for _ in range(3)]
    assert [reply.status for reply in replies] == [200] * 3
    assert (len(first.requests), len(second.requests)) == (1, 2)
    assert not [name for name in replies[0].headers if "ratelimit" in name], "it is no limit of the caller"
    done = [event.request_completed for event in gateway.events if event.kind == "request.completed"]
    assert [
        [found.backend_id for found in event.decision.candidates if "passed over" in found.reason] for event in done
    ] == [
        [],
        *[["adapter-p0:p0/model"]] * 2,
    ]
    assert "1 requests are allowed for provider p0 in 3600 s" in done[1].decision.candidates[0].reason
    assert [(event.provider, event.attempts) for event in done] == [("p0", 1), ("p1", 1), ("p1", 1)]
    assert "attempt.failed" not in gateway.kinds()
    assert list(limiting.gate.read()) == [(2, {"provider": "p0", "measure": "requests", "whose": "mesh"})]
    assert all(not outcome.reason for outcome in gateway.source.outcomes)


async def test_when_all_are_full_the_mesh_says_when_there_is_room(start: Start) -> None:
    providers = {"p0": {"requests": HOUR}, "p1": {"requests": {"limit": 1, "per": "10m"}}}
    gateway = await start(ScriptedProvider(), ScriptedProvider(), limiter=limiter(providers=providers))
    replies = [await gateway.post(question(stream=stream), key) for stream in (False, True) for key in (KEY, OTHER_KEY)]
    assert [reply.status for reply in replies] == [200, 200, 429, 429]
    error = replies[-1].json["error"]
    assert error["reason"] == "RATE_LIMITED"
    assert error["retryable"]
    assert 590 < error["retry_after"] <= 600
    assert int(replies[-1].headers["retry-after"]) in (599, 600)
    told = error["metadata"]
    assert (told["whose"], told["measure"], told["limit"], told["provider"]) == ("provider p1", "requests", "1", "p1")
    assert told["tried"].count("passed over") == 2
    failed = (await gateway.event("request.failed")).request_failed
    assert (failed.attempts, failed.failure.counts_against_health) == (0, False)
    assert all(
        backend.id not in gateway.source.local.load.headrooms for backend in gateway.source.table.backends.values()
    )


@pytest.mark.parametrize("whose", ["mesh", "tenant"])
async def test_each_dialect_tells_it_in_its_own_way(start: Start, whose: str) -> None:
    held: dict[str, Any] = {"p0": {"requests": HOUR}}
    sections = {"providers": held} if whose == "mesh" else {"every_tenant": {"providers": held}}
    gateway = await start(ScriptedProvider(), limiter=limiter(**sections))
    messages = [{"role": "user", "content": "hello"}]
    assert (await gateway.post(question())).status == 200
    body: dict[str, Any] = {"model": "first", "max_tokens": 9, "messages": messages}
    openai = await _dialect(gateway.openai.CreateChatCompletion, body)
    anthropic = await _dialect(gateway.anthropic.CreateMessage, body)
    streamed = await _dialect(gateway.openai.CreateChatCompletion, {**body, "stream": True})
    assert [reply.status for reply in (openai, anthropic, streamed)] == [429] * 3
    assert all(3500 < int(reply.headers["retry-after"]) <= 3600 for reply in (openai, anthropic, streamed))
    assert openai.json["error"]["code"] == "rate_limit_exceeded"
    assert anthropic.json["error"]["type"] == "rate_limit_error"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.Chat(chat(), metadata=metadata(KEY))
    error = from_rpc_error(caught.value)
    assert type(error) is (RateLimited if whose == "mesh" else TenantRateLimited)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with gateway.socket() as socket:
        await socket.send_json({"type": "chat", "id": "a", "request": question()})
        async with asyncio.timeout(5):
            while (frame := await socket.receive_json())["type"] not in ("finish", "error"):
                pass
    assert frame["error"]["reason"] == error.reason
    assert 3500 < frame["error"]["retry_after"] <= 3600


async def _dialect(method: Any, body: dict[str, Any]) -> Reply:
    call = method(HttpBody(content_type="application/json", data=orjson.dumps(body)), metadata=metadata(KEY))
    data = b"".join([message.data async for message in call])
    headers = {name: str(value) for name, value in await call.initial_metadata()}
    return Reply(int(headers.get("x-http-status", "200")), headers, data)


async def test_a_tenant_has_its_own_share_of_a_provider(start: Start) -> None:
    every = {"providers": {"p0": {"requests": HOUR}}}
    gateway = await start(ScriptedProvider(), limiter=limiter(every_tenant=every))
    first, refused, other = [await gateway.post(question(), key) for key in (KEY, KEY, OTHER_KEY)]
    assert (first.status, refused.status, other.status) == (200, 429, 200)
    error = refused.json["error"]
    assert (error["reason"], error["metadata"]["whose"]) == ("TENANT_RATE_LIMITED", "tenant acme at provider p0")


async def test_a_stream_that_is_cut_frees_its_place_and_its_tokens(start: Start) -> None:
    provider = ScriptedProvider(fault=Fault.STALL_AFTER_CONTENT)
    held: dict[str, Any] = {"concurrency": 1, "tokens": {"limit": 1000, "per": "1h"}}
    gateway = await start(provider, limiter=limiter(every_tenant={"providers": {"p0": held}}))
    call = gateway.chats.StreamChat(chat(max_tokens=900), metadata=metadata(KEY))
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.Chat(chat(max_tokens=9), metadata=metadata(KEY))
    assert type(from_rpc_error(caught.value)) is TenantConcurrency
    call.cancel()
    await gateway.event("request.failed")
    await _until(lambda: gateway.kinds().count("request.failed") == 2)
    provider.fault = None
    assert (await gateway.post(question(max_tokens=900))).status == 200


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_tokens_are_settled_by_what_the_attempt_used(start: Start) -> None:
    held: dict[str, Any] = {"p0": {"tokens": {"limit": 1000, "per": "1h"}}}
    gateway = await start(ScriptedProvider(answer("Hello", ".")), limiter=limiter(providers=held))
    assert [(await gateway.post(question(max_tokens=900))).status for _ in range(3)] == [200] * 3
    never = await gateway.post(question(max_tokens=1001))
    error = never.json["error"]
    assert (never.status, error["reason"], error.get("retry_after"), error["retryable"]) == (
        429,
        "RATE_LIMITED",
        None,
        False,
    )
    assert "1002 tokens, more than the 1000 that are allowed for provider p0" in error["message"]


async def test_a_place_comes_free_before_the_caller_sees_the_end(start: Start) -> None:
    held: dict[str, Any] = {"providers": {"p0": {"concurrency": 1}}}
    gateway = await start(ScriptedProvider(pace=0.001), limiter=limiter(every_tenant=held))
    for number in range(30):
        assert (await gateway.post(question(stream=bool(number % 2)))).status == 200


async def test_who_finds_no_place_waits_a_moment_for_one(start: Start) -> None:
    limiting = limiter(providers={"p0": {"concurrency": 1}})
    gateway = await start(ScriptedProvider(pace=0.1), limiter=limiting)
    replies = await asyncio.gather(*(gateway.post(question()) for _ in range(2)))
    assert [reply.status for reply in replies] == [200, 200]
    # The first answer takes 0.3 s at least, and nobody knows when a place comes free: one looks again and again.
    assert limiting.gate.refusals["p0", "concurrency", "mesh"] >= 2


async def test_other_limits_hold_from_the_next_attempt_on(start: Start) -> None:
    limiting = limiter(providers={"p0": {"requests": HOUR}})
    gateway = await start(ScriptedProvider(), limiter=limiting)
    assert [(await gateway.post(question())).status for _ in range(2)] == [200, 429]
    limiting.adopt(limits(providers={"p0": {"requests": {"limit": 3, "per": "1h"}}}))
    assert [(await gateway.post(question())).status for _ in range(3)] == [200, 200, 429]
    limiting.adopt(limits())
    assert (await gateway.post(question())).status == 200


@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_without_the_store(start: Start, policy: str) -> None:
    config = limits(on_store_failure=policy, providers={"p0": {"requests": {"limit": 2, "per": "1h"}}})
    first, second = ScriptedProvider(), ScriptedProvider()
    gateway = await start(first, second, limiter=Limiter(config, Away()))
    assert [(await gateway.post(question())).status for _ in range(3)] == [200] * 3, "another provider has no limit"
    assert (len(first.requests), len(second.requests)) == ((2, 1) if policy == "allow" else (0, 3))
    alone = await gateway.post(question(model="first"))
    assert (alone.status, alone.json["error"]["reason"]) == (
        (429, "RATE_LIMITED") if policy == "allow" else (503, "NO_BACKEND")
    )
    assert "10.0.0.7" not in alone.data.decode()


async def test_vectors_count_and_the_next_provider_of_the_same_model_gives_them() -> None:
    first, second = PlainEmbedder("p0/small"), PlainEmbedder("p1/small")
    async with doors(
        first, second, limiter=limiter(providers={"p0": {"requests": HOUR}, "p1": {"requests": HOUR}})
    ) as at:
        replies = [await at.post({"input": "text 1"}) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert replies[2].json["error"]["code"] == "rate_limit_exceeded"


async def test_vectors_reserve_their_inputs_and_are_settled_by_what_was_counted() -> None:
    adapter = PlainEmbedder("p0/small")
    held: dict[str, Any] = {"p0": {"tokens": {"limit": 250, "per": "1h"}}}
    async with doors(adapter, limiter=limiter(providers=held)) as at:
        # 200 tokens by estimate, 10 by the adapter's count.
        replies = [await at.post({"input": "x" * 800}) for _ in range(3)]
        never = await at.post({"input": "x" * 1100})
    assert [reply.status for reply in (*replies, never)] == [200, 200, 200, 429]
    assert "275 tokens, more than the 250" in never.json["error"]["message"]


def test_what_no_backend_has_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    found = limiter(
        providers={"openai": {"requests": 1}, "claude": {"requests": 1}},
        tenants={"acme": {"providers": {"eu:openai": {"requests": 1}, "us:openai": {"requests": 1}}}},
    ).gate
    table = compile_table(tables.message([tables.backend("eu", tables.model("openai/small"), "127.0.0.1:1")], {}))
    found.warn(compile_table(tables.message([], {})))
    assert caplog.messages == [], "a mesh that has not begun knows nobody"
    for _ in range(2):
        found.warn(table)
    assert [message.split(" limits nobody")[0] for message in caplog.messages] == [
        "limits.providers.claude",
        "limits.tenants.acme.providers.us:openai",
    ]


def test_what_no_limit_holds_back_costs_next_to_nothing(record_property: Callable[[str, object], None]) -> None:
    backend, needs = backend_of("eu", "openai/small"), Needs("", tenant="acme", input_tokens=5)
    none, others, one = (
        limiter(),
        limiter(providers={"anthropic": {"requests": 1}}),
        limiter(providers={"openai": {"requests": 10**9, "concurrency": 10**9}}),
    )

    async def pass_through(limiting: Limiter) -> None:
        admission = limiting.gate.find(backend, needs)
        if admission is not None:
            assert await admission.take() is None
            admission.settle(None)

    async def cost(limiting: Limiter) -> float:
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(500):
                await pass_through(limiting)
            best = min(best, (time.perf_counter() - began) / 500)
        return best * 1e6

    found = [asyncio.run(cost(limiting)) for limiting in (none, others, one)]
    record_property("microseconds", [f"{each:.2f}" for each in found])
    # Far above what is measured (0.2, 0.2 and 6.5 µs on a quiet machine, where an attempt by itself takes 7): a core
    # that others use as well is no fault.
    assert [found[0] < 5, found[1] < 5, found[2] < 60] == [True] * 3, found
