"""The cache and budgets together: a hit is free, also for who has spent all, and a cheaper answer is no dear one."""

from __future__ import annotations

from maestro_gateway.cache import AnswerStore

from .conftest import Start, question
from .test_budgets import CHEAP, PRICE, bench, priced, told


async def test_who_has_spent_everything_still_gets_what_was_paid_for(start: Start) -> None:
    bench_ = bench(all={"usd": "0.01"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE}, cache=600, store=AnswerStore())
    body = question(max_tokens=7)
    assert (await gateway.post(body)).status == 200
    assert (await gateway.post(question("something else", max_tokens=7))).status == 402
    for stream in (False, True):
        reply = await gateway.post({**body, "stream": stream})
        assert (reply.status, reply.headers["x-maestro-cache"]) == (200, "hit")
    assert await bench_.spent("all") == [(7, 12, 0)]
    assert [event.request_completed.cached for event in told(gateway, "request.completed")] == [False, True, True]


async def test_the_answer_of_a_cheaper_route_is_not_kept_for_the_dear_one(start: Start) -> None:
    bench_ = bench(all={"usd": "0.01", "action": "degrade", "degrade_to": "p1/model"})
    dear, cheap = priced(7), priced(7)
    store = AnswerStore()
    gateway = await start(dear, cheap, budgets=bench_, prices={"p0": PRICE, "p1": CHEAP}, cache=600, store=store)
    for stream in (False, True):
        before = question(f"spends it all {stream}", max_tokens=7, model="default")
        await gateway.post(before)
        asked = question("what then", max_tokens=7, model="default", stream=stream)
        replies = [await gateway.post(asked), await gateway.post(asked)]
        assert [reply.headers.get("x-maestro-budget") for reply in replies] == ["degraded"] * 2
        assert [reply.headers["x-maestro-cache"] for reply in replies] == ["miss"] * 2
    assert (len(dear.requests), len(cheap.requests)) == (1, 5)
