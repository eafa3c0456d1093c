"""What follows an error of an item, what runs add up to, and what may be spent: pure."""

from decimal import Decimal

import pytest

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.error_pb2 import ErrorDetail, ErrorReason
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro.usage.v1.usage_pb2 import UsageTotals
from maestro_gateway.jobs.outcome import Again, Note, error_from, next_step
from maestro_gateway.jobs.purse import Leave, Purse
from maestro_gateway.jobs.totals import add, count, split
from maestro_sdk.errors import (
    BudgetExhausted,
    Conflict,
    Internal,
    InvalidRequest,
    MaestroError,
    NoBackend,
    Overloaded,
    RateLimited,
    TenantConcurrency,
    TenantRateLimited,
)
from maestro_sdk.mesh.trail import Attempt, Trail
from maestro_sdk.testing import tables

[BACKEND] = tables.table([tables.backend("fake", tables.model("fake/model"))], {}).backends.values()


@pytest.mark.parametrize(
    ("error", "reached", "runs", "step"),
    [
        pytest.param(TenantRateLimited("wait", retry_after=7.5), False, 3, Again(7.5, counted=False), id="rate"),
        pytest.param(TenantRateLimited("never"), False, 1, None, id="more than is ever allowed"),
        pytest.param(TenantConcurrency("busy"), False, 3, Again(1.0, counted=False), id="busy"),
        pytest.param(NoBackend("all down"), False, 3, Again(1.0, counted=False), id="nothing was tried"),
        pytest.param(RateLimited("full", retry_after=9.0), False, 3, Again(9.0, counted=False), id="no room yet"),
        pytest.param(RateLimited("large", retryable=False), False, 1, None, id="no room for it ever"),
        pytest.param(NoBackend("down", retry_after=9.0), False, 3, Again(9.0, counted=False), id="down for a while"),
        pytest.param(Overloaded("busy"), True, 1, Again(1.0, counted=True), id="first wait"),
        pytest.param(Overloaded("busy"), True, 2, Again(2.0, counted=True), id="second wait"),
        pytest.param(RateLimited("slow", retry_after=30.0), True, 1, Again(30.0, counted=True), id="retry-after"),
        pytest.param(Overloaded("busy"), True, 3, None, id="no run is left"),
        pytest.param(Conflict("stands"), True, 1, Again(1.0, counted=True), id="a call that can't be taken up"),
        pytest.param(InvalidRequest("bad"), True, 1, None, id="the caller's fault"),
        pytest.param(BudgetExhausted("spent"), False, 1, None, id="no money"),
    ],
)
def test_what_follows_an_error(error: MaestroError, reached: bool, runs: int, step: Again | None):
    assert next_step(error, reached=reached, runs=runs, max_runs=3, dice=lambda: 0.5) == step


def test_who_waits_for_long_asks_more_seldom():
    steps = [
        next_step(TenantConcurrency("busy"), reached=False, runs=1, max_runs=3, waits=waits) for waits in (0, 1, 3, 9)
    ]
    assert steps == [Again(delay, counted=False) for delay in (1.0, 2.0, 8.0, 15.0)]


def test_waits_stay_within_a_quarter_of_their_length_and_two_and_a_half_minutes():
    for runs in range(1, 11):
        for rolled in (0.0, 0.999):
            step = next_step(Overloaded("busy"), reached=True, runs=runs, max_runs=99, dice=lambda at=rolled: at)
            assert step is not None
            usual = min(2.0 ** (runs - 1), 120.0)
            assert 0.75 * usual <= step.delay <= 1.25 * usual


def trail(tokens: int, usd: str, attempts: int = 1) -> Trail:
    found = Trail()
    for number in range(attempts):
        attempt = Attempt(BACKEND, number + 1, 0.0)
        attempt.usage = Usage(input_tokens=tokens, output_tokens=1)
        attempt.cost = Cost(usd=usd) if usd else None
        found.attempts.append(attempt)
    return found


def test_runs_add_up_and_survive_being_stored():
    note = Note()
    note.count(trail(10, "0.000001001", attempts=2), failed=True)
    note.count(trail(5, "0.3"), failed=False)
    note = Note.decode(note.encode())
    assert note.spent.usage == Usage(input_tokens=25, output_tokens=3)
    assert Decimal(note.spent.cost.usd) == Decimal("0.300002002")
    assert (note.totals.requests, note.totals.failed_requests, note.totals.attempts) == (2, 1, 3)
    assert Decimal(note.totals.cost_usd) == Decimal("0.300002002")


def test_a_cost_that_is_unknown_is_never_taken_for_nothing():
    note = Note()
    note.count(trail(10, "0.1"), failed=True)
    note.count(trail(10, ""), failed=False)
    assert not note.spent.HasField("cost")
    assert (note.totals.cost_usd, note.totals.unpriced_requests) == ("0.1", 1)


def test_sums_are_exact_to_the_nano_dollar():
    totals = UsageTotals()
    for _ in range(10_000):
        add(totals, UsageTotals(requests=1, cost_usd="0.000000001"))
    assert totals.requests == 10_000
    assert Decimal(totals.cost_usd) == Decimal("0.00001")


def test_counts_always_add_up_to_the_total():
    progress = pb.JobProgress(total=4)
    count(progress, "JOB_ITEM_STATE_SUCCEEDED")
    count(progress, "JOB_ITEM_STATE_CANCELLED")
    # More may seem to be under way than is left: what has a result is still to be acknowledged.
    split(progress, 3)
    assert progress == pb.JobProgress(total=4, succeeded=1, cancelled=1, running=2)
    with pytest.raises(ValueError, match="no item ends as"):
        count(progress, "JOB_ITEM_STATE_UNSPECIFIED")


def test_a_purse_gives_no_more_than_it_has():
    purse = Purse(spent=40)
    assert purse.take(1, 30, 100) is Leave.GIVEN
    assert purse.take(2, 31, 100) is Leave.LATER
    assert purse.take(2, 30, 100) is Leave.GIVEN
    # An item that is run again needs no second place.
    assert purse.take(1, 30, 100) is Leave.GIVEN
    assert Purse(spent=40).take(3, 61, 100) is Leave.NEVER


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (ErrorReason.ERROR_REASON_OVERLOADED, Overloaded),
        (ErrorReason.ERROR_REASON_UNSPECIFIED, Internal),
        # One that a newer gateway wrote.
        (ErrorReason.ValueType(9999), Internal),
    ],
)
def test_a_reason_that_is_not_known_is_an_internal_error(reason: ErrorReason.ValueType, kind: type[MaestroError]):
    error = error_from(ErrorDetail(reason=reason, message="busy", retryable=True))
    assert (type(error), error.message, error.retryable) == (kind, "busy", True)
