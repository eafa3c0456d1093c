"""Budgets at the front doors: what is held, what is charged, who is refused, who waits, who goes a cheaper way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from maestro.event.v1.event_pb2 import BudgetAction, Event
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_gateway.budgets import Budgets
from maestro_gateway.budgets.counters import period_at
from maestro_gateway.ledger.tally import Tally
from maestro_sdk.errors import BudgetExhausted, NoBackend, from_rpc_error
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store import StoreAway
from maestro_sdk.service.store.holds import Answer, Hold
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, OTHER_KEY, Gateway, Source, Start, metadata, question

PRICE = Price(effective_date="2026-01-01", input="0", output="1000")
"""A thousandth of a dollar for a token of an answer."""
CHEAP = Price(effective_date="2026-01-01", input="0", output="1")
MILLI = 10**6


@dataclass
class Book:
    """The ledger, and where events go: what was published is written at once."""

    events: list[Event]
    earlier: list[Event] = field(default_factory=list[Event])
    away: bool = False
    degraded: str = ""

    async def tally(self, tenant: str, since: int, until: int | None = None) -> Tally:
        if self.away:
            raise NoBackend("the ledger is away")
        tally = Tally()
        for event in (*self.earlier, *self.events):
            if event.tenant == tenant and event.time.ToNanoseconds() >= since:
                tally.count(event)
        return tally

    async def tenants(self) -> list[str]:
        if self.away:
            raise NoBackend("the ledger is away")
        return sorted({event.tenant for event in (*self.earlier, *self.events)})

    @property
    def accepted(self) -> int:
        return len(self.events)

    @property
    def secured(self) -> int:
        return len(self.events)

    @property
    def delayed(self) -> bool:
        return False

    def publish(self, event: Event) -> None:
        self.events.append(event)

    async def flush(self, timeout: float = 5.0) -> bool:
        return True


@dataclass
class Bench:
    """Makes the budgets of a gateway, and keeps them at hand."""

    config: dict[str, BudgetConfig]
    denies: bool = False
    earlier: Sequence[Event] = ()
    budgets: Budgets = field(init=False)
    book: Book = field(init=False)

    def __call__(self, source: Source, published: list[Event]) -> Budgets:
        self.book = Book(published, list(self.earlier))
        self.budgets = Budgets(
            self.config, source, self.book, self.book, lambda name: set(), denies_without_store=self.denies
        )
        return self.budgets

    async def spent(self, budget: str) -> list[tuple[int, int, int]]:
        """Thousandths of a dollar, tokens, and thousandths that are held, of each counter of a budget."""
        period = period_at(self.config[budget].period, time.time())
        found = await self.budgets.balances(budget, period)
        return sorted((each.usd // MILLI, each.tokens, each.held_usd // MILLI) for each in found)


def bench(denies: bool = False, **budgets: dict[str, Any]) -> Bench:
    config = {
        name: BudgetConfig.model_validate({"period": "month", "wait": 0, **each}) for name, each in budgets.items()
    }
    return Bench(config, denies)


def priced(tokens: int, *, fault: Fault | None = None, pace: float = 0.0) -> ScriptedProvider:
    """A provider whose answers have so many tokens."""
    *events, _ = answer("Hello", " there", ".")
    used = Usage(input_tokens=5, output_tokens=tokens)
    end = Finish(reason=FinishReason.FINISH_REASON_STOP, usage=used)
    return ScriptedProvider([*events, ChatEvent(finish=end)], fault=fault, pace=pace)


def request(**more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])], **more)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def told(gateway: Gateway, kind: str) -> list[Event]:
    return [event for event in gateway.events if event.kind == kind]


async def test_what_was_used_is_charged_and_the_rest_given_back(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1", "each": ["tenant"]})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    for streamed in (False, True):
        assert (await gateway.post(question(max_tokens=80, stream=streamed))).status == 200
    assert await bench_.spent("all") == [(14, 24, 0)]
    refused = await gateway.post(question(max_tokens=87))
    assert (refused.status, refused.json["error"]["reason"]) == (402, "BUDGET_EXHAUSTED")
    assert refused.json["error"]["metadata"] == {
        "budget": "all",
        "period": time.strftime("%Y-%m", time.gmtime()),
        "measure": "usd",
    }
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86400
    assert "0.087000 US dollars" in refused.json["error"]["message"]
    assert "0.086000 of 0.100000" in refused.json["error"]["message"]
    assert (await gateway.post(question(max_tokens=86))).status == 200
    assert len(told(gateway, "request.denied")) == 1


@pytest.mark.parametrize("own", [{"tenants": ["acme"]}, {"each": ["key"]}, {"tenants": ["acme", "globex"]}, {}])
async def test_nobody_is_told_what_others_spent(start: Start, own: dict[str, Any]) -> None:
    gateway = await start(priced(7), budgets=bench(all={"tokens": 500, **own}))
    for key in (KEY, OTHER_KEY):
        assert (await gateway.post(question(max_tokens=10), key)).status == 200
    refused = await gateway.post(question(max_tokens=490))
    alone = own.get("tenants") == ["acme"] or "each" in own
    assert ("488 of 500 tokens left" in refused.json["error"]["message"]) is alone
    assert ("which several share, has less left" in refused.json["error"]["message"]) is not alone


async def test_a_request_that_does_not_say_how_long_is_taken_for_a_long_one(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1", "longest_answer": 101})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    assert (await gateway.post(question())).status == 402
    assert (await gateway.post(question(max_tokens=100))).status == 200


async def test_each_counts_for_itself(start: Start) -> None:
    bench_ = bench(
        one={"usd": "0.01", "each": ["tenant"]},
        labelled={"tokens": 110, "labels": {"team": ["a", "b"]}, "each": ["label:team"]},
    )
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    assert [(await gateway.post(question(max_tokens=7), key)).status for key in (KEY, KEY, OTHER_KEY)] == [
        200,
        402,
        200,
    ]
    assert await bench_.spent("one") == [(7, 12, 0), (7, 12, 0)]
    assert await bench_.spent("labelled") == []
    bench_.config.pop("one")
    bench_.budgets.adopt(bench_.config)
    for team, status in (("a", 200), ("b", 200), ("a", 402), ("c", 200), ("b", 402)):
        assert (await gateway.post(question(max_tokens=7, metadata={"team": team}))).status == status, team
    assert await bench_.spent("labelled") == [(7, 12, 0), (7, 12, 0)]


@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE_CONTENT, Fault.ERROR_AFTER_CONTENT])
async def test_a_request_that_fails_is_charged_what_it_used(start: Start, fault: Fault) -> None:
    bench_ = bench(all={"usd": "0.1"})
    gateway = await start(priced(7, fault=fault), budgets=bench_, prices={"p0": PRICE}, max_attempts=1)
    await gateway.post(question(max_tokens=90, stream=True))
    event = await gateway.event("request.failed")
    used = event.request_failed.attempt_usages[0].usage
    assert await bench_.spent("all") == [(used.output_tokens, used.input_tokens + used.output_tokens, 0)]
    assert bool(used.output_tokens) is (fault is Fault.ERROR_AFTER_CONTENT)


async def test_a_stream_that_is_cut_gives_back_what_it_did_not_use(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1"})
    provider = priced(7, fault=Fault.STALL_AFTER_CONTENT)
    gateway = await start(provider, budgets=bench_, prices={"p0": PRICE})
    call = gateway.chats.StreamChat(request(max_tokens=90), metadata=metadata(KEY))
    await call.read()
    assert await bench_.spent("all") == [(0, 0, 90)]
    error = (await gateway.post(question(max_tokens=11))).json["error"]
    assert (error["reason"], error["retry_after"]) == ("BUDGET_EXHAUSTED", 1.0)
    assert "beside what requests under way hold" in error["message"]
    call.cancel()
    await gateway.event("request.failed")
    ((spent, _, held),) = await bench_.spent("all")
    assert (held, 0 < spent < 10) == (0, True)


async def test_who_would_fit_waits_for_others_to_give_back(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1", "wait": 5})
    provider = priced(5, pace=0.005)
    gateway = await start(provider, budgets=bench_, prices={"p0": PRICE})
    # Each holds 60 and uses 5: one at a time fits, and nine of them in all.
    replies = await asyncio.gather(*(gateway.post(question(max_tokens=60)) for _ in range(20)))
    assert sorted(reply.status for reply in replies) == [200] * 9 + [402] * 11
    assert await bench_.spent("all") == [(45, 90, 0)]
    assert (await gateway.post(question(max_tokens=55))).status == 200


async def test_the_caller_who_saw_the_end_has_back_what_was_held(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1"})
    gateway = await start(priced(1), budgets=bench_, prices={"p0": PRICE})
    for _ in range(5):
        stream = gateway.chats.StreamChat(request(max_tokens=95), metadata=metadata(KEY))
        async for batch in stream:
            if batch.events[-1].HasField("finish"):
                break
        stream.cancel()
    assert (await bench_.spent("all"))[0][0] == 5


async def test_all_attempts_are_charged(start: Start) -> None:
    bench_ = bench(all={"usd": "1"})
    gateway = await start(
        priced(7, fault=Fault.STALL_BEFORE_CONTENT),
        priced(5),
        budgets=bench_,
        prices={"p0": Price(effective_date="2026-01-01", input="1000", output="1000"), "p1": PRICE},
        hedge_after=0.03,
        max_extra=1.0,
    )
    assert (await gateway.post(question("hello world!", max_tokens=9))).status == 200
    done = (await gateway.event("request.completed")).request_completed
    assert len(done.attempt_usages) == 2
    assert done.attempt_usages[0].cost.usd == "0.003000"
    assert await bench_.spent("all") == [(8, 13, 0)]


async def test_who_has_spent_it_goes_a_cheaper_way(start: Start) -> None:
    bench_ = bench(all={"usd": "0.01", "action": "degrade", "degrade_to": "p1/model"})
    dear, cheap = priced(7), priced(7)
    gateway = await start(dear, cheap, budgets=bench_, prices={"p0": PRICE, "p1": CHEAP})
    body = question(max_tokens=7, model="first")
    replies = [await gateway.post({**body, "stream": stream}) for stream in (False, False, True)]
    assert [reply.status for reply in replies] == [200] * 3
    assert [reply.headers.get("x-maestro-budget") for reply in replies] == [None, "degraded", "degraded"]
    assert (len(dear.requests), len(cheap.requests)) == (1, 2)
    ends = [event.request_completed for event in told(gateway, "request.completed")]
    assert [(end.degraded, end.requested_model, end.provider) for end in ends] == [
        (False, "first", "p0"),
        (True, "first", "p1"),
        (True, "first", "p1"),
    ]
    assert [(each.usd, each.held_usd) for each in await bench_.budgets.balances("all", _month())] == [(7_014_000, 0)]
    (exhausted,) = told(gateway, "budget.exhausted")
    assert exhausted.budget_exhausted.action == BudgetAction.BUDGET_ACTION_DEGRADE


async def test_thresholds_and_the_end_are_told_once(start: Start) -> None:
    bench_ = bench(mine={"usd": "0.1", "each": ["tenant"], "thresholds": [0.1, 0.5, 1.0]})
    gateway = await start(priced(30), budgets=bench_, prices={"p0": PRICE})
    statuses = [(await gateway.post(question(max_tokens=30))).status for _ in range(5)]
    assert statuses == [200, 200, 200, 402, 402]
    passed = told(gateway, "budget.threshold")
    assert [(event.budget_threshold.threshold, event.budget_threshold.state.spent_usd) for event in passed] == [
        (0.1, "0.030000"),
        (0.5, "0.060000"),
    ]
    (exhausted,) = told(gateway, "budget.exhausted")
    assert (exhausted.tenant, exhausted.subject) == ("acme", "budget/mine")
    assert exhausted.budget_exhausted.state.limit_usd == "0.100000"
    assert len({event.id for event in (*passed, exhausted)}) == 3


async def test_a_gateway_that_starts_anew_knows_what_was_spent(start: Start) -> None:
    first = bench(all={"usd": "0.02"}, mine={"usd": "0.02", "tenants": ["globex"]})
    gateway = await start(priced(7), budgets=first, prices={"p0": PRICE})
    for key in (KEY, OTHER_KEY):
        await gateway.post(question(max_tokens=7), key)
    second = bench(all={"usd": "0.02"}, mine={"usd": "0.02", "tenants": ["globex"]})
    second.earlier = gateway.events
    again = await start(priced(7), budgets=second, prices={"p0": PRICE})
    assert (await again.post(question(max_tokens=6), OTHER_KEY)).status == 200
    assert await second.spent("all") == [(21, 36, 0)]
    assert await second.spent("mine") == [(14, 24, 0)]
    assert (await again.post(question(max_tokens=1))).status == 402


@pytest.mark.parametrize("denies", [True, False])
async def test_while_nobody_knows_what_was_spent_the_policy_decides(start: Start, denies: bool) -> None:
    bench_ = bench(denies=denies, all={"usd": "0.02"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    bench_.book.away = True
    statuses = [(await gateway.post(question(max_tokens=7))).status for _ in range(4)]
    assert statuses == [503 if denies else 200] * 4
    bench_.book.away = False
    bench_.budgets.seeds.unknown_until = 0.0
    assert (await gateway.post(question(max_tokens=7))).status == (200 if denies else 402)
    assert await bench_.spent("all") == [(7 if denies else 28, 12 if denies else 48, 0)]


@pytest.mark.parametrize("denies", [True, False])
async def test_without_the_store_each_gateway_counts_for_itself(start: Start, denies: bool) -> None:
    bench_ = bench(denies=denies, all={"usd": "0.02"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    holds = bench_.budgets.holds

    class Away:
        """A store that does not answer; what is settled is kept for it."""

        settle, undo, forget, seed = holds.settle, holds.undo, holds.forget, holds.seed
        orphans, balances, leave = holds.orphans, holds.balances, holds.leave
        close, unseed, up = holds.close, holds.unseed, False

        def __init__(self) -> None:
            self.on_charge, self.on_doubt = holds.on_charge, holds.on_doubt

        def reserve(self, hold: Hold) -> Answer:
            raise StoreAway("connection to 10.0.0.7 refused")

    bench_.budgets.holds = Away()
    replies = [await gateway.post(question(max_tokens=7)) for _ in range(3)]
    assert [reply.status for reply in replies] == ([503] * 3 if denies else [200, 200, 402])
    assert not any("10.0.0.7" in reply.data.decode() for reply in replies)
    bench_.budgets.holds = holds
    bench_.budgets.forget_safe()
    assert (await gateway.post(question(max_tokens=7))).status == (200 if denies else 402)


async def test_what_has_no_price_is_free_or_refused(start: Start) -> None:
    refusing = bench(all={"usd": "0.02", "unpriced": "reject"}, tokens={"tokens": 1000, "unpriced": "reject"})
    gateway = await start(priced(7), budgets=refusing)
    refused = await gateway.post(question())
    assert (refused.status, refused.json["error"]["metadata"]["unpriced"]) == (402, "p0/model")
    free = bench(all={"usd": "0.02"})
    other = await start(priced(7), budgets=free)
    assert [(await other.post(question())).status for _ in range(3)] == [200] * 3
    assert await free.spent("all") == [(0, 36, 0)]


async def test_grpc_tells_the_budget_too(start: Start) -> None:
    gateway = await start(priced(7), budgets=bench(all={"usd": "0.001"}), prices={"p0": PRICE})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.Chat(request(max_tokens=2), metadata=metadata(KEY))
    error = from_rpc_error(caught.value)
    assert (type(error), error.retry_after) == (BudgetExhausted, None)
    assert "make it shorter" in error.message


async def test_an_unknown_model_is_no_matter_of_budgets(start: Start) -> None:
    bench_ = bench(all={"usd": "0.001"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    assert (await gateway.post(question(model="nowhere/nothing"))).status == 404
    assert await bench_.spent("all") == [(0, 0, 0)]


async def test_the_orphan_of_a_held_request_stands_in_for_the_event_that_ends_it(start: Start) -> None:
    bench_ = bench(all={"usd": "0.1"})
    gateway = await start(priced(7), budgets=bench_, prices={"p0": PRICE})
    wishes: list[Hold] = []
    reserve = bench_.budgets.holds.reserve

    def note(hold: Hold) -> Any:
        wishes.append(hold)
        return reserve(hold)

    bench_.budgets.holds.reserve = note
    await gateway.post(question(max_tokens=20, metadata={"team": "a"}))
    (end,) = told(gateway, "request.completed")
    orphan = Event.FromString(wishes[-1].record)
    failed = orphan.request_failed
    assert (failed.estimate_of, orphan.tenant, orphan.kind) == (end.id, "acme", "request.failed")
    assert (wishes[-1].id, orphan.id == end.id) == (end.id, False)
    assert (failed.request_id, failed.metadata["team"]) == (end.request_completed.request_id, "a")
    (used,) = failed.attempt_usages
    assert (used.cost.usd, used.cost.estimated, used.usage.output_tokens) == ("0.020000", True, 20)
    assert wishes[-1].shares[0].usd == 20 * MILLI


def _month() -> Any:
    return period_at("month", time.time())
