"""The configuration of a mesh, parsed once into frozen types: defaults, then the file, then the environment.

Every process reads the same file: the path in `MAESTRO_CONFIG`, else `./maestro.yaml`, else the defaults alone, which
are a working mesh on loopback. `Config.to_yaml` writes a resolved configuration; secrets stay references all the way.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from maestro_sdk.service.adapters import AdapterConfig, AnnounceConfig, EnvironmentSwitch, Origin
from maestro_sdk.service.audits import AuditConfig
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.buses import NatsConfig
from maestro_sdk.service.config_file import (
    ConfigError,
    Document,
    Problem,
    display_name,
    escaped,
    note_invalid,
    overlay,
    parse,
)
from maestro_sdk.service.consistency import contradictions
from maestro_sdk.service.files import FilesConfig
from maestro_sdk.service.gateways import GatewayConfig, KeyConfig, TenantConfig
from maestro_sdk.service.jobs import JobsConfig
from maestro_sdk.service.ledger import LedgerConfig
from maestro_sdk.service.limits import LimitConfig, LimitsConfig, RateConfig
from maestro_sdk.service.meshes import MeshConfig
from maestro_sdk.service.resume import ResumeConfig
from maestro_sdk.service.routers import BreakerConfig, QuarantineConfig, RouterConfig
from maestro_sdk.service.routes import RouteConfig
from maestro_sdk.service.store.config import StoreConfig
from maestro_sdk.service.values import (
    INLINE,
    Address,
    BaseUrl,
    ConfigPath,
    Duration,
    Secret,
    Settings,
    Size,
    revealed,
)

__all__ = [
    "AdapterConfig",
    "Address",
    "AnnounceConfig",
    "BaseUrl",
    "BreakerConfig",
    "BudgetConfig",
    "Config",
    "ConfigError",
    "ConfigPath",
    "Duration",
    "EnvironmentSwitch",
    "GatewayConfig",
    "JobsConfig",
    "KeyConfig",
    "LimitConfig",
    "LimitsConfig",
    "Problem",
    "QuarantineConfig",
    "RateConfig",
    "ResumeConfig",
    "RouteConfig",
    "RouterConfig",
    "Secret",
    "Settings",
    "Size",
    "StoreConfig",
    "TenantConfig",
    "load",
    "revealed",
]

FILE_VARIABLE = "MAESTRO_CONFIG"
FILE_NAME = "maestro.yaml"

_HTTP_URL = re.compile(r"(?:https?://)?[^\s/]+(?:/\S*)?")
_SECRET_NAME = re.compile(r"(?:.*_)?(?:api_?key|secret|token|password)", re.IGNORECASE)


class EventsConfig(Settings):
    """Lifecycle events: most that wait in memory, most bytes that wait on the disk, time that the stream keeps them."""

    queue: Annotated[int, Field(ge=16)] = 10000
    spool: Size = 64 * 2**20
    retention: Annotated[Duration, Field(ge=60)] = 7 * 86400.0


class EnvoyConfig(Settings):
    """Envoy's addresses and the folder of its configuration."""

    address: Address = "127.0.0.1:8080"
    admin: Address = "127.0.0.1:9901"
    directory: ConfigPath = Path("envoy")


class TelemetryConfig(Settings):
    """Logs, and traces where an endpoint is given."""

    otlp_endpoint: str = Field(default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        if value and not _HTTP_URL.fullmatch(value):
            raise ValueError(f"{value!r} is not an address such as http://127.0.0.1:4317")
        return value


DEFAULTS = """\
adapters:
  claude:
    module: maestro_adapter_claude
    address: 127.0.0.1:50061
    enabled: {env: ANTHROPIC_API_KEY}
    settings: {api_key: {env: ANTHROPIC_API_KEY}, base_url: "${ANTHROPIC_BASE_URL:-https://api.anthropic.com}"}
  openai:
    module: maestro_adapter_openai
    address: 127.0.0.1:50062
    enabled: {env: [OPENAI_API_KEY, AZURE_OPENAI_ENDPOINT]}
    settings:
      api_key: {env: OPENAI_API_KEY}
      base_url: "${OPENAI_BASE_URL:-https://api.openai.com/v1}"
      azure: {endpoint: "${AZURE_OPENAI_ENDPOINT:-}", api_key: {env: AZURE_OPENAI_API_KEY}, deployments: {}}
  vertex:
    module: maestro_adapter_vertex
    address: 127.0.0.1:50063
    enabled: {env: GOOGLE_CLOUD_PROJECT}
    settings:
      project: "${GOOGLE_CLOUD_PROJECT:-}"
      location: "${GOOGLE_CLOUD_LOCATION:-global}"
      credentials: {env: GOOGLE_APPLICATION_CREDENTIALS}
  bedrock:
    module: maestro_adapter_bedrock
    address: 127.0.0.1:50064
    enabled: {env: [AWS_BEARER_TOKEN_BEDROCK, AWS_ACCESS_KEY_ID, AWS_PROFILE]}
    settings:
      region: "${AWS_REGION:-}"
      bearer_token: {env: AWS_BEARER_TOKEN_BEDROCK}
      access_key_id: {env: AWS_ACCESS_KEY_ID}
      secret_access_key: {env: AWS_SECRET_ACCESS_KEY}
      session_token: {env: AWS_SESSION_TOKEN}
  local:
    module: maestro_adapter_local
    address: 127.0.0.1:50065
    enabled: true
    settings: {offline: {pace: 0, script: null}, servers: []}
routes:
  default:
    strategy: fallback
    targets: [anthropic/claude-sonnet-5-5, openai/gpt-6.2-sol, openai/gpt-6-luna, local/offline]
aliases: {fast: local/offline}
"""
"""What stands in for a section that the file doesn't have."""


class Config(Settings):
    """A whole configuration. Paths are absolute, durations are seconds, sizes are bytes."""

    version: Literal[1] = 1
    base: Path = Field(default_factory=Path.cwd)
    data: ConfigPath = Path(".maestro")
    gateway: GatewayConfig = GatewayConfig()
    router: RouterConfig = Field(default_factory=RouterConfig)
    adapters: dict[str, AdapterConfig]
    routes: dict[str, RouteConfig]
    aliases: dict[str, str]
    tenants: dict[str, TenantConfig] = Field(default_factory=dict[str, TenantConfig])
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    budgets: dict[str, BudgetConfig] = Field(default_factory=dict[str, BudgetConfig])
    store: StoreConfig = StoreConfig()
    jobs: JobsConfig = JobsConfig()
    files: FilesConfig = Field(default_factory=FilesConfig)
    resume: ResumeConfig = ResumeConfig()
    mesh: MeshConfig = Field(default_factory=MeshConfig)
    nats: NatsConfig = NatsConfig()
    events: EventsConfig = EventsConfig()
    audit: AuditConfig = AuditConfig()
    ledger: LedgerConfig = LedgerConfig()
    envoy: EnvoyConfig = Field(default_factory=EnvoyConfig)
    telemetry: TelemetryConfig = TelemetryConfig()
    grace: Duration = 30.0
    notice: Annotated[Duration, Field(le=60)] = 0.3

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def file(self) -> Path | None:
        """The file that it was read from; None for the defaults alone."""
        return self._origin.file

    def enabled_adapters(self, env: Mapping[str, str] | None = None) -> dict[str, AdapterConfig]:
        """The adapters that take part, by name."""
        return {name: adapter for name, adapter in self.adapters.items() if adapter.is_enabled(env)}

    def resolve(self, name: str) -> str:
        """What an alias stands for at the end of its chain: a route or "provider/model"; any other name is itself."""
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def replaced(self, values: Mapping[str, Any]) -> Config:
        """The configuration with other values at dotted paths, such as "gateway.address". Raises `ConfigError`."""
        data = self.model_dump(mode="json", exclude_none=True)
        for path, value in values.items():
            *above, last = path.split(".")
            target = data
            for name in above:
                target = target.setdefault(name, {})
            target[last] = value
        return _validated(Document(data, dict(self._origin.document.places)), self._origin.file)

    def to_yaml(self) -> str:
        """The configuration as a file that gives the same again, wherever it is put.

        Secrets stay references, but each `${NAME}` has its value: keep the file private.
        """
        return yaml.safe_dump(
            escaped(self.model_dump(mode="json", exclude_none=True)), sort_keys=False, allow_unicode=True
        )

    def problem_at(self, path: str, message: str) -> Problem:
        """A problem at a dotted path, with its place in the file."""
        parts = tuple(path.split("."))
        return Problem(self._origin.document.place(parts), path, message)


def load(path: Path | None = None, env: Mapping[str, str] = os.environ) -> Config:
    """The configuration of this process.

    It is the file `path`, else the one that `MAESTRO_CONFIG` names, else `./maestro.yaml`, else the defaults alone.
    Raises `ConfigError` with every problem at once.
    """
    if path is None and env.get(FILE_VARIABLE):
        path = Path(env[FILE_VARIABLE])
    elif path is None and Path(FILE_NAME).is_file():
        path = Path(FILE_NAME)
    if path is None:
        document = parse("", "defaults", env)
        base = Path.cwd()
    else:
        name = display_name(path)
        try:
            document = parse(path.read_text(encoding="utf-8"), name, env)
        except FileNotFoundError:
            raise ConfigError([Problem(name, "", "there is no such file")]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([Problem(name, "", f"can't be read: {error}")]) from None
        base = path.resolve().parent
    document.data = {name: value for name, value in document.data.items() if value is not None}
    fallback = parse(DEFAULTS, "defaults", env)
    for name in _taken(document.data.get("routes")):
        # A default gives way to what the file says: it would be found to contradict it.
        fallback.data["aliases"].pop(name, None)
    for section, value in fallback.data.items():
        if section not in document.data:
            document.data[section] = value
            document.places |= {at: place for at, place in fallback.places.items() if at[:1] == (section,)}
    document.data["base"] = str((base / str(document.data.get("base", ""))).resolve())
    # pydantic validates a missing section without our context: its folder would start at the working directory.
    document.data.setdefault("envoy", {})
    overlay(document, env)
    return _validated(document, None if path is None else path.resolve())


def _taken(routes: Any) -> Iterator[str]:
    """The names of the routes of a file that is not validated yet, and those that their matches take."""
    for name, route in cast("dict[str, Any]", routes).items() if isinstance(routes, dict) else ():
        yield name
        match: Any = cast("dict[str, Any]", route).get("match") if isinstance(route, dict) else None
        models: Any = cast("dict[str, Any]", match).get("models") if isinstance(match, dict) else None
        if isinstance(models, list):
            yield from (model for model in cast("list[Any]", models) if isinstance(model, str))


def _validated(document: Document, file: Path | None = None) -> Config:
    base = str(document.data.get("base", ""))
    dropped: frozenset[str] = frozenset()
    try:
        config = Config.model_validate(document.data, context={"base": base})
    except ValidationError as error:
        note_invalid(document, error, Config)
        config, dropped = _salvaged(document, error)
    adapters = document.data.get("adapters")
    for path, value in _leaves(adapters, ("adapters",)):
        if len(path) > 3 and path[2] == "settings" and value and isinstance(value, str) and _is_secret_name(path[-1]):
            document.add(path, INLINE)
    if config is not None:
        for path, message in contradictions(config):
            # An alias of something that is wrong itself has no fault of its own.
            if not (path[0] == "aliases" and config.aliases[str(path[1])] in dropped):
                document.add(path, message)
    if config is None or document.problems:
        raise document.error()
    config._origin = Origin(document, (), base, file)  # pyright: ignore[reportPrivateUsage]
    for name, adapter in config.adapters.items():
        adapter._origin = Origin(document, ("adapters", name), base)  # pyright: ignore[reportPrivateUsage]
    return config


def _salvaged(document: Document, error: ValidationError) -> tuple[Config | None, frozenset[str]]:
    """The configuration without its wrong settings, so that what contradicts itself is told in the same go.

    The second result are the names of adapters, routes and aliases that were left out as a whole.
    """
    data = copy.deepcopy(document.data)
    dropped: set[str] = set()
    for details in error.errors(include_url=False, include_input=False):
        path = tuple(itertools.takewhile(lambda part: isinstance(part, str), details["loc"]))
        if path[:1] in {("adapters",), ("routes",), ("aliases",)}:
            path = path[:2]
            dropped.add(str(path[-1]))
        target: Any = data
        for name in path[:-1]:
            target = cast("dict[str, Any]", target).get(str(name)) if isinstance(target, dict) else None
        if isinstance(target, dict) and path:
            cast("dict[str, Any]", target).pop(str(path[-1]), None)
    try:
        return Config.model_validate(data, context={"base": str(data.get("base", ""))}), frozenset(dropped)
    except ValidationError:
        return None, frozenset()


def _is_secret_name(name: str | int) -> bool:
    return isinstance(name, str) and _SECRET_NAME.fullmatch(name) is not None


def _leaves(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, below in cast("dict[str, Any]", value).items():
            yield from _leaves(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(cast("list[Any]", value)):
            yield from _leaves(below, (*path, index))
    else:
        yield path, value
