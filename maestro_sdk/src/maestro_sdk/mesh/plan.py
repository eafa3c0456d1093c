"""The decision which backends a request may try, in which order, and why not the others.

Pure: the table, local state, time and dice come in as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import CapabilityUnavailable, ContextTooLong, InvalidRequest, MaestroError, NoBackend, NotFound
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, feature_names, unmask
from maestro_sdk.mesh.strategy import STRATEGIES, Choice, Ranked, draw_variant, estimate, rank
from maestro_sdk.mesh.table import DEFAULT_ROUTE, Backend, Entry, Match, Route, Table, Targets

_NOT_OFFERED = "no enabled adapter offers it"


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
class Plan:
    """A decision: `kept` in the order in which to try them; `variant` is empty for the route's own targets."""

    route: Route
    strategy: str
    table_version: int
    kept: Sequence[Ranked]
    dropped: Sequence[Dropped]
    missing: Sequence[str]
    needs: Needs
    experiment: str = ""
    variant: str = ""

    def message(self) -> pb.Decision:
        """The decision as the contract has it."""
        decision = pb.Decision(
            route=self.route.name,
            table_version=self.table_version,
            strategy=self.strategy,
            experiment=self.experiment,
            variant=self.variant,
        )
        for ranked in self.kept:
            backend = ranked.choice.backend
            cost = estimate(backend, self.needs)
            decision.candidates.add(
                backend_id=backend.id,
                model=backend.model,
                kept=True,
                reason=ranked.reason,
                score=ranked.score,
                estimated_usd=None if cost is None else f"{cost:.9f}",
            )
        for drop in self.dropped:
            decision.candidates.add(
                backend_id=drop.backend.id,
                model=drop.backend.model,
                kept=False,
                reason=drop.reason,
                missing=unmask(drop.missing),
            )
        for model in self.missing:
            decision.candidates.add(model=model, kept=False, reason=_NOT_OFFERED)
        return decision


def plan(needs: Needs, table: Table, local: LocalState, now: float, dice: Callable[[], float]) -> Plan:
    """Decides. `now` is Unix time in seconds, `dice` gives numbers in [0, 1).

    Raises `NotFound` for a name that is neither route nor model, and `InvalidRequest` for a strategy that is unknown or
    not allowed. A plan that keeps nothing is no error: see `refusal`.
    """
    route = choose_route(needs, table)
    strategy = _strategy(needs, route)
    targets, experiment, variant = _targets(needs, route)
    terms = _terms(needs, route, strategy, table)
    entries = _pin(targets.entries, terms.pinned, table) if terms.pinned else targets.entries
    kept: dict[int, list[Choice]] = {}
    dropped: list[Dropped] = []
    for entry in entries:
        cost = estimate(entry.backend, needs) if terms.priced else None
        drop = _judge(entry, terms, cost, local, now)
        if drop is None:
            kept.setdefault(entry.tier, []).append(Choice(entry.backend, entry.weight, cost))
        else:
            dropped.append(drop)
    ordered: list[Ranked] = []
    for number, tier in kept.items():
        ordered += rank(strategy, tier, needs.key, (route.name, number), local.load, dice)
    if prefer := list(needs.routing.prefer_providers):
        order = {provider: n for n, provider in enumerate(prefer)}
        ordered.sort(key=lambda ranked: order.get(ranked.choice.backend.provider, len(prefer)))
    return Plan(route, strategy, table.version, ordered, dropped, targets.missing, needs, experiment, variant)


def choose_route(needs: Needs, table: Table) -> Route:
    """The first route that matches the request, else the one that it names. Raises `NotFound`."""
    for route in table.matching:
        if route.match is not None and _fits(needs, route.match):
            return route
    return find_route(needs.model, table)


def _fits(needs: Needs, match: Match) -> bool:
    """Whether a route takes the request without being named. One that names a model only goes where that is listed."""
    named = needs.model if needs.model != DEFAULT_ROUTE else ""
    if named not in match.models and (named or match.models):
        return False
    routing = needs.routing
    return (
        (not match.tenants or needs.tenant in match.tenants)
        and (not match.personas or routing.persona in match.personas)
        and (not match.skills or routing.skill in match.skills)
        and not match.required & ~needs.required
        and all(needs.metadata.get(name) == value for name, value in match.labels)
    )


def _strategy(needs: Needs, route: Route) -> str:
    asked = needs.routing.strategy
    if not asked or asked == route.strategy:
        return route.strategy
    allowed = route.strategies or STRATEGIES
    if asked not in allowed:
        raise InvalidRequest.at("routing.strategy", f"{asked!r} is not one of {', '.join(allowed)}")
    return asked


def _targets(needs: Needs, route: Route) -> tuple[Targets, str, str]:
    """The targets of the request: those of its variant while the route has an experiment."""
    experiment = route.experiment
    if experiment is None:
        return route.targets, "", ""
    if experiment.label:
        subject = needs.metadata.get(experiment.label, "")
    else:
        subject = needs.routing.session_key or needs.tenant
    if not subject:
        return route.targets, "", ""
    variant = draw_variant(experiment.name, subject, experiment.shares)
    return (experiment.variants[variant] if variant else route.targets), experiment.name, variant


def _pin(entries: Sequence[Entry], adapter: str, table: Table) -> Sequence[Entry]:
    """The entries, and where none of them is at the pinned adapter, what the adapter has for the default route."""
    if any(entry.backend.adapter == adapter for entry in entries):
        return entries
    default = table.routes.get(DEFAULT_ROUTE)
    usual = [entry for entry in default.targets.entries if entry.backend.adapter == adapter] if default else []
    every = [Entry(backend) for backend in table.backends.values() if backend.adapter == adapter]
    return [*(usual or every), *entries]


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
    reasons += [f"{model}: {_NOT_OFFERED}" for model in plan.missing]
    what = f"route {plan.route.name!r}" if plan.route.name else f"model {needs.model!r}"
    tried = "; ".join(reasons) or "it has no backends"
    if any(not drop.lasting for drop in plan.dropped):
        return NoBackend(
            f"no backend of {what} can answer now: {tried}", metadata={"tried": tried}, retry_after=_wait(plan, now)
        )
    if plan.dropped and all(drop.too_long for drop in plan.dropped):
        return ContextTooLong(f"the request is too long for every backend of {what}: {tried}")
    missing = {feature_names(drop.missing) for drop in plan.dropped if drop.missing}
    if missing:
        return CapabilityUnavailable(
            f"no backend of {what} has what the request needs: {tried}",
            metadata={"missing": "; ".join(sorted(missing))},
        )
    return NoBackend(
        f"no backend of {what} may answer this request: {tried}", metadata={"tried": tried}, retryable=False
    )


@dataclass(frozen=True, slots=True)
class _Terms:
    """What every backend of a request is held against, read once: a field of a message costs more than a comparison."""

    required: int
    native: bool
    excluded: frozenset[str]
    quality: str
    pinned: str
    weighted: bool
    max_cost: float | None
    priced: bool
    input_tokens: int


def _terms(needs: Needs, route: Route, strategy: str, table: Table) -> _Terms:
    routing = needs.routing
    max_cost = float(routing.max_cost_usd) if routing.max_cost_usd else None
    return _Terms(
        required=needs.required,
        native=routing.require_native,
        excluded=frozenset(routing.exclude_providers),
        quality=route.quality,
        pinned=(table.pins.get(routing.persona) or table.pins.get("", "")) if table.pins else "",
        weighted=strategy == "weighted",
        max_cost=max_cost,
        priced=max_cost is not None or strategy == "cost",
        input_tokens=needs.input_tokens,
    )


def _judge(entry: Entry, terms: _Terms, cost: float | None, local: LocalState, now: float) -> Dropped | None:
    backend = entry.backend
    if terms.pinned and backend.adapter != terms.pinned:
        return Dropped(backend, f"everything is pinned to {terms.pinned}", lasting=True)
    offered = backend.native if terms.native else backend.able
    if missing := terms.required & ~offered:
        how = "natively " if terms.native and not terms.required & ~backend.able else ""
        return Dropped(backend, f"does not {how}offer {feature_names(missing)}", lasting=True, missing=missing)
    if backend.provider in terms.excluded:
        return Dropped(backend, f"provider {backend.provider} is excluded by the request", lasting=True)
    if entry.weight == 0 and terms.weighted:
        return Dropped(backend, "its weight is 0", lasting=True)
    if terms.quality and terms.quality not in backend.tags:
        return Dropped(backend, f"has no tag {terms.quality!r}, which the route demands", lasting=True)
    if terms.max_cost is not None and (cost is None or cost > terms.max_cost):
        how = "its price is unknown" if cost is None else f"would cost about ${cost:.6f}"
        return Dropped(backend, f"{how}; the request allows ${terms.max_cost:.6f}", lasting=True)
    if backend.window and terms.input_tokens > backend.window * 2:
        # Twice the window, since the count is an estimate: a near miss is for the provider to judge.
        why = f"about {terms.input_tokens} tokens don't fit its window of {backend.window}"
        return Dropped(backend, why, lasting=True, too_long=True)
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
    if barred := local.bars(backend, now):
        reason, until = barred
        return Dropped(backend, reason, lasting=False, until=until)
    return None


def _wait(plan: Plan, now: float) -> float | None:
    ends = [drop.until - now for drop in plan.dropped if drop.until]
    return max(0.0, min(ends)) if ends else None
