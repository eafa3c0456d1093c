"""A refusal of any provider becomes the same error: its class, its verdicts, when to come back, and whose it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from matrix_streams import SPEAKERS
from matrix_wires import NAMES, wire

from maestro_sdk.errors import (
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

STATUSES: list[tuple[int, type[MaestroError]]] = [
    (400, InvalidRequest),
    (401, ProviderAuth),
    (403, ProviderAuth),
    (404, NotFound),
    (408, Timeout),
    (413, TooLarge),
    (422, InvalidRequest),
    (429, RateLimited),
    (500, UpstreamError),
    (502, UpstreamError),
    (503, Overloaded),
    (504, Timeout),
]
QUOTA: dict[str, Any] = {
    "anthropic": (
        429,
        {"error": {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}},
    ),
    "openai": (429, {"error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "no credit"}}),
    "azure": (429, {"error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "no credit"}}),
    "vertex": (402, {"error": {"code": 402, "status": "PAYMENT_REQUIRED", "message": "no credit"}}),
    "bedrock": (400, {"__type": "ServiceQuotaExceededException", "message": "too many"}),
}


def refuse(name: str, status: int, body: Any, headers: dict[str, str] | None = None) -> MaestroError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return wire(name).to_error(status, raw, headers or {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_statuses(status: int, kind: type[MaestroError], name: str) -> None:
    error = refuse(name, status, {})
    assert type(error) is kind
    assert error.metadata["provider"] == wire(name).provider
    assert error.metadata["upstream_status"] == str(status)
    assert error.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("status", "kind"), [(400, InvalidRequest), (404, NotFound), (429, RateLimited), (500, UpstreamError)]
)
def test_the_provider_s_words(status: int, kind: type[MaestroError], name: str) -> None:
    error = refuse(name, status, SPEAKERS[name][0].refusal(status, "", "it says no"))
    assert type(error) is kind
    assert "it says no" in error.message
    assert error.counts_against_health == (kind is UpstreamError)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad Gateway</html>", b"[]", b"null", b'{"error":7}', b'{"error":null}', b"\xff"]
)
def test_bodies_that_no_provider_sends(body: bytes, name: str) -> None:
    """A proxy on the way answers in its own words: the status still says what is the matter."""
    for status, kind in ((429, RateLimited), (502, UpstreamError), (503, Overloaded), (401, ProviderAuth)):
        error = refuse(name, status, body)
        assert type(error) is kind
        assert error.message


@pytest.mark.parametrize("name", NAMES)
def test_when_to_come_back(name: str) -> None:
    body = SPEAKERS[name][0].refusal(429, "", "slow down")
    assert refuse(name, 429, body, {"retry-after": "7"}).retry_after == 7
    assert refuse(name, 503, body, {"retry-after": "2.5"}).retry_after == 2.5
    error = refuse(name, 429, body)
    assert error.retry_after is None or error.retry_after >= 0
    assert (error.retryable, error.failover, error.counts_against_health) == (True, True, False)


@pytest.mark.parametrize("name", list(QUOTA))
def test_an_empty_purse_is_never_tried_again(name: str) -> None:
    status, body = QUOTA[name]
    error = refuse(name, status, body)
    assert type(error) is ProviderQuota
    assert (error.retryable, error.failover, error.counts_against_health) == (False, True, True)


@pytest.mark.parametrize("name", ["openai", "azure", "vllm", "ollama"])
def test_a_refused_key_is_not_told(name: str) -> None:
    # These servers quote the key that they refuse.
    key = "sk-proj-4f8a1c2d3e4b5a69788766554433221100"
    for status in (401, 403):
        error = refuse(name, status, SPEAKERS[name][0].refusal(status, "", f"Incorrect API key provided: {key}"))
        assert type(error) is ProviderAuth
        assert key not in error.message
