"""Contradictions about limits: callers that nobody is, and counts that several gateways would each keep alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.values import is_slip, nearly

if TYPE_CHECKING:
    from maestro_sdk.service.limits import LimitsConfig
    from maestro_sdk.service.route_checks import Finding
    from maestro_sdk.service.settings import Config

_NAME = re.compile(r"(?:(?P<adapter>[^\s/:{}]+):)?(?P<provider>[^\s/:{}]+)(?:/[^\s{}]+)?")


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
    yield from _wrong_providers(config)
    all_of_them = (
        *limits.providers.values(),
        *(
            provider
            for limit in (limits.every_tenant, *limits.tenants.values())
            for provider in limit.providers.values()
        ),
        limits.every_tenant,
        limits.every_key,
        *limits.tenants.values(),
        *limits.keys.values(),
        *limits.personas.values(),
    )
    if config.gateway.replicas > 1 and not config.store.url and any(limit.counts for limit in all_of_them):
        yield (
            ("limits",),
            f"each of the {config.gateway.replicas} gateways would count for itself: set store.url to share the counts",
        )


def _wrong_jobs(limits: LimitsConfig) -> Iterator[Finding]:
    """Limits of jobs and of providers where they would hold for nobody."""
    found = [
        (("limits", "every_key"), limits.every_key),
        *((("limits", "keys", name), limit) for name, limit in limits.keys.items()),
        *((("limits", "personas", name), limit) for name, limit in limits.personas.items()),
    ]
    for path, limit in found:
        if limit.jobs is not None:
            yield (*path, "jobs"), "is limited per tenant only: limits.every_tenant, limits.tenants"
        if limit.providers:
            message = "are limited per tenant and for all: limits.every_tenant, limits.tenants, limits.providers"
            yield (*path, "providers"), message


def _wrong_providers(config: Config) -> Iterator[Finding]:
    """Limits of what is no provider, or surely was meant to be another one.

    Adapters tell what they offer while the mesh runs: a provider that no route names is no mistake as such.
    """
    limits = config.limits
    models = {*_models(config), *config.aliases.values()}  # not resolved: aliases may go round in a circle
    providers = {model.split("/", 1)[0] for model in models if "/" in model}
    tenants = ((("limits", "tenants", tenant, "providers"), limit) for tenant, limit in limits.tenants.items())
    places = [
        (("limits", "providers"), limits.providers),
        (("limits", "every_tenant", "providers"), limits.every_tenant.providers),
        *((path, limit.providers) for path, limit in tenants),
    ]
    for path, found in places:
        for name in found:
            parts = _NAME.fullmatch(name)
            if parts is None:
                message = f"{name!r} is no provider, provider/model, adapter:provider or adapter:provider/model"
                yield (*path, name), message
                continue
            adapter, provider = parts["adapter"], parts["provider"]
            if adapter and config.router.admission == "configured" and adapter not in config.adapters:
                message = f"{adapter!r} is not an adapter; there are: {', '.join(config.adapters)}"
                yield (*path, name), message
            elif near := nearly(provider, providers):
                message = f"no route names provider {provider!r}, so this would limit nobody; did you mean {near}?"
                yield (*path, name), message


def _models(config: Config) -> Iterator[str]:
    """The models that routes name."""
    for route in config.routes.values():
        yield from (target.model for target in route.targets)
        if route.experiment is not None:
            for side in route.experiment.variants.values():
                yield from (target.model for target in side.targets)


def _meant(tenant: str, known: Iterable[str]) -> str:
    return next((other for other in sorted(known) if is_slip(tenant, other)), "")
