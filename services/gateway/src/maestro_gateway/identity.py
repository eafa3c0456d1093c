"""Keys of tenants: who asks. A key is known by its SHA-256 digest only, and stands in no log and no error."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping

from maestro_sdk.errors import Unauthenticated

log = logging.getLogger(__name__)

_HOW = "send `authorization: Bearer KEY` (or `x-api-key: KEY`) with a key of this mesh"


class Keys:
    """The keys that are in force."""

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """`keys` are pairs of tenant and key."""
        # Looked up by digest: the time of a look-up tells nothing about a key that is nearly right.
        self._tenants: dict[bytes, str] = {_digest(key): tenant for tenant, key in keys}

    def __len__(self) -> int:
        return len(self._tenants)

    def authenticate(self, headers: Mapping[str, str]) -> str:
        """The tenant that the key in `headers` (names in lower case) belongs to. Raises `Unauthenticated`."""
        key = key_in(headers)
        if not key:
            raise Unauthenticated(f"the key is missing; {_HOW}")
        return self.tenant_of(key)

    def tenant_of(self, key: str) -> str:
        """The tenant of `key`. Raises `Unauthenticated`."""
        tenant = self._tenants.get(_digest(key))
        if tenant is None:
            if not self._tenants:
                raise Unauthenticated(
                    "this mesh has no key yet; set the variable that gateway.keys names, and restart the gateway"
                )
            raise Unauthenticated(f"the key is not known here; {_HOW}")
        return tenant


def key_in(headers: Mapping[str, str]) -> str:
    """The key that `headers` (names in lower case) carry; empty when there is none."""
    value = headers.get("authorization", "")
    if value:
        scheme, _, key = value.partition(" ")
        # A header of another scheme (Basic of a proxy in front) hides no `x-api-key`.
        if scheme.lower() == "bearer" and key:
            return key.strip()
    return headers.get("x-api-key", "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
