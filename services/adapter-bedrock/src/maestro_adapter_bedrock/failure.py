"""Bedrock's errors as errors of the contract: one table for refused calls and for exceptions inside a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro_adapter_bedrock.models import PROVIDER
from maestro_sdk.adapter.http import retry_after
from maestro_sdk.errors import (
    Conflict,
    ContentPolicy,
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
)

# By the name of the exception without its ending, in lower case: inside a stream it begins with a small letter.
_BY_CODE: dict[str, type[MaestroError]] = {
    "accessdenied": ProviderAuth,
    "unrecognizedclient": ProviderAuth,
    "invalidclienttokenid": ProviderAuth,
    "invalidsignature": ProviderAuth,
    "signaturedoesnotmatch": ProviderAuth,
    "incompletesignature": ProviderAuth,
    "missingauthenticationtoken": ProviderAuth,
    "missingauthentication": ProviderAuth,
    "notauthorized": ProviderAuth,
    "unauthorized": ProviderAuth,
    "expiredtoken": ProviderAuth,
    "requestexpired": ProviderAuth,
    "optinrequired": ProviderAuth,
    "throttling": RateLimited,
    "throttled": RateLimited,
    "toomanyrequests": RateLimited,
    "modelnotready": Overloaded,
    "servicequotaexceeded": ProviderQuota,
    "resourcenotfound": NotFound,
    "unknownoperation": NotFound,
    "modeltimeout": Timeout,
    "requesttimeout": Timeout,
    "internalserver": UpstreamError,
    "internalfailure": UpstreamError,
    "serviceunavailable": Overloaded,
    "requestentitytoolarge": TooLarge,
    "conflict": Conflict,
}

# The keys themselves are refused, not what they may do: others may be accepted.
_OF_KEYS = frozenset({"expiredtoken", "invalidclienttokenid", "unrecognizedclient"})

_BY_STATUS: dict[int, type[MaestroError]] = {
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: NotFound,
    408: Timeout,
    409: Conflict,
    413: TooLarge,
    424: UpstreamError,
    429: RateLimited,
    503: Overloaded,
    504: Timeout,
}

# What went wrong inside the model itself: `originalStatusCode` says what.
_OF_MODEL = frozenset({"modelerror", "modelstreamerror"})

# `ValidationException` stands for many causes that only its text tells. Lower case.
_BY_TEXT: tuple[tuple[str, type[MaestroError]], ...] = (
    ("input is too long", ContextTooLong),
    ("too many input tokens", ContextTooLong),
    ("prompt is too long", ContextTooLong),
    ("exceed context limit", ContextTooLong),
    ("maximum context length", ContextTooLong),
    ("input length exceeds", ContextTooLong),
    ("expected maxlength", ContextTooLong),
    ("on-demand throughput isn", NotFound),
    ("model identifier is invalid", NotFound),
    ("doesn't support", UnsupportedParameter),
    ("does not support", UnsupportedParameter),
    ("content filtering policy", ContentPolicy),
)
_DAILY = ("per day", "daily")

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What reading JSON raises that is not what it should be."""

_ADVICE: dict[type[MaestroError], str] = {
    ProviderAuth: "; check the adapter's credentials, its region, and whether the account has access to the model",
    ProviderQuota: "; raise the quota in the AWS console",
    NotFound: "; check the model's id in this region: many models want an inference profile, such as us.<id>",
}


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    """The error of a refused call. Header names are lower case."""
    document = _object(body)
    code = _code(headers.get("x-amzn-errortype") or _text(document, "__type", "code", "Code"))
    return _error(status, code, document, headers)


def to_stream_error(name: str, payload: bytes, message: str = "") -> MaestroError:
    """The error that an exception inside a stream stands for: its name and payload, or the frame's own `message`."""
    document = _object(payload)
    if message:
        document = {"message": message, **document}
    return _error(200, _code(name), document, {})


def _error(status: int, code: str, document: Mapping[str, Any], headers: Mapping[str, str]) -> MaestroError:
    text = _text(document, "message", "Message") or f"{code or f'HTTP {status}'} without an explanation"
    if original := _text(document, "originalMessage"):
        text = f"{text} ({original})"
    cls = _class(status, code, text, document)
    metadata = {"provider": PROVIDER, "upstream_status": str(status)}
    if code:
        metadata["upstream_code"] = code
    if request_id := headers.get("x-amzn-requestid"):
        metadata["request_id"] = request_id
    wait = None if cls is ProviderQuota else retry_after(headers)
    return cls(f"Bedrock: {text}{_ADVICE.get(cls, '')}", retry_after=wait, metadata=metadata)


def refuses_keys(error: MaestroError) -> bool:
    """Whether an error speaks against the keys of a call, which others could replace."""
    return _kind(error.metadata.get("upstream_code", "")) in _OF_KEYS


def unreadable(what: str, error: Exception) -> StreamBroken:
    """The error for something of the provider's that can't be read; `error` is one of `UNREADABLE`."""
    return StreamBroken(f"the provider's {what} can't be read: {type(error).__name__}: {error}")


def _class(status: int, code: str, text: str, document: Mapping[str, Any]) -> type[MaestroError]:
    kind = _kind(code)
    kind = "modelerror" if kind == "model" else "modelstreamerror" if kind == "modelstream" else kind
    lower = text.lower()
    if kind in _OF_MODEL:
        return _of_model(document.get("originalStatusCode"), lower)
    cls = _BY_CODE.get(kind)
    if cls is RateLimited and any(word in lower for word in _DAILY):
        # A day's tokens are used up: no back-off helps.
        return ProviderQuota
    if cls is not None:
        return cls
    if kind == "validation" or (not kind and status == 400):
        return next((found for pattern, found in _BY_TEXT if pattern in lower), InvalidRequest)
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return InvalidRequest if 400 <= status < 500 else UpstreamError


def _kind(code: str) -> str:
    return code.lower().removesuffix("exception").removesuffix("error")


def _of_model(original: object, text: str) -> type[MaestroError]:
    match original:
        case 429 | 503:
            return Overloaded
        case 408 | 504:
            return Timeout
        case int() if 400 <= original < 500:
            return next((found for pattern, found in _BY_TEXT if pattern in text), InvalidRequest)
        case _:
            return UpstreamError


def _code(raw: str) -> str:
    """The exception's name out of "com.amazon.coral#Name:http://internal…"."""
    name = raw.partition(":")[0].rpartition("#")[2].strip()
    return name[:1].upper() + name[1:]


def _text(document: Mapping[str, Any], *names: str) -> str:
    return next((found for name in names if isinstance(found := document.get(name), str) and found), "")


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        value = orjson.loads(body)
    except ValueError:
        # A proxy's page instead of the provider's JSON.
        return {}
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
