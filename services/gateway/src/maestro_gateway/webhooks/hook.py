"""One webhook of a tenant, as the gateways know it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from maestro_gateway.webhooks.signature import decode_secret
from maestro_sdk.service.event_reader import filters
from maestro_sdk.service.webhooks import WebhookConfig

PREFIX = "webhook="
"""Start of the names of the consumers that webhooks have."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook. Neither a tenant nor a name holds `=` or `.`, so that what is made of both is nobody else's."""

    tenant: str
    name: str
    config: WebhookConfig

    @property
    def consumer(self) -> str:
        """The name of its consumer of the stream of events, which all gateways share."""
        return f"{PREFIX}{self.tenant}={self.name}"

    @property
    def subjects(self) -> list[str]:
        """What its consumer gets."""
        return filters(self.tenant, self.config.kinds)

    @property
    def address(self) -> str:
        """Where it delivers to, for people: without the query, which may hold a secret."""
        url = urlsplit(self.config.url)
        return urlunsplit((url.scheme, url.netloc, url.path, "", ""))

    @property
    def mark(self) -> str:
        """What tells this address from an earlier one."""
        return hashlib.sha256(self.config.url.encode()).hexdigest()

    def secrets(self) -> list[bytes]:
        """The secrets that sign. Read on every use: a file may be another one by now. Raises `ValueError`."""
        text = self.config.secret.get()
        if text is None:
            raise ValueError(f"its secret, {self.config.secret.env or self.config.secret.file}, is not set")
        found = [decode_secret(text)]
        old = self.config.old_secret.get() if self.config.old_secret is not None else None
        return [*found, decode_secret(old)] if old is not None else found

    def trouble(self) -> str:
        """Why it can't sign; empty when it can."""
        try:
            self.secrets()
        except ValueError as error:
            return str(error)
        return ""
