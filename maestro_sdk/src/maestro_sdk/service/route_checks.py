"""What contradicts itself in a route or between routes: each one must be reachable, and each of its policies count."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from maestro_sdk.service.routes import MatchConfig, RouteConfig, TargetConfig

Finding = tuple[tuple[str | int, ...], str]
"""Path and message of a contradiction."""

_UNNAMED = "default"
_LONGEST_NAME = 256
_MOST_COMBINATIONS = 4096


def wrong_targets(route: RouteConfig, path: tuple[str, ...]) -> Iterator[Finding]:
    """Targets that are listed twice or never chosen, and strategies of tiers that have no target."""
    sides = [(route.targets, (*path, "targets"))]
    for name, side in route.experiment.variants.items() if route.experiment else ():
        sides.append((side.targets, (*path, "experiment", "variants", name, "targets")))
    for targets, at in sides:
        tiers = sorted({target.tier for target in targets})
        for tier in tiers:
            weighted = route.tier_strategies.get(tier, route.strategy) == "weighted"
            if weighted and not any(target.weight for target in targets if target.tier == tier):
                which = "the weights" if len(tiers) == 1 else f"the weights of tier {tier}"
                yield at, f"{which} are all 0, so nothing would ever be chosen"
        for model, count in Counter(target.model for target in targets).items():
            if count > 1:
                yield at, f"{model} stands {count} times"
    known = {target.tier for targets, _ in sides for target in targets}
    for tier in route.tier_strategies:
        if tier not in known:
            there = ", ".join(map(str, sorted(known)))
            yield (*path, "tier_strategies", str(tier)), f"no target stands in tier {tier}; there are: {there}"


def wrong_policy(route: RouteConfig, path: tuple[str, ...], *, may_share: bool) -> Iterator[Finding]:
    """Policies that can never take effect; `may_share`: one target may be offered by more than one adapter."""
    usual = type(route).model_fields
    if route.hedge is not None:
        alone = [targets for targets in _sides(route) if len(targets) == 1]
        if alone and not may_share:
            where = "the route" if len(route.targets) == 1 else "a variant of its experiment"
            yield (*path, "hedge"), f"asks a second backend, but {where} has one target, {alone[0][0].model}"
        if route.max_attempts == 1:
            yield (*path, "hedge"), "asks a second backend, but max_attempts is 1"
        for name in ("attempt_timeout", "first_event_timeout", "total_timeout"):
            limit: float | None = getattr(route, name)
            if route.hedge.after is not None and limit is not None and route.hedge.after >= limit:
                message = f"{route.hedge.after:g} s is not before {name}, {limit:g} s: the first attempt would be over"
                yield (*path, "hedge", "after"), message
                break
    if route.resume == "continue" and route.max_attempts == 1:
        yield (*path, "resume"), "needs a second attempt, but max_attempts is 1"
    for name in ("attempt_timeout", "first_event_timeout", "idle_timeout"):
        limit = getattr(route, name)
        # The default of one setting does not contradict another: only who set both can have meant something else.
        if limit is not None and limit > route.total_timeout and limit != usual[name].default:
            yield (*path, name), f"{limit:g} s is longer than total_timeout, {route.total_timeout:g} s"
    if route.retry.back_off > route.retry.longest_back_off:
        message = f"{route.retry.back_off:g} s is longer than longest_back_off, {route.retry.longest_back_off:g} s"
        yield (*path, "retry", "back_off"), message
    if route.on_router_loss == "serve" and route.router_loss_after != usual["router_loss_after"].default:
        yield (*path, "router_loss_after"), "has no effect while on_router_loss is serve"


def _sides(route: RouteConfig) -> Iterator[Sequence[TargetConfig]]:
    yield route.targets
    yield from (side.targets for side in route.experiment.variants.values()) if route.experiment else ()


def wrong_experiments(routes: Mapping[str, RouteConfig]) -> Iterator[Finding]:
    """Experiments of one name that deal their subjects differently, so that what is recorded of them is mixed up."""
    first: dict[str, tuple[str, object]] = {}
    for name, route in routes.items():
        if route.experiment is None:
            continue
        dealt = (route.experiment.label, [(v, side.share) for v, side in route.experiment.variants.items()])
        owner, other = first.setdefault(route.experiment.name, (name, dealt))
        if dealt != other:
            message = f"{route.experiment.name} is an experiment of routes.{owner} too, with other variants or shares"
            yield ("routes", name, "experiment", "name"), message


def wrong_matches(routes: Mapping[str, RouteConfig], aliases: Mapping[str, str]) -> Iterator[Finding]:
    """Matches that no request can meet, or that earlier ones leave nothing to, and names that a match takes away."""
    earlier: list[tuple[str, MatchConfig]] = []
    for name, route in routes.items():
        match = route.match
        if match is None:
            continue
        for index, model in enumerate(match.models):
            if why := _never_asked(model):
                yield ("routes", name, "match", "models", index), why
        takers = _takers(match, earlier)
        if takers:
            said = f"routes.{takers[0]} takes" if len(takers) == 1 else f"{_listed(takers)} together take"
            message = f"can never match: {said} every such request before it"
            yield ("routes", name, "match"), message
        earlier.append((name, match))
    for name, match in earlier:
        # A match of names alone takes them from everybody.
        if match.tenants or match.personas or match.skills or match.labels or set(match.required) - {"CHAT"}:
            continue
        for model in match.models:
            if model in aliases:
                yield ("aliases", model), f"is never reached: routes.{name} takes every request for {model}"
            elif model in routes and model != name and routes[model].match is None and model not in aliases.values():
                yield ("routes", model), f"is never reached: routes.{name} takes every request for {model}"


def _never_asked(model: str) -> str:
    """Why no request that takes part in matching gives this name; empty when one may."""
    if model == _UNNAMED:
        return "a request for 'default' is one that names no model: leave `models` out to match those"
    if not model.strip() or model != model.strip() or len(model) > _LONGEST_NAME:
        return f"{model!r} is no name that a request can give"
    return ""


def _takers(match: MatchConfig, earlier: Sequence[tuple[str, MatchConfig]]) -> list[str]:
    """The earlier routes that take every request which fits `match`, each its part; empty when something is left."""
    lists = (match.models, match.tenants, match.personas, match.skills)
    sizes = [max(1, len(values)) for values in lists]
    if sizes[0] * sizes[1] * sizes[2] * sizes[3] > _MOST_COMBINATIONS:
        cases = [lists]
    else:
        cases = list(itertools.product(*([(value,) for value in values] or [()] for values in lists)))
    takers: list[str] = []
    for case in cases:
        taker = next((name for name, other in earlier if _covers(other, match, case)), None)
        if taker is None:
            return []
        if taker not in takers:
            takers.append(taker)
    return takers


def _covers(other: MatchConfig, match: MatchConfig, case: Sequence[Sequence[str]]) -> bool:
    """Whether `other` takes all requests of `match` with one of the names, tenants, personas and skills of `case`."""
    models, *rest = case
    # Without names a match is for requests that name none, so an empty list is no wider than a full one here.
    if bool(models) != bool(other.models) or not set(models) <= set(other.models):
        return False
    for values, wider in zip(rest, (other.tenants, other.personas, other.skills), strict=True):
        if wider and (not values or not set(values) <= set(wider)):
            return False
    # Every request of a chat needs CHAT.
    return other.labels.items() <= match.labels.items() and set(other.required) <= {*match.required, "CHAT"}


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(f'routes.{name}' for name in names[:-1])} and routes.{names[-1]}"
