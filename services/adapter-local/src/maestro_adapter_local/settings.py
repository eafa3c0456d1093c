"""The settings of the adapter: the part `adapters.local.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.service.settings import ConfigPath, Duration, Secret, Settings

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def _feature(value: str) -> str:
    known = [name.removeprefix("FEATURE_") for name in Feature.keys()[1:]]
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value


def _http(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError(f"{value!r} is not an address such as http://127.0.0.1:11434/v1")
    return value.rstrip("/")


FeatureName = Annotated[str, AfterValidator(_feature)]
"""A feature of the contract without its prefix, such as TOOLS."""


class OfflineSettings(Settings):
    """The offline model. `pace` is the time per token; `names` are further names under which it is offered."""

    enabled: bool = True
    pace: Duration = 0.0
    script: ConfigPath | None = None
    names: tuple[Annotated[str, Field(pattern=_NAME)], ...] = ()


class ModelSettings(Settings):
    """What is known of models whose names match a shell pattern. `features` come on top, `without` are taken away."""

    match: Annotated[str, Field(min_length=1)]
    features: tuple[FeatureName, ...] = ()
    without: tuple[FeatureName, ...] = ()
    context_window: Annotated[int, Field(ge=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    family: str = ""
    tags: tuple[str, ...] = ()


class ServerSettings(Settings):
    """A server that speaks OpenAI's chat completions. `base_url` ends before `/chat/completions`, usually in `/v1`."""

    name: Annotated[str, Field(pattern=_NAME)]
    base_url: Annotated[str, AfterValidator(_http)]
    api_key: Secret | None = None
    features: tuple[FeatureName, ...] = ()
    without: tuple[FeatureName, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    list_timeout: Annotated[Duration, Field(gt=0)] = 3.0


class LocalSettings(Settings):
    """The whole."""

    offline: OfflineSettings = OfflineSettings()
    servers: tuple[ServerSettings, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [server.name for server in self.servers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two servers are named {twice!r}")
        if not self.offline.enabled and not self.servers:
            raise ValueError("there is nothing to serve: enable the offline model or name a server")
        return self
