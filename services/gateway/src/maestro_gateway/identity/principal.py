"""The principal: who asks with which key, and what that key may do.

The one interceptor of the gateway and its HTTP port set it beside the `Call`; whatever serves the call reads it here.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_sdk.errors import MaestroError, PermissionDenied, Unauthenticated, Violation
from maestro_sdk.service.gateways import SCOPES

ADMIN, OPERATOR = "admin", "operator"


@dataclass(frozen=True, slots=True, eq=False)
class Principal:
    """One key, or the subject of one token, of a tenant. `expires` is Unix time, 0 never.

    No `personas` (or `skills`) means that any may be asked for, none too.
    """

    tenant: str
    key_id: str
    scopes: frozenset[str]
    source: Literal["key", "configuration", "jwt"]
    subject: str = ""
    """Whom the key is for: its name for people, or the `sub` of a token."""
    expires: float = 0.0
    personas: frozenset[str] = frozenset()
    skills: frozenset[str] = frozenset()
    credential: bytes = field(default=b"", repr=False)
    """Digest of the secret that was presented."""

    def require(self, scope: str) -> None:
        """Raises `PermissionDenied` when the key has not got `scope`; an empty one is had by all."""
        if scope and scope not in self.scopes and not (scope == ADMIN and OPERATOR in self.scopes):
            had = ", ".join(name for name in SCOPES if name in self.scopes) or "none"
            raise PermissionDenied(
                f"this needs the scope {scope!r}, which the key {self.key_id} does not have (it has: {had})",
                metadata={"scope": scope, "key_id": self.key_id},
            )


_current: ContextVar[Principal | MaestroError | None] = ContextVar("maestro_principal", default=None)


def enter(principal: Principal | MaestroError | None) -> None:
    """Makes `principal` the current one for this task and what it starts; an error is why there is none."""
    _current.set(principal)


def current_principal() -> Principal | None:
    """Who asks in this context, if anybody was admitted."""
    found = _current.get()
    return found if isinstance(found, Principal) else None


def admitted() -> Principal:
    """Who asks in this context. Raises why nobody was admitted."""
    match _current.get():
        case Principal() as principal:
            return principal
        case MaestroError() as error:
            # A fresh one: the error of a call must not collect the traceback of another.
            raise type(error)(error.message, metadata=error.metadata, retry_after=error.retry_after)
        case None:
            raise Unauthenticated("nobody was admitted")


def permit(request: ChatRequest | EmbedRequest) -> None:
    """Raises `PermissionDenied` with the field when the current key may not ask as this persona, or for this skill."""
    principal = current_principal()
    if principal is None or not (principal.personas or principal.skills):
        return
    _check("persona", request.routing.persona, principal.personas)
    _check("skill", request.routing.skill, principal.skills)


def _check(name: str, asked: str, allowed: frozenset[str]) -> None:
    if allowed and asked not in allowed:
        said = f"{asked!r} is not among what this key may ask for" if asked else "has to be set with this key"
        message = f"{said}: {', '.join(sorted(allowed))}"
        field = f"routing.{name}"
        raise PermissionDenied(f"{field}: {message}", violations=[Violation(field, message)])
