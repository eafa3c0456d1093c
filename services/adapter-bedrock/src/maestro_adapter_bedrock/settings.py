"""The adapter's own settings, under `adapters.bedrock.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from maestro_adapter_bedrock.models import load
from maestro_sdk.service.settings import Duration, Secret, Settings


class BatchSettings(Settings):
    """Where batches put their files, and the role with which Bedrock reads and writes them. No batches without both."""

    bucket: str = Field(default="", pattern=r"^([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?$")
    prefix: str = Field(default="maestro", pattern=r"^[A-Za-z0-9!_.*'()/-]*$")
    role_arn: str = Field(default="", pattern=r"^(arn:aws(-[^:]+)?:iam::[0-9]{12}:role/.+)?$")

    @property
    def complete(self) -> bool:
        """Whether batches can be run."""
        return bool(self.bucket and self.role_arn)


class BedrockSettings(Settings):
    """How to reach Bedrock. `read_timeout` is the longest silence within an answer, not its length."""

    region: str = ""
    """Empty means what AWS's own configuration says: AWS_REGION, AWS_DEFAULT_REGION, the profile."""
    bearer_token: Secret = Secret(env="AWS_BEARER_TOKEN_BEDROCK")
    """An API key of Bedrock; it goes before all other credentials."""
    access_key_id: Secret = Secret(env="AWS_ACCESS_KEY_ID")
    secret_access_key: Secret = Secret(env="AWS_SECRET_ACCESS_KEY")
    session_token: Secret = Secret(env="AWS_SESSION_TOKEN")
    """Without keys, AWS's own chain finds credentials: profile, web identity, the role of the machine or pod."""
    base_url: str = ""
    """Endpoint of the models, for private endpoints; empty means the region's public one."""
    control_url: str = ""
    """Endpoint of batches."""
    s3_url: str = ""
    """Endpoint of the batches' files."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    embed_concurrency: Annotated[int, Field(ge=1, le=64)] = 8
    """Calls at once for one request to embed: some models take one text per call."""
    batch: BatchSettings = BatchSettings()
    models: tuple[dict[str, Any], ...] = ()
    """Further models, or changes to known ones, with the fields of `models.yaml`."""

    @field_validator("base_url", "control_url", "s3_url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError(f"{value!r} is not an http or https address")
        return value.rstrip("/")

    @field_validator("region")
    @classmethod
    def _check_region(cls, value: str) -> str:
        # It becomes part of a host name.
        if not all(character.isalnum() or character == "-" for character in value):
            raise ValueError(f"{value!r} is not a region such as us-east-1")
        return value

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        load(value)
        return value
