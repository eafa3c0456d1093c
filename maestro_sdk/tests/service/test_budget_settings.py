"""Budgets in a configuration: what they look like, what is told of wrong ones, and how they change while it runs."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from maestro_sdk.service.hot_reload import changed_paths, merge
from maestro_sdk.service.settings import BudgetConfig, Config, ConfigError, load

KEYS = "gateway: {keys: [{tenant: acme, key: {env: A}}]}\n"


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "maestro.yaml"
    path.write_text(text)
    return load(path, {})


def test_money_tokens_and_whom_they_hold_for(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"{KEYS}budgets:\n  all: {{period: month, usd: 0.1}}\n  team: {{period: day, tokens: 5000, tenants: [acme],\n"
        "    wait: 500ms, labels: {team: core, stage: [a, b]}, each: [key, 'label:user'],\n"
        "    action: degrade, degrade_to: fast}\n",
    )
    everybody, team = config.budgets["all"], config.budgets["team"]
    assert (everybody.usd, everybody.nano_usd, everybody.tokens) == (Decimal("0.1"), 100_000_000, None)
    assert everybody.thresholds == (0.5, 0.8, 1.0)
    assert (team.labels, team.wait) == ({"team": ("core",), "stage": ("a", "b")}, 0.5)
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    assert load(path, {}).budgets == config.budgets


@pytest.mark.parametrize(
    ("more", "own"),
    [
        ({}, None),
        ({"tenants": ["acme"]}, "acme"),
        ({"tenants": ["acme", "b"]}, None),
        ({"each": ["key", "tenant"]}, ""),
    ],
)
def test_whose_a_budget_is(more: dict[str, list[str]], own: str | None) -> None:
    assert BudgetConfig.model_validate({"period": "day", "usd": 1, **more}).own == own


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {period: day}", "budgets.a: limits nothing: give usd, tokens or both"),
        ("a: {period: day, usd: 1, labels: {team: []}}", "budgets.a.labels: 'team' has no values"),
        ("a: {period: week, usd: 1}", "budgets.a.period: 'week' is not one of day, month"),
        ("a: {period: day, usd: 0}", "budgets.a.usd: input should be greater than 0"),
        ("a: {period: day, usd: 9000001}", "budgets.a.usd: input should be less than or equal to 9000000"),
        ("a: {period: day, tokens: 0}", "budgets.a.tokens: input should be greater than or equal to 1"),
        ("a: {period: day, usd: 1, each: [team]}", "'team' is not one of tenant, key, persona, label:NAME"),
        ("a: {period: day, usd: 1, each: [key, key]}", "budgets.a.each: names something twice"),
        ("a: {period: day, usd: 1, thresholds: [0.8, 0.5]}", "thresholds have to grow, such as [0.5, 0.8, 1.0]"),
        ("a: {period: day, usd: 1, thresholds: [1.5]}", "budgets.a.thresholds[0]"),
        ("a: {period: day, usd: 1, action: degrade}", "action: degrade needs degrade_to"),
        ("a: {period: day, usd: 1, degrade_to: fast}", "degrade_to needs action: degrade"),
        (
            "a: {period: day, usd: 1, action: degrade, degrade_to: fats}",
            "budgets.a.degrade_to: 'fats' is neither provider/model nor a route or alias; there are: default, fast",
        ),
        ("a: {period: day, usd: 1, tenants: [acem]}", "no key belongs to 'acem', so this would hold for nobody"),
        ("a: {period: day, usd: 1, tenants: ['a b']}", "budgets.a.tenants[0]: 'a b' is not a tenant"),
        ("'a b': {period: day, usd: 1}", "'a b' is not a name"),
        ("a: {period: day, usd: 1, limit: 3}", "budgets.a.limit"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"{KEYS}budgets: {{{text}}}\n")
    assert expected in str(caught.value)


def test_several_gateways_need_a_store(tmp_path: Path) -> None:
    text = "gateway: {replicas: 2}\nbudgets: {a: {period: day, usd: 1}}\n"
    with pytest.raises(ConfigError, match=r"budgets: each of the 2 gateways would count for itself: set store\.url"):
        read(tmp_path, text)
    assert read(tmp_path, text + "store: {url: 'redis://127.0.0.1:6379'}\n").budgets


def test_budgets_change_while_the_mesh_runs(tmp_path: Path) -> None:
    before = read(tmp_path, "budgets: {a: {period: day, usd: 1}}\n")
    after = read(tmp_path, "budgets: {a: {period: day, usd: 2}}\n")
    assert changed_paths(before, after) == (["budgets.a.usd"], [])
    assert merge(before, after).budgets["a"].usd == 2
