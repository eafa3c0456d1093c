"""The adapter's own settings, under `adapters.claude.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from maestro_adapter_claude.models import PROVIDER, load
from maestro_sdk.service.settings import Duration, Secret, Settings

API_VERSION = "2026-10-21"
"""The `anthropic-version` whose wire this adapter speaks: it has no sampling parameters."""


class ClaudeCodeSettings(Settings):
    """Claude Code as a second provider, with the same key and address. Needs the extra `claude-code`."""

    enabled: bool = False
    models: tuple[str, ...] = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")
    """Names out of `models.yaml`."""
    max_processes: Annotated[int, Field(ge=1)] = 4
    """Runs at once; each takes about 200 MB."""
    cli_path: str | None = None
    """Another command line than the one that came with the extra."""


class ClaudeSettings(Settings):
    """How to reach the provider. `read_timeout` is the longest silence within an answer, not its length."""

    api_key: Secret = Secret(env="ANTHROPIC_API_KEY")
    base_url: str = "https://api.anthropic.com"
    api_version: str = API_VERSION
    betas: tuple[str, ...] = ()
    """Sent as `anthropic-beta` with each request."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    default_max_tokens: Annotated[int, Field(ge=1)] = 16384
    """The wire demands a limit; this one holds for requests without their own, or the model's where that is lower."""
    claude_code: ClaudeCodeSettings = ClaudeCodeSettings()
    models: tuple[dict[str, Any], ...] = ()
    """Further models, or changes to known ones, with the fields of `models.yaml`."""

    def missing_key(self) -> str:
        """What to do about a key that is not there."""
        if self.api_key.env:
            return f"there is no API key: set {self.api_key.env} to a key of the Claude console"
        return f"there is no API key: {self.api_key.file} is missing or empty"

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an http or https address")
        # The path is the adapter's; some SDKs want it here, so it is common to give it.
        return value.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _check_claude_code(self) -> Self:
        if self.claude_code.enabled:
            known = load(self.models)
            for number, name in enumerate(self.claude_code.models):
                if f"{PROVIDER}/{name}" not in known:
                    raise ValueError(f"claude_code.models[{number}]: there is no model {name!r}")
        return self

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        load(value)
        return value
