"""How connections to a server outside the mesh, NATS or the store, are secured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from maestro_sdk.service.values import ConfigPath, Settings

if TYPE_CHECKING:
    from ssl import SSLContext


class ClientTlsConfig(Settings):
    """Files in PEM: an authority instead of the public ones, and a certificate where the server wants one."""

    authority: ConfigPath | None = None
    certificate: ConfigPath | None = None
    key: ConfigPath | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("give both certificate and key, or neither")
        return self

    def context(self) -> SSLContext:
        """What a connection is made with. Raises `OSError` for files that can't be read or used."""
        import ssl

        context = ssl.create_default_context(cafile=self.authority)
        if self.certificate is not None:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        return context
