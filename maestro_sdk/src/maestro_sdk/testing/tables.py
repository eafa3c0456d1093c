"""Route tables for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.table import Table, compile_table

BASIC = ("CHAT", "STREAMING", "SYSTEM_PROMPT")
_TIMES = (
    *("first_event_timeout", "idle_timeout", "total_timeout"),
    *("attempt_timeout", "back_off", "longest_back_off"),
)


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
        for limit in _TIMES:
            if limit in limits:
                getattr(route, limit).FromNanoseconds(int(limits[limit] * 1e9))
        _set_policy(route, limits)
    breaker = limits.get("breaker", {})
    made.breaker.consecutive_failures = breaker.get("consecutive_failures", 5)
    made.breaker.minimum_calls, made.breaker.failure_ratio = 100, 0.5
    made.breaker.half_open_calls = 1
    made.breaker.window.seconds = 30
    made.breaker.open_time.FromNanoseconds(int(breaker.get("open_time", 10) * 1e9))
    made.breaker.quota_open_time.seconds = 300
    return made


def _set_policy(route: pb.Route, limits: Mapping[str, Any]) -> None:
    route.failover_on.extend(ErrorReason.Value(f"ERROR_REASON_{name}") for name in limits.get("failover_on", ()))
    route.failover_off.extend(ErrorReason.Value(f"ERROR_REASON_{name}") for name in limits.get("failover_off", ()))
    if "retry_share" in limits:
        route.retry_share = limits["retry_share"]
    if "max_extra" in limits:
        route.hedge.max_extra = limits["max_extra"]
        if "hedge_after" in limits:
            route.hedge.after.FromNanoseconds(int(limits["hedge_after"] * 1e9))
    if "cache" in limits:
        route.cache.ttl.FromNanoseconds(int(limits["cache"] * 1e9))
        route.cache.max_bytes = limits.get("largest", 10_000)
    if limits.get("resume"):
        route.resume = pb.RESUME_CONTINUE
