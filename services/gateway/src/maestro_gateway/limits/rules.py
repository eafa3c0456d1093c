"""Which limits a caller, or an attempt at a backend, falls under, as claims to be taken. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from maestro_sdk.mesh.table import Backend
from maestro_sdk.service.limits import CountConfig, LimitsConfig, ProviderLimitConfig
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
    tenant: str = ""
    """Whose limit at a provider it is; empty for one of the whole mesh."""


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


def provider_rules(config: LimitsConfig, backend: Backend, tenant: str) -> tuple[Rule, ...]:
    """The limits that an attempt of a tenant at a backend falls under: those of the mesh, then those of the tenant."""
    of_tenant = config.tenants.get(tenant, config.every_tenant).providers
    tag = f"{{provider:{backend.provider}}}"
    return (
        *_of_provider(config.providers, backend, f"{tag}:all", "", ""),
        *_of_provider(of_tenant, backend, f"{tag}:tenant:{tenant}", f"tenant {tenant} at ", tenant),
    )


def named_provider(name: str) -> str:
    """The provider of a name under `providers`: one itself, a model, an account or a backend."""
    return name.split("/", 1)[0].rpartition(":")[2]


def _of_provider(
    limits: Mapping[str, ProviderLimitConfig], backend: Backend, scope: str, whose: str, tenant: str
) -> Iterator[Rule]:
    named = (("provider", backend.provider), ("account", backend.account), ("model", backend.model))
    for kind, name in (*named, ("backend", backend.id)):
        if (limit := limits.get(name)) is not None:
            for rule in _rules(limit, f"{scope}:{kind}:{name}", f"{whose}{kind} {name}"):
                yield replace(rule, tenant=tenant)


def _rules(limit: CountConfig, scope: str, whose: str) -> Iterator[Rule]:
    if limit.requests is not None:
        yield _rule(scope, whose, "requests", limit.requests.limit, limit.requests.per)
    if limit.tokens is not None:
        yield _rule(scope, whose, "tokens", limit.tokens.limit, limit.tokens.per)
    if limit.concurrency is not None:
        yield _rule(scope, whose, "concurrency", limit.concurrency, 0.0)


def _rule(scope: str, whose: str, measure: Measure, limit: int, window: float) -> Rule:
    return Rule(f"maestro:limit:{scope}:{measure}", whose, measure, _KINDS[measure], limit, window)
