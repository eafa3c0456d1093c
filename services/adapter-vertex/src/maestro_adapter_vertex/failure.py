"""Google's errors as errors of the contract: one table for refused calls and for errors inside a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson

from maestro_adapter_vertex.models import PROVIDER
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
    UpstreamError,
)

# `ErrorInfo.reason` names the cause most exactly.
_BY_REASON: dict[str, type[MaestroError]] = {
    "ACCESS_TOKEN_EXPIRED": ProviderAuth,
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": ProviderAuth,
    "ACCESS_TOKEN_TYPE_UNSUPPORTED": ProviderAuth,
    "ACCOUNT_STATE_INVALID": ProviderAuth,
    "API_KEY_INVALID": ProviderAuth,
    "BILLING_DISABLED": ProviderQuota,
    "CONSUMER_INVALID": ProviderAuth,
    "CONSUMER_SUSPENDED": ProviderAuth,
    "CREDENTIALS_MISSING": ProviderAuth,
    "IAM_PERMISSION_DENIED": ProviderAuth,
    "SERVICE_DISABLED": ProviderAuth,
    "USER_PROJECT_DENIED": ProviderAuth,
}

# `error.status`, the names of gRPC's codes.
_BY_STATUS: dict[str, type[MaestroError]] = {
    "ABORTED": UpstreamError,
    "ALREADY_EXISTS": Conflict,
    "CANCELLED": UpstreamError,
    "DATA_LOSS": UpstreamError,
    "DEADLINE_EXCEEDED": Timeout,
    "INTERNAL": UpstreamError,
    "NOT_FOUND": NotFound,
    "PERMISSION_DENIED": ProviderAuth,
    "RESOURCE_EXHAUSTED": RateLimited,
    "UNAUTHENTICATED": ProviderAuth,
    "UNAVAILABLE": Overloaded,
    "UNIMPLEMENTED": NotFound,
    "UNKNOWN": UpstreamError,
}

_BY_CODE: dict[int, type[MaestroError]] = {
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: NotFound,
    408: Timeout,
    409: Conflict,
    413: TooLarge,
    429: RateLimited,
    499: UpstreamError,
    501: NotFound,
    503: Overloaded,
    504: Timeout,
    529: Overloaded,
}

# Causes that only the text tells; the provider calls all of them INVALID_ARGUMENT or FAILED_PRECONDITION. Lower case.
_BY_TEXT: tuple[tuple[str, type[MaestroError]], ...] = (
    ("exceeds the maximum number of tokens", ContextTooLong),
    ("exceeds the maximum number of input tokens", ContextTooLong),
    ("exceeds the limit of tokens", ContextTooLong),
    ("but the model supports up to", ContextTooLong),
    ("input context is too long", ContextTooLong),
    ("request payload size exceeds", TooLarge),
    ("api key not valid", ProviderAuth),
    ("api key expired", ProviderAuth),
    ("requires billing", ProviderQuota),
    ("billing account", ProviderQuota),
    ("violates our policies", ContentPolicy),
    ("violated google's responsible ai practices", ContentPolicy),
)

_PER_DAY = re.compile(r"per[ _]?day|daily|per[ _]?month|monthly|spend(?:ing)? (?:cap|limit)", re.IGNORECASE)
_PER_MINUTE = re.compile(r"per[ _]?minute|per[ _]?second", re.IGNORECASE)
_SECONDS = re.compile(r"([0-9]+(?:\.[0-9]+)?)s")

_ADVICE: dict[type[MaestroError], str] = {
    ProviderAuth: "; check the adapter's credentials, its project, and what both may use",
    ProviderQuota: "; raise the quota or mend the billing in the provider's console",
}

UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What reading JSON raises that is not what it should be."""

Json = Mapping[str, Any]


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    """The error of a refused call, or with status 200 of an error in a stream. Header names are lower case."""
    error = _error(body)
    code = error.get("code")
    if status < 400 and isinstance(code, int):
        status = code
    word = str(error.get("status") or "")
    details = [_mapping(detail) for detail in _list(error.get("details"))]
    text = str(error.get("message") or "") or f"HTTP {status} without an explanation"
    info = _detail(details, "ErrorInfo")
    reason = str(info.get("reason") or "")
    cls = _class(status, word, reason, text, details)
    metadata = {"provider": PROVIDER, "upstream_status": str(status)}
    if reason or word:
        metadata["upstream_code"] = reason or word
    wait = None if cls is ProviderQuota else _wait(details, headers)
    found = cls(f"Vertex AI: {text}{_ADVICE.get(cls, '')}", retry_after=wait, metadata=metadata)
    if word in {"ABORTED", "CANCELLED"} or status == 499:
        # The work collided or was called off over there: trying again helps, and the provider is well.
        found.counts_against_health = False
    return found


def unreadable(what: str, error: Exception) -> StreamBroken:
    """The error for something of the provider's that can't be read; `error` is one of `UNREADABLE`."""
    return StreamBroken(f"the provider's {what} can't be read: {type(error).__name__}: {error}")


def _class(status: int, word: str, reason: str, text: str, details: Sequence[Json]) -> type[MaestroError]:
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if word == "RESOURCE_EXHAUSTED" or status == 429:
        return ProviderQuota if _is_spent(text, details) else RateLimited
    lower = text.lower()
    for pattern, cls in _BY_TEXT:
        if pattern in lower:
            return cls
    if word in _BY_STATUS:
        return _BY_STATUS[word]
    if word in {"FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE"}:
        return InvalidRequest
    if status in _BY_CODE:
        return _BY_CODE[status]
    return InvalidRequest if 400 <= status < 500 else UpstreamError


def _is_spent(text: str, details: Sequence[Json]) -> bool:
    """Whether it is a quota that waiting does not help against: of a day, or of money."""
    violations = [_mapping(found) for found in _list(_detail(details, "QuotaFailure").get("violations"))]
    words = [str(found.get(name) or "") for found in violations for name in ("quotaId", "quotaMetric", "description")]
    info = _mapping(_detail(details, "ErrorInfo").get("metadata"))
    words += [str(info.get(name) or "") for name in ("quota_limit", "quota_unit", "quota_metric")]
    told = " ".join(words)
    # The sentence often points to the plan and its limits; the violated quota itself knows better.
    if _PER_MINUTE.search(told):
        return False
    return bool(_PER_DAY.search(told) or _PER_DAY.search(text))


def _wait(details: Sequence[Json], headers: Mapping[str, str]) -> float | None:
    found = _SECONDS.fullmatch(str(_detail(details, "RetryInfo").get("retryDelay") or ""))
    return float(found[1]) if found else retry_after(headers)


def _detail(details: Sequence[Json], kind: str) -> Json:
    """The detail of that kind, empty when there is none."""
    for detail in details:
        if str(detail.get("@type") or "").rpartition(".")[2] == kind:
            return detail
    return {}


def _error(body: bytes) -> Json:
    """The error object: alone, in a list as streams without `alt=sse` send it, or none at all (a proxy's page)."""
    try:
        document: Any = orjson.loads(body)
    except ValueError:
        return {}
    document = next(iter(_list(document)), document)
    found = _mapping(document).get("error")
    # Token endpoints and old services say {"error": "invalid_grant", "error_description": "…"}.
    if isinstance(found, str):
        return {"message": str(_mapping(document).get("error_description") or found), "status": found.upper()}
    return _mapping(found)


def _mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
