"""What no single setting shows: clashes and cycles of names, routes that nothing reaches, things used twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from maestro_sdk.service.budget_checks import wrong_budgets
from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.limit_checks import wrong_limits
from maestro_sdk.service.residency import wrong_residencies
from maestro_sdk.service.route_checks import wrong_experiments, wrong_matches, wrong_policy, wrong_targets
from maestro_sdk.service.values import is_model, nearly

if TYPE_CHECKING:
    from maestro_sdk.service.settings import Config

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


def contradictions(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Path and message of every contradiction."""
    for name in config.adapters:
        if not _NAME.fullmatch(name):
            yield ("adapters", name), f"{name!r} is not a name"
    for name, route in config.routes.items():
        if not _NAME.fullmatch(name):
            yield ("routes", name), f"{name!r} is not a name: a route has no slash and no space"
        yield from wrong_targets(route, ("routes", name))
        yield from wrong_policy(route, ("routes", name), may_share=_models_may_be_shared(config))
    yield from wrong_experiments(config.routes)
    yield from wrong_matches(config.routes, config.aliases)
    yield from wrong_residencies(config)
    yield from wrong_limits(config)
    yield from wrong_budgets(config)
    yield from _wrong_webhooks(config)
    yield from _wrong_aliases(config)
    yield from _wrong_pins(config)
    for index, entry in enumerate(config.gateway.keys):
        earlier = next((i for i, other in enumerate(config.gateway.keys[:index]) if other.key == entry.key), None)
        if earlier is not None:
            source = entry.key.env or entry.key.file
            yield ("gateway", "keys", index, "key"), f"{source} is the key of gateway.keys[{earlier}] already"
    owners: dict[str, str] = {}
    for path, address in _addresses(config):
        if address in owners and not address.endswith(":0"):
            yield path, f"{address} is the address of {owners[address]} already"
        owners.setdefault(address, ".".join(path))


def _wrong_pins(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Pins that no adapter answers. The name may end in "-only", as in GATEWAY_PROVIDER=claude-only."""
    for path, adapter in [
        (("router", "pin"), config.router.pin),
        *((("router", "pins", persona), adapter) for persona, adapter in config.router.pins.items()),
    ]:
        name = adapter.removesuffix("-only")
        found = config.adapters.get(name)
        if adapter and found is None and not (config.router.admission != "configured" and _NAME.fullmatch(name)):
            yield path, f"{adapter!r} is not an adapter; there are: {', '.join(config.adapters)}"
        elif adapter and found is None and (near := nearly(name, config.adapters)):
            # Any other name may be that of an adapter that announces itself.
            yield path, f"{adapter!r} is not an adapter; did you mean {near}?"
        elif found is not None and found.enabled is False:
            yield path, f"pins to {name}, which is not enabled: nothing could answer"


def _wrong_webhooks(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Webhooks of what is no tenant: its name becomes part of a subject, where `*` would be every tenant."""
    for tenant, policy in config.tenants.items():
        if policy.webhooks and not is_tenant(tenant) and tenant != "_mesh":
            yield ("tenants", tenant, "webhooks"), f"{tenant!r} is no tenant: letters, digits, - and _, 64 at most"


def _models_may_be_shared(config: Config) -> bool:
    """Whether two adapters may offer the same model, so that one target may be more than one backend."""
    modules = Counter(adapter.module for adapter in config.adapters.values())
    unknown = config.router.admission != "configured" or (modules[None] and len(config.adapters) > 1)
    return bool(unknown) or any(count > 1 for count in modules.values())


def _addresses(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    yield ("gateway", "address"), config.gateway.address
    yield ("gateway", "websocket"), config.gateway.websocket
    yield ("router", "address"), config.router.address
    for name, adapter in config.adapters.items():
        yield ("adapters", name, "address"), adapter.address
    yield ("envoy", "address"), config.envoy.address
    yield ("envoy", "admin"), config.envoy.admin


def _wrong_aliases(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, target in config.aliases.items():
        path = ("aliases", name)
        if not _NAME.fullmatch(name):
            yield path, f"{name!r} is not a name: an alias has no slash and no space"
        if name in config.routes:
            yield path, "is the name of a route too"
        chain = [name]
        while target in config.aliases and target not in chain:
            chain.append(target)
            target = config.aliases[target]  # noqa: PLW2901 - following the chain to its end
        if target in chain:
            yield path, f"goes round in a circle: {' → '.join([*chain, target])}"
        elif target not in config.routes and not is_model(target):
            known = ", ".join(sorted({*config.routes, *config.aliases} - {name})) or "none"
            yield path, f"{target!r} is neither provider/model nor a route or alias; there are: {known}"
