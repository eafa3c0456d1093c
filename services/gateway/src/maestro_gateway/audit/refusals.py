"""Calls that were refused, at the door or by a limit, as events: few of them, however many knock.

The first calls of a kind are told one by one, and how many more there were when a minute is over. A kind is who, why,
what and from where. Of more kinds than fit only tenant and reason are told apart: no attacker makes the stream longer
by changing addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from maestro.event.v1.event_pb2 import Event, RequestDenied
from maestro_gateway.endings import failure_of
from maestro_gateway.identity.caller import current_caller
from maestro_gateway.identity.principal import Principal
from maestro_sdk.errors import MaestroError
from maestro_sdk.service.events import MESH, new_event

_WINDOW = 60.0
_MOST = 64
"""Kinds of a minute that are told apart."""
_SINGLY = 10
"""Calls of a kind in a minute that are told one by one."""
_DENIED = "request.denied"

_Kind: TypeAlias = tuple[str | int, ...]


@dataclass(slots=True)
class _Seen:
    """Calls of a kind: how many there were, and the first one that was not told by itself."""

    calls: int = 0
    first: Event | None = None


class Refusals:
    """Brings refusals to `publish`. Whoever owns it calls `tell` every minute, and at the end."""

    def __init__(self, publish: Callable[[Event], None], *, most: int = _MOST, singly: int = _SINGLY) -> None:
        self._publish = publish
        self._most = most
        self._singly = singly
        self._seen: dict[_Kind, _Seen] = {}

    def note(self, error: MaestroError, principal: Principal | None, request_id: str) -> None:
        """The current caller was refused; `principal` is known when it is a key that may not do this, or not now."""
        caller = current_caller().message()
        if principal is not None:
            caller.principal = principal.subject
        denied = RequestDenied(
            request_id=request_id,
            failure=failure_of(error),
            key_id=principal.key_id if principal is not None else "",
            caller=caller,
        )
        tenant = principal.tenant if principal is not None else MESH
        self._take(new_event(denied, f"request/{request_id}", tenant=tenant))

    def sieve(self, publish: Callable[[Event], None]) -> Callable[[Event], None]:
        """`publish` for all events but those of refusals, which are held to the same measure."""

        def take(event: Event) -> None:
            if event.kind == _DENIED:
                self._take(event)
            else:
                publish(event)

        return take

    def tell(self) -> None:
        """Tells how many more calls there were of each kind, and begins anew."""
        seen, self._seen = self._seen, {}
        for found in seen.values():
            if found.first is not None:
                found.first.request_denied.calls = found.calls - self._singly
                self._publish(found.first)

    def _take(self, event: Event) -> None:
        denied = event.request_denied
        caller, reason = denied.caller, denied.failure.reason
        kind: _Kind = (
            event.tenant,
            reason,
            denied.key_id,
            denied.requested_model,
            caller.method,
            caller.client_address,
        )
        seen = self._seen.get(kind)
        if seen is None:
            if len(self._seen) >= self._most:
                kind = (event.tenant, reason)
            seen = self._seen.setdefault(kind, _Seen())
        seen.calls += 1
        if seen.calls <= self._singly:
            self._publish(event)
        elif seen.first is None:
            seen.first = event


@asynccontextmanager
async def refusing(publish: Callable[[Event], None]) -> AsyncGenerator[Refusals]:
    """Tells of refusals meanwhile, and of the last ones at the end."""
    refusals = Refusals(publish)

    async def tell() -> None:
        while True:
            await asyncio.sleep(_WINDOW)
            refusals.tell()

    task = asyncio.create_task(tell(), name="tell refusals")
    try:
        yield refusals
    finally:
        task.cancel()
        refusals.tell()
