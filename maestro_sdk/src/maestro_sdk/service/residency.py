"""Contradictions about tenants: names that nobody has, and places where nobody answers."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.values import is_slip

if TYPE_CHECKING:
    from maestro_sdk.service.route_checks import Finding
    from maestro_sdk.service.routes import RouteConfig
    from maestro_sdk.service.settings import Config


def wrong_residencies(config: Config) -> Iterator[Finding]:
    """Tenants that are bound to what no adapter or no target of their route is, and tenants that look misspelt."""
    with_keys = {entry.tenant for entry in config.gateway.keys}
    for tenant, policy in config.tenants.items():
        path = ("tenants", tenant)
        if not is_tenant(tenant):
            yield path, f"{tenant!r} is not a tenant: letters, digits, - and _, 64 at most"
            continue
        # A bound that is written for a misspelt tenant binds nobody: what it should keep in would go out.
        bound = policy.regions or policy.providers
        if bound and tenant not in with_keys and (near := _meant(tenant, with_keys - set(config.tenants))):
            yield path, f"no key belongs to {tenant!r}, so this would bind nobody; did you mean {near}?"
        if policy.regions and config.router.admission == "configured":
            allowed = set(policy.regions)
            places = {name: set(adapter.regions) for name, adapter in config.adapters.items()}
            if not any(regions and regions <= allowed for regions in places.values()):
                there = ", ".join(f"{name} in {', '.join(sorted(regions)) or '?'}" for name, regions in places.items())
                message = f"no adapter answers only in {', '.join(sorted(allowed))}; by adapters.*.regions: {there}"
                yield (*path, "regions"), message
    for name, route in config.routes.items():
        yield from _wrong_tenants(name, route, config, with_keys)


def _wrong_tenants(name: str, route: RouteConfig, config: Config, with_keys: AbstractSet[str]) -> Iterator[Finding]:
    """Tenants that a route takes and may not answer, and such as look misspelt."""
    sides = [route.targets, *(side.targets for side in route.experiment.variants.values())] if route.experiment else [
        route.targets
    ]  # fmt: skip
    for index, tenant in enumerate(route.match.tenants if route.match else ()):
        path = ("routes", name, "match", "tenants", index)
        if not is_tenant(tenant):
            yield path, f"{tenant!r} is not a tenant: letters, digits, - and _, 64 at most"
            continue
        if tenant not in config.tenants and (near := _meant(tenant, with_keys)):
            yield path, f"no key belongs to {tenant!r}, so nobody would match; did you mean {near}?"
            continue
        allowed = config.tenants[tenant].providers if tenant in config.tenants else ()
        for targets in sides if allowed else ():
            providers = {target.model.split("/", 1)[0] for target in targets}
            if not providers & set(allowed):
                where = "the route" if targets is route.targets else "a variant of its experiment"
                message = (
                    f"tenants.{tenant}.providers allows only {', '.join(allowed)}, but {where} has only targets of "
                    f"{', '.join(sorted(providers))}"
                )
                yield path, message
                break


def _meant(tenant: str, with_keys: AbstractSet[str]) -> str:
    """The tenant with a key that one without was surely meant to be; "" for none.

    Keys may be made later, and identity providers have tenants of their own: only a slip of the fingers counts.
    """
    return next((known for known in sorted(with_keys) if tenant not in with_keys and is_slip(tenant, known)), "")
