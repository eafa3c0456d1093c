"""The section of a configuration by which the processes of one mesh know each other."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from maestro_sdk.service.config_file import ConfigError, Problem
from maestro_sdk.service.values import ConfigPath, Secret, Settings

TOKEN_VARIABLE = "MAESTRO_MESH_TOKEN"  # noqa: S105 - the variable that holds it
_SHORTEST = 16


class MeshTlsConfig(Settings):
    """Files in PEM: the certificate of this process and its key, and the authority that signs those of the mesh.

    `name` is what the certificates of servers are made out to, where not to the addresses under which they are called.
    """

    certificate: ConfigPath
    key: ConfigPath
    authority: ConfigPath
    name: str = ""

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key and authority. Raises `ConfigError`."""
        # Imported here: a mesh without certificates needs none of it.
        import ssl

        found = _read(self.certificate, "certificate"), _read(self.key, "key"), _read(self.authority, "authority")
        # gRPC would say little of files that are wrong: that a port can't be bound, or nothing.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            trial.load_verify_locations(self.authority)
        except ssl.SSLError:
            raise _wrong("authority", f"{self.authority} has no certificate in PEM") from None
        try:
            trial.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except ssl.SSLError as error:
            why = error.reason or "no PEM, or a key with a password"
            raise _wrong("certificate", f"{self.certificate} and {self.key} can't be used together: {why}") from None
        return found


class MeshConfig(Settings):
    """How a process shows that it belongs to the mesh: the first of `tokens` is sent, each of them is taken.

    `open` is the consent to services that take calls of other machines without any of it.
    """

    tokens: tuple[Secret, ...] = Field(default=(Secret(env=TOKEN_VARIABLE),), max_length=4)
    tls: MeshTlsConfig | None = None
    open: bool = False

    def read_tokens(self) -> tuple[str, ...]:
        """The tokens; none where nothing is configured. Raises `ConfigError` for those that can't be used."""
        found: list[str] = []
        for number, secret in enumerate(self.tokens):
            path = f"mesh.tokens[{number}]"
            token = secret.get()
            if token is None:
                # The default needs no token; who names another place means to have one.
                if secret.env != TOKEN_VARIABLE:
                    where = f"the variable {secret.env}" if secret.file is None else str(secret.file)
                    raise ConfigError([Problem("", path, f"there is no token in {where}")])
            elif len(token) < _SHORTEST or not all("!" <= letter <= "~" for letter in token):
                wanted = (
                    f"{_SHORTEST} or more letters, digits and signs without spaces; `openssl rand -hex 32` makes one"
                )
                raise ConfigError([Problem("", path, f"the token can't be used: it needs {wanted}")])
            else:
                found.append(token)
        return tuple(found)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _wrong(name, f"{path} can't be read: {error.strerror}") from None


def _wrong(name: str, message: str) -> ConfigError:
    return ConfigError([Problem("", f"mesh.tls.{name}", message)])
