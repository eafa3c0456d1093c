"""The decision which backends a request may try, in which order, and why not the others.

Pure: the table, local state, time and dice come in as arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches

from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import CapabilityUnavailable, ContextTooLong, InvalidRequest, MaestroError, NoBackend, NotFound
from maestro_sdk.mesh.judge import Dropped, judge, terms_of
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, feature_list, feature_names, unmask
from maestro_sdk.mesh.strategy import Ranked, asked_of, draw_variant, estimate, rank
from maestro_sdk.mesh.table import DEFAULT_ROUTE, STRATEGIES, Choice, Entry, Match, Residency, Route, Table, Targets

_NOT_OFFERED = "no enabled adapter offers it"
_MOST_TOLD = 16
"""Backends that an error names: it has to fit into the trailers of a call. Explain names all."""
_MOST_NAMES = 32
"""Names that an error tells as known, for the same reason."""
_ON_TRIAL = frozenset({pb.BACKEND_STATE_HALF_OPEN, pb.BACKEND_STATE_OPEN})


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision: `kept` in the order in which to try them; `variant` is empty for the route's own targets.

    `strategy` is the one of the route, or what the request asked for; single tiers of a route may have others.
    """

    route: Route
    strategy: str
    tier_strategies: Mapping[int, str]
    table_version: int
    kept: Sequence[Ranked]
    dropped: Sequence[Dropped]
    missing: Sequence[str]
    needs: Needs
    experiment: str = ""
    variant: str = ""
    passed: Mapping[str, str] = field(default_factory=dict[str, str])
    """Why backends that were kept were passed over when their turn came, by id."""

    def message(self) -> pb.Decision:
        """The decision as the contract has it."""
        decision = pb.Decision(
            route=self.route.name,
            table_version=self.table_version,
            strategy=self._say_strategy(),
            experiment=self.experiment,
            variant=self.variant,
        )
        for ranked in self.kept:
            backend = ranked.choice.backend
            cost = estimate(backend, self.needs)
            reason = f"{ranked.reason}; half open: a trial" if backend.state in _ON_TRIAL else ranked.reason
            if why := self.passed.get(backend.id):
                reason = f"{reason}; passed over: {why}"
            decision.candidates.add(
                backend_id=backend.id,
                model=backend.model,
                kept=True,
                reason=reason,
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

    def _say_strategy(self) -> str:
        """The strategy, as "weighted; tier 1: cost" where tiers have others."""
        return "; ".join(
            (self.strategy, *(f"tier {tier}: {own}" for tier, own in sorted(self.tier_strategies.items())))
        )


def plan(needs: Needs, table: Table, local: LocalState, now: float, dice: Callable[[], float]) -> Plan:
    """Decides. `now` is Unix time in seconds, `dice` gives numbers in [0, 1).

    Raises `NotFound` for a name that is neither route nor model, `InvalidRequest` for a strategy that is unknown or
    not allowed, and `NoBackend` where the route demands a router and none was heard of for too long. A plan that keeps
    nothing is no error: see `refusal`.
    """
    route = choose_route(needs, table)
    if route.loss_limit is not None and now - local.router_seen > route.loss_limit:
        raise _lost(route, route.loss_limit, local.router_seen, now)
    strategy, by_tier = _strategies(needs, route)
    terms = terms_of(needs, route, table)
    targets, experiment, variant = _targets(needs, route, terms.residency)
    asked = asked_of(needs, now)
    # A key decides instead of the cost, so that an estimate would be made for nothing.
    by_cost = not asked.key and (strategy == "cost" or "cost" in by_tier.values())
    priced = by_cost or terms.max_cost is not None
    entries = _pin(targets.entries, terms.pinned, table) if terms.pinned else targets.entries
    kept: dict[int, list[Choice]] = {}
    dropped: list[Dropped] = []
    for entry in entries:
        tier, choice = entry.tier, entry.choice
        if priced:
            choice = Choice(choice.backend, choice.weight, estimate(choice.backend, needs), choice.number)
        drop = judge(entry, by_tier.get(tier, strategy) if by_tier else strategy, terms, choice.cost, local, now)
        if drop is not None:
            dropped.append(drop)
        elif tier in kept:
            kept[tier].append(choice)
        else:
            kept[tier] = [choice]
    ordered: list[Ranked] = []
    for number, choices in kept.items():
        ordered += rank(by_tier.get(number, strategy), choices, asked, (route.name, number), local.load, dice)
    if prefer := list(needs.routing.prefer_providers):
        order = {provider: n for n, provider in enumerate(prefer)}
        ordered.sort(key=lambda ranked: order.get(ranked.choice.backend.provider, len(prefer)))
    return Plan(route, strategy, by_tier, table.version, ordered, dropped, targets.missing, needs, experiment, variant)


def _lost(route: Route, limit: float, seen: float, now: float) -> NoBackend:
    what = f"route {route.name!r} demands" if route.name else "the default route's limits demand"
    since = (
        f"none has been heard of since {datetime.fromtimestamp(seen, UTC):%Y-%m-%dT%H:%M:%SZ}, {now - seen:.0f} s ago"
        if seen
        else "none has been heard of since this process began"
    )
    return NoBackend(
        f"{what} a router that was heard of in the last {limit:g} s; {since}",
        metadata={"router_loss": "refuse"},
        retry_after=1.0,
    )


def choose_route(needs: Needs, table: Table) -> Route:
    """The first route that matches the request, else the one that it names. Raises `NotFound`."""
    for route in table.matching:
        if route.match is not None and _fits(needs, route.match):
            return route
    return find_route(needs.model, table)


def variant_of(needs: Needs, route: Route, table: Table) -> str:
    """Whose answer a request on this route gets: the name of a variant of its experiment, "" for the route's own."""
    if route.experiment is None:
        return ""
    residency = table.residencies.get(needs.tenant)
    return _targets(needs, route, residency)[2]


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


def _strategies(needs: Needs, route: Route) -> tuple[str, Mapping[int, str]]:
    """The strategy, and the ones of single tiers; what the request asks for holds for all tiers."""
    asked = needs.routing.strategy
    if not asked:
        return route.strategy, route.tier_strategies
    allowed = route.strategies or STRATEGIES
    if asked not in allowed and asked != route.strategy:
        raise InvalidRequest.at("routing.strategy", f"{asked!r} is not one of {', '.join(allowed)}")
    return asked, {}


def _targets(needs: Needs, route: Route, residency: Residency | None) -> tuple[Targets, str, str]:
    """The targets of the request: those of its variant while the route has an experiment.

    Whose tenant may use nothing of the variant takes no part: chance shall not refuse what the route would answer.
    """
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
    if not variant:
        return route.targets, experiment.name, ""
    targets = experiment.variants[variant]
    if residency is not None and targets.entries and all(residency.refuses(entry.backend) for entry in targets.entries):
        return route.targets, "", ""
    return targets, experiment.name, variant


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
    told = names[:_MOST_NAMES]
    more = f" and {len(names) - len(told)} more" if len(names) > len(told) else ""
    raise NotFound(
        f"no model or route is named {model or DEFAULT_ROUTE!r}{hint} Known: {', '.join(told) or 'none'}{more}",
        metadata={"known": ",".join(told)},
        failover=False,
    )


def refusal(plan: Plan, needs: Needs, now: float) -> MaestroError:
    """The error for a plan that keeps nothing: the one that helps most.

    `NoBackend` where waiting may help. Else what the caller can do about it, as far as the route's and the caller's own
    rules leave somebody who could: `ContextTooLong` where a shorter request would be answered, `CapabilityUnavailable`
    where nobody has what the request needs; its metadata tells per candidate what is missing.
    """
    reasons = [f"{drop.backend.id}: {drop.reason}" for drop in plan.dropped]
    reasons += [f"{model}: {_NOT_OFFERED}" for model in plan.missing]
    what = f"route {plan.route.name!r}" if plan.route.name else f"model {needs.model!r}"
    if len(reasons) > _MOST_TOLD:
        reasons[_MOST_TOLD:] = [f"and {len(reasons) - _MOST_TOLD} more"]
    tried = "; ".join(reasons) or "it has no backends"
    if any(not drop.lasting for drop in plan.dropped):
        return NoBackend(
            f"no backend of {what} can answer now: {tried}", metadata={"tried": tried}, retry_after=_wait(plan, now)
        )
    if any(drop.too_long for drop in plan.dropped):
        return ContextTooLong(f"the request is too long for every backend of {what} that could answer it: {tried}")
    lacking = {drop.backend.id: drop.missing for drop in plan.dropped if drop.missing}
    if lacking:
        each = {name: feature_list(missing) for name, missing in list(lacking.items())[:_MOST_TOLD]}
        return CapabilityUnavailable(
            f"no backend of {what} has what the request needs: {tried}",
            metadata={
                "missing": "; ".join(sorted({feature_names(missing) for missing in lacking.values()})),
                "candidates": json.dumps(each, separators=(",", ":")),
            },
        )
    return NoBackend(
        f"no backend of {what} may answer this request: {tried}", metadata={"tried": tried}, retryable=False
    )


def _wait(plan: Plan, now: float) -> float | None:
    ends = [drop.until - now for drop in plan.dropped if drop.until]
    return max(0.0, min(ends)) if ends else None
