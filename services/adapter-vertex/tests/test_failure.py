"""Google's errors: which error of the contract each one is, and what survives of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from maestro_adapter_vertex.translate import to_error
from maestro_sdk.errors import (
    Conflict,
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


def detail(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/google.rpc.{kind}", **fields}


def body(code: int, status: str, message: str = "no", details: Sequence[Mapping[str, Any]] = ()) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message, "status": status, "details": list(details)}})


LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."


@pytest.mark.parametrize(
    ("code", "status", "message", "expected"),
    [
        (400, "INVALID_ARGUMENT", "Request contains an invalid argument.", InvalidRequest),
        (400, "INVALID_ARGUMENT", LONG, ContextTooLong),
        (400, "INVALID_ARGUMENT", "The input token count is 3000 but the model supports up to 2048.", ContextTooLong),
        (400, "INVALID_ARGUMENT", "Request payload size exceeds the limit: 20971520 bytes.", TooLarge),
        (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", ProviderAuth),
        (400, "FAILED_PRECONDITION", "Precondition check failed.", InvalidRequest),
        (400, "FAILED_PRECONDITION", "This API method requires billing to be enabled.", ProviderQuota),
        (400, "OUT_OF_RANGE", "no", InvalidRequest),
        (401, "UNAUTHENTICATED", "no", ProviderAuth),
        (403, "PERMISSION_DENIED", "no", ProviderAuth),
        (404, "NOT_FOUND", "Publisher Model was not found.", NotFound),
        (409, "ABORTED", "no", UpstreamError),
        (409, "ALREADY_EXISTS", "no", Conflict),
        (413, "", "no", TooLarge),
        (429, "RESOURCE_EXHAUSTED", "Resource exhausted. Please try again later.", RateLimited),
        (429, "RESOURCE_EXHAUSTED", "You exceeded your monthly spending cap.", ProviderQuota),
        (499, "CANCELLED", "The operation was cancelled.", UpstreamError),
        (500, "INTERNAL", "no", UpstreamError),
        (500, "UNKNOWN", "no", UpstreamError),
        (501, "UNIMPLEMENTED", "no", NotFound),
        (502, "", "no", UpstreamError),
        (503, "UNAVAILABLE", "The model is overloaded.", Overloaded),
        (504, "DEADLINE_EXCEEDED", "no", Timeout),
        (529, "", "no", Overloaded),
    ],
)
def test_errors(code: int, status: str, message: str, expected: type[MaestroError]) -> None:
    error = to_error(code, body(code, status, message), {})
    assert type(error) is expected
    assert message in error.message
    assert error.metadata["upstream_status"] == str(code)
    assert error.metadata.get("upstream_code", "") == status
    # In a stream the same error comes with the status 200, alone or in a list.
    inside = body(code, status, message)
    for again in (to_error(200, inside, {}), to_error(200, b"[" + inside + b"]", {})):
        assert type(again) is expected
        assert again.metadata["upstream_status"] == str(code)


@pytest.mark.parametrize(
    ("reason", "code", "expected"),
    [
        ("ACCESS_TOKEN_EXPIRED", 401, ProviderAuth),
        ("API_KEY_INVALID", 400, ProviderAuth),
        ("SERVICE_DISABLED", 403, ProviderAuth),
        ("BILLING_DISABLED", 403, ProviderQuota),
        ("RATE_LIMIT_EXCEEDED", 429, RateLimited),
        ("SOMETHING_NEW", 503, Overloaded),
    ],
)
def test_the_reason_names_the_cause(reason: str, code: int, expected: type[MaestroError]) -> None:
    status = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}
    error = to_error(
        code, body(code, status.get(code, "UNAVAILABLE"), details=[detail("ErrorInfo", reason=reason)]), {}
    )
    assert type(error) is expected
    assert error.metadata["upstream_code"] == reason


@pytest.mark.parametrize(
    ("violation", "message", "expected"),
    [
        ({"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}, "no", ProviderQuota),
        ({"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}, "no", RateLimited),
        # The sentence points to plans and limits of all kinds; the quota itself knows better.
        ({"quotaId": "TokensPerMinutePerModel"}, "Check your plan; see the daily limits.", RateLimited),
        ({"description": "Daily Limit Exceeded"}, "no", ProviderQuota),
        ({"quotaMetric": "aiplatform.googleapis.com/generate_content_requests_per_day"}, "no", ProviderQuota),
        ({}, "Quota exceeded for aiplatform.googleapis.com/x_per_minute_per_base_model.", RateLimited),
        ({}, "Resource has been exhausted (e.g. check quota).", RateLimited),
    ],
)
def test_quotas_of_a_day_are_not_rates(violation: Any, message: str, expected: type[MaestroError]) -> None:
    details = [detail("QuotaFailure", violations=[violation]), detail("RetryInfo", retryDelay="30s")]
    error = to_error(429, body(429, "RESOURCE_EXHAUSTED", message, details), {})
    assert type(error) is expected
    assert error.retry_after == (30.0 if expected is RateLimited else None)


@pytest.mark.parametrize(
    ("delay", "headers", "seconds"),
    [
        ("3.5s", {}, 3.5),
        ("0s", {"retry-after": "9"}, 0.0),
        ("59.012345678s", {}, 59.012345678),
        ("soon", {"retry-after": "9"}, 9.0),
        (None, {"retry-after": "2"}, 2.0),
        (None, {}, None),
    ],
)
def test_retry_after(delay: str | None, headers: Mapping[str, str], seconds: float | None) -> None:
    details = [] if delay is None else [detail("RetryInfo", retryDelay=delay)]
    assert to_error(429, body(429, "RESOURCE_EXHAUSTED", details=details), headers).retry_after == seconds


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (502, b"<html>Bad Gateway</html>", UpstreamError),
        (503, b"", Overloaded),
        (404, b"<html>Not Found</html>", NotFound),
        (400, b"[]", InvalidRequest),
        (403, b'"no"', ProviderAuth),
        (401, b'{"error": "invalid_grant", "error_description": "Bad"}', ProviderAuth),
        (418, b"{}", InvalidRequest),
        (200, b'{"error": {}}', UpstreamError),
        (500, b'{"error": {"details": [3, null], "code": "x"}}', UpstreamError),
    ],
)
def test_bodies_that_are_not_the_providers(status: int, content: bytes, expected: type[MaestroError]) -> None:
    assert type(to_error(status, content, {})) is expected


def test_health_and_advice() -> None:
    assert not to_error(499, body(499, "CANCELLED"), {}).counts_against_health
    assert not to_error(409, body(409, "ABORTED"), {}).counts_against_health
    assert to_error(500, body(500, "INTERNAL"), {}).counts_against_health
    assert "credentials" in to_error(403, body(403, "PERMISSION_DENIED"), {}).message
