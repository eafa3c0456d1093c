"""Every error of Bedrock has one meaning, wherever it arrives: as a status, or inside a stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestro_adapter_bedrock.translate import Outgoing, Stream, to_error
from maestro_sdk.errors import (
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
from maestro_sdk.testing.bedrock_converse import event, exception, frame

DAILY = "Too many tokens per day, please wait before trying again."
ON_DEMAND = (
    "Invocation of model ID anthropic.x with on-demand throughput isn\u2019t supported. Retry your request with the "
    "ID or ARN of an inference profile that contains this model."
)

TABLE: list[tuple[int, str, str, type[MaestroError]]] = [
    (400, "ValidationException", "messages: at least one is required", InvalidRequest),
    (400, "ValidationException", "Input is too long for requested model.", ContextTooLong),
    (400, "ValidationException", "Too many input tokens. Max input tokens: 8192", ContextTooLong),
    (400, "ValidationException", "The model returned: prompt is too long: 208310 tokens > 200000", ContextTooLong),
    (400, "ValidationException", "This model's maximum context length is 128000 tokens.", ContextTooLong),
    (400, "ValidationException", ON_DEMAND, NotFound),
    (400, "ValidationException", "The provided model identifier is invalid.", NotFound),
    (400, "ValidationException", "This model doesn't support tool use in streaming mode.", UnsupportedParameter),
    (403, "AccessDeniedException", "You don't have access to the model with the specified model ID.", ProviderAuth),
    (403, "UnrecognizedClientException", "The security token included in the request is invalid.", ProviderAuth),
    (403, "InvalidSignatureException", "The request signature we calculated does not match", ProviderAuth),
    (403, "IncompleteSignatureException", "no", ProviderAuth),
    (403, "MissingAuthenticationTokenException", "Missing Authentication Token", ProviderAuth),
    (403, "ExpiredTokenException", "The security token included in the request is expired", ProviderAuth),
    (403, "ExpiredToken", "expired", ProviderAuth),
    (400, "ExpiredTokenException", "expired", ProviderAuth),
    (404, "ResourceNotFoundException", "Model is marked by provider as Legacy", NotFound),
    (404, "UnknownOperationException", "", NotFound),
    (408, "ModelTimeoutException", "Model has timed out.", Timeout),
    (413, "RequestEntityTooLargeException", "too large", TooLarge),
    (424, "ModelErrorException", "The model failed.", UpstreamError),
    (429, "ThrottlingException", "Too many requests, please wait before trying again.", RateLimited),
    (429, "ThrottlingException", DAILY, ProviderQuota),
    (429, "ModelNotReadyException", "Model is not ready for inference.", Overloaded),
    (400, "ServiceQuotaExceededException", "Your request exceeds the service quota.", ProviderQuota),
    (500, "InternalServerException", "The system encountered an unexpected error.", UpstreamError),
    (503, "ServiceUnavailableException", "Bedrock is unable to process your request.", Overloaded),
    (400, "", "wrong", InvalidRequest),
    (401, "", "who are you", ProviderAuth),
    (418, "TeapotException", "new", InvalidRequest),
    (429, "", "slow down", RateLimited),
    (502, "", "bad gateway", UpstreamError),
    (503, "", "", Overloaded),
    (504, "", "", Timeout),
    (599, "BrandNewException", "new", UpstreamError),
]
OUTGOING = Outgoing({}, "m", "/model/m", "m")


@pytest.mark.parametrize(("status", "kind", "text", "expected"), TABLE)
@pytest.mark.parametrize("place", ["header", "body", "namespace"])
def test_status(status: int, kind: str, text: str, expected: type[MaestroError], place: str) -> None:
    """The exception's name stands in a header, or in the body with its namespace."""
    headers, body = {"x-amzn-requestid": "r-1"}, {"message": text}
    match place:
        case "header" if kind:
            headers["x-amzn-errortype"] = f"{kind}:http://internal.amazon.com/coral/com.amazon.bedrock/"
        case "body":
            body["__type"] = kind
        case _:
            body = {"__type": f"com.amazon.coral.service#{kind}", "Message": text}
    error = to_error(status, json.dumps(body).encode(), headers)
    assert type(error) is expected
    assert text in error.message
    assert error.metadata["provider"] == "bedrock"
    assert error.metadata["upstream_status"] == str(status)
    assert error.metadata["request_id"] == "r-1"
    assert error.metadata.get("upstream_code", "") == kind


@pytest.mark.parametrize(
    ("kind", "payload", "expected"),
    [
        ("internalServerException", {"message": "oops"}, UpstreamError),
        ("throttlingException", {"message": "slow"}, RateLimited),
        ("throttlingException", {"message": DAILY}, ProviderQuota),
        ("serviceUnavailableException", {"message": "busy"}, Overloaded),
        ("modelTimeoutException", {"message": "late"}, Timeout),
        ("validationException", {"message": "Input is too long for requested model."}, ContextTooLong),
        ("validationException", {"message": "wrong"}, InvalidRequest),
        ("modelStreamErrorException", {"message": "failed"}, UpstreamError),
        ("modelStreamErrorException", {"message": "failed", "originalStatusCode": 500}, UpstreamError),
        ("modelStreamErrorException", {"message": "failed", "originalStatusCode": 429}, Overloaded),
        ("modelStreamErrorException", {"message": "failed", "originalStatusCode": 408}, Timeout),
        ("modelStreamErrorException", {"message": "prompt is too long", "originalStatusCode": 400}, ContextTooLong),
        ("modelStreamErrorException", {"message": "no", "originalStatusCode": 400}, InvalidRequest),
        ("brandNewException", {"message": "?"}, UpstreamError),
        ("throttlingException", {}, RateLimited),
    ],
)
def test_inside_a_stream(kind: str, payload: Any, expected: type[MaestroError]) -> None:
    stream = Stream(OUTGOING, "r")
    events = stream.feed(event("messageStart", {"role": "assistant"}) + exception(kind, payload))
    assert [made.WhichOneof("kind") for made in events] == ["started"]
    assert stream.failure is not None
    assert type(stream.failure) is expected
    assert stream.failure.metadata["upstream_code"] == kind[:1].upper() + kind[1:]
    with pytest.raises(expected):
        stream.end()


def test_an_error_of_the_framing_itself() -> None:
    """AWS's services may end a stream with an error that has no payload, only headers."""
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "it broke"}
    stream = Stream(OUTGOING, "r")
    assert stream.feed(frame(headers, b"")) == []
    assert type(stream.failure) is UpstreamError
    assert "it broke" in str(stream.failure)


@pytest.mark.parametrize(("headers", "expected"), [({}, None), ({"retry-after": "7"}, 7.0)])
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    body = b'{"__type":"ThrottlingException","message":"slow down"}'
    assert to_error(429, body, headers).retry_after == expected


def test_a_spent_quota_is_never_tried_again() -> None:
    error = to_error(429, json.dumps({"message": DAILY}).encode(), {"x-amzn-errortype": "ThrottlingException"})
    assert (error.retryable, error.failover, error.retry_after) == (False, True, None)


@pytest.mark.parametrize("content", [b"", b"<html>bad gateway</html>", b"[]", b'{"message": 3}', b"\xff\xfe"])
def test_bodies_that_are_not_bedrocks(content: bytes) -> None:
    error = to_error(502, content, {})
    assert type(error) is UpstreamError
    assert "502" in error.message
    assert "request_id" not in error.metadata
