"""From where a call came, as the record of it tells."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from maestro.event.v1.event_pb2 import Caller as CallerMessage
from maestro_gateway.identity.principal import current_principal

_LONGEST = 256
_ADDRESSES = "x-forwarded-for"
"""Addresses of whom a call passed; the last one is Envoy's word, those before are anybody's."""


class Caller:
    """What came with one call. It is read when its record is made, since many calls leave none."""

    __slots__ = ("_headers", "_method", "_peer")

    def __init__(self, headers: Mapping[str, str], method: str, peer: str = "") -> None:
        """`method` is "/package.Service/Method" or the path; `peer` is the address of who is connected."""
        self._headers = headers
        self._method = method
        self._peer = peer

    def header(self, name: str) -> str:
        """A header, or metadata, by its name in lower case; empty when there is none."""
        return self._headers.get(name, "")

    def message(self) -> CallerMessage:
        """What of it is recorded."""
        principal = current_principal()
        headers = self._headers
        return CallerMessage(
            principal=principal.subject if principal is not None else "",
            client_address=(headers.get(_ADDRESSES, "").rpartition(",")[2].strip() or self._peer)[:_LONGEST],
            user_agent=headers.get("user-agent", "")[:_LONGEST],
            method=self._method[:_LONGEST],
        )


_current: ContextVar[Caller | None] = ContextVar("maestro_caller", default=None)
_NOBODY = Caller({}, "")


def enter_caller(caller: Caller) -> None:
    """Makes `caller` the current one for this task and what it starts."""
    _current.set(caller)


def current_caller() -> Caller:
    """The caller of this context; one of whom nothing is known when there is none."""
    return _current.get() or _NOBODY
