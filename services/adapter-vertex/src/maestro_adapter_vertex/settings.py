"""The adapter's own settings, under `adapters.vertex.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from maestro_adapter_vertex.models import load
from maestro_sdk.service.settings import Duration, Secret, Settings

API_VERSION = "v1"


class VertexSettings(Settings):
    """How to reach the provider. `read_timeout` is the longest silence within an answer, not its length."""

    project: str = ""
    """The Google Cloud project that pays. Empty means that the adapter is not configured."""
    location: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "global"
    """A region such as "europe-west4", or "global"."""
    credentials: Secret | None = None
    """Holds the path of a credentials file, or such a file's JSON. Without a value: Google's default credentials."""
    access_token: Secret | None = None
    """A bearer token to use as it is instead of credentials; nobody renews it."""
    base_url: str = ""
    """Instead of the location's own address."""
    storage_url: str = "https://storage.googleapis.com"
    """Where Cloud Storage is, which holds the input and output of batches."""
    batch_bucket: Annotated[str, Field(pattern=r"^(gs://[a-z0-9][a-z0-9._-]+(/.*)?)?$")] = ""
    """Where in Cloud Storage batches keep input and output: gs://bucket/folder. Empty means that there are none."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    embed_concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Calls at once for one list of texts to embed."""
    models: tuple[dict[str, Any], ...] = ()
    """Further models, or changes to known ones, with the fields of `models.yaml`."""

    @property
    def endpoint(self) -> str:
        """The address of the API, without a path."""
        if self.base_url:
            return self.base_url
        host = "aiplatform" if self.location == "global" else f"{self.location}-aiplatform"
        return f"https://{host}.googleapis.com"

    @property
    def parent(self) -> str:
        """The path below which everything of the project stands."""
        return f"/{API_VERSION}/projects/{self.project}/locations/{self.location}"

    @field_validator("project")
    @classmethod
    def _check_project(cls, value: str) -> str:
        if "/" in value or "?" in value or "#" in value:
            raise ValueError(f"{value!r} is not the id of a project")
        return value

    @field_validator("base_url", "storage_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an http or https address")
        # The version is the adapter's; some SDKs want it here, so it is common to give it.
        return value.rstrip("/").removesuffix(f"/{API_VERSION}")

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        load(value)
        return value
