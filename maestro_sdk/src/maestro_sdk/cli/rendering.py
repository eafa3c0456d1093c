"""The files that NATS and Envoy are started with, derived from the configuration. Pure: text in, text out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml


class TemplateError(Exception):
    """An `envoy.yaml` that lacks what a rendering replaces; the text names it."""


@dataclass(frozen=True, slots=True)
class EnvoyValues:
    """What differs between two meshes. Addresses are "host:port", `max_body` is in bytes, `ping` in seconds.

    `gateways` and `websockets` are the addresses of each gateway, one at least.
    """

    public: str
    admin: str
    gateways: tuple[str, ...]
    websockets: tuple[str, ...]
    max_body: int
    ping: float
    descriptors: Path


def render_envoy(template: str, values: EnvoyValues) -> str:
    """The Envoy configuration `template` with addresses, limits and paths of one mesh. Raises `TemplateError`."""
    try:
        config = cast("dict[str, Any]", yaml.safe_load(template))
        resources = cast("dict[str, Any]", config["static_resources"])
        _set_address(config["admin"], values.admin)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise TemplateError(f"envoy.yaml is not a bootstrap configuration of Envoy: {error}") from None
    _set_address(_named(resources, "listeners", "public"), values.public)
    for name, addresses in (("gateway", values.gateways), ("websocket", values.websockets)):
        _set_endpoints(_named(resources, "clusters", name), name, addresses)
    for key in ("max_request_bytes", "max_request_body_size"):
        for holder in _below(config, key):
            holder[key] = values.max_body
    for holder in _below(config, "proto_descriptor"):
        holder["proto_descriptor"] = str(values.descriptors)
    for route in (holder["route"] for holder in _below(config, "route")):
        idle = route.get("idle_timeout", "0s")
        if idle != "0s" and _seconds(idle) < values.ping * 4:
            # An idle stream lives on its pings: the limit must never be what ends it.
            route["idle_timeout"] = f"{values.ping * 4:g}s"
    return yaml.dump(config, Dumper=_PlainDumper, sort_keys=False, width=200, allow_unicode=True)


def render_nats(*, address: str, store: Path, name: str = "maestro") -> str:
    """A NATS server's configuration: loopback clients, JetStream on disk, no monitoring port."""
    return "\n".join(
        (
            f"server_name: {_quoted(name)}",
            f"listen: {_quoted(address)}",
            "max_payload: 1MB",
            # A subscriber that lags is dropped after this, and comes back with its sequence.
            'write_deadline: "10s"',
            f"jetstream {{ store_dir: {_quoted(str(store))}, max_memory_store: 64MB, max_file_store: 4GB }}",
            "",
        )
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; brackets around an IPv6 host are dropped."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(address: str) -> str:
    """The address that reaches a listener on this machine: one that binds every interface is reached by loopback."""
    host, port = split_address(address)
    return join_address({"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host), port)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Shared values are written out: the file is read by people who search it."""
        return True


def _named(resources: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    for entry in cast("list[dict[str, Any]]", resources.get(kind) or []):
        if entry.get("name") == name:
            return entry
    raise TemplateError(f"envoy.yaml: static_resources.{kind} has none named {name}")


def _set_address(holder: dict[str, Any], address: str) -> None:
    host, port = split_address(address)
    holder["address"] = {"socket_address": {"address": host, "port_value": port}}


def _set_endpoints(cluster: dict[str, Any], name: str, addresses: tuple[str, ...]) -> None:
    """Gives a cluster one endpoint for each address, like its first one in everything else."""
    localities = [each for each in _below(cluster, "lb_endpoints") if each["lb_endpoints"]]
    if not localities or "endpoint" not in localities[0]["lb_endpoints"][0]:
        raise TemplateError(f"envoy.yaml: the cluster {name} has no endpoint")
    first = localities[0]["lb_endpoints"][0]
    endpoints = [copy.deepcopy(first) for _ in addresses]
    for endpoint, address in zip(endpoints, addresses, strict=True):
        _set_address(endpoint["endpoint"], address)
    localities[0]["lb_endpoints"] = endpoints


def _below(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """Every mapping below `value` that has `key`."""
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        if key in mapping:
            yield mapping
        for below in mapping.values():
            yield from _below(below, key)
    elif isinstance(value, list):
        for below in cast("list[Any]", value):
            yield from _below(below, key)


def _seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
