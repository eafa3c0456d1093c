"""OpenAI's models as Azure deploys them: each model by the name of its deployment, with a key or bearer tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self
from urllib.parse import quote, urlencode

from maestro_adapter_openai.account import Account
from maestro_adapter_openai.batch_wire import BatchWire
from maestro_adapter_openai.files import AZURE_PURPOSES, Files
from maestro_adapter_openai.models import azure_models, chat_dialects, embedding_dialects
from maestro_adapter_openai.sdk import Sdk
from maestro_adapter_openai.settings import OpenAISettings, say_missing
from maestro_adapter_openai.tokens import TokenProvider, load_source
from maestro_adapter_openai.translate import AZURE

NAME = "adapter-openai"
_MOST_ITEMS = 100_000


class AzureProvider(Account):
    """The models that have a deployment at one Azure resource."""

    @classmethod
    def from_settings(cls, settings: OpenAISettings) -> Self:
        """The provider with these settings, of which `azure.endpoint` is set.

        Without a key or a token provider that can be loaded it stands, says what is missing, and refuses every call.
        """
        azure = settings.azure
        found = azure_models(azure.deployments, azure.batch_deployments, azure.models)
        key = azure.api_key.get()
        tokens: TokenProvider | None = None
        missing = ""
        if azure.token_provider:
            try:
                tokens = TokenProvider(load_source(azure.token_provider))
            except ValueError as error:
                missing = f"Azure's token_provider {error}; mend it and restart the adapter"
        elif unfit := say_missing("Azure's key", azure.api_key, "the resource's page of keys"):
            missing = f"{unfit}, or set token_provider"
        if not missing and not azure.deployments:
            missing = "Azure has no deployments: name them in adapters.openai.settings.azure.deployments"

        def make(openai: Any) -> Any:
            return openai.AsyncAzureOpenAI(
                azure_endpoint=azure.endpoint,
                api_version=azure.api_version,
                max_retries=0,
                timeout=openai.Timeout(settings.read_timeout, connect=settings.connect_timeout),
                **({"api_key": key} if tokens is None else {"azure_ad_token_provider": tokens.token}),
            )

        sdk = Sdk(AZURE.provider, make)
        chat, embed = chat_dialects(found), embedding_dialects(found)
        batched = {
            name: replace(chat[name], wire_name=deployment)
            for name, deployment in azure.batch_deployments.items()
            if name in chat
        }
        return cls(
            sdk=sdk,
            files=Files(sdk, AZURE_PURPOSES),
            batch_wire=BatchWire(
                AZURE.provider,
                batched,
                chat_url="/chat/completions",
                embed_url="",
                max_items=_MOST_ITEMS,
            ),
            embeddings=embed,
            embedding_paths=_paths(azure.deployments, "embeddings", azure.api_version),
            name=NAME,
            base_url=azure.endpoint,
            dialect=AZURE,
            models=[entry.model for entry in found.values()],
            dialects=chat,
            paths=_paths(azure.deployments, "chat/completions", azure.api_version),
            headers={"api-key": key} if key and tokens is None and not missing else {},
            authorize=None if tokens is None else tokens.headers,
            not_ready=missing,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )


def _paths(deployments: Mapping[str, str], what: str, version: str) -> dict[str, str]:
    query = urlencode({"api-version": version})
    return {
        model: f"/openai/deployments/{quote(deployment, safe='')}/{what}?{query}"
        for model, deployment in deployments.items()
    }
