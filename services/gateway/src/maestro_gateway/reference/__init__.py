"""What the gateway serves, as an OpenAPI document and as a page for people. Anybody may read it, without a key."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import orjson
from aiohttp import web

from maestro_gateway.reference.page import render

DOCUMENT = "openapi.json"
"""Made by `make openapi`; stands beside this file."""
_HEADERS = {
    "cache-control": "public, max-age=300",
    "x-content-type-options": "nosniff",
    # Nothing is loaded from anywhere, and no script runs.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def serve_reference(router: web.UrlDispatcher) -> None:
    """Adds `GET /openapi.json` and `GET /docs`."""
    router.add_get("/openapi.json", _tell_document)
    router.add_get("/docs", _show_page)


@cache
def document() -> bytes:
    """The document as JSON text."""
    return files(__package__ or "").joinpath(DOCUMENT).read_bytes()


@cache
def _page() -> bytes:
    return render(orjson.loads(document())).encode()


async def _tell_document(request: web.Request) -> web.Response:
    # Tools in browsers read it from other origins; it holds nothing that is not public.
    headers = {**_HEADERS, "access-control-allow-origin": "*"}
    return web.Response(body=document(), content_type="application/json", headers=headers)


async def _show_page(request: web.Request) -> web.Response:
    return web.Response(body=_page(), content_type="text/html", charset="utf-8", headers=_HEADERS)
