"""What no single setting shows: clashes and cycles of names, weights that choose nothing, things used twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from maestro_sdk.service.routes import RouteConfig, TargetConfig
from maestro_sdk.service.values import is_model

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
        yield from _wrong_targets(route, route.targets, ("routes", name, "targets"))
        for variant, side in route.experiment.variants.items() if route.experiment else ():
            yield from _wrong_targets(
                route, side.targets, ("routes", name, "experiment", "variants", variant, "targets")
            )
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


def _wrong_targets(
    route: RouteConfig, targets: tuple[TargetConfig, ...], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if route.strategy == "weighted" and not any(target.weight for target in targets):
        yield path, "the weights are all 0, so nothing would ever be chosen"
    for model, count in Counter(target.model for target in targets).items():
        if count > 1:
            yield path, f"{model} stands {count} times"


def _wrong_pins(config: Config) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Pins that no adapter answers. The name may end in "-only", as in GATEWAY_PROVIDER=claude-only."""
    for path, adapter in [
        (("router", "pin"), config.router.pin),
        *((("router", "pins", persona), adapter) for persona, adapter in config.router.pins.items()),
    ]:
        if adapter and adapter.removesuffix("-only") not in config.adapters:
            yield path, f"{adapter!r} is not an adapter; there are: {', '.join(config.adapters)}"


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
