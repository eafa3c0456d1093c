"""The adapter's own settings, under `adapters.openai.settings` of the configuration."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from maestro_adapter_openai.models import azure_models, models
from maestro_sdk.service.settings import BaseUrl, Duration, Secret, Settings

API_VERSION = "2025-04-01-preview"
"""The last of Azure's dated versions: the ones that are no previews know no reasoning efforts."""

_OWN_PATH = "/openai/"
Deployment = Annotated[str, Field(min_length=1)]


_base_url: TypeAdapter[str] = TypeAdapter(BaseUrl)
_HEADER = r"^[!-~]*$"


def _endpoint(value: str) -> str:
    if not value:
        return ""
    try:
        url = _base_url.validate_python(value.partition("?")[0] if _OWN_PATH in value else value)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    # The path is the adapter's; the portal shows addresses with it. What stands before it is a gateway's.
    return f"{url}/".partition(_OWN_PATH)[0].rstrip("/")


class AzureSettings(Settings):
    """`adapters.openai.settings.azure`: OpenAI's models as Azure deploys them; models are named azure/…"""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = ""
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

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        azure_models(self.deployments, self.batch_deployments, self.models)
        return self


class OpenAISettings(Settings):
    """`adapters.openai.settings` of the configuration."""

    api_key: Secret = Secret(env="OPENAI_API_KEY")
    base_url: BaseUrl = "https://api.openai.com/v1"
    organization: str = Field(default="", pattern=_HEADER)
    project: str = Field(default="", pattern=_HEADER)
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
    """The sentence for a key that is not there, or can't be one; empty for one that can. `where` people find one."""
    found = key.get()
    if found and re.fullmatch(_HEADER, found):
        return ""
    place = f"the file {key.file}" if key.file is not None else f"{key.env}"
    if found:
        # It would be refused deep within the transport, in words that show it.
        return f"{what} in {place} is none: it holds spaces, line breaks or other signs that no key has"
    if key.file is not None:
        return f"{what} is missing: put it into {place} and restart the adapter"
    return f"{what} is missing: set {place} to a key from {where} and restart the adapter"
