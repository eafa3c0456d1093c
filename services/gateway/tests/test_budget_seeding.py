"""A ledger that stands still: requests do not wait for it again and again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.budgets import Budgets
from maestro_gateway.budgets.bill import LedgerAway
from maestro_gateway.budgets.counters import Counter, period_at
from maestro_gateway.ledger.tally import Tally
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store.holds import Answer, Outcome

_SILENCE = 0.5


class Ledger:
    """Takes events and tells nothing of it, until it is `alive`; where events go, too."""

    accepted = secured = 0
    degraded, delayed = "", False

    def __init__(self) -> None:
        self.alive = False
        self.asked = 0

    def publish(self, event: Event) -> None:
        raise AssertionError(f"nobody should tell {event.kind}")

    async def flush(self, timeout: float = 5.0) -> bool:
        self.asked += 1
        if not self.alive:
            await asyncio.sleep(min(timeout, _SILENCE))
        return self.alive

    async def tally(self, tenant: str, since: int, until: int | None = None) -> Tally:
        return Tally()

    async def tenants(self) -> list[str]:
        return ["acme"]


async def test_only_the_first_requests_wait_for_a_ledger_that_stands_still() -> None:
    ledger, nobody = Ledger(), None
    source: Any = nobody  # nothing is planned
    config = {"all": BudgetConfig.model_validate({"period": "month", "usd": "1"})}
    budgets = Budgets(config, source, ledger, ledger, lambda name: set())
    counter = Counter("all", period_at("month", time.time()), ())
    found = Answer(Outcome.UNSEEDED)

    async def seed() -> float:
        """How long a request waits that finds the counter unknown."""
        begun = time.monotonic()
        budgets.seeds.unknown_until = 0.0
        try:
            await budgets.seeds.seed(budgets.holds, config["all"], counter, found)
        finally:
            waits.append(time.monotonic() - begun)
        return waits[-1]

    waits: list[float] = []
    for _ in range(3):
        with pytest.raises(LedgerAway):
            await seed()
    assert waits[0] >= _SILENCE * 0.9
    assert max(waits[1:]) < _SILENCE / 2
    ledger.alive = True
    async with asyncio.timeout(5):
        # What was asked while it stood still has to come to its end first.
        while True:
            try:
                await seed()
                break
            except LedgerAway:
                continue
    assert await seed() < _SILENCE / 2
    await budgets.close()
