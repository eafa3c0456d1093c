"""Every error of the provider has one meaning, wherever it arrives: as a status, or inside a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestro_adapter_claude.answer import Stream
from maestro_adapter_claude.translate import Outgoing, to_error
from maestro_sdk.errors import (
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

SPEND = {"error_code": "enforced_spend_limit_reached"}

TABLE: list[tuple[int, str, str, Any, type[MaestroError]]] = [
    (400, "invalid_request_error", "messages: at least one message is required", None, InvalidRequest),
    (400, "invalid_request_error", "prompt is too long: 208310 tokens > 200000 maximum", None, ContextTooLong),
    (
        400,
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 1 + 2 > 3",
        None,
        ContextTooLong,
    ),
    (400, "invalid_request_error", "Your credit balance is too low to access the API.", None, ProviderQuota),
    (400, "invalid_request_error", "You have reached your specified API usage limits.", None, ProviderQuota),
    (400, "invalid_request_error", "Output blocked by content filtering policy", None, ContentPolicy),
    (400, "invalid_request_error", "on hold", {"error_code": "organization_on_hold"}, ProviderAuth),
    (401, "authentication_error", "invalid x-api-key", None, ProviderAuth),
    (402, "billing_error", "payment", None, ProviderQuota),
    (403, "permission_error", "not allowed", None, ProviderAuth),
    (404, "not_found_error", "model: claude-nope", None, NotFound),
    (405, "invalid_request_error", "method not allowed", None, InvalidRequest),
    (408, "", "timeout", None, Timeout),
    (409, "conflict_error", "changed", None, UpstreamError),
    (413, "request_too_large", "Request exceeds the maximum size", None, TooLarge),
    (413, "request_too_large", "Prompt is too long", None, ContextTooLong),
    (422, "invalid_request_error", "unprocessable", None, InvalidRequest),
    (429, "rate_limit_error", "slow down", None, RateLimited),
    (429, "rate_limit_error", "ramp", {"error_code": "ramp_limit_exceeded"}, RateLimited),
    (429, "rate_limit_error", "tier limit", SPEND, ProviderQuota),
    (429, "rate_limit_error", "contract", {"error_code": "contract_spend_limit_reached"}, ProviderQuota),
    (429, "rate_limit_error", "new", {"error_code": "something_new"}, RateLimited),
    (500, "api_error", "Internal server error", None, UpstreamError),
    (502, "", "", None, UpstreamError),
    (503, "api_error", "unavailable", None, UpstreamError),
    (504, "timeout_error", "took too long", None, Timeout),
    (529, "overloaded_error", "Overloaded", None, Overloaded),
    (529, "", "", None, Overloaded),
]


def body(kind: str, text: str, details: Any = None) -> bytes:
    error = {"type": kind, "message": text, **({"details": details} if details else {})}
    return json.dumps({"type": "error", "error": error, "request_id": "req_body"}).encode()


@pytest.mark.parametrize(("status", "kind", "text", "details", "expected"), TABLE)
def test_status(status: int, kind: str, text: str, details: Any, expected: type[MaestroError]) -> None:
    error = to_error(status, body(kind, text, details), {"request-id": "req_1"})
    assert type(error) is expected
    assert text in error.message
    assert error.metadata["provider"] == "anthropic"
    assert error.metadata["upstream_status"] == str(status)
    assert error.metadata["request_id"] == "req_1"
    assert error.metadata.get("upstream_code", "") == (details or {}).get("error_code", kind)


@pytest.mark.parametrize(
    ("kind", "text", "details", "expected"), [entry[1:] for entry in TABLE if entry[1] and entry[0] not in {405, 422}]
)
def test_inside_a_stream(kind: str, text: str, details: Any, expected: type[MaestroError]) -> None:
    stream = Stream(Outgoing({}, "claude-sonnet-5"))
    assert stream.feed(b"event: error\ndata: " + body(kind, text, details) + b"\n\n") == []
    assert stream.failure is not None
    assert type(stream.failure) is expected
    assert stream.failure.metadata["upstream_status"] == "200"
    assert stream.failure.metadata["request_id"] == "req_body"


def test_unknown_kinds_inside_a_stream_are_the_providers_fault() -> None:
    assert type(to_error(200, body("brand_new_error", "?"), {})) is UpstreamError


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert to_error(429, body("rate_limit_error", "slow down"), headers).retry_after == expected


def test_a_spent_budget_is_never_tried_again() -> None:
    error = to_error(429, body("rate_limit_error", "limit", SPEND), {"retry-after": "1"})
    assert (error.retryable, error.failover, error.retry_after) == (False, True, None)


def test_a_conflict_is_no_sign_of_bad_health() -> None:
    error = to_error(409, body("conflict_error", "changed"), {})
    assert (error.retryable, error.counts_against_health) == (True, False)


@pytest.mark.parametrize("content", [b"", b"<html>bad gateway</html>", b"[]", b'{"error": "text"}', b"\xff\xfe"])
def test_bodies_that_are_not_the_providers(content: bytes) -> None:
    error = to_error(502, content, {})
    assert type(error) is UpstreamError
    assert "502" in error.message
    assert "request_id" not in error.metadata
