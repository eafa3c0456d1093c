"""The decision which backends a request may try, in which order, and why not the others.

Pure: the table, local state, time and dice come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, MaestroError, NoBackend, NotFound
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State
from maestro_sdk.mesh.needs import Needs, feature_names, unmask
from maestro_sdk.mesh.table import DEFAULT_ROUTE, Backend, Route, Table

STRATEGIES = ("fallback", "weighted")
"""Names of the strategies that order the targets of a route."""


class LocalState:
    """What one process knows by itself: requests under way and breakers per backend, fed by its own outcomes."""

    def __init__(self) -> None:
        self.in_flight: dict[str, int] = {}
        self._breakers: dict[str, Breaker] = {}
        self._policy = BreakerPolicy()

    def breaker(self, backend_id: str) -> Breaker:
        """The breaker of a backend."""
        breaker = self._breakers.get(backend_id)
        if breaker is None:
            breaker = self._breakers[backend_id] = Breaker(self._policy)
        return breaker

    def adopt(self, table: Table) -> None:
        """Takes the limits of a new table and forgets backends that are gone."""
        if table.breaker != self._policy:
            self._policy = table.breaker
            self._breakers.clear()
        for gone in [name for name in self._breakers if name not in table.backends]:
            del self._breakers[gone]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A backend that may not be tried. `lasting`: waiting does not help; `until` is Unix time, 0 for unknown."""

    backend: Backend
    reason: str
    lasting: bool
    missing: int = 0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision: `kept` in the order in which to try them."""

    route: Route
    table_version: int
    kept: Sequence[tuple[Backend, str]]
    dropped: Sequence[Dropped]

    def message(self) -> pb.Decision:
        """The decision as the contract has it."""
        decision = pb.Decision(route=self.route.name, table_version=self.table_version, strategy=self.route.strategy)
        for backend, reason in self.kept:
            decision.candidates.add(backend_id=backend.id, model=backend.model, kept=True, reason=reason)
        for drop in self.dropped:
            decision.candidates.add(
                backend_id=drop.backend.id,
                model=drop.backend.model,
                kept=False,
                reason=drop.reason,
                missing=unmask(drop.missing),
            )
        for model in self.route.missing:
            decision.candidates.add(model=model, kept=False, reason="no enabled adapter offers it")
        return decision


def plan(needs: Needs, table: Table, local: LocalState, now: float, dice: Callable[[], float]) -> Plan:
    """Decides. `now` is Unix time in seconds, `dice` gives numbers in [0, 1).

    Raises `NotFound` for a name that is neither route nor model. A plan that keeps nothing is no error: see `refusal`.
    """
    route = find_route(needs.model, table)
    kept: list[tuple[Backend, float]] = []
    dropped: list[Dropped] = []
    for backend, weight in route.targets:
        drop = _judge(backend, weight, route, needs, local, now)
        if drop is None:
            kept.append((backend, weight))
        else:
            dropped.append(drop)
    return Plan(route, table.version, _order(kept, route, needs, local, dice), dropped)


def find_route(model: str, table: Table) -> Route:
    """The route that `model` names. Raises `NotFound` with what is known, and what is similar."""
    route = table.routes.get(model or DEFAULT_ROUTE) or table.models.get(model)
    if route is not None:
        return route
    if not table.backends and not table.routes:
        raise NoBackend("no route table has arrived yet; is the router running?", retry_after=1.0)
    if model in table.ambiguous:
        choices = ", ".join(table.ambiguous[model])
        raise InvalidRequest.at("model", f"{model!r} names several models, say which one: {choices}")
    names = table.names()
    close = get_close_matches(model, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else "."
    raise NotFound(
        f"no model or route is named {model or DEFAULT_ROUTE!r}{hint} Known: {', '.join(names) or 'none'}",
        metadata={"known": ",".join(names)},
        failover=False,
    )


def refusal(plan: Plan, needs: Needs, now: float) -> MaestroError:
    """The error for a plan that keeps nothing: `CapabilityUnavailable` when waiting does not help, else `NoBackend`."""
    reasons = [f"{drop.backend.id}: {drop.reason}" for drop in plan.dropped]
    reasons += [f"{model}: no enabled adapter offers it" for model in plan.route.missing]
    what = f"route {plan.route.name!r}" if plan.route.name else f"model {needs.model!r}"
    tried = "; ".join(reasons) or "it has no backends"
    if any(not drop.lasting for drop in plan.dropped):
        return NoBackend(
            f"no backend of {what} can answer now: {tried}", metadata={"tried": tried}, retry_after=_wait(plan, now)
        )
    missing = {feature_names(drop.missing) for drop in plan.dropped if drop.missing}
    if missing:
        return CapabilityUnavailable(
            f"no backend of {what} has what the request needs: {tried}",
            metadata={"missing": "; ".join(sorted(missing))},
        )
    return NoBackend(
        f"no backend of {what} may answer this request: {tried}", metadata={"tried": tried}, retryable=False
    )


def _judge(
    backend: Backend, weight: float, route: Route, needs: Needs, local: LocalState, now: float
) -> Dropped | None:
    routing = needs.routing
    offered = backend.native if routing.require_native else backend.able
    if missing := needs.required & ~offered:
        how = "natively " if routing.require_native and not needs.required & ~backend.able else ""
        return Dropped(backend, f"does not {how}offer {feature_names(missing)}", lasting=True, missing=missing)
    if backend.provider in routing.exclude_providers:
        return Dropped(backend, f"provider {backend.provider} is excluded by the request", lasting=True)
    if weight == 0 and route.strategy == "weighted":
        return Dropped(backend, "its weight is 0", lasting=True)
    if backend.window and needs.input_tokens and needs.input_tokens > backend.window * 2:
        # Twice the window, since the count is an estimate: a near miss is for the provider to judge.
        return Dropped(
            backend, f"about {needs.input_tokens} tokens don't fit its window of {backend.window}", lasting=True
        )
    match backend.state:
        case pb.BACKEND_STATE_DISABLED:
            return Dropped(backend, f"disabled by an operator: {backend.state_reason}", lasting=False)
        case pb.BACKEND_STATE_DRAINING:
            return Dropped(backend, "draining", lasting=False)
        case pb.BACKEND_STATE_DOWN:
            return Dropped(backend, f"down: {backend.state_reason}", lasting=False)
        case pb.BACKEND_STATE_OPEN if now < backend.until:
            return Dropped(backend, f"breaker open: {backend.state_reason}", lasting=False, until=backend.until)
        case _:
            pass
    breaker = local.breaker(backend.id)
    if not breaker.admits(now):
        if breaker.state(now) is State.OPEN:
            return Dropped(backend, f"breaker open here: {breaker.reason}", lasting=False, until=breaker.until)
        return Dropped(backend, "breaker half open here, a trial call is under way", lasting=False)
    return None


def _order(
    kept: list[tuple[Backend, float]], route: Route, needs: Needs, local: LocalState, dice: Callable[[], float]
) -> list[tuple[Backend, str]]:
    if route.strategy == "weighted":
        # Sampling without replacement by exponentials with the weights as rates (Efraimidis and Spirakis).
        total = sum(weight for _, weight in kept)
        drawn = sorted(((-math.log(1.0 - dice()) / weight, n) for n, (_, weight) in enumerate(kept)))
        ordered = [(kept[n][0], f"weight {kept[n][1]:g} of {total:g}") for _, n in drawn]
    else:
        ordered = [(backend, f"target {n + 1}") for n, (backend, _) in enumerate(kept)]
        if len(ordered) > 1 and len({backend.model for backend, _ in ordered}) < len(ordered):
            ordered = _spread(ordered, local)
    if prefer := list(needs.routing.prefer_providers):
        rank = {provider: n for n, provider in enumerate(prefer)}
        ordered.sort(key=lambda entry: rank.get(entry[0].provider, len(prefer)))
    return ordered


def _spread(ordered: list[tuple[Backend, str]], local: LocalState) -> list[tuple[Backend, str]]:
    """Puts the idlest adapter first among those that serve the same model; targets keep their order."""
    first: dict[str, int] = {}
    for n, (backend, _) in enumerate(ordered):
        first.setdefault(backend.model, n)
    return sorted(ordered, key=lambda entry: (first[entry[0].model], local.in_flight.get(entry[0].id, 0)))


def _wait(plan: Plan, now: float) -> float | None:
    ends = [drop.until - now for drop in plan.dropped if drop.until]
    return max(0.0, min(ends)) if ends else None
