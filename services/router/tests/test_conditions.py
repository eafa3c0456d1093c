"""Routers that hear each other late and in any order come to the same view of every backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro_router.conditions import Conditions
from maestro_router.marks import Mark
from maestro_sdk.mesh.breaker import BreakerPolicy
from maestro_sdk.service.settings import QuarantineConfig
from maestro_sdk.testing.tables import model

SCOPE, ACCOUNT = "a:p/one", "a:p"
POLICY = BreakerPolicy(consecutive_failures=1, open_time=10.0, quota_open_time=60.0)
QUARANTINE = QuarantineConfig(breaches=1, window=5.0, time=40.0)
View: TypeAlias = tuple[int, str, int, bool]
REASONS = {
    "fail": (ErrorReason.ERROR_REASON_UPSTREAM_ERROR, True),
    "quota": (ErrorReason.ERROR_REASON_PROVIDER_QUOTA, True),
    "limited": (ErrorReason.ERROR_REASON_RATE_LIMITED, False),
}


class Routers:
    """Some routers, and the marks that are on their way to each of them."""

    def __init__(self, count: int) -> None:
        self.all = [Conditions(f"router {number}", POLICY, QUARANTINE) for number in range(count)]
        self.on_their_way: list[list[Mark]] = [[] for _ in self.all]

    def act(self, number: int, what: str, now: float) -> None:
        router = self.all[number]
        router.look(now)
        match what:
            case "succeed":
                router.report(pb.Outcome(backend_id=SCOPE), ACCOUNT, now)
            case "fail" | "quota" | "limited":
                reason, counts = REASONS[what]
                outcome = pb.Outcome(backend_id=SCOPE, reason=reason, counts_against_health=counts)
                outcome.retry_after.FromSeconds(7)
                router.report(outcome, ACCOUNT, now)
            case "account":
                opening = pb.Opening(scope=ACCOUNT, reason="PROVIDER_AUTH")
                opening.until.FromNanoseconds(int((now + 30) * 1e9))
                router.open(opening, now)
            case "breach":
                router.report(pb.Outcome(backend_id=SCOPE, breach="no finish"), ACCOUNT, now)
            case "drain":
                router.wish(SCOPE, ACCOUNT, pb.BACKEND_STATE_DRAINING, "upgrade", now)
            case _:
                router.wish(SCOPE, ACCOUNT, pb.BACKEND_STATE_ACTIVE, "", now)
        self.send(number)

    def send(self, number: int) -> None:
        told, self.all[number].told = self.all[number].told, []
        for other, waiting in enumerate(self.on_their_way):
            if other != number:
                waiting.extend(told)

    def deliver(self, number: int, now: float, which: int = 0) -> None:
        """One of the waiting marks arrives; one that was older is answered with what is known, as `Shared` does."""
        waiting, router = self.on_their_way[number], self.all[number]
        if not waiting:
            return
        mark = waiting.pop(which % len(waiting))
        router.adopt(mark, now)
        known = router.known(mark)
        if known is not None and known != mark:
            router.told.append(known)
        self.send(number)

    def settle(self, now: float) -> None:
        for _ in range(1000):
            if not any(self.on_their_way):
                break
            for number in range(len(self.all)):
                self.deliver(number, now)
        for router in self.all:
            router.look(now)

    def views(self, now: float) -> set[View]:
        return {view(router, now) for router in self.all}


def view(router: Conditions, now: float) -> View:
    """What keeps calls away. Who hears of an opening after its end has nothing to try: that may be half open or not."""
    backend = pb.Backend(id=SCOPE, model=model("p/one"))
    router.describe(backend, ACCOUNT, None, now)
    if backend.state in (pb.BACKEND_STATE_ACTIVE, pb.BACKEND_STATE_HALF_OPEN):
        return (pb.BACKEND_STATE_ACTIVE, "", 0, False)
    return (backend.state, backend.state_reason, backend.state_until.ToNanoseconds(), backend.account_wide)


WHAT = st.sampled_from(["succeed", "fail", "quota", "limited", "account", "breach", "drain", "activate", "deliver"])
MOVES = st.lists(st.tuples(st.integers(0, 2), WHAT, st.integers(0, 20)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(MOVES)
def test_all_see_the_same_once_they_heard_of_everything(moves: Sequence[tuple[int, str, int]]) -> None:
    routers, now = Routers(3), 1000.0
    for number, what, pause in moves:
        now += 0.01 + pause / 4
        if what == "deliver":
            routers.deliver(number, now, pause)
        else:
            routers.act(number, what, now)
    now += 0.01
    routers.settle(now)
    assert not any(routers.on_their_way), "they never stop telling each other"
    assert len(routers.views(now)) == 1
    # Also for one that begins now and hears only what the others keep.
    late = Conditions("late", POLICY, QUARANTINE)
    for mark in routers.all[0].marks(now):
        late.adopt(mark, now)
    assert view(late, now) == view(routers.all[0], now)
