"""The gateway's section of a configuration, and what is said of tenants."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from maestro_sdk.service.audits import TenantAuditConfig
from maestro_sdk.service.values import Address, BaseUrl, ConfigPath, Duration, Secret, Settings, Size
from maestro_sdk.service.webhooks import WebhookConfig, check_names

USUAL_SCOPES = ("chat", "embeddings", "tools", "jobs", "files")
"""What a key may be used for unless it is told otherwise."""
SCOPES = (*USUAL_SCOPES, "admin", "operator")
"""All there are: `admin` keeps the keys of its tenant, `operator` those of every tenant."""
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def is_tenant(name: str) -> bool:
    """Whether `name` may be a tenant's."""
    return _TENANT.fullmatch(name) is not None


class KeyConfig(Settings):
    """One key of a tenant. No `personas` (or `skills`) means that it may ask for any; `name` is for people."""

    tenant: str
    key: Secret
    name: str = ""
    scopes: tuple[str, ...] = USUAL_SCOPES
    personas: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()

    @field_validator("tenant")
    @classmethod
    def _check_tenant(cls, value: str) -> str:
        if not is_tenant(value):
            raise ValueError(f"{value!r} is not a tenant: letters, digits, - and _, 64 at most")
        return value

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for scope in value:
            if scope not in SCOPES:
                raise ValueError(f"{scope!r} is not a scope; there are {', '.join(SCOPES)}")
        return value


class JwtConfig(Settings):
    """An identity provider whose tokens are taken beside keys.

    Its public keys come from `jwks_url`, read anew every `refresh` and when a token names another one, or from a file.
    `tenant_claim` and `scope_claim` are the claims of a token that name its tenant and its scopes.
    """

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    jwks_url: BaseUrl | None = None
    jwks_file: ConfigPath | None = None
    tenant_claim: Annotated[str, Field(min_length=1)] = "tenant"
    scope_claim: Annotated[str, Field(min_length=1)] = "scope"
    refresh: Annotated[Duration, Field(ge=10)] = 300.0
    leeway: Annotated[Duration, Field(le=300)] = 30.0

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.jwks_url is None) == (self.jwks_file is None):
            raise ValueError("give either jwks_url or jwks_file")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            if url.scheme != "https" and url.hostname not in _LOOPBACK:
                raise ValueError("jwks_url has to be https: whoever changes these keys on their way is every tenant")
        return self


class GatewayConfig(Settings):
    """The gateway's own addresses and limits. `ping` is the pause after which an idle stream gets a sign of life.

    `keep` is how long state of providers that a client's shape can't carry is kept; 0 never.
    """

    address: Address = "127.0.0.1:50051"
    websocket: Address = "127.0.0.1:8081"
    replicas: Annotated[int, Field(ge=1, le=9)] = 1
    keys: tuple[KeyConfig, ...] = (KeyConfig(tenant="development", key=Secret(env="MAESTRO_KEY"), scopes=SCOPES),)
    jwt: JwtConfig | None = None
    max_body: Annotated[Size, Field(ge=1024, le=16 * 2**20)] = 3 * 2**20  # gRPC's messages are bounded, too
    ping: Annotated[Duration, Field(gt=0)] = 15.0
    keep: Annotated[Duration, Field(ge=0, le=7 * 86400)] = 3600.0


class TenantConfig(Settings):
    """Policy for one tenant: `regions` and `providers` bound where its requests may be answered; empty allows all."""

    regions: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    audit: TenantAuditConfig = TenantAuditConfig()
    webhooks: Annotated[dict[str, WebhookConfig], AfterValidator(check_names)] = Field(
        default_factory=dict[str, WebhookConfig]
    )
