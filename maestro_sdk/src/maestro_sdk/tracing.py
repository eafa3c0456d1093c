"""What travels beside a request: tenant, request id and W3C trace context, as gRPC metadata and as a context variable.

A service's interceptor sets the `Call` of the request it serves; clients of this SDK send the current one along, so
that one request keeps its identity through every hop. Messages never carry any of it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

TENANT_KEY = "x-maestro-tenant"
REQUEST_ID_KEY = "x-request-id"
CALL_KEY = "x-maestro-call-key"
TRACEPARENT_KEY = "traceparent"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Ours, in hexadecimal digits, and the public port's, which can only count in decimal ones.
_TIMED_ID = re.compile(r"req_(?:([0-9a-f]{12})[0-9a-f]{12}|([0-9]{13})\.[0-9a-f-]{36})")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Call:
    """Identity of the request being served. `tenant` is empty outside the mesh; `traceparent` is W3C text.

    A `key` makes calls of adapters standing ones: they outlive their caller for a while, and the next call with the
    same key takes up the same answer instead of asking the provider again.
    """

    request_id: str
    tenant: str
    traceparent: str
    key: str = ""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The gRPC metadata that carries this call to the next hop."""
        plain = ((REQUEST_ID_KEY, self.request_id), (TENANT_KEY, self.tenant), (TRACEPARENT_KEY, self.traceparent))
        return (*plain, (CALL_KEY, self.key)) if self.key else plain

    @property
    def trace_id(self) -> str:
        """The 32 hexadecimal digits that name the trace."""
        return self.traceparent[3:35]


_current: ContextVar[Call | None] = ContextVar("maestro_call", default=None)


def current_call() -> Call | None:
    """The call being served in this context, if any."""
    return _current.get()


def enter_call(call: Call) -> None:
    """Makes `call` the current one for this task and what it starts."""
    _current.set(call)


def call_from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Call:
    """The call that request metadata describes; what is missing or malformed is made anew."""
    request_id = tenant = traceparent = call_key = ""
    for key, value in metadata:
        if key == REQUEST_ID_KEY:
            request_id = str(value)
        elif key == TENANT_KEY:
            tenant = str(value)
        elif key == TRACEPARENT_KEY:
            traceparent = str(value)
        elif key == CALL_KEY:
            call_key = str(value)
    if not is_request_id(request_id):
        request_id = new_request_id()
    if not _TRACEPARENT.fullmatch(traceparent):
        traceparent = new_traceparent()
    return Call(request_id, tenant, traceparent, call_key)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """The metadata of the current call, or of a new one when no request is being served."""
    call = _current.get()
    if call is None:
        return ((REQUEST_ID_KEY, new_request_id()), (TRACEPARENT_KEY, new_traceparent()))
    return call.metadata()


def new_request_id() -> str:
    """A new request id: `req_` and 24 hexadecimal digits, of which the first 12 are the time in milliseconds.

    So ids sort by time, and what was recorded of a request is found without an index.
    """
    return f"req_{time.time_ns() // 1_000_000:012x}{os.urandom(6).hex()}"


def is_request_id(text: str) -> bool:
    """Whether a caller may name a request so."""
    return _REQUEST_ID.fullmatch(text) is not None


def time_of(request_id: str) -> float | None:
    """Unix time at which an id was made, as its maker's clock had it; None for an id that does not tell."""
    found = _TIMED_ID.fullmatch(request_id)
    if found is None:
        return None
    ours, public = found.groups()
    return (int(ours, 16) if ours else int(public)) / 1000


def new_traceparent() -> str:
    """A new W3C trace context, sampled."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
