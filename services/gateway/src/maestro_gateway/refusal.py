"""Errors of the HTTP port, in the shape that the caller's clients read."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress

from aiohttp import web

from maestro_gateway.anthropic.answer import STATUSES
from maestro_gateway.anthropic.answer import encode_error as encode_anthropic_error
from maestro_gateway.json_codec.answer import encode_error
from maestro_gateway.openai.answer import encode_error as encode_openai_error
from maestro_sdk.errors import MaestroError, NotFound, Unauthenticated
from maestro_sdk.tracing import REQUEST_ID_KEY, call_from_metadata

_VERSION, _LANGUAGE = "anthropic-version", "x-stainless-lang"
"""Headers by which Anthropic's clients are known, and OpenAI's SDKs."""
_UPLOADS = ("/v1/audio", "/v1/images", "/v1/uploads")
"""OpenAI's paths that take what is large: Envoy brings them here, since it can't read on behind a refusal."""
_READ_ON = 1.0
"""Seconds for which the rest of a refused upload is read on: many clients see no answer before they have sent all."""
_READ_ON_BYTES = 64 * 2**20
# Envoy has the same words for all other paths.
_OF_ANTHROPIC = "clients of Anthropic have POST /v1/messages, POST /v1/messages/count_tokens and GET /v1/models here"
_OF_OPENAI = "clients of OpenAI have POST /v1/chat/completions, POST /v1/embeddings, GET /v1/models and /v1/files here"
_JOBS = "and /v1/jobs where they look for batches"


def refuse(request: web.Request, error: MaestroError) -> web.Response:
    """The answer to a request that ended with `error`."""
    request_id = call_from_metadata(
        (name, request.headers[name]) for name in (REQUEST_ID_KEY,) if name in request.headers
    ).request_id
    headers = {REQUEST_ID_KEY: request_id}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    status = error.http_status
    if _VERSION in request.headers:
        status = STATUSES.get(error.reason, status)
        headers["request-id"] = request_id
        body = encode_anthropic_error(error, request_id)
    elif _by_openai(request):
        body = encode_openai_error(error, request_id, missing="not_found")
    else:
        body = encode_error(error, request_id)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def nowhere(request: web.Request) -> NotFound:
    """Why a path, or a method of it, is refused: with what is served instead to clients that are known."""
    message = f"nothing is served at {request.method[:16]} {request.path[:200]}"
    if _VERSION in request.headers:
        message = f"{message}; {_OF_ANTHROPIC}, {_JOBS}"
    elif _by_openai(request):
        message = f"{message}; {_OF_OPENAI}, {_JOBS}"
    return NotFound(message)


async def read_on(request: web.Request) -> None:
    """Reads the rest of a body that is refused, for a while."""
    size = 0
    # Whatever else is wrong with it: what was wrong first is told.
    with suppress(Exception):
        async with asyncio.timeout(_READ_ON):
            while (data := await request.content.readany()) and size <= _READ_ON_BYTES:
                size += len(data)


def require_served(request: web.Request) -> None:
    """Raises `HTTPNotFound` for files of Anthropic's clients: they have the same path as others, and another shape."""
    if _VERSION in request.headers and request.path.startswith("/v1/files"):
        raise web.HTTPNotFound


def _by_openai(request: web.Request) -> bool:
    return _LANGUAGE in request.headers or request.path.startswith(_UPLOADS)
