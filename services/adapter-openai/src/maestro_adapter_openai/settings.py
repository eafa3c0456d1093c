"""The adapter's own settings, under `adapters.openai.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from maestro_adapter_openai.models import azure_models, models
from maestro_sdk.service.settings import Duration, Secret, Settings

API_VERSION = "2025-04-01-preview"
"""The last of Azure's dated versions: the ones that are no previews know no reasoning efforts."""

Deployment = Annotated[str, Field(min_length=1)]


class AzureSettings(Settings):
    """`adapters.openai.settings.azure`: OpenAI's models as Azure deploys them; models are named azure/…"""

    endpoint: str = ""
    """`https://<resource>.openai.azure.com`; empty means no Azure."""
    api_version: str = Field(default=API_VERSION, min_length=1)
    api_key: Secret = Secret(env="AZURE_OPENAI_API_KEY")
    token_provider: str = Field(default="", pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$")
    """`module:function` of a callable that returns a bearer token, instead of a key. See `tokens.py`."""
    deployments: dict[str, Deployment] = Field(default_factory=dict[str, str])
    """Model to the name of its deployment; only these models are on offer."""
    batch_deployments: dict[str, Deployment] = Field(default_factory=dict[str, str])
    """Model to the name of its deployment of a batch type, which takes nothing but batches; others take none."""
    models: tuple[dict[str, Any], ...] = ()
    """Entries in the form of `models.yaml`, for models with a deployment: their prices, or what differs."""

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an http or https address")
        # The path is the adapter's; the portal shows addresses with it.
        return value.rstrip("/").removesuffix("/openai")

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        azure_models(self.deployments, self.batch_deployments, self.models)
        return self


class OpenAISettings(Settings):
    """`adapters.openai.settings` of the configuration."""

    api_key: Secret = Secret(env="OPENAI_API_KEY")
    base_url: str = Field(default="https://api.openai.com/v1", pattern="^https?://")
    organization: str = ""
    project: str = ""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    """Longest silence within an answer; a reasoning model may think for minutes before its first token."""
    models: tuple[dict[str, Any], ...] = ()
    """Entries in the form of `models.yaml`: further models, or what differs from the entry of the same name."""
    azure: AzureSettings = AzureSettings()

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        models(value)
        return value


def say_missing(what: str, key: Secret, where: str) -> str:
    """The sentence for a key that is not there; `where` people find one."""
    if key.file is not None:
        return f"{what} is missing: put it into the file {key.file} and restart the adapter"
    return f"{what} is missing: set {key.env} to a key from {where} and restart the adapter"
