"""Which limits a caller falls under, as claims to be taken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from maestro_sdk.service.limits import LimitConfig, LimitsConfig
from maestro_sdk.service.store import Kind

Measure = Literal["requests", "tokens", "concurrency"]

_KINDS: dict[Measure, Kind] = {"requests": Kind.EACH, "tokens": Kind.SUM, "concurrency": Kind.PLACES}


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit: `whose` and `measure` name it to people, `key` to the store."""

    key: str
    whose: str
    measure: Measure
    kind: Kind
    limit: int
    window: float


@dataclass(frozen=True, slots=True)
class Rules:
    """All limits of one caller. Sizes are 0 where there is none."""

    counted: tuple[Rule, ...]
    max_request: int
    max_part: int
    counts_tokens: bool


def rules_for(config: LimitsConfig, tenant: str, key_id: str, key_name: str, persona: str) -> Rules | None:
    """The limits that a request of this caller falls under; None when there are none."""
    scopes = [
        (f"tenant:{tenant}", f"tenant {tenant}", config.tenants.get(tenant, config.every_tenant)),
        (
            f"key:{key_id}",
            f"key {key_name or key_id}",
            config.keys.get(key_id) or config.keys.get(key_name) or config.every_key,
        ),
    ]
    if persona in config.personas:
        scopes.append((f"persona:{persona}", f"persona {persona}", config.personas[persona]))
    counted = tuple(rule for name, whose, limit in scopes for rule in _rules(limit, f"{{{tenant}}}:{name}", whose))
    sizes = [limit.max_request for _, _, limit in scopes if limit.max_request is not None]
    parts = [limit.max_part for _, _, limit in scopes if limit.max_part is not None]
    if not (counted or sizes or parts):
        return None
    return Rules(
        counted,
        min(sizes, default=0),
        min(parts, default=0),
        any(rule.kind is Kind.SUM for rule in counted),
    )


def _rules(limit: LimitConfig, scope: str, whose: str) -> Iterator[Rule]:
    if limit.requests is not None:
        yield _rule(scope, whose, "requests", limit.requests.limit, limit.requests.per)
    if limit.tokens is not None:
        yield _rule(scope, whose, "tokens", limit.tokens.limit, limit.tokens.per)
    if limit.concurrency is not None:
        yield _rule(scope, whose, "concurrency", limit.concurrency, 0.0)


def _rule(scope: str, whose: str, measure: Measure, limit: int, window: float) -> Rule:
    return Rule(f"maestro:limit:{scope}:{measure}", whose, measure, _KINDS[measure], limit, window)
