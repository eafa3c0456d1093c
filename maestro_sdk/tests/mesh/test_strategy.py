"""The order within a tier: each strategy, keys that stick, experiments, and what a request may ask for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, Routing
from maestro.llm.v1.message_pb2 import Role
from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, NoBackend
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, hash_content, mask, needs_of
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.strategy import draw_variant, estimate
from maestro_sdk.mesh.table import STRATEGIES, Table, compile_table
from maestro_sdk.testing.tables import backend, message, model

NOW = 1_700_000_000.0


def priced(name: str, price: tuple[str, str] | None = None, *tags: str, minimum: str = "") -> pb.Backend:
    """A backend "a:<name>" of the model "p/<name>"."""
    described = model(f"p/{name}", "TOOLS")
    described.tags.extend(tags)
    if price:
        described.price.effective_date, described.price.input, described.price.output = "2026-01-01", *price
        described.price.minimum_charge = minimum
    return backend("a", described)


def mesh(
    strategy: str,
    backends: Sequence[pb.Backend],
    change: Callable[[pb.Route], None] | None = None,
    weights: Sequence[float] = (),
) -> Table:
    targets = [(b.model.id, w) for b, w in zip(backends, weights or [1.0] * len(backends), strict=True)]
    made = message(backends, {"default": targets}, strategy=strategy)
    if change:
        change(made.routes[0])
    return compile_table(made)


def names(decision: Plan) -> list[str]:
    return [ranked.choice.backend.model.removeprefix("p/") for ranked in decision.kept]


def decide(table: Table, needs: Needs | None = None, local: LocalState | None = None, dice: Any = None) -> Plan:
    return plan(needs or Needs(""), table, local or LocalState(), NOW, dice or random.Random(7).random)


ABC = [priced("a"), priced("b"), priced("c")]


def test_fallback_keeps_the_order() -> None:
    assert [names(decide(mesh("fallback", ABC))) for _ in range(3)] == [["a", "b", "c"]] * 3


def test_round_robin_takes_turns_per_route() -> None:
    table, local = mesh("round_robin", ABC), LocalState()
    first = [names(decide(table, local=local)) for _ in range(4)]
    assert first == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_weights_are_met() -> None:
    """Chi-square with two degrees of freedom: 13.8 would be met by chance once in a thousand times."""
    dice = random.Random(1)
    table = mesh("weighted", ABC, weights=(6, 3, 1))
    count = Counter(names(decide(table, dice=dice.random))[0] for _ in range(3000))
    expected = {"a": 1800, "b": 900, "c": 300}
    assert sum((count[name] - wanted) ** 2 / wanted for name, wanted in expected.items()) < 13.8


def test_a_weight_of_zero_is_dropped_with_the_reason() -> None:
    decision = decide(mesh("weighted", ABC, weights=(1, 0, 1)))
    assert [(drop.backend.model, drop.reason) for drop in decision.dropped] == [("p/b", "its weight is 0")]


@pytest.mark.parametrize(
    ("input_tokens", "max_tokens", "expected"),
    [
        (1000, 100, ["reads", "both", "writes", "unpriced"]),
        (100, 10_000, ["writes", "both", "reads", "unpriced"]),
    ],
)
def test_cost_asks_the_cheapest_for_this_request(input_tokens: int, max_tokens: int, expected: list[str]) -> None:
    prices = {"both": ("2", "2"), "writes": ("10", "0.1"), "reads": ("0.1", "5")}
    backends = [priced("unpriced"), *(priced(name, price) for name, price in prices.items())]
    decision = decide(mesh("cost", backends), Needs("", input_tokens=input_tokens, max_tokens=max_tokens))
    assert names(decision) == expected
    assert decision.message().candidates[0].estimated_usd == f"{decision.kept[0].choice.cost:.9f}"


def test_an_estimate_is_arithmetic() -> None:
    table = mesh("cost", [priced("a", ("3", "15"), minimum="0.01")])
    found = table.backends["a:p/a"]
    assert estimate(found, Needs("", input_tokens=1000, max_tokens=1000)) == pytest.approx(0.018)
    assert estimate(found, Needs("", input_tokens=10, max_tokens=10)) == 0.01
    assert estimate(table.backends["a:p/a"], Needs("", input_tokens=10_000)) == pytest.approx(0.03 + 512 * 15e-6)


def test_quality_is_a_floor_under_cost() -> None:
    backends = [priced("poor", ("0.1", "0.1")), priced("good", ("3", "15"), "frontier")]
    decision = decide(mesh("cost", backends, lambda route: setattr(route, "quality", "frontier")))
    assert names(decision) == ["good"]
    assert decision.dropped[0].reason == "has no tag 'frontier', which the route demands"


def paced(**paces: tuple[float, float]) -> LocalState:
    local = LocalState()
    for name, (first, rate) in paces.items():
        pace = local.load.paces[f"a:p/{name}"] = Pace()
        pace.first, pace.rate = first, rate
    return local


def test_performance_prefers_the_quick_and_idle() -> None:
    local = paced(a=(2.0, 50), b=(0.2, 100), c=(0.5, 20))
    always_first_pair = iter([0.0, 0.0] * 9).__next__
    assert names(decide(mesh("performance", ABC), local=local, dice=always_first_pair))[0] == "b"
    local.load.in_flight["a:p/b"] = 40
    assert names(decide(mesh("performance", ABC), local=local, dice=iter([0.0, 0.0]).__next__))[0] == "a"


def test_performance_draws_two_and_takes_the_better() -> None:
    """The worst of three is never first; the best is first in two of three draws."""
    local, dice = paced(a=(3.0, 50), b=(2.0, 50), c=(1.0, 50)), random.Random(3)
    count = Counter(names(decide(mesh("performance", ABC), local=local, dice=dice.random))[0] for _ in range(900))
    assert count["a"] == 0
    assert 540 < count["c"] < 660


def test_performance_tries_who_is_not_known() -> None:
    local = paced(a=(2.0, 50))
    assert names(decide(mesh("performance", ABC[:2]), local=local))[0] == "a"
    local.load.in_flight["a:p/a"] = 1
    assert names(decide(mesh("performance", ABC[:2]), local=local))[0] == "b"


def test_a_pace_believes_bad_news_at_once_and_good_news_slowly() -> None:
    pace = Pace()
    pace.observe(0.1, 1.1, 100, NOW)
    assert (pace.first, pace.rate) == (pytest.approx(0.1), pytest.approx(100))
    pace.observe(2.0, 3.0, 100, NOW + 1)
    assert pace.first == 2.0
    pace.observe(0.1, 1.1, 100, NOW + 2)
    assert 1.5 < pace.first < 2.0
    for second in range(100):
        pace.observe(0.1, 1.1, 100, NOW + 3 + second)
    assert pace.first == pytest.approx(0.1, abs=0.01)


def test_a_whole_answer_tells_the_rate_and_not_the_first_event() -> None:
    pace = Pace()
    pace.observe(2.0, 2.0, 100, NOW)
    assert (pace.first, pace.rate) == (0.0, 50.0)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "fallback"])
def test_a_session_stays_where_it_is(strategy: str) -> None:
    table, local = mesh(strategy, [priced(letter, ("1", "1")) for letter in "abcdef"]), LocalState()
    dice = random.Random(5)
    for session in ("x", "y", "z"):
        needs = Needs("", routing=Routing(session_key=session))
        assert len({names(decide(table, needs, local, dice.random))[0] for _ in range(20)}) == 1


def test_only_the_keys_of_a_lost_backend_move() -> None:
    backends = [priced(letter) for letter in "abcdef"]
    before, after = mesh("round_robin", backends), mesh("round_robin", [b for b in backends if b.model.name != "c"])
    moved = kept = 0
    for number in range(2000):
        needs = Needs("", routing=Routing(session_key=str(number)))
        one, other = names(decide(before, needs))[0], names(decide(after, needs))[0]
        if one == "c":
            moved += 1
        else:
            assert one == other
            kept += 1
    assert 250 < moved < 420
    assert moved + kept == 2000


def test_keys_follow_the_weights() -> None:
    table = mesh("weighted", ABC[:2], weights=(9, 1))
    count = Counter(names(decide(table, Needs("", routing=Routing(session_key=str(n)))))[0] for n in range(2000))
    assert 1700 < count["a"] < 1900


def question(text: str, **routing: Any) -> ChatRequest:
    request = ChatRequest(temperature=0.5, routing=Routing(**routing), metadata={"team": "x"})
    request.messages.add(role=Role.ROLE_USER).parts.add().text.text = text
    return request


def test_the_same_question_goes_to_the_same_backend() -> None:
    table = mesh("weighted", ABC)
    one, same, other = (needs_of(question(text, deterministic=True)) for text in ("a", "a", "b"))
    assert one.key == same.key != other.key
    first = [names(decide(table, asked, dice=random.Random(n).random)) for n, asked in enumerate((one, same))]
    assert first[0] == first[1]
    assert needs_of(question("a")).key == ""


def test_labels_and_routing_are_no_part_of_the_question() -> None:
    one, other = question("a", persona="x"), question("a", deterministic=True)
    other.metadata["team"] = "y"
    assert hash_content(one) == hash_content(other)
    other.temperature = 0.6
    assert hash_content(one) != hash_content(other)


def test_tiers_come_one_after_the_other() -> None:
    def tiers(route: pb.Route) -> None:
        for target, tier in zip(route.targets, (1, 0, 1), strict=True):
            target.tier = tier

    table, local = mesh("round_robin", ABC, tiers), LocalState()
    assert [names(decide(table, local=local))[0] for _ in range(3)] == ["b", "b", "b"]
    assert {tuple(names(decide(table, local=local))[1:]) for _ in range(9)} == {("a", "c"), ("c", "a")}


@pytest.mark.parametrize(
    ("limit", "kept", "reasons"),
    [
        (0.5, ["dear", "cheap"], {"its price is unknown"}),
        (0.01, ["cheap"], {"its price is unknown", "would cost about $0.017680"}),
    ],
)
def test_a_request_may_bound_its_cost(limit: float, kept: list[str], reasons: set[str]) -> None:
    backends = [priced("dear", ("10", "15")), priced("cheap", ("0.1", "1")), priced("unknown")]
    decision = decide(
        mesh("fallback", backends), Needs("", routing=Routing(max_cost_usd=str(limit)), input_tokens=1000)
    )
    assert names(decision) == kept
    assert {drop.reason for drop in decision.dropped} == {f"{why}; the request allows ${limit:.6f}" for why in reasons}


def test_a_bound_that_nobody_meets_is_told() -> None:
    needs = Needs("", routing=Routing(max_cost_usd="0.000001"), input_tokens=1000)
    decision = decide(mesh("fallback", [priced("dear", ("10", "15"))]), needs)
    error = refusal(decision, needs, NOW)
    assert isinstance(error, NoBackend)
    assert not error.retryable
    assert "would cost about $0.017680; the request allows $0.000001" in error.message


def test_a_request_may_choose_the_strategy() -> None:
    backends = [priced("dear", ("10", "15")), priced("cheap", ("0.1", "1"))]
    decision = decide(mesh("fallback", backends), Needs("", routing=Routing(strategy="cost")))
    assert (names(decision), decision.strategy) == (["cheap", "dear"], "cost")


@pytest.mark.parametrize(
    ("asked", "allowed", "said"),
    [
        ("luck", [], f"'luck' is not one of {', '.join(STRATEGIES)}"),
        ("cost", ["fallback", "weighted"], "'cost' is not one of fallback, weighted"),
    ],
)
def test_a_strategy_that_may_not_be_chosen(asked: str, allowed: list[str], said: str) -> None:
    table = mesh("fallback", ABC, lambda route: route.strategies.extend(allowed))
    with pytest.raises(InvalidRequest) as caught:
        decide(table, Needs("", routing=Routing(strategy=asked)))
    assert [(v.field, v.message) for v in caught.value.violations] == [("routing.strategy", said)]


def matching(**match: Any) -> Table:
    made = message(ABC, {"default": [("p/a", 1)], "special": [("p/b", 1)], "other": [("p/c", 1)]})
    made.routes[1].match.CopyFrom(pb.Match(**match))
    made.routes[1].match.SetInParent()
    return compile_table(made)


TOOLS = [Feature.FEATURE_TOOLS]


@pytest.mark.parametrize(
    ("match", "needs", "expected"),
    [
        ({"tenants": ["acme"]}, Needs("", tenant="acme"), "b"),
        ({"tenants": ["acme"]}, Needs("default", tenant="acme"), "b"),
        ({"tenants": ["acme"]}, Needs("", tenant="other"), "a"),
        ({"tenants": ["acme"]}, Needs("other", tenant="acme"), "c"),  # who names a route gets it
        ({"tenants": ["acme"]}, Needs("p/a", tenant="acme"), "a"),
        ({"models": ["p/a"]}, Needs("p/a"), "b"),  # a route may take a model's place
        ({"models": ["p/a"]}, Needs(""), "a"),
        ({"models": ["other"], "tenants": ["acme"]}, Needs("other", tenant="acme"), "b"),
        ({"models": ["other"], "tenants": ["acme"]}, Needs("other"), "c"),
        ({"models": ["fast"]}, Needs("fast"), "b"),
        ({"personas": ["dev", "qa"]}, Needs("", routing=Routing(persona="qa")), "b"),
        ({"personas": ["dev", "qa"]}, Needs("", routing=Routing(persona="pm")), "a"),
        ({"skills": ["review"]}, Needs("", routing=Routing(skill="review")), "b"),
        ({"skills": ["review"], "personas": ["qa"]}, Needs("", routing=Routing(skill="review")), "a"),
        ({"labels": {"team": "x"}}, Needs("", metadata={"team": "x", "more": "y"}), "b"),
        ({"labels": {"team": "x"}}, Needs("", metadata={"team": "y"}), "a"),
        ({"labels": {"team": "x", "env": "p"}}, Needs("", metadata={"team": "x"}), "a"),
        ({"required": TOOLS}, Needs("", mask(TOOLS)), "b"),
        ({"required": TOOLS}, Needs(""), "a"),
    ],
)
def test_routes_take_what_matches(match: dict[str, Any], needs: Needs, expected: str) -> None:
    assert names(decide(matching(**match), needs))[0] == expected


def trial(**change: Any) -> Table:
    def put(route: pb.Route) -> None:
        route.experiment.CopyFrom(
            pb.Experiment(
                name="trial",
                variants=[
                    pb.Variant(name="new", share=20, targets=[pb.Target(model="p/b", weight=1)]),
                    pb.Variant(name="newer", share=10, targets=[pb.Target(model="p/c", weight=1)]),
                ],
                **change,
            )
        )
        del route.targets[1:]

    return mesh("fallback", ABC, put)


def test_an_experiment_deals_by_its_shares() -> None:
    """Chi-square with two degrees of freedom, as above."""
    table = trial()
    count = Counter(decide(table, Needs("", tenant=str(number))).variant for number in range(5000))
    expected = {"": 3500, "new": 1000, "newer": 500}
    assert sum((count[name] - wanted) ** 2 / wanted for name, wanted in expected.items()) < 13.8


def test_a_subject_keeps_its_variant_and_gets_its_models() -> None:
    table = trial()
    for number in range(50):
        needs = Needs("", tenant="t", routing=Routing(session_key=str(number)))
        first, again = decide(table, needs), decide(table, needs)
        assert (first.experiment, first.variant) == (again.experiment, again.variant)
        assert names(first) == {"": ["a"], "new": ["b"], "newer": ["c"]}[first.variant]
        assert first.message().variant == first.variant


def test_a_label_may_be_the_subject() -> None:
    table = trial(label="user")
    variants = {decide(table, Needs("", tenant="t", metadata={"user": str(number)})).variant for number in range(99)}
    assert variants == {"", "new", "newer"}
    without = decide(table, Needs("", tenant="t"))
    assert (without.experiment, without.variant) == ("", "")


def test_shares_that_fill_up_leave_nothing_over() -> None:
    assert {draw_variant("x", str(number), [("a", 50.0), ("b", 50.0)]) for number in range(500)} == {"a", "b"}


@pytest.mark.parametrize(
    ("pins", "needs", "expected"),
    [
        ({"": "b"}, Needs(""), ["two"]),
        ({"": "b"}, Needs("p/one"), ["two"]),  # also what is named goes to the pinned adapter
        ({"dev": "b"}, Needs(""), ["one", "two"]),
        ({"dev": "b"}, Needs("", routing=Routing(persona="dev")), ["two"]),
        ({"": "a", "dev": "b"}, Needs("", routing=Routing(persona="dev")), ["two"]),
        ({"": "a", "dev": "b"}, Needs("", routing=Routing(persona="qa")), ["one"]),
        ({"": "c"}, Needs(""), ["three"]),  # an adapter of no route: what it has
    ],
)
def test_pins(pins: dict[str, str], needs: Needs, expected: list[str]) -> None:
    made = message(
        [backend("a", model("p/one")), backend("b", model("p/two")), backend("c", model("p/three"))],
        {"default": [("p/one", 1), ("p/two", 1)]},
    )
    made.pins.update(pins)
    decision = decide(compile_table(made), needs)
    assert names(decision) == expected
    pinned = pins.get(needs.routing.persona) or pins.get("")
    if pinned:
        whose = "persona dev" if needs.routing.persona == "dev" else "everything"
        assert {drop.reason for drop in decision.dropped} == {f"{whose} is pinned to {pinned}"}


def test_a_pin_does_not_pretend() -> None:
    made = message([backend("a", model("p/one", "VISION")), backend("b", model("p/two"))], {"default": [("p/one", 1)]})
    made.pins[""] = "b"
    needs = Needs("", mask([Feature.FEATURE_VISION]))
    assert isinstance(refusal(decide(compile_table(made), needs), needs, NOW), CapabilityUnavailable)


def test_a_strategy_of_a_newer_router_is_read_as_fallback():
    table = mesh("telepathy", ABC, lambda route: route.tier_strategies.update({0: "clairvoyance"}))
    assert names(decide(table)) == ["a", "b", "c"]
