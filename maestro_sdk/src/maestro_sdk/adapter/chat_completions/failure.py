"""Errors of the wire: a status, a body and headers, or an error inside a stream, become an error of the contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import orjson

from maestro_sdk.adapter.http import retry_after
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
    Violation,
)

# A code or type says more than the status; codes are asked before types. `server_error` says less and is not here.
_BY_WORD: Mapping[str, type[MaestroError]] = {
    "insufficient_quota": ProviderQuota,
    "billing_hard_limit_reached": ProviderQuota,
    "billing_not_active": ProviderQuota,
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "requests": RateLimited,
    "tokens": RateLimited,
    "context_length_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,
    "invalid_api_key": ProviderAuth,
    "account_deactivated": ProviderAuth,
    "invalid_organization": ProviderAuth,
    "mismatched_organization": ProviderAuth,
    "authentication_error": ProviderAuth,
    "permission_error": ProviderAuth,
    "unsupported_country_region_territory": ProviderAuth,
    "model_not_found": NotFound,
    "not_found_error": NotFound,
    "DeploymentNotFound": NotFound,
    "NoCapacity": Overloaded,
    "content_policy_violation": ContentPolicy,
    "content_filter": ContentPolicy,
    "ResponsibleAIPolicyViolation": ContentPolicy,
    "unsupported_parameter": UnsupportedParameter,
    "unsupported_value": UnsupportedParameter,
    "server_is_overloaded": Overloaded,
    "server_overloaded": Overloaded,
    "engine_overloaded": Overloaded,
    "overloaded_error": Overloaded,
    "slow_down": Overloaded,
    "timeout": Timeout,
    "request_timeout": Timeout,
}
_BY_STATUS: Mapping[int, type[MaestroError]] = {
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
_ADVICE: Mapping[type[MaestroError], str] = {
    ContextTooLong: "shorten the conversation or choose a model with a larger window",
    ProviderAuth: "check the adapter's key and what it is allowed to use",
    ProviderQuota: "add credit or raise the spending limit at the provider; waiting does not help",
    RateLimited: "send less at a time or wait",
    NotFound: "check the model's name, the key's access to it and the adapter's base_url",
    ContentPolicy: "the provider's policy forbids this content",
    TooLarge: "send smaller or fewer attachments",
    Overloaded: "try again later",
    UpstreamError: "try again",
    Timeout: "try again, or ask for less",
}
# Compatible servers (vLLM, llama.cpp, …) say it in words only.
_TOO_LONG = re.compile(
    r"(maximum|available) (model |prompt )?context (length|size|window)|context (length|window|size) exceeded",
    re.IGNORECASE,
)
_FIELDS: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "reasoning.effort",
    "top_logprobs": "logprobs.top",
    "parallel_tool_calls": "tool_choice.parallel",
    "input": "inputs",
}
_OWN_FIELDS = frozenset(
    {
        "model",
        "dimensions",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "logprobs",
        "tools",
        "tool_choice",
        "messages",
    }
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_MESSAGE = 1000


class Failure(NamedTuple):
    """What a provider says about a failure; empty texts where it says nothing."""

    message: str
    code: str
    type: str
    param: str
    inner: str = ""
    """The cause behind the code, where the provider names one."""
    filtered: str = ""
    """What a content filter held back: `violence (high), jailbreak`."""


def to_error(status: int, body: bytes, headers: Mapping[str, str], provider: str = "openai") -> MaestroError:
    """The error for a refused call; `headers` with lower-case names."""
    wait = retry_after(headers)
    if wait is None and status == 429:
        wait = reset_after(headers)
    request_id = headers.get("x-request-id") or headers.get("apim-request-id", "")
    return _error(provider, status, _read(body), wait, request_id, headers.get("x-ms-region", ""))


def stream_error(error: Any, provider: str) -> MaestroError:
    """The error for an `error` object inside a stream of status 200."""
    failure = _plain(error)
    # Compatible servers put the status into the code.
    status = int(failure.code) if failure.code.isdecimal() and len(failure.code) == 3 else 0
    return _error(provider, status, failure, None, "")


def reset_after(headers: Mapping[str, str]) -> float | None:
    """Seconds until a used-up limit opens again, from `x-ratelimit-remaining-*` and `x-ratelimit-reset-*`."""
    waits: list[float] = []
    for kind in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0":
            text = headers.get(f"x-ratelimit-reset-{kind}", "")
            pieces = _DURATION.findall(text)
            if pieces and "".join(number + unit for number, unit in pieces) == text:
                waits.append(sum(float(number) * _SECONDS[unit] for number, unit in pieces))
    return max(waits, default=None)


def _error(
    provider: str, status: int, failure: Failure, wait: float | None, request_id: str, region: str = ""
) -> MaestroError:
    cls = _class(status, failure)
    metadata = {"provider": provider}
    if status:
        metadata["upstream_status"] = str(status)
    if code := failure.code or failure.type:
        metadata["upstream_code"] = code
    more = (("request_id", request_id), ("region", region), ("upstream_cause", failure.inner))
    metadata.update((name, value) for name, value in more if value)
    # A refusal of our key may quote it, and the caller is not its owner.
    said = "the provider refuses the mesh's own credentials" if cls is ProviderAuth else failure.message
    if not said:
        said = f"the provider answered HTTP {status}" if status else "the provider reported an error"
    if failure.filtered:
        metadata["filtered"] = failure.filtered
        said = f"{said.rstrip()} Filtered: {failure.filtered}."
    advice = _ADVICE.get(cls)
    violations: list[Violation] = []
    if issubclass(cls, InvalidRequest) and failure.param:
        field = _FIELDS.get(failure.param, failure.param if failure.param in _OWN_FIELDS else "")
        violations = [Violation(field, failure.message)] if field else []
    message = f"{provider}: {said[:_LONGEST_MESSAGE]}" + (f" ({advice})" if advice else "")
    return cls(message, retry_after=wait, violations=violations, metadata=metadata)


def _class(status: int, failure: Failure) -> type[MaestroError]:
    for word in (failure.code, failure.inner, failure.type):
        if cls := _BY_WORD.get(word):
            # `requests` and `tokens` are types of quota errors too, whose code was asked first.
            return cls
    if status in {0, 400, 413, 422} and _TOO_LONG.search(failure.message):
        return ContextTooLong
    if cls := _BY_STATUS.get(status):
        return cls
    if 400 <= status < 500:
        return InvalidRequest
    # An error inside a stream that names no cause: the request was taken, so the fault is the provider's.
    return InvalidRequest if failure.type == "invalid_request_error" else UpstreamError


def _read(body: bytes) -> Failure:
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:_LONGEST_MESSAGE].decode("utf-8", "replace").strip()
        # A proxy's HTML page tells nobody anything.
        return Failure("" if text.startswith("<") else text, "", "", "")
    if isinstance(document, list) and document:
        document = cast("list[Any]", document)[0]
    if isinstance(document, dict):
        document = cast("dict[str, Any]", document)
        return _plain(document.get("error") or document)
    return _plain(document)


def _plain(error: Any) -> Failure:
    if not isinstance(error, dict):
        return Failure(str(error or ""), "", "", "")
    fields = cast("dict[str, Any]", error)
    message = fields.get("message") or fields.get("detail") or ""
    return Failure(
        message if isinstance(message, str) else orjson.dumps(message).decode(),
        str(fields.get("code") or ""),
        str(fields.get("type") or ""),
        str(fields.get("param") or ""),
        *_inner(fields.get("innererror")),
    )


def _inner(error: Any) -> tuple[str, str]:
    """The cause that Azure names behind an error, and what its filters held back."""
    if not isinstance(error, dict):
        return "", ""
    fields = cast("dict[str, Any]", error)
    results: Any = fields.get("content_filter_result") or fields.get("content_filter_results") or {}
    told: list[str] = []
    for kind, result in cast("dict[str, Any]", results).items() if isinstance(results, dict) else ():
        if isinstance(result, dict) and result.get("filtered"):  # pyright: ignore[reportUnknownMemberType]
            severity: Any = cast("dict[str, Any]", result).get("severity")
            told.append(f"{kind} ({severity})" if severity else kind)
    return str(fields.get("code") or ""), ", ".join(told)
