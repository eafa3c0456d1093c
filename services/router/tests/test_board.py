"""What the board makes of outcomes, openings and wishes: the table, events, and marks for other routers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.message import Message

from maestro.event.v1 import event_pb2
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro_router.board import Board
from maestro_router.compile import Adapter
from maestro_router.marks import Kind, Mark
from maestro_sdk.service.settings import load
from maestro_sdk.testing.tables import model

ONE, TWO, OTHER = "a:p/one", "a:p/two", "b:p/one"
BREAKER = {"consecutive_failures": 2, "open_time": "10s", "quota_open_time": "300s"}
QUARANTINE = {"breaches": 3, "window": "60s", "time": "600s"}


class Stand:
    """A board with two adapters, and what it tells."""

    def __init__(self, folder: Path) -> None:
        file = folder / "maestro.yaml"
        document = {"version": 1, "routes": {"default": {"targets": ["p/one"]}}, "aliases": {}}
        file.write_text(yaml.safe_dump(document | {"router": {"breaker": BREAKER, "quarantine": QUARANTINE}}))
        self.events: list[Message] = []
        self.marks: list[Mark] = []
        self.board = Board(load(file, env={}), lambda _, payload: self.events.append(payload))
        self.board.share = self.marks.extend
        self.serve("a", "p/one", "p/two")
        self.serve("b", "p/one")
        self.events.clear()

    def serve(self, name: str, *models: str, started: float = 5.0) -> None:
        found = tuple(model(each) for each in models)
        self.board.see(
            Adapter(name, "x:1", pb.ADAPTER_STATE_SERVING, "", "1", ("p",), found, since=started, started=started)
        )

    def state(self, name: str = ONE) -> str:
        backend = self.board.table.backends[name]
        wide = " of the account" if backend.message.account_wide else ""
        return pb.BackendState.Name(backend.state).removeprefix("BACKEND_STATE_") + wide

    def fail(self, name: str = ONE, times: int = 1, **facts: Any) -> None:
        facts = {"reason": ErrorReason.ERROR_REASON_UPSTREAM_ERROR, "counts_against_health": True} | facts
        self.board.report([pb.Outcome(backend_id=name, **facts)] * times)

    def open(
        self,
        scope: str,
        seconds: float = 0.0,
        reason: str = "told by a gateway",
        *,
        since: float = 0.0,
        until: float = 0.0,
    ) -> None:
        opening = pb.Opening(scope=scope, reason=reason)
        opening.until.FromNanoseconds(int((until or time.time() + seconds) * 1e9))
        if since:
            opening.since.FromNanoseconds(int(since * 1e9))
        self.board.report([], [opening])

    def kinds(self) -> list[str]:
        return [event.DESCRIPTOR.name for event in self.events]


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncGenerator[Stand]:
    stand = Stand(tmp_path)
    yield stand
    stand.board.close()


async def test_failures_open_a_breaker_and_one_opening_is_one_event_and_one_mark(stand: Stand) -> None:
    stand.fail(times=2)
    assert (stand.state(), stand.state(TWO), stand.state(OTHER)) == ("OPEN", "ACTIVE", "ACTIVE")
    assert stand.kinds() == ["BackendOpened"]
    (mark,) = stand.marks
    assert (mark.kind, mark.scope, mark.reason) == (Kind.BREAKER, ONE, "UPSTREAM_ERROR, 2 failures in a row")
    assert mark.until == pytest.approx(time.time() + 10, abs=1)
    stand.fail(times=20)
    assert len(stand.marks) == len(stand.events) == 1


async def test_an_opening_that_a_gateway_tells_is_in_the_table_at_once(stand: Stand) -> None:
    before = stand.board.message.version
    stand.open(ONE, 20)
    assert stand.state() == "OPEN"
    assert stand.board.message.version == before + 1
    assert stand.board.table.backends[ONE].state_reason == "told by a gateway"
    stand.open("nobody:p/x", 20)
    stand.open(TWO, -1)
    assert stand.board.message.version == before + 1


async def test_a_gateway_that_did_not_hear_of_the_end_opens_nothing_again(stand: Stand) -> None:
    opened = time.time()
    stand.open(ONE, 20, since=opened)
    assert stand.state() == "OPEN"
    stand.board.set_state(ONE, pb.BACKEND_STATE_ACTIVE, "")
    stand.open(ONE, 20, since=opened)
    assert stand.state() == "ACTIVE"
    stand.open(ONE, 20, since=time.time())
    assert stand.state() == "OPEN"
    # Nor what it knows of an earlier process of the adapter.
    stand.open(OTHER, 20, since=4.0)
    assert stand.state(OTHER) == "ACTIVE"
    stand.open(OTHER, 20, since=6.0)
    assert stand.state(OTHER) == "OPEN"


async def test_several_gateways_that_tell_of_one_opening_make_one_mark(stand: Stand) -> None:
    opened = time.time()
    until = opened + 20
    for _ in range(3):
        stand.open(ONE, until=until, since=opened)
    (mark,) = stand.marks
    assert (mark.since, mark.until) == (pytest.approx(opened), pytest.approx(until))
    assert stand.kinds() == ["BackendOpened"]


async def test_an_account_is_open_for_all_its_models_and_well_by_an_answer_of_any(stand: Stand) -> None:
    stand.open("a:p", 0.02, "PROVIDER_AUTH")
    assert (stand.state(ONE), stand.state(TWO), stand.state(OTHER)) == (
        "OPEN of the account",
        "OPEN of the account",
        "ACTIVE",
    )
    # What keeps one model away for longer is told of that model.
    stand.open(ONE, 20)
    assert (stand.state(ONE), stand.state(TWO)) == ("OPEN", "OPEN of the account")
    await stand.board.newer_than(stand.board.message.version)
    assert stand.state(TWO) == "HALF_OPEN of the account"
    stand.board.report([pb.Outcome(backend_id=TWO)])
    assert (stand.state(ONE), stand.state(TWO)) == ("OPEN", "ACTIVE")
    assert stand.kinds() == ["BackendOpened", "BackendOpened", "BackendHalfOpen", "BackendClosed"]
    last = stand.events[-1]
    assert isinstance(last, event_pb2.BackendClosed)
    assert (last.backend_id, last.why) == ("a:p", "a trial call succeeded")


async def test_who_breaks_the_contract_goes_to_quarantine_until_an_operator_ends_it(stand: Stand) -> None:
    for _ in range(3):
        assert stand.state() == "ACTIVE"
        stand.board.report([pb.Outcome(backend_id=ONE, breach="events after finish")])
    assert stand.state() == "QUARANTINED"
    backend = stand.board.table.backends[ONE]
    assert backend.state_reason == "events after finish"
    assert backend.until == pytest.approx(time.time() + 600, abs=1)
    (event,) = stand.events
    assert isinstance(event, event_pb2.BackendQuarantined)
    assert (event.backend_id, event.breach, event.breaches) == (ONE, "events after finish", 3)
    assert stand.state(TWO) == "ACTIVE"
    # An adapter that ends and starts again is still the same one.
    stand.serve("a", "p/one", "p/two", started=9.0)
    assert stand.state() == "QUARANTINED"
    stand.board.set_state(ONE, pb.BACKEND_STATE_ACTIVE, "")
    assert stand.state() == "ACTIVE"
    stand.board.report([pb.Outcome(backend_id=ONE, breach="no finish")] * 2)
    assert stand.state() == "ACTIVE"


async def test_active_closes_what_is_open_and_is_told_to_the_others(stand: Stand) -> None:
    stand.fail(reason=ErrorReason.ERROR_REASON_PROVIDER_QUOTA)
    stand.open("a:p", 20)
    stand.board.set_state(ONE, pb.BACKEND_STATE_DISABLED, "dear")
    assert stand.state() == "DISABLED"
    stand.marks.clear()
    stand.board.set_state(ONE, pb.BACKEND_STATE_ACTIVE, "")
    assert (stand.state(ONE), stand.state(TWO)) == ("ACTIVE", "ACTIVE")
    closed = [event.why for event in stand.events if isinstance(event, event_pb2.BackendClosed)]
    assert closed == ["an operator closed it"] * 2
    told = {(mark.kind, mark.scope): mark for mark in stand.marks}
    assert {*told} >= {(Kind.WISH, ONE), (Kind.BREAKER, ONE), (Kind.BREAKER, "a:p")}
    assert not any(mark.holds(time.time()) for mark in told.values())
    stand.board.set_state(ONE, pb.BACKEND_STATE_DRAINING, "upgrade")
    assert stand.state() == "DRAINING"


async def test_what_another_router_found_is_taken_over_without_an_echo(stand: Stand) -> None:
    now = time.time()
    mark = Mark(Kind.BREAKER, ONE, since=now, until=now + 20, reason="found there", by="other")
    stand.board.adopt([mark])
    assert (stand.state(), stand.board.table.backends[ONE].state_reason) == ("OPEN", "found there")
    assert (stand.marks, stand.events) == ([], [])
    version = stand.board.message.version
    stand.board.adopt([mark])
    assert stand.board.message.version == version
    stand.board.adopt([Mark(Kind.BREAKER, ONE, cleared=time.time(), by="other")])
    assert stand.state() == "ACTIVE"
    assert (stand.marks, stand.events) == ([], [])


async def test_what_was_found_of_an_earlier_process_is_over_for_all(stand: Stand) -> None:
    now = time.time()
    stand.board.adopt([Mark(Kind.BREAKER, ONE, since=now, until=now + 20, reason="old", started=4.0, by="other")])
    assert stand.state() == "ACTIVE"
    stand.fail(reason=ErrorReason.ERROR_REASON_PROVIDER_QUOTA)
    assert stand.state() == "OPEN"
    stand.serve("a", "p/one", "p/two", started=6.0)
    assert stand.state() == "ACTIVE"
    assert not any(mark.holds(time.time()) for mark in stand.board.marks())
    # Another router may have seen a still newer process before this one did.
    stand.board.adopt([Mark(Kind.BREAKER, ONE, since=now, until=now + 20, reason="new", started=7.0, by="other")])
    assert stand.state() == "ACTIVE"
    later = time.time()
    stand.board.adopt([Mark(Kind.BREAKER, ONE, since=later, until=later + 20, reason="new", started=7.0, by="other")])
    assert stand.state() == "OPEN"


async def test_other_limits_leave_open_what_is_open(stand: Stand, tmp_path: Path) -> None:
    stand.fail(times=2)
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "router": {"breaker": {"consecutive_failures": 3}}}))
    stand.board.configure(load(file, env={}))
    assert stand.state() == "OPEN"
    stand.fail(OTHER, times=2)
    assert stand.state(OTHER) == "ACTIVE"
    stand.fail(OTHER)
    assert stand.state(OTHER) == "OPEN"


async def test_headroom_is_in_the_table_and_makes_a_new_one_when_it_gets_tight(stand: Stand) -> None:
    def left(requests: int) -> None:
        outcome = pb.Outcome(backend_id=ONE)
        outcome.headroom.requests.limit, outcome.headroom.requests.remaining = 1000, requests
        stand.board.report([outcome])

    version = stand.board.message.version
    for requests in (900, 800, 700, 501):
        left(requests)
    assert stand.board.message.version == version
    left(499)
    # At most once a second: the one before has just been made.
    assert stand.board.message.version == version
    message = await stand.board.newer_than(version)
    told = next(backend for backend in message.backends if backend.id == ONE)
    assert told.headroom.requests.remaining == 499
    assert told.headroom_time.ToNanoseconds() / 1e9 == pytest.approx(time.time(), abs=3)


async def test_an_adapter_that_leaves_takes_what_was_found_along(stand: Stand) -> None:
    stand.fail(OTHER, times=2)
    stand.events.clear()
    stand.board.forget("b")
    assert {*stand.board.table.backends} == {ONE, TWO}
    assert [adapter.name for adapter in stand.board.adapters()] == ["a"]
    assert stand.kinds() == ["AdapterLeft"]
    stand.fail(OTHER)
    stand.board.forget("b")
    assert stand.kinds() == ["AdapterLeft"]


async def test_attempts_are_counted_by_backend_and_reason(stand: Stand) -> None:
    stand.fail(times=3)
    stand.board.report([pb.Outcome(backend_id=ONE), pb.Outcome(backend_id="nobody:p/x")])
    stand.board.report([pb.Outcome(backend_id=ONE, breach="events after finish")])
    assert stand.board.attempts == {(ONE, "UPSTREAM_ERROR"): 3, (ONE, ""): 1}
