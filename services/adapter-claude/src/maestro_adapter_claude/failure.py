"""Anthropic's errors as errors of the contract: one table for refused calls and for `error` events inside a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro_adapter_claude.models import PROVIDER
from maestro_sdk.adapter.http import retry_after
from maestro_sdk.errors import (
    CapabilityUnavailable,
    ContentPolicy,
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    Timeout,
    TooLarge,
    UpstreamError,
)

# `error.details.error_code` names the cause most exactly.
_BY_CODE: dict[str, type[MaestroError]] = {
    "enforced_spend_limit_reached": ProviderQuota,
    "contract_spend_limit_reached": ProviderQuota,
    "linked_organization_spend_limit_reached": ProviderQuota,
    "linked_organization_billing_unavailable": ProviderQuota,
    "ramp_limit_exceeded": RateLimited,
    "organization_on_hold": ProviderAuth,
    "cmek_key_disabled": ProviderAuth,
    "cmek_key_network_blocked": ProviderAuth,
    "compaction_unavailable": Overloaded,
    "request_body_too_large_after_decoding": TooLarge,
    # Files that were uploaded never come back; those that the provider's own tools made do.
    "file_not_downloadable": CapabilityUnavailable,
    "storage_quota_exceeded": ProviderQuota,
}

_BY_TYPE: dict[str, type[MaestroError]] = {
    "authentication_error": ProviderAuth,
    "permission_error": ProviderAuth,
    "billing_error": ProviderQuota,
    "not_found_error": NotFound,
    "request_too_large": TooLarge,
    "rate_limit_error": RateLimited,
    "timeout_error": Timeout,
    "api_error": UpstreamError,
    "overloaded_error": Overloaded,
    "conflict_error": UpstreamError,
}

_BY_STATUS: dict[int, type[MaestroError]] = {
    401: ProviderAuth,
    402: ProviderQuota,
    403: ProviderAuth,
    404: NotFound,
    408: Timeout,
    409: UpstreamError,
    413: TooLarge,
    429: RateLimited,
    503: Overloaded,
    504: Timeout,
    529: Overloaded,
}

# Some causes have no code of their own: they come as `invalid_request_error`, and only their text tells. Lower case.
_BY_TEXT: tuple[tuple[str, type[MaestroError]], ...] = (
    ("prompt is too long", ContextTooLong),
    ("exceed context limit", ContextTooLong),
    ("exceeds the context window", ContextTooLong),
    ("credit balance is too low", ProviderQuota),
    ("specified api usage limits", ProviderQuota),
    ("spend limit", ProviderQuota),
    ("content filtering policy", ContentPolicy),
)

_ADVICE: dict[type[MaestroError], str] = {
    ProviderAuth: "; check the adapter's api_key and what it may use",
    ProviderQuota: "; raise the limit or add credit in the provider's console",
}


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    """The error of a refused call, or with status 200 of an `error` event in a stream. Header names are lower case."""
    document = _object(body)
    error = _mapping(document.get("error"))
    kind = str(error.get("type") or "")
    details = _mapping(error.get("details"))
    code = str(details.get("error_code") or "")
    text = str(error.get("message") or "") or f"HTTP {status} without an explanation"
    cls = _class(status, kind, code, text)
    metadata = {"provider": PROVIDER, "upstream_status": str(status)}
    if code or kind:
        metadata["upstream_code"] = code or kind
    if request_id := headers.get("request-id") or str(document.get("request_id") or ""):
        metadata["request_id"] = request_id
    if isinstance(paths := details.get("paths"), list) and paths:
        # Places in the request, in the provider's own words: `messages.0.content.1`.
        metadata["upstream_paths"] = ", ".join(str(path) for path in cast("list[Any]", paths))
    wait = None if cls is ProviderQuota else retry_after(headers)
    found = cls(f"Anthropic: {text}{_ADVICE.get(cls, '')}", retry_after=wait, metadata=metadata)
    if status == 409 or kind == "conflict_error":
        # Somebody else changed what this request works on: trying again helps, and the provider is well.
        found.counts_against_health = False
    return found


def _class(status: int, kind: str, code: str, text: str) -> type[MaestroError]:
    if code in _BY_CODE:
        return _BY_CODE[code]
    # `invalid_request_error` also stands for refusals that have no type of their own; then the status says more.
    if kind in _BY_TYPE and kind != "request_too_large":
        return _BY_TYPE[kind]
    lower = text.lower()
    for pattern, cls in _BY_TEXT:
        if pattern in lower:
            return cls
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500 or (status < 400 and kind != "invalid_request_error"):
        return UpstreamError
    return InvalidRequest


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(orjson.loads(body))
    except ValueError:
        # A proxy's page instead of the provider's JSON.
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
