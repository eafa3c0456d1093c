"""Tokens of an identity provider: JSON Web Tokens, signed with RS256, ES256 or EdDSA.

What a token says of itself decides nothing: the algorithm is that of the provider's key, never the token's own choice,
so neither `none` nor an HMAC keyed with a public key gets in. A token that was verified is known by its digest for a
minute, so that a caller's thousand requests cost one verification.
"""

from __future__ import annotations

import hashlib
from typing import Any

import jwt

from maestro_gateway.identity.key_set import KeySet
from maestro_gateway.identity.keys import Unfamiliar
from maestro_gateway.identity.principal import OPERATOR, Principal
from maestro_gateway.identity.secret import digest
from maestro_sdk.errors import Unauthenticated
from maestro_sdk.service.gateways import SCOPES, JwtConfig, is_tenant

_LONGEST = 8192
"""Characters of a token."""
_KNOWN = 4096
"""Tokens that are known at a time."""
_TRUST = 60.0
"""Seconds for which a token is not verified again: so long a key that the provider takes back may still be good."""
_GIVEN = frozenset(SCOPES) - {OPERATOR}
"""Scopes that a provider can give. Operators have keys: no mistake at the provider opens every tenant."""


class TokenVerifier:
    """Verifies tokens against a set of keys, without I/O."""

    def __init__(self, config: JwtConfig, keys: KeySet) -> None:
        self._config = config
        self._keys = keys
        self._known: dict[bytes, tuple[float, Principal]] = {}

    def verify(self, token: str, now: float) -> Principal:
        """Who presents the token. Raises `Unauthenticated` with the reason, `Unfamiliar` for an unknown signer."""
        known = digest(token)
        found = self._known.get(known)
        if found is not None and found[0] > now:
            return found[1]
        principal = self._principal(self._claims(token), known)
        while len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[known] = (min(now + _TRUST, principal.expires), principal)
        return principal

    async def refresh(self) -> None:
        """Reads the provider's keys again, unless that was just done."""
        await self._keys.refresh()

    def _claims(self, token: str) -> dict[str, Any]:
        if len(token) > _LONGEST:
            raise _refused(f"it is longer than {_LONGEST} characters")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise _refused("its header can't be read") from None
        kid = header.get("kid")
        key = self._keys.find(kid if isinstance(kid, str) else "")
        if key is None:
            raise Unfamiliar(
                f"the token is signed by a key that the issuer {self._config.issuer} is not known to have"
                # Not why: that is in the log, and anybody may be asking.
                f"{self._keys.trouble and ' (they cannot be read now)'}"
            )
        try:
            return jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm_name],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=self._config.leeway,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise _refused("it has expired") from None
        except jwt.ImmatureSignatureError:
            raise _refused("it is not valid yet") from None
        except jwt.InvalidAudienceError:
            raise _refused(f"it is not for the audience {self._config.audience}") from None
        except jwt.InvalidIssuerError:
            raise _refused(f"it is not from the issuer {self._config.issuer}") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"it lacks the claim {error.claim!r}") from None
        except jwt.InvalidAlgorithmError:
            raise _refused(f"it has to be signed with {key.algorithm_name}, as its key says") from None
        except jwt.InvalidSignatureError:
            raise _refused("its signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
            raise _refused("it is malformed") from None

    def _principal(self, claims: dict[str, Any], known: bytes) -> Principal:
        config = self._config
        tenant = claims.get(config.tenant_claim)
        if tenant is None:
            raise _refused(f"it lacks the claim {config.tenant_claim!r}, which names the tenant")
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise _refused(f"its claim {config.tenant_claim!r} names no tenant: letters, digits, - and _, 64 at most")
        subject = claims.get("sub")
        subject = subject if isinstance(subject, str) else ""
        # Of a subject without its name, which may be a person's address and stands in every event.
        pseudonym = hashlib.sha256(f"{config.issuer}\n{tenant}\n{subject}".encode()).hexdigest()[:16]
        return Principal(
            tenant,
            f"jwt_{pseudonym}",
            # A provider has scopes that mean something to others.
            frozenset(_listed(claims.get(config.scope_claim))) & _GIVEN,
            "jwt",
            subject[:256],
            float(claims["exp"]) + config.leeway,
            credential=known,
        )


def _listed(value: Any) -> list[str]:
    """Scopes as OAuth writes them, with spaces between them, or as a list."""
    match value:
        case str():
            return value.split()
        case list():
            return [entry for entry in value if isinstance(entry, str)]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return []


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated(f"the token is refused: {why}")
