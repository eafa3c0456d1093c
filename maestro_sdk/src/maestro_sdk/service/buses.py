"""The section of a configuration that says where NATS is, and how a process logs in there."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import field_validator, model_validator

from maestro_sdk.service.client_tls import ClientTlsConfig
from maestro_sdk.service.values import Secret, Settings

_URL = re.compile(r"(?:nats|tls|wss?)://[^\s/]+/?")


class NatsConfig(Settings):
    """The NATS server, or several, separated by commas, and how to log in: as a user, or with a token."""

    url: str = "nats://127.0.0.1:4222"
    user: str = ""
    password: Secret | None = None
    token: Secret | None = None
    tls: ClientTlsConfig | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not all(_URL.fullmatch(part.strip()) for part in value.split(",")):
            raise ValueError("is not an address such as nats://127.0.0.1:4222")
        return value

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        if bool(self.user) != (self.password is not None):
            raise ValueError("give both user and password, or neither")
        if self.user and self.token is not None:
            raise ValueError("give either user and password, or token")
        return self

    @property
    def has_login(self) -> bool:
        """Whether the server wants to know who comes, so that it is none that `maestro up` starts."""
        return bool(self.user or self.token or self.tls)

    def login(self) -> dict[str, Any]:
        """The options of a connection. Raises `OSError` for files that can't be used."""
        found: dict[str, Any] = {}
        if self.password is not None:
            found |= {"user": self.user, "password": self.password.get() or ""}
        if self.token is not None:
            found["token"] = self.token.get() or ""
        if self.tls is not None:
            found["tls"] = self.tls.context()
        return found


_known: dict[str, NatsConfig] = {}


def remember_login(config: NatsConfig) -> None:
    """From now on this process logs in at `config.url` as `config` says."""
    _known[config.url] = config


def login_at(url: str) -> dict[str, Any]:
    """How to log in there; empty where nothing is known. Secrets are read anew. Raises `OSError`."""
    config = _known.get(url)
    return config.login() if config is not None else {}
