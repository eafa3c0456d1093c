"""What an answer tells beside itself: as headers over HTTP, in a frame of a WebSocket."""

from __future__ import annotations

import math

import orjson

from maestro_gateway.budgets import CHEAPER, sent_cheaper
from maestro_gateway.cache import cache_state
from maestro_gateway.limits import current_ticket, openai_headers
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import MaestroError

CACHE_HEADER = "x-maestro-cache"
"""Whether an answer was given before; only where the route gives answers again."""
_DEGRADED = ("x-maestro-degraded", "true")
"""Tells that no router renews the routes by which the answer was found."""


def circumstances(mesh: Mesh) -> list[tuple[str, str]]:
    """How the answer came about: without a router, from the cache, by a cheaper route. Mostly nothing."""
    found: list[tuple[str, str]] = []
    if mesh.routers.degraded:
        found.append(_DEGRADED)
    if state := cache_state():
        found.append((CACHE_HEADER, state))
    if sent_cheaper():
        found.append(CHEAPER)
    return found


def retry_after(error: MaestroError) -> list[tuple[str, str]]:
    """The header of an error that says when to come back: whole seconds, rounded up."""
    return [] if error.retry_after is None else [("retry-after", str(math.ceil(error.retry_after)))]


def with_headers(frame: bytes, mesh: Mesh, error: MaestroError | None = None) -> bytes:
    """A frame of a WebSocket, a JSON object, with the member `headers` where an answer over HTTP would have such."""
    ticket = current_ticket()
    headers = [*circumstances(mesh), *(openai_headers(ticket) if ticket is not None else ())]
    if error is not None:
        headers += retry_after(error)
    return b'%b,"headers":%b}' % (frame[:-1], orjson.dumps(dict(headers))) if headers else frame
