"""Route tables for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.table import Table, compile_table

BASIC = ("CHAT", "STREAMING", "SYSTEM_PROMPT")


def model(name: str, *native: str, polyfilled: Sequence[str] = (), window: int = 0) -> Model:
    entries = [(feature, Support.SUPPORT_NATIVE) for feature in (*BASIC, *native)]
    entries += [(feature, Support.SUPPORT_POLYFILLED) for feature in polyfilled]
    return Model(
        id=name,
        provider=name.split("/", maxsplit=1)[0],
        name=name.split("/", 1)[1],
        context_window=window or None,
        features=[FeatureSupport(feature=Feature.Value(f"FEATURE_{f}"), support=s) for f, s in entries],
    )


def backend(adapter: str, described: Model, address: str = "127.0.0.1:1", **state: Any) -> pb.Backend:
    found = pb.Backend(id=f"{adapter}:{described.id}", adapter=adapter, address=address, model=described)
    found.state = state.get("state", pb.BACKEND_STATE_ACTIVE)
    found.state_reason = state.get("reason", "")
    if "until" in state:
        found.state_until.FromNanoseconds(int(state["until"] * 1e9))
    return found


def table(
    backends: Sequence[pb.Backend],
    routes: Mapping[str, Sequence[tuple[str, float]]],
    *,
    strategy: str = "fallback",
    **limits: Any,
) -> Table:
    return compile_table(message(backends, routes, strategy=strategy, **limits))


def message(
    backends: Sequence[pb.Backend],
    routes: Mapping[str, Sequence[tuple[str, float]]],
    *,
    strategy: str = "fallback",
    **limits: Any,
) -> pb.RouteTable:
    made = pb.RouteTable(version=7, backends=backends)
    for name, targets in routes.items():
        route = made.routes.add(name=name, strategy=strategy, max_attempts=limits.get("max_attempts", 3))
        for target, weight in targets:
            route.targets.add(model=target, weight=weight)
        for limit in ("first_event_timeout", "idle_timeout", "total_timeout"):
            if limit in limits:
                getattr(route, limit).FromNanoseconds(int(limits[limit] * 1e9))
    breaker = limits.get("breaker", {})
    made.breaker.consecutive_failures = breaker.get("consecutive_failures", 5)
    made.breaker.minimum_calls, made.breaker.failure_ratio = 100, 0.5
    made.breaker.half_open_calls = 1
    made.breaker.window.seconds = 30
    made.breaker.open_time.FromNanoseconds(int(breaker.get("open_time", 10) * 1e9))
    made.breaker.quota_open_time.seconds = 300
    return made
