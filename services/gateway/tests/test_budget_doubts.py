"""Counters that may be wrong are told anew by the ledger, and those of a budget that counts others from now on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from maestro_gateway.budgets.counters import counter_named, period_at
from maestro_gateway.budgets.doubts import Doubts
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store import StoreAway
from maestro_sdk.service.store.holds import Hold, Share
from maestro_sdk.service.store.journal import HoldJournal

from .conftest import Start, question
from .test_budgets import MILLI, PRICE, bench, priced


async def test_a_budget_that_counts_others_from_now_on_learns_what_these_spent(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1", "labels": {"team": "a"}})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    for team in "aab":
        assert (await gateway.post(question(max_tokens=7, metadata={"team": team}))).status == 200
    assert await bench_.spent("all") == [(14, 24, 0)]
    narrowed = BudgetConfig.model_validate({"period": "month", "wait": 0, "usd": "0.1", "labels": {"team": "b"}})
    bench_.config = {"all": narrowed}
    bench_.budgets.adopt(bench_.config)
    assert (await gateway.post(question(max_tokens=7, metadata={"team": "b"}))).status == 200
    period = period_at("month", time.time())
    found = {each.counter: each.usd // MILLI for each in await bench_.budgets.balances("all", period)}
    assert found[f"all|{period.name}|={narrowed.filters}"] == 14
    assert [name for name in found if counter_named(name, bench_.config)] == [f"all|{period.name}|={narrowed.filters}"]


async def test_a_counter_in_doubt_is_told_anew(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1", "each": ["tenant"]}, other={"usd": "5"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    assert (await gateway.post(question(max_tokens=7))).status == 200
    budgets, holds = bench_.budgets, bench_.budgets.holds
    (before,) = await budgets.balances("all", period_at("month", time.time()))
    wrong = Hold("wrong", (Share(before.counter, 0, 0, -1, -1, 2**52),), b"")
    holds.settle(wrong, 30 * MILLI, 3, b"")
    holds.forget(["wrong"])
    assert (await bench_.spent("all"))[0][0] == 37
    budgets.doubts.add([before.counter, "gone|2026-01", before.counter.replace("acme", "nobody")])
    bench_.book.away = True
    with pytest.raises(StoreAway):
        await budgets.doubts.settle(budgets.renew)
    assert (await bench_.spent("all"))[0][0] == 37, "while the ledger is away it counts as it is"
    bench_.book.away, budgets.seeds.unknown_until = False, 0.0
    await budgets.doubts.settle(budgets.renew)
    assert len(budgets.doubts) == 1, "an end is not safe yet: no request should wait for that"
    budgets.forget_safe()
    await budgets.doubts.settle(budgets.renew)
    assert (await bench_.spent("all"), len(budgets.doubts)) == ([(7, 12, 0)], 0)


async def test_doubts_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "doubts.journal"
    journal = HoldJournal(path)
    before = Doubts(journal)
    before.add(["a", "b"])
    before.add(["b", "c"])
    renewed: list[str] = []

    async def renew(name: str) -> bool:
        if name == "b":
            raise StoreAway("away")
        renewed.append(name)
        return True

    with pytest.raises(StoreAway):
        await before.settle(renew)
    journal.close()
    after = Doubts(HoldJournal(path))
    assert (renewed, len(after)) == (["a"], 2)
