"""What a process shows the others of its mesh, and how it knows them: a token in the metadata of calls, a certificate
under their connections, or both.

Router and adapters believe what a member of the mesh says of a call, its tenant above all, so nobody else gets in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Self

import grpc

from maestro_sdk.errors import Unauthenticated
from maestro_sdk.service.channel import open_channel

if TYPE_CHECKING:
    from maestro_sdk.service.settings import Config

__all__ = ["NOBODY", "TOKEN_KEY", "Certificates", "Peer"]

TOKEN_KEY = "x-maestro-mesh-token"  # noqa: S105 - the metadata that carries it
_METHODS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


@dataclass(frozen=True, slots=True)
class Certificates:
    """In PEM: the certificate of this process and its key, and the authority that signs those of the mesh.

    `name` is what the certificates of servers are made out to, where not to the addresses under which they are called.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    name: str = ""

    def of_client(self) -> grpc.ChannelCredentials:
        """For calls: the server has to be of the mesh, and learns that the caller is."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    def of_server(self) -> grpc.ServerCredentials:
        """For a service: who has no certificate of the mesh gets no connection."""
        return grpc.ssl_server_credentials([(self.key, self.certificate)], self.authority, require_client_auth=True)


class Peer:
    """One process as a member of the mesh. Without token and certificates it shows nothing and believes everybody."""

    def __init__(self, tokens: Sequence[str] = (), certificates: Certificates | None = None) -> None:
        """The first of `tokens` is sent, all of them are taken."""
        self.certificates = certificates
        self._tokens = tuple(token.encode() for token in tokens)
        self._metadata = tuple((TOKEN_KEY, token) for token in tokens[:1])

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The peer that the section `mesh` describes. Raises `ConfigError`."""
        tls = config.mesh.tls
        return cls(config.mesh.read_tokens(), Certificates(*tls.read(), tls.name) if tls is not None else None)

    @classmethod
    def showing(cls, token: str) -> Self:
        """A peer that shows `token`; nothing when that is empty."""
        return cls((token.strip(),) if token.strip() else ())

    @property
    def asks_token(self) -> bool:
        """Whether callers have to show a token."""
        return bool(self._tokens)

    def open_channel(self, target: str) -> grpc.aio.Channel:
        """A channel to another process of the mesh. Each of its calls shows the token."""
        certificates = self.certificates
        channel = (
            open_channel(target)
            if certificates is None
            else open_channel(target, credentials=certificates.of_client(), name=certificates.name)
        )
        if self._metadata:
            # Here, where no call can be forgotten. An interceptor would cost each call a task of its own.
            for name in _METHODS:
                setattr(channel, name, _showing(getattr(channel, name), self._metadata))
        return channel

    def admit(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Returns when the caller's metadata show a token of the mesh. Raises `Unauthenticated`."""
        shown = False
        for key, value in metadata:
            if key == TOKEN_KEY:
                shown = True
                sent = value if isinstance(value, bytes) else value.encode()
                if any(compare_digest(sent, token) for token in self._tokens):
                    return
        what = f"its {TOKEN_KEY} is none of this mesh" if shown else f"it has no {TOKEN_KEY}"
        # Another adapter may take this gateway's calls; its own caller's key is not in question.
        raise Unauthenticated(
            f"the call is not from this mesh: {what}. All processes of a mesh have the same token: "
            "set MAESTRO_MESH_TOKEN where the caller runs, or mesh.tokens",
            failover=True,
            counts_against_health=True,
        )


NOBODY = Peer()
"""Who shows nothing: tests, and services of a mesh that has neither token nor certificates."""


def _showing(make: Callable[..., Any], own: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    """`make` of a channel, for methods whose calls show `own` beside their metadata."""

    def made(*arguments: Any, **options: Any) -> Callable[..., Any]:
        method = make(*arguments, **options)

        def call(*request: Any, metadata: Any = (), **more: Any) -> Any:
            return method(*request, metadata=(*metadata, *own) if metadata else own, **more)

        return call

    return made
