"""The adapter's own settings, under `adapters.claude.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from maestro_adapter_claude.models import load
from maestro_sdk.service.settings import Duration, Secret, Settings

API_VERSION = "2026-10-21"
"""The `anthropic-version` whose wire this adapter speaks: it has no sampling parameters."""


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
    models: tuple[dict[str, Any], ...] = ()
    """Further models, or changes to known ones, with the fields of `models.yaml`."""

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an http or https address")
        # The path is the adapter's; some SDKs want it here, so it is common to give it.
        return value.rstrip("/").removesuffix("/v1")

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        load(value)
        return value
