"""Refusals of the chat-completions wire: status, code and words become errors of the contract."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestro_sdk.adapter.chat_completions import to_error
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
    UnsupportedParameter,
    UpstreamError,
)


def openai(
    code: str | None, kind: str = "invalid_request_error", message: str = "It failed.", param: str | None = None
) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, openai(None), InvalidRequest),
        (400, openai("context_length_exceeded"), ContextTooLong),
        (400, openai("content_policy_violation"), ContentPolicy),
        (400, openai("content_filter"), ContentPolicy),
        (400, openai("unsupported_parameter", param="temperature"), UnsupportedParameter),
        (400, openai("unsupported_value", param="reasoning_effort"), UnsupportedParameter),
        (401, openai("invalid_api_key"), ProviderAuth),
        (401, {}, ProviderAuth),
        (402, {"error": "pay"}, ProviderQuota),
        (403, openai("unsupported_country_region_territory", "request_forbidden"), ProviderAuth),
        (404, openai("model_not_found"), NotFound),
        (404, {"detail": "Not Found"}, NotFound),
        (408, {}, Timeout),
        (409, {}, UpstreamError),
        (413, {}, TooLarge),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]}, InvalidRequest),
        (429, openai("rate_limit_exceeded", "tokens"), RateLimited),
        (429, openai(None, "requests"), RateLimited),
        (429, openai("insufficient_quota", "insufficient_quota"), ProviderQuota),
        (429, openai("billing_hard_limit_reached", "requests"), ProviderQuota),
        (429, {}, RateLimited),
        (500, openai(None, "server_error"), UpstreamError),
        (500, openai("timeout"), Timeout),
        (502, "<html><body>Bad Gateway</body></html>", UpstreamError),
        (503, {}, Overloaded),
        (503, openai(None, "server_error"), Overloaded),
        (504, "upstream request timeout", Timeout),
        (529, {}, Overloaded),
        (418, {}, InvalidRequest),
        # Compatible servers.
        (
            400,
            {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400},
            ContextTooLong,
        ),
        (
            400,
            {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "x"}},
            ContextTooLong,
        ),
        (404, {"error": {"message": "model 'x' not found", "type": "not_found_error"}}, NotFound),
        (400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], InvalidRequest),
        (500, [], UpstreamError),
        (500, "", UpstreamError),
    ],
)
def test_refusal(status: int, body: Any, expected: type[MaestroError]) -> None:
    data = body if isinstance(body, str) else json.dumps(body)
    error = to_error(status, data.encode(), {}, "openai")
    assert type(error) is expected
    assert error.metadata["upstream_status"] == str(status)
    assert error.message.startswith("openai: ")
    assert "<html" not in error.message


def test_facts_travel() -> None:
    body = json.dumps(openai("context_length_exceeded", message="Too long.")).encode()
    error = to_error(400, body, {"x-request-id": "req_1"}, "azure")
    assert error.metadata == {
        "provider": "azure",
        "upstream_status": "400",
        "upstream_code": "context_length_exceeded",
        "request_id": "req_1",
    }
    assert error.message == "azure: Too long. (shorten the conversation or choose a model with a larger window)"


def test_our_key_is_never_quoted() -> None:
    body = json.dumps(openai("invalid_api_key", message="Incorrect API key provided: sk-proj-1234567890.")).encode()
    error = to_error(401, body, {}, "openai")
    assert "sk-" not in error.message
    assert "check the adapter's key" in error.message


def test_field_of_the_request() -> None:
    body = json.dumps(openai("unsupported_value", param="max_completion_tokens", message="Too big.")).encode()
    assert [(item.field, item.message) for item in to_error(400, body, {}).violations] == [("max_tokens", "Too big.")]
    wire_path = json.dumps(openai(None, param="messages[3].content")).encode()
    assert to_error(400, wire_path, {}).violations == ()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "12", "x-ratelimit-reset-tokens": "6m0s"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "120ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1.5s",
            },
            1.5,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert to_error(429, b"{}", headers).retry_after == seconds


def test_long_messages_are_cut() -> None:
    assert len(to_error(500, b"x" * 100_000, {}).message) < 1200


@pytest.mark.parametrize(
    ("inner", "filtered"),
    [
        ({"code": "ResponsibleAIPolicyViolation"}, None),
        ({"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": False}}}, None),
        ({"content_filter_results": {"hate": {"filtered": True, "severity": "low"}, "x": 7}}, "hate (low)"),
        ({"content_filter_result": []}, None),
        ("strange", None),
        (None, None),
    ],
)
def test_what_a_filter_held_back(inner: Any, filtered: str | None) -> None:
    body = {"error": {"message": "No.", "code": "content_filter", "innererror": inner}}
    error = to_error(400, json.dumps(body).encode(), {}, "azure")
    assert type(error) is ContentPolicy
    assert error.metadata.get("filtered") == filtered


def test_the_cause_behind_a_code_counts() -> None:
    inner = {"code": "ResponsibleAIPolicyViolation"}
    body = {"error": {"message": "No.", "code": "400", "innererror": inner}}
    assert type(to_error(400, json.dumps(body).encode(), {}, "azure")) is ContentPolicy
