"""Usage through every door, held against what the providers themselves charged."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import random
import time
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from maestro.usage.v1.usage_pb2 import QueryUsageRequest
from maestro.usage.v1.usage_pb2_grpc import UsageServiceStub
from maestro_sdk.prices import format_usd
from maestro_sdk.service.channel import open_channel

from .conftest import INPUT, OPERATOR, PIECE, Mesh, key_of

REQUESTS = int(os.environ.get("USAGE_REQUESTS", "120"))
SEED = 5
Case = dict[str, Any]


async def told(mesh: Mesh, key: str, **query: Any) -> Any:
    """The answer to a question for usage."""
    status, answer = await mesh.rest("/v1/usage", key, **query)
    assert status == 200, answer
    return answer


async def settled(mesh: Mesh, key: str, requests: int, **query: Any) -> Any:
    """The answer, as soon as it holds so many requests: events are on their way for a moment."""
    async with asyncio.timeout(30):
        while True:
            status, answer = await mesh.rest("/v1/usage", key, **query)
            if status == 200 and int(answer["totals"]["requests"]) >= requests:
                return answer
            await asyncio.sleep(0.1)


CASES: tuple[Case, ...] = (
    {"one": [7, "answer"]},
    {"one": [7, "answer"], "streamed": True},
    {"one": [0, "fail"], "two": [5, "answer"]},
    {"one": [0, "fail"], "two": [0, "fail"]},
    {"one": [3, "break"], "two": [4, "answer"], "streamed": True},
    {"one": [0, "break"], "two": [4, "answer"], "streamed": True},
    {"route": "resumed", "one": [3, "break"], "two": [4, "answer"], "streamed": True},
    {"route": "hedged", "one": [0, "hold"], "two": [6, "follow"], "streamed": True},
    {"one": [2, "hold"], "streamed": True, "leave_after": 2},
    {"one": [0, "fail"], "two": [1, "hold"], "streamed": True, "leave_after": 1},
)


async def test_the_ledger_is_the_sum_of_the_meters(mesh: Mesh, figures: list[str]) -> None:
    """Failures, other backends, handovers, hedges, callers that leave; NATS is killed in the middle."""
    dice = random.Random(SEED)
    # Whatever was asked before it was ready is not of this tenant.
    nano, tokens = mesh.metered
    ends: Counter[str] = Counter()
    gate = asyncio.Semaphore(24)

    async def one(number: int) -> None:
        case = dict(CASES[number % len(CASES)])
        async with gate:
            ends[await mesh.ask("storm", number, labels={"case": str(number % len(CASES))}, id=number, **case)] += 1
        if number == REQUESTS // 2:
            mesh.process.kill("nats")

    numbers = list(range(REQUESTS))
    dice.shuffle(numbers)
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))
    answer = await settled(mesh, key_of("storm"), REQUESTS)
    totals = answer["totals"]
    charged = mesh.metered[0] - nano, mesh.metered[1] - tokens
    assert totals["cost_usd"] == format_usd(charged[0])
    assert int(totals["input_tokens"]) + int(totals["output_tokens"]) == charged[1]
    assert int(totals["requests"]) == REQUESTS
    assert int(totals["unpriced_requests"]) == 0
    # Each provider has what it charged, whoever answered in the end.
    by_provider = await told(mesh, key_of("storm"), group_by="provider")
    ledger = {row["group"]["provider"]: row["totals"].get("cost_usd") for row in by_provider["rows"]}
    assert set(ledger) == {"one", "two"}
    assert sum(int(row["totals"]["requests"]) for row in by_provider["rows"]) == REQUESTS
    by_case = await told(mesh, key_of("storm"), group_by="label:case")
    assert [row["group"]["label:case"] for row in by_case["rows"]] == sorted(str(n) for n in range(len(CASES)))
    hedged = next(row["totals"] for row in by_case["rows"] if row["group"]["label:case"] == "7")
    assert int(hedged["attempts"]) == 2 * int(hedged["requests"])
    figures.append(
        f"{REQUESTS} requests with NATS killed in the middle: providers' meters {format_usd(charged[0])} US$ and "
        f"{charged[1]} tokens, ledger {totals['cost_usd']} US$ in {totals['attempts']} attempts; {dict(ends)}"
    )


async def test_a_table_says_the_same(mesh: Mesh) -> None:
    for number in range(4):
        await mesh.ask("acme", number, one=[number, "answer"], labels={"team": '=cmd|" /C calc",' if number else "b"})
    await settled(mesh, key_of("acme"), 4)
    query: dict[str, Any] = {"group_by": ["label:team", "model"]}
    answer = await told(mesh, key_of("acme"), **query)
    status, headers, text = await mesh.get("/v1/usage.csv", key_of("acme"), **query)
    assert status == 200
    assert headers["content-type"] == "text/csv; charset=utf-8"
    assert headers["content-disposition"] == 'attachment; filename="usage.csv"'
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["label:team"] for row in rows] == ['\'=cmd|" /C calc",', "b"]
    assert [(row["requests"], row["cost_usd"]) for row in rows] == [
        (row["totals"]["requests"], row["totals"]["cost_usd"]) for row in answer["rows"]
    ]
    asked = ("usage", "--url", mesh.process.url, "--key", key_of("acme"), "--by")
    (code, out, err), (code_of_view, view, _) = await asyncio.gather(
        mesh.process.run(*asked, "label:team,model", "--csv"), mesh.process.run(*asked, "day", "--from", "1d")
    )
    assert (code, out.splitlines(), err) == (0, text.splitlines(), "")
    assert code_of_view == 0
    assert f"{datetime.now(UTC):%Y-%m-%d}" in view
    assert answer["totals"]["cost_usd"] in view


async def test_spans_and_pages(mesh: Mesh) -> None:
    before = time.time()
    for number in range(5):
        await mesh.ask("globex", number, one=[1, "answer"], labels={"run": f"spans-{number}"})
    query: dict[str, Any] = {"group_by": "label:run", "start_time": rfc3339(before)}
    whole = await settled(mesh, key_of("globex"), 5, **query)
    assert [row["group"]["label:run"] for row in whole["rows"]] == [f"spans-{number}" for number in range(5)]
    assert int(whole["totals"]["input_tokens"]) == 5 * INPUT
    seen: list[str] = []
    token = ""
    while True:
        page = await told(mesh, key_of("globex"), **query, page_size=2, page_token=token)
        seen += [row["group"]["label:run"] for row in page["rows"]]
        if not (token := page["next_page_token"]):
            break
    assert seen == [f"spans-{number}" for number in range(5)]
    only = await told(mesh, key_of("globex"), labels="run=spans-3", start_time=rfc3339(before))
    assert int(only["totals"]["requests"]) == 1
    earlier = await told(mesh, key_of("globex"), labels="run=spans-3", end_time=rfc3339(before))
    assert (earlier["totals"]["requests"], earlier["totals"]["cost_usd"]) == ("0", "0.000000")
    async with open_channel(mesh.process.target) as channel:
        stub: Any = UsageServiceStub(channel)
        metadata = (("authorization", f"Bearer {key_of('globex')}"),)
        typed = await stub.QueryUsage(QueryUsageRequest(labels=["run=spans-3"]), metadata=metadata, timeout=10)
        assert (typed.totals.requests, typed.totals.output_tokens) == (1, 1)


async def test_tenants_see_their_own_and_operators_all(mesh: Mesh) -> None:
    answer = await mesh.ask("globex", one=[1, "answer"], labels={"secret": "of-globex"})
    assert answer == PIECE
    await settled(mesh, OPERATOR, 1, tenant="globex", labels="secret=of-globex")
    for query in ({}, {"labels": "secret=of-globex"}, {"group_by": "label:secret"}):
        found = await told(mesh, key_of("acme"), **query)
        assert "of-globex" not in json.dumps(found)
    for query in ({"tenant": "globex"}, {"tenant": "-"}, {"group_by": "tenant"}):
        for path in ("/v1/usage", "/v1/usage.csv"):
            status, refused = await mesh.rest(path, key_of("acme"), **query)
            assert (status, refused["error"]["reason"]) == (403, "PERMISSION_DENIED"), (path, query)
    rows = (await told(mesh, OPERATOR, group_by="tenant"))["rows"]
    assert "globex" in {row["group"]["tenant"] for row in rows}
    every = await told(mesh, OPERATOR, tenant="-")
    assert int(every["totals"]["requests"]) >= sum(int(row["totals"]["requests"]) for row in rows)


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/usage.csv"])
@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"group_by": "modl"}, "group_by[0]: 'modl' is nothing to group by; there are tenant, key"),
        ({"labels": "team"}, "labels[0]: 'team' is not of the form name=value"),
        ({"start_time": "2026-03-02T00:00:00Z", "end_time": "2026-03-01T00:00:00Z"}, "start_time: the span ends"),
        ({"page_token": "nonsense"}, "page_token: "),
        ({"page_size": "20000"}, "page_size"),
        ({"start_time": "yesterday"}, "start_time: invalid value"),
        ({"nonsense": "1"}, "nonsense"),
        ({"group_by": ["day", "day"]}, "group_by"),
    ],
)
async def test_a_wrong_question_is_told_what_is_wrong(mesh: Mesh, path: str, query: dict[str, Any], says: str) -> None:
    status, answer = await mesh.rest(path, key_of("acme"), **query)
    assert (status, answer["error"]["reason"]) == (400, "INVALID_REQUEST"), answer
    assert says in answer["error"]["message"] or says in json.dumps(answer["error"]["details"])


async def test_without_a_key_nothing_is_told(mesh: Mesh) -> None:
    for path in ("/v1/usage", "/v1/usage.csv"):
        status, answer = await mesh.rest(path, "")
        assert (status, answer["error"]["reason"]) == (401, "UNAUTHENTICATED")
    async with open_channel(mesh.process.target) as channel:
        stub: Any = UsageServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.QueryUsage(QueryUsageRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
