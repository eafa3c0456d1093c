"""Who gets how many requests: shares by weights, tiers and experiments, and what moves when a backend is lost.

Shares are held against the expected ones by chi-square; the limits are those that chance exceeds once in a thousand
runs. The dice are seeded, so that a run says the same each time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from maestro.llm.v1.chat_pb2 import Routing
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, plan
from maestro_sdk.mesh.table import Table, compile_table
from maestro_sdk.testing.tables import backend, message, model

NOW = 1_700_000_000.0
LIMITS = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 9: 27.88}
"""Chi-square by degrees of freedom."""


def mesh(names: str, change: Callable[[pb.Route], None], strategy: str = "weighted") -> Table:
    made = message(
        [backend("a", model(f"p/{name}")) for name in names],
        {"default": [(f"p/{name}", 1.0) for name in names]},
        strategy=strategy,
    )
    change(made.routes[0])
    return compile_table(made)


def weighs(*weights: float, tiers: str = "") -> Callable[[pb.Route], None]:
    def change(route: pb.Route) -> None:
        for target, weight, tier in zip(route.targets, weights, tiers or "0" * len(weights), strict=True):
            target.weight, target.tier = weight, int(tier)

    return change


def order(decision: Plan) -> str:
    return "".join(ranked.choice.backend.model[-1] for ranked in decision.kept)


def draw(table: Table, number: int, needs: Callable[[int], Needs] = lambda _: Needs("")) -> list[str]:
    dice = random.Random(number)
    return [order(plan(needs(n), table, LocalState(), NOW, dice.random)) for n in range(number)]


def assert_shares(found: Counter[str], shares: Mapping[str, float]) -> None:
    assert set(found) <= set(shares)
    calls, total = sum(found.values()), sum(shares.values())
    off = sum((found[name] - calls * share / total) ** 2 / (calls * share / total) for name, share in shares.items())
    assert off < LIMITS[len(shares) - 1], dict(found)


def test_all_orders_of_a_weighted_tier_have_their_probability() -> None:
    """Not only the first place: the second is drawn by the weights that are left."""
    found = Counter(draw(mesh("abc", weighs(6, 3, 1)), 6000))
    shares = {
        "abc": 6 / 10 * 3 / 4, "acb": 6 / 10 * 1 / 4, "bac": 3 / 10 * 6 / 7, "bca": 3 / 10 * 1 / 7,
        "cab": 1 / 10 * 6 / 9, "cba": 1 / 10 * 3 / 9,
    }  # fmt: skip
    assert_shares(found, shares)


def test_each_weighted_tier_has_shares_of_its_own() -> None:
    drawn = draw(mesh("abcde", weighs(1, 4, 2, 3, 5, tiers="00111")), 6000)
    assert_shares(Counter(order[0] for order in drawn), {"a": 1, "b": 4})
    assert_shares(Counter(order[2] for order in drawn), {"c": 2, "d": 3, "e": 5})
    assert {tuple(sorted(order[:2])) for order in drawn} == {("a", "b")}


def test_a_weighted_tier_behind_another_strategy() -> None:
    def change(route: pb.Route) -> None:
        weighs(1, 1, 7, 3, tiers="0011")(route)
        route.tier_strategies[1] = "weighted"

    drawn = draw(mesh("abcd", change, "fallback"), 4000)
    assert {order[:2] for order in drawn} == {"ab"}
    assert_shares(Counter(order[2] for order in drawn), {"c": 7, "d": 3})


def test_sessions_follow_the_weights() -> None:
    drawn = draw(mesh("abc", weighs(6, 3, 1)), 6000, lambda n: Needs("", routing=Routing(session_key=f"session {n}")))
    assert_shares(Counter(order[0] for order in drawn), {"a": 6, "b": 3, "c": 1})


@pytest.mark.parametrize("key", ["{}", "session-{}", "{:032x}", "user:{}:chat"])
def test_sessions_spread_evenly_whatever_they_are_called(key: str) -> None:
    names = "abcdefghij"
    drawn = draw(mesh(names, weighs(*[1.0] * 10), "cost"), 6000, lambda n: Needs("", content_hash=key.format(n)))
    assert_shares(Counter(order[0] for order in drawn), dict.fromkeys(names, 1))


def test_a_variant_has_its_share_and_within_it_the_weights() -> None:
    def change(route: pb.Route) -> None:
        variant = pb.Variant(name="new", share=25)
        variant.targets.add(model="p/c", weight=1)
        variant.targets.add(model="p/d", weight=4)
        route.experiment.MergeFrom(pb.Experiment(name="trial", label="user", variants=[variant]))
        del route.targets[2:]

    dice, found = random.Random(3), Counter[str]()
    table = mesh("abcd", change)
    for number in range(6000):
        decision = plan(Needs("", metadata={"user": f"u{number}"}), table, LocalState(), NOW, dice.random)
        found[f"{decision.variant}:{order(decision)[0]}"] += 1
    assert_shares(found, {":a": 37.5, ":b": 37.5, "new:c": 5, "new:d": 20})


def test_two_experiments_deal_independently() -> None:
    def trial(name: str) -> Table:
        def change(route: pb.Route) -> None:
            variant = pb.Variant(name="new", share=50, targets=[pb.Target(model="p/b", weight=1)])
            route.experiment.MergeFrom(pb.Experiment(name=name, variants=[variant]))
            del route.targets[1:]

        return mesh("ab", change, "fallback")

    one, other = (draw(trial(name), 4000, lambda n: Needs("", tenant=f"t{n}")) for name in ("one", "other"))
    assert_shares(Counter(map("".join, zip(one, other, strict=True))), {"aa": 1, "ab": 1, "ba": 1, "bb": 1})


@pytest.mark.parametrize("strategy", ["round_robin", "weighted", "cost", "performance", "headroom", "capability"])
def test_only_the_keys_of_the_lost_backend_move(strategy: str) -> None:
    """Of 5000 sessions over ten backends a tenth moves (573 here), each to its own second; none of the others does."""
    names = "abcdefghij"
    table = mesh(names, weighs(*[1.0] * 10), strategy)
    lost = next(entry for entry in table.routes["default"].targets.entries if entry.backend.model == "p/c").backend
    moved = 0
    gone = mesh(names.replace("c", ""), weighs(*[1.0] * 9), strategy)
    assert lost.id not in gone.backends
    for number in range(5000):
        needs = Needs("", routing=Routing(session_key=f"s{number}"))
        before = order(plan(needs, table, LocalState(), NOW, random.random))
        after = order(plan(needs, gone, LocalState(), NOW, random.random))
        assert after == before.replace("c", "")
        moved += before[0] == "c"
    # 500 are expected, with a standard deviation of 21.
    assert 400 < moved < 600
