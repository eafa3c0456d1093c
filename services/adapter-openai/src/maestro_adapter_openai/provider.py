"""OpenAI as a provider of the mesh, and the adapter's group of providers."""

from __future__ import annotations

from typing import Any, Self

from maestro_adapter_openai.account import Account
from maestro_adapter_openai.azure import AzureProvider
from maestro_adapter_openai.batch_wire import BatchWire
from maestro_adapter_openai.files import Files
from maestro_adapter_openai.models import chat_dialects, embedding_dialects, models, takes_batches
from maestro_adapter_openai.sdk import Sdk
from maestro_adapter_openai.settings import OpenAISettings, say_missing
from maestro_adapter_openai.translate import OPENAI
from maestro_sdk.adapter.group import ProviderGroup
from maestro_sdk.adapter.provider import Provider
from maestro_sdk.service.settings import AdapterConfig, Config

NAME = "adapter-openai"


def from_config(config: Config, adapter: AdapterConfig) -> ProviderGroup:
    """What the configuration describes: OpenAI, and Azure where it has an endpoint.

    Raises `ConfigError` for settings that are wrong.
    """
    settings = adapter.settings_as(OpenAISettings)
    members: list[Provider] = [OpenAIProvider.from_settings(settings)]
    if settings.azure.endpoint:
        members.append(AzureProvider.from_settings(settings))
    return ProviderGroup(NAME, members)


class OpenAIProvider(Account):
    """OpenAI's models: `POST /chat/completions` and `/embeddings`, files and batches."""

    @classmethod
    def from_settings(cls, settings: OpenAISettings) -> Self:
        """The provider with these settings. Without a key it stands, says what is missing, and refuses every call."""
        found = models(settings.models)
        missing = say_missing("OpenAI's key", settings.api_key, "the provider's dashboard")
        key = settings.api_key.get()
        headers = {} if missing else {"authorization": f"Bearer {key}"}
        if settings.organization:
            headers["openai-organization"] = settings.organization
        if settings.project:
            headers["openai-project"] = settings.project

        def make(openai: Any) -> Any:
            return openai.AsyncOpenAI(
                api_key=key,
                base_url=settings.base_url,
                organization=settings.organization or None,
                project=settings.project or None,
                max_retries=0,
                timeout=openai.Timeout(settings.read_timeout, connect=settings.connect_timeout),
            )

        sdk = Sdk(OPENAI.provider, make)
        chat, embed = chat_dialects(found), embedding_dialects(found)
        batched = takes_batches(found)
        return cls(
            sdk=sdk,
            files=Files(sdk),
            batch_wire=BatchWire(
                OPENAI.provider,
                {name: dialect for name, dialect in chat.items() if name in batched},
                {name: dialect for name, dialect in embed.items() if name in batched},
            ),
            embeddings=embed,
            name=NAME,
            base_url=settings.base_url,
            dialect=OPENAI,
            models=[entry.model for entry in found.values()],
            dialects=chat,
            headers=headers,
            not_ready=missing,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
