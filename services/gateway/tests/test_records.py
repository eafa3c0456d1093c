"""Explaining a request that was recorded: from a real NATS, the own tenant's only, with what then happened."""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from maestro.event.v1 import event_pb2 as pb
from maestro.llm.v1.chat_pb2 import FinishReason
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro.router.v1.router_pb2 import Candidate, Decision
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import free_port
from maestro_sdk.tracing import new_request_id

from .conftest import KEY, OTHER_KEY, Gateway, Reply, Start, question

DECISION = Decision(
    route="default",
    table_version=7,
    strategy="cost",
    experiment="cheaper",
    variant="b",
    candidates=[
        Candidate(
            backend_id="adapter-p0:p0/m", model="p0/m", kept=True, reason="cheapest", score=1.5, estimated_usd="0.0015"
        ),
        Candidate(backend_id="adapter-p1:p1/m", model="p1/m", kept=True, reason="next", score=2.0),
        Candidate(backend_id="adapter-p2:p2/m", model="p2/m", reason="lacks VISION", missing=[Feature.FEATURE_VISION]),
    ],
)


@pytest.fixture
async def publisher(nats_url: str, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    async with EventPublisher(nats_url, tmp_path / "spool") as publisher:
        yield publisher


@pytest.fixture
async def gateway(start: Start, nats_url: str) -> AsyncIterator[Gateway]:
    async with EventReader(nats_url) as reader:
        yield await start(ScriptedProvider(), events=reader)


def used(number: int, fate: pb.AttemptFate.ValueType, usd: str) -> pb.AttemptUsage:
    provider = f"p{number - 1}"
    return pb.AttemptUsage(
        attempt=number,
        adapter=f"adapter-{provider}",
        provider=provider,
        model="m",
        fate=fate,
        usage=Usage(input_tokens=10, output_tokens=number),
        cost=Cost(usd=usd),
    )


def limited(request_id: str) -> pb.AttemptFailed:
    failure = pb.Failure(reason=ErrorReason.ERROR_REASON_RATE_LIMITED, retryable=True, failover=True, http_status=429)
    failure.retry_after.FromNanoseconds(1_500_000_000)
    failure.upstream_status = 429
    found = pb.AttemptFailed(
        request_id=request_id, attempt=1, provider="p0", model="m", adapter="adapter-p0", failure=failure
    )
    found.latency.FromNanoseconds(40_000_000)
    return found


def completed(request_id: str) -> pb.RequestCompleted:
    found = pb.RequestCompleted(
        request_id=request_id,
        operation=pb.REQUEST_OPERATION_CHAT,
        requested_model="default",
        provider="p1",
        model="m",
        adapter="adapter-p1",
        attempts=2,
        finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS,
        usage=Usage(input_tokens=20, output_tokens=3),
        cost=Cost(usd="0.003"),
        streamed=True,
        decision=DECISION,
        attempt_usages=[
            used(1, pb.AttemptFate.ATTEMPT_FATE_FAILED, "0.001"),
            used(2, pb.AttemptFate.ATTEMPT_FATE_ANSWERED, "0.002"),
        ],
    )
    found.latency.FromNanoseconds(250_000_000)
    return found


async def record(publisher: EventPublisher, *payloads: Any, tenant: str = "acme") -> None:
    for payload in payloads:
        publisher.publish(new_event(payload, f"request/{payload.request_id}", tenant=tenant))
    assert await publisher.flush()


async def explain(gateway: Gateway, request_id: Any, key: str = KEY, **more: Any) -> Reply:
    return await gateway.post({"request_id": request_id, **more}, key, method="Explain")


async def test_the_decision_as_it_was_made_and_what_then_happened(gateway: Gateway, publisher: EventPublisher) -> None:
    name = new_request_id()
    await record(publisher, *(completed(new_request_id()) for _ in range(30)))
    await record(publisher, limited(name), completed(name))
    await record(publisher, completed(new_request_id()))
    reply = await explain(gateway, name)
    assert reply.status == 200, reply.data
    told = reply.json
    assert told["request_id"] == name
    assert [told[key] for key in ("route", "strategy", "experiment", "variant", "table_version")] == [
        *("default", "cost", "cheaper", "b", 7)
    ]
    assert [(each["backend_id"], each["kept"], each["reason"]) for each in told["candidates"]] == [
        ("adapter-p0:p0/m", True, "cheapest"),
        ("adapter-p1:p1/m", True, "next"),
        ("adapter-p2:p2/m", False, "lacks VISION"),
    ]
    assert (told["candidates"][0]["score"], told["candidates"][0]["estimated_usd"]) == (1.5, "0.0015")
    assert told["candidates"][2]["missing"] == ["vision"]
    request = told["request"]
    assert (request["outcome"], request["operation"], request["model"]) == ("completed", "chat", "default")
    assert (request["finish_reason"], request["streamed"], request["latency"]) == ("tool_calls", True, 0.25)
    assert (request["usage"], request["cost_usd"]) == ({"input_tokens": 20, "output_tokens": 3}, "0.003")
    first, second = told["attempts"]
    assert (first["backend_id"], first["fate"], first["cost_usd"]) == ("adapter-p0:p0/m", "failed", "0.001")
    assert (first["latency"], first["error"]["reason"], first["error"]["code"]) == (0.04, "RATE_LIMITED", 429)
    assert (first["error"]["retry_after"], first["error"]["upstream_status"]) == (1.5, 429)
    assert (second["backend_id"], second["fate"], second["error"]) == ("adapter-p1:p1/m", "answered", None)
    assert second["usage"] == {"input_tokens": 10, "output_tokens": 2}
    assert told["error"] is None


async def test_a_request_that_failed(gateway: Gateway, publisher: EventPublisher) -> None:
    name = new_request_id()
    failure = pb.Failure(reason=ErrorReason.ERROR_REASON_RATE_LIMITED, http_status=429, retryable=True)
    await record(
        publisher,
        limited(name),
        pb.RequestFailed(request_id=name, failure=failure, attempts=1, decision=DECISION, persona="reviewer"),
    )
    told = (await explain(gateway, name)).json
    assert (told["request"]["outcome"], told["request"]["persona"]) == ("failed", "reviewer")
    assert (told["error"]["reason"], told["error"]["code"], told["error"]["retryable"]) == ("RATE_LIMITED", 429, True)
    assert [(each["attempt"], each["fate"]) for each in told["attempts"]] == [(1, "failed")]
    assert (told["request"]["cost_usd"], told["attempts"][0]["usage"]) == (None, None)


async def test_nobody_else_finds_it(gateway: Gateway, publisher: EventPublisher) -> None:
    name = new_request_id()
    await record(publisher, completed(name))
    theirs = await explain(gateway, name, OTHER_KEY)
    assert (theirs.status, theirs.json["error"]["reason"]) == (404, "NOT_FOUND")
    assert "p0" not in theirs.data.decode()
    assert (await explain(gateway, name)).status == 200


async def test_what_is_not_recorded_says_how_long_anything_is(gateway: Gateway, publisher: EventPublisher) -> None:
    await record(publisher, completed(new_request_id()))
    for name, told in (
        (new_request_id(), "kept for 7 days"),
        (f"req_{int((time.time() - 9 * 86400) * 1000):012x}{'a' * 12}", "kept for 7 days; this one is older"),
        ("order-17", "the last 15 minutes were looked at: to go back further give `after`"),
    ):
        reply = await explain(gateway, name)
        assert (reply.status, reply.json["error"]["reason"]) == (404, "NOT_FOUND")
        assert name in reply.json["error"]["message"]
        assert told in reply.json["error"]["message"]


async def test_an_id_of_the_callers_own_means_its_latest_use(gateway: Gateway, publisher: EventPublisher) -> None:
    """An id may be part of another one, and may come again: nothing is mixed up."""
    again = completed("order-1")
    again.requested_model = "second"
    del again.attempt_usages[:]
    again.attempts = 1
    await record(publisher, limited("order-1"), completed("order-1"), limited("order-17"), again, completed("order-17"))
    told = (await explain(gateway, "order-1")).json
    assert (told["request"]["model"], [each["fate"] for each in told["attempts"]]) == ("second", ["answered"])
    before = datetime.datetime.fromtimestamp(time.time() - 60, datetime.UTC).isoformat()
    assert (await explain(gateway, "order-17", after=before)).json["request_id"] == "order-17"
    ahead = datetime.datetime.fromtimestamp(time.time() + 60, datetime.UTC).isoformat()
    missed = await explain(gateway, "order-17", after=ahead)
    assert (missed.status, "in the future" in missed.json["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"request_id": 7}, "request_id"),
        ({"request_id": None}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
        ({"request_id": "x", "model": "fast"}, "model"),
        ({"request_id": "x", "after": "yesterday"}, "after"),
        ({"request_id": "x", "after": 5}, "after"),
        ({"request_id": "x", "after": "2026-05-01T12:00:00"}, "after"),
    ],
)
async def test_a_wrong_question(start: Start, body: dict[str, Any], field: str) -> None:
    reply = await (await start(ScriptedProvider())).post(body, method="Explain")
    assert (reply.status, reply.json["error"]["reason"]) == (400, "INVALID_REQUEST")
    assert [found["field"] for found in reply.json["error"]["details"]] == [field]


async def test_without_nats_it_says_so_and_the_rest_goes_on(start: Start) -> None:
    async with EventReader(f"nats://127.0.0.1:{free_port()}") as reader:
        gateway = await start(ScriptedProvider(), events=reader)
        begun = time.monotonic()
        reply = await explain(gateway, new_request_id())
        assert (reply.status, reply.json["error"]["reason"]) == (503, "NO_BACKEND")
        assert "NATS can't be reached" in reply.json["error"]["message"]
        assert time.monotonic() - begun < 8
        assert (await gateway.post({}, method="Explain")).status == 200


async def test_a_request_of_this_gateway(start: Start, nats_url: str, publisher: EventPublisher) -> None:
    """The events that the gateway really publishes make a record."""
    async with EventReader(nats_url) as reader:
        gateway = await start(
            ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT), ScriptedProvider(answer("fine")), events=reader
        )
        assert (await gateway.post(question())).status == 200
        await gateway.event("request.completed")
        for event in gateway.events:
            publisher.publish(event)
        assert await publisher.flush()
        told = (await explain(gateway, "req-of-the-test")).json
    assert told["request"]["outcome"] == "completed"
    assert [(each["attempt"], each["fate"], each["backend_id"]) for each in told["attempts"]] == [
        (1, "failed", "adapter-p0:p0/model"),
        (2, "answered", "adapter-p1:p1/model"),
    ]
