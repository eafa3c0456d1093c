"""Ollama's errors as errors of the contract: a status and one sentence, or the sentence alone inside a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro_sdk.adapter.http import retry_after
from maestro_sdk.errors import (
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    OutputInvalid,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
)

PROVIDER = "local"

# Ollama has no codes: only its sentences tell causes apart. The first that fits counts.
_BY_TEXT: tuple[tuple[re.Pattern[str], type[MaestroError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), cls)
    for pattern, cls in (
        (r"model .*not found|no such model|pull it first|pulling it first", NotFound),
        (
            r"(exceed\w*|longer than) .*context|context (length|window|size) (was )?exceeded|context limit",
            ContextTooLong,
        ),
        (r"does not support|think value .* is not supported|not supported for this model", UnsupportedParameter),
        (r"usage limit", ProviderQuota),
        (r"server busy|maximum pending requests|server is overloaded", Overloaded),
        (r"parsing tool call", OutputInvalid),
        (r"(parse|load|invalid).*grammar|invalid (json schema|format)", InvalidRequest),
        (r"timed out|timeout", Timeout),
    )
)
_BY_STATUS: Mapping[int, type[MaestroError]] = {
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: NotFound,
    408: Timeout,
    413: TooLarge,
    429: RateLimited,
    503: Overloaded,
    504: Timeout,
}
_ADVICE: Mapping[type[MaestroError], str] = {
    ContextTooLong: "shorten the conversation, or give the server a larger num_ctx",
    NotFound: "fetch the model with `ollama pull`",
    Overloaded: "try again later",
    OutputInvalid: "the model wrote a tool call that can't be read; try again",
    ProviderAuth: "check the server's api_key",
    ProviderQuota: "wait for the limit to open, or raise it",
    Timeout: "try again; a model that is being loaded takes its time",
    UpstreamError: "see the log of the server",
}
# Trying the same again can't help: the machine is too small.
_TOO_SMALL = re.compile(r"requires more system memory|out of memory|insufficient memory", re.IGNORECASE)
_LONGEST_MESSAGE = 1000


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    """The error of a refused call, or with status 200 of an `error` line in a stream. Header names are lower case."""
    said = _sentence(body)
    cls = _class(status, said)
    metadata = {"provider": PROVIDER, "upstream_status": str(status)}
    if cls is ProviderAuth:
        # A refusal of our key may quote it.
        said = "the server refuses the mesh's own credentials"
    text = said[:_LONGEST_MESSAGE] or f"HTTP {status} without an explanation"
    advice = _ADVICE.get(cls)
    error = cls(f"Ollama: {text}" + (f" ({advice})" if advice else ""), metadata=metadata)
    if cls is not ProviderQuota:
        error.retry_after = retry_after(headers)
    if _TOO_SMALL.search(said):
        error.retryable = False
    return error


def _class(status: int, said: str) -> type[MaestroError]:
    if status in {401, 402, 403, 413}:
        return _BY_STATUS[status]
    for pattern, cls in _BY_TEXT:
        if pattern.search(said):
            return cls
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    # Inside a stream the request was taken already, so the fault is the server's.
    return InvalidRequest if 400 <= status < 500 else UpstreamError


def _sentence(body: bytes) -> str:
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:_LONGEST_MESSAGE].decode("utf-8", "replace").strip()
        # A proxy's HTML page tells nobody anything.
        return "" if text.startswith("<") else text
    error: Any = cast("dict[str, Any]", document).get("error") if isinstance(document, dict) else document
    if isinstance(error, dict):
        # Servers that only resemble Ollama, and its own OpenAI side, nest the sentence.
        error = cast("dict[str, Any]", error).get("message")
    if not isinstance(error, str):
        return ""
    # What the process says that runs the model comes as JSON within the sentence.
    return _sentence(error.encode()) or error if error.startswith("{") else error
