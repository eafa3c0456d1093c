"""The route table as `plan` reads it: compiled once per version, so that a decision is a few dictionary look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maestro.llm.v1.model_pb2 import Support
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.breaker import BreakerPolicy

DEFAULT_ROUTE = "default"


@dataclass(frozen=True, slots=True)
class Backend:
    """One model at one adapter.

    `native` and `able` (native or polyfilled) are bit masks of features; `until` is Unix time, 0 for none.
    """

    id: str
    adapter: str
    address: str
    model: str
    provider: str
    native: int
    able: int
    window: int
    state: pb.BackendState.ValueType
    state_reason: str
    until: float
    message: pb.Backend


@dataclass(frozen=True, slots=True)
class Route:
    """Ordered backends under one name, with weights, and the limits of a request. Times in seconds, 0 for none."""

    name: str
    strategy: str
    targets: Sequence[tuple[Backend, float]]
    missing: Sequence[str]
    max_attempts: int
    first_event_timeout: float
    idle_timeout: float
    total_timeout: float


@dataclass(frozen=True, slots=True)
class Table:
    """A version of the table. Routes are found by name; models by "provider/name", or by bare name where one has it."""

    version: int
    backends: Mapping[str, Backend]
    routes: Mapping[str, Route]
    models: Mapping[str, Route]
    ambiguous: Mapping[str, Sequence[str]]
    breaker: BreakerPolicy

    def names(self) -> list[str]:
        """What a request's `model` may say: routes first, then models."""
        return [*sorted(self.routes), *sorted(name for name in self.models if "/" in name)]


EMPTY = Table(0, {}, {}, {}, {}, BreakerPolicy())


def compile_table(message: pb.RouteTable) -> Table:
    """The table of a message; what a route names and no backend offers is kept in `Route.missing`."""
    backends = {backend.id: _backend(backend) for backend in message.backends}
    by_model: dict[str, list[Backend]] = {}
    for backend in backends.values():
        by_model.setdefault(backend.model, []).append(backend)
    routes: dict[str, Route] = {}
    for route in message.routes:
        targets = [(backend, target.weight) for target in route.targets for backend in by_model.get(target.model, ())]
        missing = [target.model for target in route.targets if target.model not in by_model]
        routes[route.name] = _route(route, targets, missing)
    # A model that is named directly gets the limits of the default route, and every adapter that serves it.
    limits = next((route for route in message.routes if route.name == DEFAULT_ROUTE), pb.Route(max_attempts=3))
    models = {
        model: _route(
            pb.Route(name="", strategy="fallback", max_attempts=limits.max_attempts),
            [(b, 1.0) for b in found],
            [],
            limits,
        )
        for model, found in by_model.items()
    }
    bare: dict[str, list[str]] = {}
    for model in by_model:
        bare.setdefault(model.split("/", 1)[1], []).append(model)
    ambiguous = {name: found for name, found in bare.items() if len(found) > 1}
    models |= {name: models[found[0]] for name, found in bare.items() if len(found) == 1 and name not in models}
    policy = BreakerPolicy.from_message(message.breaker) if message.HasField("breaker") else BreakerPolicy()
    return Table(message.version, backends, routes, models, ambiguous, policy)


def _backend(message: pb.Backend) -> Backend:
    native = able = 0
    for entry in message.model.features:
        if entry.support == Support.SUPPORT_NATIVE:
            native |= 1 << entry.feature
        if entry.support in (Support.SUPPORT_NATIVE, Support.SUPPORT_POLYFILLED):
            able |= 1 << entry.feature
    return Backend(
        id=message.id,
        adapter=message.adapter,
        address=message.address,
        model=message.model.id,
        provider=message.model.provider,
        native=native,
        able=able,
        window=message.model.context_window,
        state=message.state,
        state_reason=message.state_reason,
        until=message.state_until.ToNanoseconds() / 1e9 if message.HasField("state_until") else 0.0,
        message=message,
    )


def _route(
    route: pb.Route, targets: Sequence[tuple[Backend, float]], missing: Sequence[str], limits: pb.Route | None = None
) -> Route:
    limits = limits or route
    return Route(
        name=route.name,
        strategy=route.strategy,
        targets=targets,
        missing=missing,
        max_attempts=max(1, limits.max_attempts),
        first_event_timeout=limits.first_event_timeout.ToNanoseconds() / 1e9,
        idle_timeout=limits.idle_timeout.ToNanoseconds() / 1e9,
        total_timeout=limits.total_timeout.ToNanoseconds() / 1e9,
    )
