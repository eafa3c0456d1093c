"""A key as it is kept: everything but its secret, of which there is a digest. Pure: a change gives a new record."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import orjson

from maestro.gateway.v1.key_pb2 import KEY_STATE_ACTIVE, KEY_STATE_EXPIRED, KEY_STATE_REVOKED, Key
from maestro_gateway.identity.principal import Principal
from maestro_gateway.identity.secret import HINT, digest, new_secret

KEPT = 90 * 86400.0
"""Seconds for which a key is listed after its end."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """Times are Unix time, 0 never; digests are hexadecimal. `request` is that of the call that rotated it last."""

    key_id: str
    tenant: str
    digest: str
    hint: str
    scopes: tuple[str, ...]
    created: float
    creator: str = ""
    display_name: str = ""
    description: str = ""
    personas: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    expires: float = 0.0
    rotated: float = 0.0
    former: str = ""
    """Digest of the secret before the last rotation."""
    grace_end: float = 0.0
    revoked: float = 0.0
    request: str = ""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The record that `encode` wrote. Raises `ValueError`; fields of later versions are left out."""
        found: Any = orjson.loads(data)
        try:
            values = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
            for name in ("scopes", "personas", "skills"):
                values[name] = tuple(values.get(name, ()))
            record = cls(**values)
            bytes.fromhex(record.digest + record.former)
        except (TypeError, KeyError) as error:
            raise ValueError(f"is no key: {error}") from None
        return record

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))

    def is_over(self, now: float) -> bool:
        """Whether no secret of it is good any more."""
        return bool(self.revoked) or bool(self.expires and self.expires <= now)

    def ended(self) -> float:
        """When it was revoked, or expires; 0 never."""
        return self.revoked or self.expires

    def principals(self, now: float) -> dict[bytes, Principal]:
        """Who presents which secret, by digest. One that has expired is still known, so that its caller is told."""
        if self.revoked:
            return {}

        def principal(secret: bytes, expires: float) -> dict[bytes, Principal]:
            made = Principal(
                self.tenant,
                self.key_id,
                frozenset(self.scopes),
                "key",
                self.display_name,
                expires,
                frozenset(self.personas),
                frozenset(self.skills),
                secret,
            )
            return {secret: made}

        found = principal(bytes.fromhex(self.digest), self.expires)
        if self.former and self.grace_end > now:
            until = min(self.grace_end, self.expires) if self.expires else self.grace_end
            found |= principal(bytes.fromhex(self.former), until)
        return found

    def rotate(self, now: float, grace: float, request: str) -> tuple[KeyRecord, str]:
        """The record with a new secret, and that secret. The old one is good for `grace` seconds, any older one not."""
        secret = new_secret()
        changed = replace(
            self,
            digest=digest(secret).hex(),
            hint=secret[:HINT],
            rotated=now,
            former=self.digest if grace else "",
            grace_end=now + grace if grace else 0.0,
            request=request,
        )
        return changed, secret

    def message(self, now: float, used: float, *, with_tenant: bool) -> Key:
        """What is told of it."""
        state = KEY_STATE_ACTIVE
        if self.is_over(now):
            state = KEY_STATE_REVOKED if self.revoked else KEY_STATE_EXPIRED
        told = Key(
            key_id=self.key_id,
            tenant=self.tenant if with_tenant else "",
            display_name=self.display_name,
            description=self.description,
            scopes=self.scopes,
            personas=self.personas,
            skills=self.skills,
            state=state,
            hint=self.hint,
            creator=self.creator,
        )
        grace_end = self.grace_end if self.grace_end > now and not self.revoked else 0.0
        for field, value in (
            (told.create_time, self.created),
            (told.expire_time, self.expires),
            (told.last_use_time, used),
            (told.rotate_time, self.rotated),
            (told.grace_end_time, grace_end),
            (told.revoke_time, self.revoked),
        ):
            if value:
                field.FromNanoseconds(int(value * 1e9))
        return told


def new_key_id() -> str:
    """A new identifier."""
    return f"key_{secrets.token_hex(8)}"


def key_id_of(tenant: str, request_id: str) -> str:
    """The identifier of the key that a call makes: the same for a repeated call, so that only one is made."""
    if not request_id:
        return new_key_id()
    return f"key_{request_digest(tenant, request_id)[:16]}"


def request_digest(*parts: str) -> str:
    """What a call is known again by."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
