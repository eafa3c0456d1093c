"""Configuration and catalogue become a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter, compile_routes
from maestro_router.conditions import Conditions
from maestro_sdk.mesh.breaker import BreakerPolicy
from maestro_sdk.mesh.table import Hedge, Policy, Residency, compile_table
from maestro_sdk.service.settings import Config, QuarantineConfig, load
from maestro_sdk.testing.tables import model

NOW = 1_700_000_000.0
OFFLINE = Model(tags=["development"])
OFFLINE.MergeFrom(model("local/offline"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configured(tmp_path)


def configured(folder: Path, **sections: Any) -> Config:
    file = folder / "maestro.yaml"
    file.write_text(yaml.safe_dump({"version": 1, **sections}))
    return load(file, env={})


def serving(name: str, *models: Model) -> Adapter:
    providers = tuple({found.provider for found in models})
    return Adapter(name, f"127.0.0.1:{len(name)}", pb.ADAPTER_STATE_SERVING, "", "1", providers, models)


def compiled(config: Config, *adapters: Adapter, conditions: Conditions | None = None) -> pb.RouteTable:
    by_name = {adapter.name: adapter for adapter in adapters}
    return compile_routes(config, by_name, conditions or well(), 3, NOW)


def well() -> Conditions:
    return Conditions("router", BreakerPolicy(), QuarantineConfig())


def targets(table: pb.RouteTable, route: str) -> list[str]:
    return [target.model for found in table.routes if found.name == route for target in found.targets]


LOCAL = serving("local", OFFLINE)
CLAUDE = serving("claude", model("anthropic/claude-sonnet-5-5"))


def test_the_offline_model_answers_when_no_provider_is_configured(config: Config) -> None:
    table = compiled(config, LOCAL)
    assert "local/offline" in targets(table, "default")


def test_the_offline_model_never_stands_in_for_a_real_provider(config: Config) -> None:
    down = Adapter("claude", "127.0.0.1:1", pb.ADAPTER_STATE_DOWN, "gone", "1", ("anthropic",), CLAUDE.models)
    for claude in (CLAUDE, down, Adapter("claude", "127.0.0.1:1")):
        table = compiled(config, LOCAL, claude)
        assert "local/offline" not in targets(table, "default")
        assert [backend.id for backend in table.backends if backend.adapter == "local"] == ["local:local/offline"]


def test_an_alias_is_a_route_of_one_model_or_a_copy_of_a_route(tmp_path: Path) -> None:
    routes = {
        "default": {"targets": ["local/offline"], "max_attempts": 2},
        "cheap": {"strategy": "weighted", "targets": [{"model": "local/offline", "weight": 2}]},
    }
    config = configured(tmp_path, routes=routes, aliases={"fast": "local/offline", "low": "lower", "lower": "cheap"})
    table = compiled(config, LOCAL)
    found = {route.name: route for route in table.routes}
    assert set(found) == {"default", "cheap", "fast", "low", "lower"}
    assert (targets(table, "fast"), found["fast"].max_attempts, found["fast"].strategy) == (
        ["local/offline"],
        2,
        "fallback",
    )
    assert found["low"].strategy == "weighted"
    assert found["low"].targets[0].weight == 2


def test_states_of_backends_carry_their_reason(config: Config) -> None:
    name = "claude:anthropic/claude-sonnet-5-5"
    quota = ErrorReason.ERROR_REASON_PROVIDER_QUOTA
    conditions = well()
    conditions.report(pb.Outcome(backend_id=name, reason=quota, counts_against_health=True), "", NOW)
    unconfigured = Adapter(
        "claude", "a:1", pb.ADAPTER_STATE_UNCONFIGURED, "set ANTHROPIC_API_KEY", "1", ("anthropic",), CLAUDE.models
    )

    def state(*adapters: Adapter, **arguments: Any) -> tuple[int, str, float]:
        backend = next(found for found in compiled(config, *adapters, **arguments).backends if found.id == name)
        return backend.state, backend.state_reason, backend.state_until.ToNanoseconds() / 1e9

    assert state(CLAUDE) == (pb.BACKEND_STATE_ACTIVE, "", 0)
    assert state(unconfigured) == (pb.BACKEND_STATE_DOWN, "set ANTHROPIC_API_KEY", 0)
    assert state(CLAUDE, conditions=conditions) == (pb.BACKEND_STATE_OPEN, "PROVIDER_QUOTA", NOW + 300)
    conditions.wish(name, "claude:anthropic", pb.BACKEND_STATE_DRAINING, "maintenance", NOW)
    assert state(CLAUDE, conditions=conditions)[:2] == (pb.BACKEND_STATE_DRAINING, "maintenance")


def test_everything_that_decides_reaches_the_table(tmp_path: Path) -> None:
    sonnet, opus = model("anthropic/sonnet"), model("anthropic/opus")
    reviews = {
        "strategy": "cost",
        "quality": "frontier",
        "strategies": ["cost", "fallback"],
        "targets": ["anthropic/opus", {"model": "anthropic/sonnet", "tier": 2}],
        "match": {"personas": ["reviewer"], "labels": {"team": "core"}, "required": ["TOOLS"], "models": ["best"]},
        "experiment": {
            "name": "e",
            "label": "user",
            "variants": {"new": {"share": 20, "targets": ["anthropic/sonnet"]}},
        },
    }
    config = configured(
        tmp_path,
        adapters={"claude": {"address": "127.0.0.1:1"}},
        routes={"reviews": reviews},
        aliases={"review": "reviews"},
        router={"pin": "claude-only", "pins": {"dev": "claude"}},
    )
    table = compiled(config, serving("claude", sonnet, opus))
    route, alias = table.routes
    assert (route.strategy, route.quality, list(route.strategies)) == ("cost", "frontier", ["cost", "fallback"])
    assert [(target.model, target.tier) for target in route.targets] == [("anthropic/opus", 0), ("anthropic/sonnet", 2)]
    assert (list(route.match.personas), dict(route.match.labels)) == (["reviewer"], {"team": "core"})
    assert (list(route.match.models), list(route.match.required)) == (["best"], [Feature.FEATURE_TOOLS])
    assert (route.experiment.name, route.experiment.label) == ("e", "user")
    assert [(variant.name, variant.share, variant.targets[0].model) for variant in route.experiment.variants] == [
        ("new", 20, sonnet.id)
    ]
    # Who asks for an alias has chosen: only the route itself takes what matches.
    assert (alias.name, alias.HasField("match"), alias.HasField("experiment")) == ("review", False, True)
    assert dict(table.pins) == {"": "claude", "dev": "claude"}


def test_policies_reach_every_decision(tmp_path: Path) -> None:
    """From the file to what `plan` and dispatch read: a route, a model that is named, and an alias of one."""
    sonnet, opus = model("anthropic/sonnet"), model("anthropic/opus")
    policy = {
        "targets": ["anthropic/opus", {"model": "anthropic/sonnet", "tier": 2}],
        "tier_strategies": {2: "headroom"},
        "require_native": True,
        "max_attempts": 4,
        "attempt_timeout": "90s",
        "failover": {"on": ["CONTENT_POLICY"], "off": ["TIMEOUT"]},
        "retry": {"share": 0.5, "back_off": "10ms", "longest_back_off": "1s"},
        "hedge": {"after": "3s", "max_extra": 0.25},
        "resume": "continue",
        "on_router_loss": "refuse",
        "router_loss_after": "5s",
    }
    config = configured(
        tmp_path,
        adapters={"claude": {"address": "127.0.0.1:1", "regions": ["eu"]}},
        routes={"default": policy, "plain": {"targets": ["anthropic/opus"]}},
        aliases={"fast": "anthropic/sonnet"},
        tenants={"acme": {"regions": ["eu"], "providers": ["anthropic"]}, "other": {}},
    )
    adapter = replace(serving("claude", sonnet, opus), regions=("eu",))
    table = compile_table(compiled(config, adapter))
    expected = Policy(
        max_attempts=4,
        attempt_timeout=90,
        first_event_timeout=120,
        idle_timeout=120,
        total_timeout=600,
        failover_on=frozenset({ErrorReason.ERROR_REASON_CONTENT_POLICY}),
        failover_off=frozenset({ErrorReason.ERROR_REASON_TIMEOUT}),
        retry_share=0.5,
        back_off=0.01,
        longest_back_off=1,
        hedge=Hedge(3, 0.25),
        resumes=True,
    )
    for route in (table.routes["default"], table.routes["fast"], table.models["anthropic/opus"]):
        assert (route.policy, route.require_native, route.loss_limit) == (expected, True, 5), route.name
    assert table.routes["default"].tier_strategies == {2: "headroom"}
    assert table.routes["fast"].tier_strategies == {}
    plain = table.routes["plain"]
    assert (plain.policy.hedge, plain.policy.resumes, plain.require_native, plain.loss_limit) == (
        None,
        False,
        False,
        None,
    )
    assert table.residencies == {"acme": Residency(frozenset({"eu"}), frozenset({"anthropic"}))}
    assert {backend.regions for backend in table.backends.values()} == {frozenset({"eu"})}


def test_only_a_route_that_says_so_gives_answers_again(tmp_path: Path) -> None:
    config = configured(
        tmp_path,
        adapters={"claude": {"address": "127.0.0.1:1"}},
        routes={
            "default": {"targets": ["anthropic/opus"], "cache": {"ttl": "10m"}},
            "other": {"targets": ["anthropic/opus"], "cache": {"ttl": "1h", "max_bytes": "1MiB"}},
            "plain": {"targets": ["anthropic/opus"]},
        },
        aliases={"usual": "default", "direct": "anthropic/opus"},
    )
    table = compile_table(compiled(config, serving("claude", model("anthropic/opus"))))
    assert table.caches
    found = {name: route.cache for name, route in table.routes.items()}
    assert found["plain"] is found["direct"] is table.models["anthropic/opus"].cache is None
    assert [(each.ttl, each.max_bytes) for each in (found["default"], found["other"], found["usual"]) if each] == [
        (600, 262144),
        (3600, 1048576),
        (600, 262144),
    ]
    # Another model, another answer: the route begins anew. Without a change every process finds the same.
    again = compile_table(compiled(config, serving("claude", model("anthropic/opus"), model("anthropic/sonnet"))))
    assert again.routes["default"].cache == found["default"]
    changed = config.replaced({"routes.default.targets": [{"model": "anthropic/sonnet"}]})
    other = compile_table(compiled(changed, serving("claude", model("anthropic/sonnet"))))
    assert found["default"] is not None
    assert other.routes["default"].cache is not None
    assert other.routes["default"].cache.seal != found["default"].seal
