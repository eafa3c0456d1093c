"""The keys that are in force: those of the configuration, those that were made, and tokens of an identity provider."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from maestro_gateway.identity.principal import Principal
from maestro_gateway.identity.secret import PREFIX, digest, is_whole
from maestro_sdk.errors import Unauthenticated
from maestro_sdk.service.gateways import USUAL_SCOPES

_HOW = "send `authorization: Bearer KEY` (or `x-api-key: KEY`) with a key of this mesh"


class Tokens(Protocol):
    """Verifies the tokens of an identity provider."""

    def verify(self, token: str, now: float) -> Principal:
        """Who presents the token. Raises `Unauthenticated`, or `Unfamiliar` when asking the provider may help."""
        ...

    async def refresh(self) -> None:
        """Asks the provider for its keys, unless that was just done."""
        ...


class Unfamiliar(Unauthenticated):
    """A token is signed by a key that is not known yet."""


class Expired(Unauthenticated):
    """A key was good once."""

    principal: Principal | None = None
    """Whose it was."""


class Keys:
    """The keys that are in force."""

    def __init__(self, keys: Iterable[tuple[str, str] | Principal], tokens: Tokens | None = None) -> None:
        """`keys` are those of the configuration: principals with their `credential`, or pairs of tenant and key."""
        # Looked up by digest: the time of a look-up tells nothing about a key that is nearly right.
        self._fixed: dict[bytes, Principal] = {}
        for entry in keys:
            principal = entry if isinstance(entry, Principal) else configured(*entry)
            self._fixed[principal.credential] = principal
        self._made: Mapping[bytes, Principal] = {}
        self._tokens = tokens
        self.used: dict[str, float] = {}
        """Unix time of the last use of each key that was made, by its identifier; whoever keeps it takes it away."""
        self.changed: list[Callable[[], None]] = []
        """Called after keys were made, rotated or revoked."""

    def __len__(self) -> int:
        return len(self._fixed) + len(self._made)

    def replace(self, made: Mapping[bytes, Principal]) -> None:
        """Puts the keys that were made, by the digest of their secrets, in the place of those before."""
        self._made = made
        for call in self.changed:
            call()

    def authenticate(self, headers: Mapping[str, str]) -> Principal:
        """Who presents the key in `headers` (names in lower case). Raises `Unauthenticated`."""
        key = key_in(headers)
        if not key:
            raise Unauthenticated(f"the key is missing; {_HOW}")
        return self.principal_of(key)

    def principal_of(self, key: str) -> Principal:
        """Who presents `key`. Raises `Unauthenticated`, or `Unfamiliar`: then `learn` may help."""
        known = digest(key)
        found = self._fixed.get(known)
        if found is not None:
            return found
        found = self._made.get(known)
        now = time.time()
        if found is not None:
            if found.expires and found.expires <= now:
                error = Expired(f"the key {found.key_id} has expired")
                error.principal = found
                raise error
            self.used[found.key_id] = now
            return found
        if self._tokens is not None and _is_token(key):
            return self._tokens.verify(key, now)
        raise self._refusal(key)

    async def learn(self, key: str) -> Principal:
        """Who presents the token `key`, after its provider was asked for its keys. Raises `Unauthenticated`."""
        if self._tokens is not None:
            await self._tokens.refresh()
        return self.principal_of(key)

    def is_good(self, principal: Principal) -> bool:
        """Whether the key of somebody who was admitted earlier is still in force."""
        match principal.source:
            case "configuration":
                return True
            case "key":
                found = self._made.get(principal.credential)
                return found is not None and not (found.expires and found.expires <= time.time())
            case "jwt":
                return principal.expires > time.time()

    def ids_named(self, name: str) -> set[str]:
        """The identifiers of the keys with this name for people."""
        every = (*self._fixed.values(), *self._made.values())
        return {principal.key_id for principal in every if principal.subject == name}

    def _refusal(self, key: str) -> Unauthenticated:
        if key.startswith(PREFIX) and not is_whole(key):
            return Unauthenticated("the key is not whole: it was cut, or has a wrong character")
        if _is_token(key):
            return Unauthenticated("this is a token of an identity provider, and gateway.jwt names none to trust")
        if not len(self):
            return Unauthenticated(
                "this mesh has no key yet; set the variable that gateway.keys names, and restart the gateway"
            )
        return Unauthenticated(f"the key is not known here, or not any more; {_HOW}")


def configured(
    tenant: str,
    key: str,
    scopes: Iterable[str] = USUAL_SCOPES,
    *,
    name: str = "",
    personas: Iterable[str] = (),
    skills: Iterable[str] = (),
) -> Principal:
    """A key of the configuration."""
    known = digest(key)
    # Of the digest, so that it stays the same wherever in the file the key stands, and gives nothing away.
    key_id = f"config_{hashlib.sha256(known).hexdigest()[:12]}"
    return Principal(
        tenant,
        key_id,
        frozenset(scopes),
        "configuration",
        name,
        personas=frozenset(personas),
        skills=frozenset(skills),
        credential=known,
    )


def key_in(headers: Mapping[str, str]) -> str:
    """The key that `headers` (names in lower case) carry; empty when there is none."""
    value = headers.get("authorization", "")
    if value:
        scheme, _, key = value.partition(" ")
        # A header of another scheme (Basic of a proxy in front) hides no `x-api-key`.
        if scheme.lower() == "bearer" and key:
            return key.strip()
    return headers.get("x-api-key", "").strip()


def _is_token(key: str) -> bool:
    # What a JSON object begins with in Base64.
    return key.startswith("eyJ") and key.count(".") == 2
