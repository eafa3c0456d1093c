"""The section of a configuration that says where shared counts are kept."""

from __future__ import annotations

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from maestro_sdk.service.client_tls import ClientTlsConfig
from maestro_sdk.service.values import Duration, Secret, Settings

_SCHEMES = ("redis", "rediss", "unix")


class StoreConfig(Settings):
    """A Redis-compatible store; without `url` every process counts for itself. `timeout` is for one answer of it.

    Places that a process took are free again `lease` after it died.
    """

    url: str = ""
    password: Secret | None = None
    tls: ClientTlsConfig | None = None
    timeout: Annotated[Duration, Field(ge=0.01, le=5)] = 0.25
    lease: Annotated[Duration, Field(ge=1, le=300)] = 10.0

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not value:
            return value
        try:
            url = urlsplit(value)
            _ = url.port
        except ValueError:
            raise ValueError("is not an address such as redis://127.0.0.1:6379") from None
        if url.password is not None:
            raise ValueError("a password never stands in the file: use store.password with {env: NAME} or {file: PATH}")
        if url.scheme not in _SCHEMES or not (url.path if url.scheme == "unix" else url.hostname):
            raise ValueError(f"{value!r} is not an address such as redis://127.0.0.1:6379 or rediss://HOST:6379/0")
        return value

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.tls is not None and not self.url.startswith("rediss:"):
            raise ValueError("tls is for an address that begins with rediss://")
        return self
