"""Configuration and catalogue become a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter, Override, compile_routes
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy
from maestro_sdk.service.settings import Config, load
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


def compiled(
    config: Config, *adapters: Adapter, breakers: Mapping[str, Breaker] | None = None, **rest: Any
) -> pb.RouteTable:
    by_name = {adapter.name: adapter for adapter in adapters}
    return compile_routes(config, by_name, breakers or {}, rest.get("overrides", {}), 3, NOW)


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
    opened = Breaker(BreakerPolicy())
    opened.fail(NOW, ErrorReason.ERROR_REASON_PROVIDER_QUOTA, counts=True)
    unconfigured = Adapter(
        "claude", "a:1", pb.ADAPTER_STATE_UNCONFIGURED, "set ANTHROPIC_API_KEY", "1", ("anthropic",), CLAUDE.models
    )

    def state(*adapters: Adapter, **arguments: Any) -> tuple[int, str, float]:
        backend = next(found for found in compiled(config, *adapters, **arguments).backends if found.id == name)
        return backend.state, backend.state_reason, backend.state_until.ToNanoseconds() / 1e9

    assert state(CLAUDE) == (pb.BACKEND_STATE_ACTIVE, "", 0)
    assert state(unconfigured) == (pb.BACKEND_STATE_DOWN, "set ANTHROPIC_API_KEY", 0)
    assert state(CLAUDE, breakers={name: opened}) == (pb.BACKEND_STATE_OPEN, "PROVIDER_QUOTA", NOW + 300)
    drained = {name: Override(pb.BACKEND_STATE_DRAINING, "maintenance")}
    assert state(CLAUDE, overrides=drained, breakers={name: opened})[:2] == (pb.BACKEND_STATE_DRAINING, "maintenance")


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
