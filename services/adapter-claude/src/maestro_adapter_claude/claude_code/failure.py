"""What a run of Claude Code ended with, as errors of the contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from maestro_adapter_claude import failure
from maestro_adapter_claude.claude_code.models import PROVIDER
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    UpstreamError,
)

_BY_KIND: Mapping[str, type[MaestroError]] = {
    "authentication_failed": ProviderAuth,
    "billing_error": ProviderQuota,
    "rate_limit": RateLimited,
    "invalid_request": InvalidRequest,
    "server_error": UpstreamError,
}
"""`AssistantMessage.error`, for failures without a status."""
_TYPES: Mapping[str, str] = {
    "authentication_failed": "authentication_error",
    "billing_error": "billing_error",
    "rate_limit": "rate_limit_error",
    "invalid_request": "invalid_request_error",
}
_STATUS = re.compile(r"\bAPI Error: (?:Request rejected \()?(\d{3})\b")


def to_error(status: int | None, kind: str, text: str) -> MaestroError:
    """The error of a run: the status of the API's answer, Claude Code's word for the failure, and what it says.

    `status` is None when the API gave none; the text may tell it all the same.
    """
    told = _STATUS.search(text)
    if status is None and told:
        status = int(told.group(1))
    if status is None:
        found = _BY_KIND.get(kind, UpstreamError)(f"Claude Code: {text or 'the run failed without an explanation'}")
    else:
        error: dict[str, Any] = {"message": text}
        if kind in _TYPES and status < 500:
            error["type"] = _TYPES[kind]
        found = failure.to_error(status, orjson.dumps({"error": error}), {})
    found.metadata["provider"] = PROVIDER
    return found
