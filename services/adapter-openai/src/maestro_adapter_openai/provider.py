"""OpenAI as a provider of the mesh: its settings, and the shared calls of the chat-completions wire."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator

from maestro_adapter_openai.models import models
from maestro_adapter_openai.translate import OPENAI
from maestro_sdk.adapter.chat_completions import ChatCompletionsProvider
from maestro_sdk.service.settings import AdapterConfig, Config, Duration, Secret, Settings


class OpenAISettings(Settings):
    """`adapters.openai.settings` of the configuration."""

    api_key: Secret = Secret(env="OPENAI_API_KEY")
    base_url: str = Field(default="https://api.openai.com/v1", pattern="^https?://")
    organization: str = ""
    project: str = ""
    connect_timeout: Duration = 5.0
    read_timeout: Duration = 600.0
    """Longest silence within an answer; a reasoning model may think for minutes before its first token."""
    models: tuple[dict[str, Any], ...] = ()
    """Entries in the form of `models.yaml`: further models, or what differs from the entry of the same name."""

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        models(value)
        return value


class OpenAIProvider(ChatCompletionsProvider):
    """OpenAI's models over `POST /chat/completions`."""

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> Self:
        """The provider that the configuration describes. Raises `ConfigError` for settings that are wrong."""
        return cls.from_settings(adapter.settings_as(OpenAISettings))

    @classmethod
    def from_settings(cls, settings: OpenAISettings) -> Self:
        """The provider with these settings. Without a key it stands, says what is missing, and refuses every call."""
        found = models(settings.models)
        key = settings.api_key.get()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        if settings.organization:
            headers["openai-organization"] = settings.organization
        if settings.project:
            headers["openai-project"] = settings.project
        return cls(
            name="adapter-openai",
            base_url=settings.base_url,
            dialect=OPENAI,
            models=[entry.model for entry in found.values()],
            dialects={name: entry.dialect for name, entry in found.items()},
            headers=headers,
            not_ready="" if key else _say_missing(settings.api_key),
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )


def _say_missing(key: Secret) -> str:
    if key.file is not None:
        return f"OpenAI's key is missing: put it into the file {key.file} and restart the adapter"
    return f"OpenAI's key is missing: set {key.env} to a key from the provider's dashboard and restart the adapter"
