"""Contradictions about limits: callers that nobody is, and counts that several gateways would each keep alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.values import is_slip, nearly

if TYPE_CHECKING:
    from maestro_sdk.service.limits import LimitConfig, LimitsConfig
    from maestro_sdk.service.route_checks import Finding
    from maestro_sdk.service.settings import Config


def wrong_limits(config: Config) -> Iterator[Finding]:
    """Path and message of every contradiction."""
    limits = config.limits
    with_keys = {entry.tenant for entry in config.gateway.keys}
    names = {entry.name for entry in config.gateway.keys if entry.name}
    for tenant in limits.tenants:
        path = ("limits", "tenants", tenant)
        if not is_tenant(tenant):
            yield path, f"{tenant!r} is not a tenant: letters, digits, - and _, 64 at most"
        elif tenant not in with_keys and (near := _meant(tenant, with_keys - set(limits.tenants))):
            # Keys are made while the mesh runs, so a tenant without one is no mistake as such.
            yield path, f"no key belongs to {tenant!r}, so this would limit nobody; did you mean {near}?"
    for key in limits.keys:
        if near := nearly(key, names):
            yield ("limits", "keys", key), f"no key is named {key!r}, so this would limit nobody; did you mean {near}?"
    yield from _wrong_jobs(limits)
    all_of_them = (
        limits.every_tenant,
        limits.every_key,
        *limits.tenants.values(),
        *limits.keys.values(),
        *limits.personas.values(),
    )
    if config.gateway.replicas > 1 and not config.store.url and any(map(_counts, all_of_them)):
        yield (
            ("limits",),
            f"each of the {config.gateway.replicas} gateways would count for itself: set store.url to share the counts",
        )


def _wrong_jobs(limits: LimitsConfig) -> Iterator[Finding]:
    """Limits of jobs where they would hold for nobody."""
    found = [
        (("limits", "every_key"), limits.every_key),
        *((("limits", "keys", name), limit) for name, limit in limits.keys.items()),
        *((("limits", "personas", name), limit) for name, limit in limits.personas.items()),
    ]
    for path, limit in found:
        if limit.jobs is not None:
            yield (*path, "jobs"), "is limited per tenant only: limits.every_tenant, limits.tenants"


def _counts(limit: LimitConfig) -> bool:
    return limit.requests is not None or limit.tokens is not None or limit.concurrency is not None


def _meant(tenant: str, known: Iterable[str]) -> str:
    return next((other for other in sorted(known) if is_slip(tenant, other)), "")
