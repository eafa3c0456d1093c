"""Which budgets hold for whom, what a request may cost at most, and who may see how budgets stand."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    JsonSchemaFormat,
    ResponseFormat,
    Tool,
)
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest, TokenInput
from maestro.llm.v1.message_pb2 import DocumentPart, ImagePart, Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price
from maestro.usage.v1.usage_pb2 import EstimateCostRequest, ListBudgetsRequest
from maestro_gateway.budgets.counters import (
    Asker,
    Counter,
    counter_named,
    counters_of,
    may_hold,
    period_at,
    stands_for,
    tenant_of,
)
from maestro_gateway.budgets.desk import BudgetDesk
from maestro_gateway.budgets.quote import quote_at, quotes_of, size_of
from maestro_gateway.identity.principal import Principal, enter
from maestro_sdk.errors import NotFound, PermissionDenied
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import Plan, plan
from maestro_sdk.mesh.table import Table
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.testing import tables
from maestro_sdk.testing.plain_embedding_servicer import PlainEmbedder

from .conftest import Source
from .spending import completed
from .test_budgets import Bench, bench
from .test_embeddings import doors

NOON = datetime(2026, 2, 28, 12, tzinfo=UTC).timestamp()


def budget(**more: Any) -> BudgetConfig:
    return BudgetConfig.model_validate({"period": "month", "usd": 1, **more})


def priced(name: str, output: str, *, limit: int = 0, window: int = 0, native: tuple[str, ...] = ()) -> Any:
    model = tables.model(name, *native, window=window)
    model.price.CopyFrom(Price(effective_date="2026-01-01", input="1", output=output))
    if limit:
        model.max_output_tokens = limit
    return tables.backend("a", model)


def table(*backends: Any, **limits: Any) -> Table:
    return tables.table(backends, {"default": [(each.model.id, 1.0) for each in backends]}, **limits)


def planned(table: Table, request: ChatRequest) -> Plan:
    return plan(needs_of(request, "acme"), table, LocalState(), NOON, lambda: 0.5)


def chat(*parts: Part, **more: Any) -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=parts)], **more)


def text(value: str) -> Part:
    return Part(text=TextPart(text=value))


def test_periods_are_those_of_the_calendar() -> None:
    month, day = period_at("month", NOON), period_at("day", NOON)
    assert (month.name, day.name) == ("2026-02", "2026-02-28")
    assert datetime.fromtimestamp(month.start, UTC) == datetime(2026, 2, 1, tzinfo=UTC)
    assert month.end == day.end == datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    assert period_at("month", month.end).name == "2026-03"
    assert (
        period_at("month", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()).end
        == period_at("day", datetime(2026, 12, 31, tzinfo=UTC).timestamp()).end
    )


@pytest.mark.parametrize(
    ("config", "asker", "values"),
    [
        ({}, Asker("acme"), ()),
        ({"tenants": ["acme"]}, Asker("acme"), ()),
        ({"tenants": ["acme"]}, Asker("globex"), None),
        ({"keys": ["ci"]}, Asker("acme", "key_1", "ci"), ()),
        ({"keys": ["key_1"]}, Asker("acme", "key_1", "ci"), ()),
        ({"keys": ["key_2"]}, Asker("acme", "key_1", "ci"), None),
        ({"personas": ["tester"]}, Asker("acme", persona="tester"), ()),
        ({"personas": ["tester"]}, Asker("acme"), None),
        ({"labels": {"team": "a"}}, Asker("acme", labels={"team": "a"}), ()),
        ({"labels": {"team": ["a", "b"]}}, Asker("acme", labels={"team": "c"}), None),
        ({"labels": {"team": "a"}}, Asker("acme"), None),
        ({"each": ["tenant", "key"]}, Asker("acme", "key_1"), ("acme", "key_1")),
        ({"each": ["persona", "label:team"]}, Asker("acme", labels={"team": "a|b %"}), ("", "a|b %")),
    ],
)
def test_who_falls_under_which(config: dict[str, Any], asker: Asker, values: tuple[str, ...] | None) -> None:
    budgets = {"b": budget(**config)}
    holding = {name: each for name, each in budgets.items() if may_hold(each, asker)}
    found = list(counters_of(holding, asker, NOON))
    assert [counter.values for counter in found] == ([values] if values is not None else [])
    for counter in found:
        assert counter_named(counter.name, budgets) == counter, "a store gives back what it was told"
        assert counter.name.count("|") == 1 + len(counter.values) + bool(counter.filters)


def test_counters_of_others_are_none_of_ours() -> None:
    budgets = {"b": budget(each=["tenant"])}
    assert counter_named("gone|2026-02|acme", budgets) is None
    assert counter_named("b|2026-02", budgets) is None
    assert counter_named("b|2026-02-28|acme", budgets) is None
    assert tenant_of(budgets["b"], Counter("b", period_at("month", NOON), ("acme",))) == "acme"
    assert tenant_of(budget(tenants=["acme"]), Counter("b", period_at("month", NOON), ())) == "acme"
    assert tenant_of(budget(tenants=["acme", "globex"]), Counter("b", period_at("month", NOON), ())) is None


def test_what_a_ledger_has_is_counted_as_a_request_is() -> None:
    config = budget(keys=["ci"], labels={"team": ["a", "b"]}, each=["tenant", "persona", "label:team"])
    counter = Counter("b", period_at("month", NOON), ("acme", "", "a"))
    ids = frozenset({"ci", "key_1"})
    assert stands_for(config, counter, ids, "key_1", "", {"team": "a"})
    assert not stands_for(config, counter, ids, "key_2", "", {"team": "a"})
    assert not stands_for(config, counter, ids, "key_1", "tester", {"team": "a"})
    assert not stands_for(config, counter, ids, "key_1", "", {"team": "b"})
    assert not stands_for(config, counter, ids, "key_1", "", {})


def test_a_quote_is_never_below_what_is_likely() -> None:
    request = chat(text("word " * 1000), system="be kind", tools=[Tool(name="t", input_schema="{}")])
    size = size_of(request)
    assert size.likely < size.most
    assert size.most >= 5000 // 2
    assert size_of(chat(text("漢" * 1000))).most >= 1500
    assert size_of(chat(Part(image=ImagePart(url="https://x/y.png")))).most >= 4000
    assert size_of(chat(Part(document=DocumentPart(url="https://x/y.pdf")))).most >= 50_000
    backend = table(priced("p/m", "10", window=600)).backends["a:p/m"]
    assert quote_at(backend, size, 16_000).usage.input_tokens == 600, "no more than the window can be read"


@pytest.mark.parametrize(
    ("asked", "limit", "tokens"),
    [(0, 0, 16_000), (0, 400, 400), (50, 400, 50), (0, 64_000, 16_000), (32_000, 64_000, 32_000)],
)
def test_how_long_an_answer_is_taken_for(asked: int, limit: int, tokens: int) -> None:
    backend = table(priced("p/m", "10", limit=limit)).backends["a:p/m"]
    quote = quote_at(backend, size_of(chat(text("hi"), max_tokens=asked)), 16_000)
    assert quote.usage.output_tokens == tokens
    assert quote.nano_usd == quote.usage.input_tokens * 1000 + tokens * 10_000


def test_repairs_are_calls_too() -> None:
    schema = ResponseFormat(json_schema=JsonSchemaFormat(schema="{}", max_repairs=2))
    request = chat(text("hi"), max_tokens=10, response_format=schema)
    polyfilled = tables.model("p/m", polyfilled=("JSON_SCHEMA",))
    poly, native = (
        table(each).backends["a:p/m"]
        for each in (tables.backend("a", polyfilled), priced("p/m", "1", native=("JSON_SCHEMA",)))
    )
    assert quote_at(poly, size_of(request), 100).usage.output_tokens == 30
    assert quote_at(native, size_of(request), 100).usage.output_tokens == 10


def test_the_dearest_of_the_plan_is_held_and_the_next_where_two_are_asked() -> None:
    backends = priced("p/cheap", "1"), priced("p/dear", "9"), priced("p/middle", "5")
    request = chat(text("hi"), max_tokens=10)
    alone = quotes_of(planned(table(*backends), request), size_of(request), 100)
    assert [quote.backend.model for quote in alone] == ["p/dear"]
    hedged = quotes_of(planned(table(*backends, hedge_after=1.0, max_extra=0.5), request), size_of(request), 100)
    assert [quote.backend.model for quote in hedged] == ["p/dear", "p/middle"]


def test_vectors_have_no_answer() -> None:
    request = EmbedRequest(inputs=[EmbedInput(text="x" * 100), EmbedInput(tokens=TokenInput(ids=[1, 2, 3]))])
    size = size_of(request)
    assert size.most >= 53
    assert quote_at(table(priced("p/m", "10")).backends["a:p/m"], size, 16_000).usage.output_tokens == 0


def desk_of(bench_: Bench, *backends: Any, events: list[Event] | None = None) -> BudgetDesk:
    return BudgetDesk(bench_(Source(table(*backends)), events or []))


def as_caller(tenant: str, *scopes: str) -> None:
    enter(Principal(tenant, "key_1", frozenset(scopes), "key"))


async def test_tenants_see_their_own_budgets_and_operators_all() -> None:
    bench_ = bench(
        shared={"usd": 1}, mine={"usd": 2, "tenants": ["acme"], "action": "degrade", "degrade_to": "cheap"},
        theirs={"tokens": 5, "tenants": ["globex"]}, each={"usd": 3, "each": ["tenant"]},
    )  # fmt: skip
    desk = desk_of(bench_, priced("p/m", "1"))

    async def names(asked: ListBudgetsRequest) -> list[tuple[str, str]]:
        return [(each.budget, each.tenant) for each in (await desk.list_budgets(asked)).budgets]

    as_caller("acme", "admin")
    assert await names(ListBudgetsRequest()) == [("each", "acme"), ("mine", "acme")]
    (mine,) = (await desk.list_budgets(ListBudgetsRequest(budget="mine"))).budgets
    assert (mine.limit_usd, mine.spent_usd, mine.degrade_to) == ("2.000000", "0.000000", "cheap")
    assert not mine.HasField("limit_tokens")
    for hidden in ("theirs", "shared", "nowhere"):
        with pytest.raises(NotFound):
            await desk.list_budgets(ListBudgetsRequest(budget=hidden))
    for tenant in ("globex", "-"):
        with pytest.raises(PermissionDenied):
            await desk.list_budgets(ListBudgetsRequest(tenant=tenant))
    as_caller("operations", "operator")
    assert await names(ListBudgetsRequest(tenant="-")) == [("mine", "acme"), ("shared", ""), ("theirs", "globex")]
    assert await names(ListBudgetsRequest(tenant="globex")) == [("each", "globex"), ("theirs", "globex")]


def test_an_estimate_tells_each_backend_in_its_order() -> None:
    unknown = tables.backend("a", tables.model("p/unknown"))
    desk = desk_of(bench(), priced("p/first", "10", limit=500), priced("p/second", "1"), unknown)
    as_caller("acme", "chat")
    asked = EstimateCostRequest(chat=chat(text("x" * 400)))
    first, second, third = desk.estimate(asked).estimates
    assert (first.model, first.input_tokens, first.max_output_tokens) == ("first", 100, 500)
    assert (first.minimum.usd, first.maximum.usd, first.estimated) == ("0.000100", "0.005100", True)
    assert second.HasField("minimum")
    assert not second.HasField("maximum"), "nobody knows how long its answer may be"
    assert not third.HasField("minimum")
    asked.chat.max_tokens = 20
    assert [each.max_output_tokens for each in desk.estimate(asked).estimates] == [20, 20, 20]
    with pytest.raises(NotFound):
        desk.estimate(EstimateCostRequest(chat=chat(text("x"), model="nowhere")))


async def test_embeddings_are_held_and_charged_and_never_sent_elsewhere() -> None:
    bench_ = bench(all={"tokens": 130, "action": "degrade", "degrade_to": "p1/other"})
    embedder = PlainEmbedder("p0/small")
    async with doors(embedder, PlainEmbedder("p1/other"), budgets=bench_) as running:
        bodies = [{"model": "p0/small", "input": [text]} for text in ("x" * 90, "x" * 90, "x" * 8)]
        replies = [await running.post(body) for body in bodies]
        assert [reply.status for reply in replies] == [200, 402, 200]
        used = sum(replies[number].json["usage"]["prompt_tokens"] for number in (0, 2))
        assert [tokens for _, tokens, _ in await bench_.spent("all")] == [used]
        assert [event.kind for event in running.events].count("request.denied") == 1


async def test_a_budget_that_is_renamed_holds_for_what_began_under_it() -> None:
    budgets = bench(old={"usd": 1})(Source(table(priced("p/m", "1"))), [])
    bill = budgets.bill(chat(text("x"), model="p/m"), "acme", "key_1", "key_1", "")
    assert bill is not None
    budgets.adopt({"new": budget()})
    async with asyncio.timeout(2):
        await bill.reserve(lambda attempts: completed(*attempts))
    (found,) = await budgets.balances("old", period_at("month", time.time()))
    assert found.held_usd > 0
