"""Contradictions about budgets: ways that lead nowhere, tenants that nobody is, counts that each gateway kept alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.values import is_model, is_slip

if TYPE_CHECKING:
    from maestro_sdk.service.route_checks import Finding
    from maestro_sdk.service.settings import Config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def wrong_budgets(config: Config) -> Iterator[Finding]:
    """Path and message of every contradiction."""
    with_keys = {entry.tenant for entry in config.gateway.keys}
    for name, budget in config.budgets.items():
        path = ("budgets", name)
        if not _NAME.fullmatch(name):
            yield path, f"{name!r} is not a name: letters, digits, _ . and -, 64 at most"
        target = budget.degrade_to
        if target and not (target in config.routes or target in config.aliases or is_model(target)):
            known = ", ".join(sorted({*config.routes, *config.aliases})) or "none"
            yield (
                (*path, "degrade_to"),
                f"{target!r} is neither provider/model nor a route or alias; there are: {known}",
            )
        for index, tenant in enumerate(budget.tenants):
            if not is_tenant(tenant):
                message = f"{tenant!r} is not a tenant: letters, digits, - and _, 64 at most"
                yield (*path, "tenants", index), message
            elif tenant not in with_keys and (near := _meant(tenant, with_keys - set(budget.tenants))):
                message = f"no key belongs to {tenant!r}, so this would hold for nobody; did you mean {near}?"
                yield (*path, "tenants", index), message
    if config.budgets and config.gateway.replicas > 1 and not config.store.url:
        yield (
            ("budgets",),
            f"each of the {config.gateway.replicas} gateways would count for itself: set store.url to share the counts",
        )


def _meant(tenant: str, known: set[str]) -> str:
    return next((other for other in sorted(known) if is_slip(tenant, other)), "")
