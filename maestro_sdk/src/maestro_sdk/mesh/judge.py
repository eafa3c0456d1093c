"""Whether one backend may be tried for one request, and why not. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, feature_names
from maestro_sdk.mesh.table import Backend, Entry, Residency, Route, Table


@dataclass(frozen=True, slots=True)
class Dropped:
    """A backend that may not be tried. `lasting`: waiting does not help; `until` is Unix time, 0 for unknown."""

    backend: Backend
    reason: str
    lasting: bool
    missing: int = 0
    until: float = 0.0
    too_long: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What every backend of a request is held against, read once: a field of a message costs more than a comparison."""

    required: int
    native: bool
    excluded: frozenset[str]
    quality: str
    pinned: str
    """The one adapter that may be used; empty for all."""
    bound: str
    """What is pinned: everything, or a persona."""
    residency: Residency | None
    max_cost: float | None
    input_tokens: int


def terms_of(needs: Needs, route: Route, table: Table) -> Terms:
    """The terms of a request on a route."""
    routing = needs.routing
    pinned, bound = "", "everything"
    if table.pins:
        if pinned := table.pins.get(routing.persona, "") if routing.persona else "":
            bound = f"persona {routing.persona}"
        else:
            pinned = table.pins.get("", "")
    return Terms(
        required=needs.required,
        native=route.require_native or routing.require_native,
        excluded=frozenset(routing.exclude_providers),
        quality=route.quality,
        pinned=pinned,
        bound=bound,
        residency=table.residencies.get(needs.tenant) if table.residencies else None,
        max_cost=float(routing.max_cost_usd) if routing.max_cost_usd else None,
        input_tokens=needs.input_tokens if needs.longest_input is None else needs.longest_input,
    )


def judge(
    entry: Entry, strategy: str, terms: Terms, cost: float | None, local: LocalState, now: float
) -> Dropped | None:
    """Why a backend may not be tried; None when it may. `cost` is the estimate in US dollars, None where unknown.

    What lasts is told before what passes: who waits for a backend shall not find then that it never could.
    """
    backend = entry.backend
    if terms.pinned and backend.adapter != terms.pinned:
        return Dropped(backend, f"{terms.bound} is pinned to {terms.pinned}", lasting=True)
    if terms.residency is not None and (why := terms.residency.refuses(backend)):
        return Dropped(backend, why, lasting=True)
    if backend.provider in terms.excluded:
        return Dropped(backend, f"provider {backend.provider} is excluded by the request", lasting=True)
    if entry.weight == 0 and strategy == "weighted":
        return Dropped(backend, "its weight is 0", lasting=True)
    if terms.quality and terms.quality not in backend.tags:
        return Dropped(backend, f"has no tag {terms.quality!r}, which the route demands", lasting=True)
    if missing := terms.required & ~(backend.native if terms.native else backend.able):
        how = "natively " if terms.native and not terms.required & ~backend.able else ""
        return Dropped(backend, f"does not {how}offer {feature_names(missing)}", lasting=True, missing=missing)
    if terms.max_cost is not None and (cost is None or cost > terms.max_cost):
        how = "its price is unknown" if cost is None else f"would cost about ${cost:.6f}"
        return Dropped(backend, f"{how}; the request allows ${terms.max_cost:.6f}", lasting=True)
    if backend.window and terms.input_tokens > backend.window * 2:
        # Twice the window, since the count is an estimate: a near miss is for the provider to judge.
        why = f"about {terms.input_tokens} tokens don't fit its window of {backend.window}"
        return Dropped(backend, why, lasting=True, too_long=True)
    if backend.state != pb.BACKEND_STATE_ACTIVE and (drop := _judge_state(backend, now)):
        return drop
    if barred := local.bars(backend, now):
        reason, until = barred
        return Dropped(backend, reason, lasting=False, until=until)
    return None


def _judge_state(backend: Backend, now: float) -> Dropped | None:
    why, until = backend.state_reason, backend.until
    match backend.state:
        case pb.BACKEND_STATE_DISABLED:
            return Dropped(backend, f"disabled by an operator: {why}", lasting=False)
        case pb.BACKEND_STATE_DRAINING:
            return Dropped(backend, "draining", lasting=False)
        case pb.BACKEND_STATE_DOWN:
            return Dropped(backend, f"down: {why}", lasting=False)
        case pb.BACKEND_STATE_OPEN:
            still = not until or now < until
            return Dropped(backend, f"breaker open: {why}", lasting=False, until=until) if still else None
        case pb.BACKEND_STATE_QUARANTINED:
            still = not until or now < until
            return Dropped(backend, f"quarantined: {why}", lasting=False, until=until) if still else None
        case pb.BACKEND_STATE_HALF_OPEN | pb.BACKEND_STATE_ACTIVE:
            # How many trial calls a half-open one gets is counted by each process for itself: `LocalState.bars`.
            return None
        case _:
            # A state of a newer router: what it forbids is not known here, so that nothing is called on a guess.
            return Dropped(backend, f"in a state that is not known here ({backend.state})", lasting=False)
