"""Questions for usage: groups, filters, pages, tables, and what is wrong with a question."""

from __future__ import annotations

import csv
import datetime
import io
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import AttemptFate, AttemptUsage
from maestro.llm.v1.usage_pb2 import Usage as Tokens
from maestro.usage.v1.usage_pb2 import QueryUsageRequest, QueryUsageResponse
from maestro_gateway.identity.principal import Principal, enter
from maestro_gateway.ledger import Ledger, Tally, Usage
from maestro_gateway.ledger.query import Answer, Query
from maestro_gateway.ledger.table import csv_pieces
from maestro_sdk.errors import InvalidRequest, MaestroError, PermissionDenied

from .spending import attempt, completed, failed

NOON = int(datetime.datetime(2026, 3, 9, 12, tzinfo=datetime.UTC).timestamp()) * 10**9
HOUR = 3600 * 10**9


def answered(tally: Tally, **fields: Any) -> Answer:
    query = Query.of(QueryUsageRequest(**fields), NOON)
    answer, viewed = Answer(query), Tally(query.view)
    for row, sums in tally.rows.items():
        viewed.at(row).add(sums)
    answer.add("acme", viewed)
    return answer


def asked(tally: Tally, **fields: Any) -> QueryUsageResponse:
    return answered(tally, **fields).message()


@pytest.fixture
def tally() -> Tally:
    found = Tally()
    outrun = attempt(5, 100, model="m-2")
    outrun.provider, outrun.adapter, outrun.fate = "globex", "other", AttemptFate.ATTEMPT_FATE_OUTRUN
    found.count(completed(outrun, attempt(1000), at=NOON, team="a", cost="7"))
    found.count(completed(attempt(2000), at=NOON - 24 * HOUR, team="b", key="k2"))
    found.count(failed(attempt(None), at=NOON))
    found.count(failed(at=NOON))  # it reached no backend
    cached = completed(AttemptUsage(), at=NOON)
    del cached.request_completed.attempt_usages[:]
    cached.request_completed.attempts, cached.request_completed.cached = 0, True
    found.count(cached)
    return found


def test_every_attempt_is_charged_to_its_own_backend(tally: Tally) -> None:
    rows = [row for row in asked(tally, group_by=["provider", "model"]).rows if row.totals.attempts]
    assert [dict(row.group) for row in rows] == [
        {"provider": "acme", "model": "m-1"},
        {"provider": "globex", "model": "m-2"},
    ]
    told = [(row.totals.requests, row.totals.attempts, row.totals.input_tokens, row.totals.cost_usd) for row in rows]
    assert told == [(3, 3, 30, "0.000003"), (0, 1, 100, "0.000000005")]


def test_totals_are_those_of_all_rows(tally: Tally) -> None:
    totals = asked(tally).totals
    assert (totals.requests, totals.failed_requests, totals.attempts) == (3, 1, 4)
    assert totals.cost_usd == "0.000003005"
    assert (totals.unpriced_requests, totals.estimated_requests, totals.cached_requests) == (1, 0, 1)
    assert [row.totals for row in asked(tally).rows] == [totals]


def test_a_cost_that_nobody_knows_is_no_zero() -> None:
    tally = Tally()
    tally.count(completed(attempt(None)))
    totals = asked(tally).totals
    assert not totals.HasField("cost_usd")
    assert totals.unpriced_requests == 1
    free = Tally()
    free.count(completed(attempt(0)))
    assert asked(free).totals.cost_usd == "0.000000"


def test_nothing_costs_nothing() -> None:
    assert asked(Tally()).totals.cost_usd == "0.000000"
    refused = attempt(None)
    refused.ClearField("usage")
    tally = Tally()
    tally.count(failed(refused))
    totals = asked(tally).totals
    assert (totals.requests, totals.unpriced_requests, totals.cost_usd) == (1, 0, "0.000000")


def test_a_model_may_be_named_as_requests_name_it(tally: Tally) -> None:
    for name in ("m-2", "globex/m-2"):
        assert asked(tally, model=name).totals.input_tokens == 100
    assert asked(tally, model="acme/m-2").totals.attempts == 0


def test_an_end_that_another_gateway_told_counts() -> None:
    tally, orphan = Tally(), failed(attempt(7, model="m-3"))
    for field in ("attempts", "provider", "model", "adapter"):
        orphan.request_failed.ClearField(field)
    tally.count(orphan)
    (row,) = asked(tally, group_by=["model"]).rows
    assert (row.group["model"], row.totals.requests, row.totals.cost_usd) == ("m-3", 1, "0.000000007")


def test_an_estimate_is_told() -> None:
    tally, used = Tally(), attempt()
    used.usage.CopyFrom(Tokens(input_tokens=1, estimated=True))
    tally.count(completed(used, attempt()))
    assert asked(tally).totals.estimated_requests == 1


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("day", ["2026-03-08", "2026-03-09"]),
        ("hour", ["2026-03-08T12", "2026-03-09T12"]),
        ("month", ["2026-03"]),
        ("key", ["k1", "k2"]),
        ("label:team", ["", "a", "b"]),
        ("label:nobody", [""]),
        ("operation", ["chat"]),
    ],
)
def test_groups(tally: Tally, word: str, values: list[str]) -> None:
    found = sorted(row.group[word] for row in asked(tally, group_by=[word]).rows)
    assert [value for value in found if value or word.startswith("label")] == values


@pytest.mark.parametrize(
    ("fields", "attempts"),
    [
        ({"key_id": "k2"}, 1),
        ({"provider": "globex"}, 1),
        ({"model": "m-1"}, 3),
        ({"labels": ["team=a"]}, 2),
        ({"labels": ["team=a", "cost=7"]}, 2),
        ({"labels": ["team=a", "cost=8"]}, 0),
        ({"labels": ["cost="]}, 0),
        ({"persona": "x"}, 0),
        ({"key_id": "k1", "group_by": ["label:team", "hour"]}, 2),
    ],
)
def test_filters(tally: Tally, fields: dict[str, Any], attempts: int) -> None:
    assert asked(tally, **fields).totals.attempts == attempts


def test_pages_hold_every_row_once() -> None:
    tally = Tally()
    for number in range(250):
        tally.count(completed(attempt(number), at=NOON, user=f"u{number:03}"))
    fields: dict[str, Any] = {"group_by": ["label:user"], "page_size": 100}
    seen: list[str] = []
    first = page = asked(tally, **fields)
    while True:
        seen += [row.group["label:user"] for row in page.rows]
        assert page.totals == first.totals
        # The span stays that of the first page, however late the next one is asked for.
        assert (page.start_time, page.end_time) == (first.start_time, first.end_time)
        if not page.next_page_token:
            break
        page = asked(tally, **fields, page_token=page.next_page_token)
    assert seen == [f"u{number:03}" for number in range(250)]
    for strange in ("x", "W10", page.next_page_token + "AA", first.next_page_token[:-3]):
        if strange:
            with pytest.raises(InvalidRequest, match="page_token"):
                asked(tally, **fields, page_token=strange)
    with pytest.raises(InvalidRequest, match="page_token"):
        asked(tally, group_by=["label:user"], key_id="k1", page_token=first.next_page_token)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"group_by": ["day", "modl"]}, r"group_by\[1\]: 'modl' is nothing to group by; there are tenant, key"),
        ({"group_by": ["label:"]}, r"group_by\[0\]: 'label:' is nothing"),
        ({"group_by": ["label:" + "x" * 65]}, r"group_by\[0\]"),
        ({"labels": ["a=b", "team"]}, r"labels\[1\]: 'team' is not of the form name=value"),
        ({"labels": ["=b"]}, r"labels\[0\]"),
        ({"start_time": {"seconds": 2}, "end_time": {"seconds": 2}}, "start_time: the span ends before it begins"),
        ({"end_time": {"seconds": 2}}, "end_time: .* without a start_time usage is that of the current month"),
        ({"start_time": {"seconds": -1}}, "start_time: is not a time from 1970"),
        ({"end_time": {"seconds": 2**60}}, "end_time: is not a time"),
        ({"start_time": {"seconds": 1, "nanos": -1}}, "start_time: is not a time"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        Query.of(QueryUsageRequest(**fields), NOON)
    assert caught.value.violations[0].field in says.replace("\\", "")


def test_without_a_span_it_is_the_current_month() -> None:
    query = Query.of(QueryUsageRequest(), NOON)
    assert query.start == int(datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC).timestamp()) * 10**9
    assert query.end == NOON


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tenant": "globex"}, "tenant: another tenant than the key's own needs the scope 'operator'"),
        ({"tenant": "-"}, "tenant: another tenant"),
        ({"group_by": ["day", "tenant"]}, r"group_by\[1\]: needs the scope 'operator'"),
    ],
)
async def test_only_operators_see_other_tenants(fields: dict[str, Any], says: str) -> None:
    enter(Principal("acme", "key_1", frozenset({"admin"}), "key"))
    usage = Usage(Ledger("nats://127.0.0.1:1"))
    refused: list[MaestroError] = []
    for ask in (usage.query, usage.export):
        with pytest.raises(PermissionDenied, match=says) as caught:
            await ask(QueryUsageRequest(**fields))
        refused.append(caught.value)
    assert len(refused) == 2
    enter(Principal("acme", "key_1", frozenset({"operator"}), "key"))
    with pytest.raises(InvalidRequest, match="tenant: 'a b' is not a tenant"):
        await usage.query(QueryUsageRequest(tenant="a b"))


def test_a_table_is_whole_quoted_and_no_formula() -> None:
    tally = Tally()
    names = ['=HYPERLINK("http://x")', "+1", "-1", "@x", "\tx", 'a,"b"', "two\nlines", "ümlaut", ""]
    for name in names:
        tally.count(completed(attempt(1500), at=NOON, user=name))
    tally.count(completed(attempt(None), at=NOON, user="free"))
    words = ["label:user", "day"]
    data = b"".join(csv_pieces(words, answered(tally, group_by=words).rows))
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""))
    assert header[:3] == ["label:user", "day", "requests"]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    dangerous = {f"'{name}" for name in names if name[:1] in ("=", "+", "-", "@", "\t")}
    assert dangerous | {'a,"b"', "two\nlines", "ümlaut", "", "free"} == set(found)
    assert found["ümlaut"]["cost_usd"] == "0.0000015"
    assert found["free"]["cost_usd"] == ""
    assert b"\r\n" in data


def test_a_long_table_comes_in_pieces() -> None:
    tally = Tally()
    for number in range(3000):
        tally.count(completed(attempt(1), at=NOON, user=f"u{number}"))
    pieces = list(csv_pieces(["label:user"], answered(tally, group_by=["label:user"]).rows))
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 70_000
    assert len(b"".join(pieces).splitlines()) == 3001
