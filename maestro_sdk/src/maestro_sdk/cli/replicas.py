"""Further processes of a service: `gateway.replicas: 3` runs gateway, gateway-2 and gateway-3."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from maestro_sdk.cli.rendering import join_address, split_address
from maestro_sdk.service.config_file import ENV_PREFIX
from maestro_sdk.service.settings import Config

_ADDRESSES = {"gateway": ("gateway.address", "gateway.websocket"), "router": ("router.address",)}


@dataclass(frozen=True, slots=True)
class Replica:
    """One of them: "gateway-2" of the service "gateway", and the settings in which it differs from the first one.

    They lie over the configuration that all processes share, as variables of its environment.
    """

    name: str
    service: str
    settings: Mapping[str, str]

    @property
    def variables(self) -> dict[str, str]:
        """The settings as variables."""
        # JSON is YAML that nothing is read into: an IPv6 address is no list.
        return {
            ENV_PREFIX + path.upper().replace(".", "__"): json.dumps(value) for path, value in self.settings.items()
        }


def replicas(config: Config, free: Callable[[int], list[int]]) -> list[Replica]:
    """The further processes of gateway and router, each with a data folder and free ports of its own.

    Nobody has to know their ports: Envoy and the gateways are told them, and `maestro status` shows them.
    """
    known = config.model_dump(mode="json")
    counts = {"gateway": config.gateway.replicas, "router": config.router.replicas}
    ports = iter(free(sum((count - 1) * len(_ADDRESSES[service]) for service, count in counts.items())))
    found: list[Replica] = []
    for service, count in counts.items():
        for number in range(2, count + 1):
            settings = {"data": str(config.data / f"{service}-{number}")}
            for path in _ADDRESSES[service]:
                host, _ = split_address(known[service][path.partition(".")[2]])
                settings[path] = join_address(host, next(ports))
            found.append(Replica(f"{service}-{number}", service, settings))
    return found


def introduced(config: Config, found: list[Replica]) -> Config:
    """The configuration in which everybody knows all routers."""
    routers = [each.settings["router.address"] for each in found if each.service == "router"]
    return config.replaced({"router.others": [*routers, *config.router.others]}) if routers else config
