"""The adapters of a configuration: where they are, whether they take part, and the settings of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from maestro_sdk.service.config_file import Document, note_invalid
from maestro_sdk.service.values import Address, Duration, Settings

SettingsT = TypeVar("SettingsT", bound=BaseModel)


class EnvironmentSwitch(Settings):
    """Enabled when the variable, or one of several, is set and not empty."""

    env: str | Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        """The variables."""
        return (self.env,) if isinstance(self.env, str) else self.env

    def is_set(self, env: Mapping[str, str]) -> bool:
        """Whether one of the variables has a value."""
        return any(env.get(name, "").strip() for name in self.names)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a setting came from. It takes no part in comparisons: two files that say the same are equal."""

    document: Document = field(default_factory=Document, compare=False)
    path: tuple[str, ...] = field(default=(), compare=False)
    base: str = field(default="", compare=False)
    file: Path | None = field(default=None, compare=False)


class AnnounceConfig(Settings):
    """How an adapter announces itself to a mesh that does not name it; what is left out is as in its own section."""

    name: str | None = None
    address: Address | None = None


class AdapterConfig(Settings):
    """How to reach an adapter. `module` is what `maestro up` starts; without it the adapter runs elsewhere.

    `regions` are all regions in which it lets requests be answered, in the operator's words. `announce` lets the
    adapter itself tell a mesh that it is there, on the NATS server of `nats.url`. `linger` is how long a call with a
    key goes on without its caller, and how long its answer is kept for the next one; 0 never.
    """

    module: str | None = None
    address: Address
    enabled: bool | EnvironmentSwitch = True
    regions: tuple[str, ...] = ()
    announce: AnnounceConfig | None = None
    linger: Annotated[Duration, Field(ge=0, le=600)] = 30.0
    settings: dict[str, Any] = Field(default_factory=dict[str, Any], repr=False)

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @field_validator("announce", mode="before")
    @classmethod
    def _accept_switch(cls, value: Any) -> Any:
        return (AnnounceConfig() if value else None) if isinstance(value, bool) else value

    @field_validator("enabled", mode="wrap")
    @classmethod
    def _check_enabled(cls, value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError("must be true, false, {env: NAME} or {env: [NAME, …]}") from None

    def is_enabled(self, env: Mapping[str, str] | None = None) -> bool:
        """Whether the adapter takes part in the mesh."""
        if isinstance(self.enabled, EnvironmentSwitch):
            return self.enabled.is_set(os.environ if env is None else env)
        return self.enabled

    def settings_as(self, model: type[SettingsT]) -> SettingsT:
        """The adapter's own settings as its frozen model. Raises `ConfigError` with file and line of every problem."""
        origin = self._origin
        try:
            return model.model_validate(self.settings, context={"base": origin.base})
        except ValidationError as error:
            found = Document(places=origin.document.places)
            note_invalid(found, error, model, (*origin.path, "settings"))
            raise found.error() from None
