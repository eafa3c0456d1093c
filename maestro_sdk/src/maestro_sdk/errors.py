"""Errors of the mesh: one exception per `maestro.llm.v1.ErrorReason`, and the only mapping from and to gRPC and REST.

    MaestroError
    ├── InvalidRequest            the request breaks the contract
    │   ├── ContextTooLong        longer than the model's window
    │   └── UnsupportedParameter  not supported by the model, and `strict` was asked for
    ├── Unauthenticated · PermissionDenied                      the caller's key
    ├── NotFound                  model, job, tool, file
    ├── CapabilityUnavailable     no allowed backend has what the request needs
    ├── ProviderAuth              the provider refuses our own credentials
    ├── RateLimited · ProviderQuota                             the provider's limits
    ├── TenantRateLimited · TenantConcurrency · BudgetExhausted the tenant's limits
    ├── Overloaded · UpstreamError · Timeout · StreamBroken     the provider fails
    ├── NoBackend                 nothing to try: all down, draining or behind an open breaker
    ├── ContentPolicy · OutputInvalid
    ├── ToolFailed · ToolTimeout · ToolDenied
    └── Cancelled · Unimplemented · TooLarge · Conflict · Internal

Code raises meaning (`raise RateLimited("…", retry_after=2.0)`); one interceptor turns it into a status with
`ErrorInfo`, `RetryInfo` and `BadRequest`; `from_rpc_error` turns that back into the same exception on the other side.
The three verdicts are separate: `retryable` (the same backend may succeed), `failover` (another backend may succeed),
`counts_against_health` (the outcome speaks against the backend).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from maestro.llm.v1 import error_pb2

DOMAIN = "maestro"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that is wrong: `field` is a path such as `messages[2].parts[0].image.url`."""

    field: str
    message: str


class MaestroError(Exception):
    """Base of all errors; the class gives reason, codes and verdicts, an instance may narrow the verdicts."""

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    retryable: bool = False
    failover: bool = False
    counts_against_health: bool = False

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, str] | None = None,
        retryable: bool | None = None,
        failover: bool | None = None,
        counts_against_health: bool | None = None,
    ) -> None:
        """`retry_after` in seconds; `metadata`: provider, model, upstream_status, upstream_code, request_id, …"""
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.violations = tuple(violations)
        self.metadata: dict[str, str] = dict(metadata or {})
        if retryable is not None:
            self.retryable = retryable
        if failover is not None:
            self.failover = failover
        if counts_against_health is not None:
            self.counts_against_health = counts_against_health

    @property
    def reason_value(self) -> error_pb2.ErrorReason.ValueType:
        """The reason as the contract's enum."""
        return error_pb2.ErrorReason.Value(f"ERROR_REASON_{self.reason}")


class InvalidRequest(MaestroError):
    reason, code, http_status = "INVALID_REQUEST", grpc.StatusCode.INVALID_ARGUMENT, 400

    @classmethod
    def at(cls, field: str, message: str) -> InvalidRequest:
        """The error for one wrong field."""
        return cls(f"{field}: {message}", violations=[Violation(field, message)])


class ContextTooLong(InvalidRequest):
    """`failover` holds for backends with a larger window only; dispatch looks at the windows."""

    reason = "CONTEXT_TOO_LONG"
    failover = True


class UnsupportedParameter(InvalidRequest):
    reason = "UNSUPPORTED_PARAMETER"


class Unauthenticated(MaestroError):
    reason, code, http_status = "UNAUTHENTICATED", grpc.StatusCode.UNAUTHENTICATED, 401


class PermissionDenied(MaestroError):
    reason, code, http_status = "PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED, 403


class ProviderAuth(MaestroError):
    reason, code, http_status = "PROVIDER_AUTH", grpc.StatusCode.FAILED_PRECONDITION, 502
    failover, counts_against_health = True, True


class NotFound(MaestroError):
    """`failover` holds for a model that one provider lost; an unknown name never gets as far as a backend."""

    reason, code, http_status = "NOT_FOUND", grpc.StatusCode.NOT_FOUND, 404
    failover = True


class CapabilityUnavailable(MaestroError):
    reason, code, http_status = "CAPABILITY_UNAVAILABLE", grpc.StatusCode.FAILED_PRECONDITION, 412


class RateLimited(MaestroError):
    reason, code, http_status = "RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 429
    retryable, failover = True, True


class ProviderQuota(MaestroError):
    reason, code, http_status = "PROVIDER_QUOTA", grpc.StatusCode.RESOURCE_EXHAUSTED, 429
    failover, counts_against_health = True, True


class TenantRateLimited(MaestroError):
    reason, code, http_status = "TENANT_RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED, 429


class TenantConcurrency(MaestroError):
    reason, code, http_status = "TENANT_CONCURRENCY", grpc.StatusCode.RESOURCE_EXHAUSTED, 429


class BudgetExhausted(MaestroError):
    reason, code, http_status = "BUDGET_EXHAUSTED", grpc.StatusCode.RESOURCE_EXHAUSTED, 402


class Overloaded(MaestroError):
    reason, code, http_status = "OVERLOADED", grpc.StatusCode.UNAVAILABLE, 503
    retryable, failover, counts_against_health = True, True, True


class UpstreamError(MaestroError):
    reason, code, http_status = "UPSTREAM_ERROR", grpc.StatusCode.UNAVAILABLE, 503
    retryable, failover, counts_against_health = True, True, True


class Timeout(MaestroError):
    reason, code, http_status = "TIMEOUT", grpc.StatusCode.DEADLINE_EXCEEDED, 504
    retryable, failover, counts_against_health = True, True, True


class StreamBroken(MaestroError):
    reason, code, http_status = "STREAM_BROKEN", grpc.StatusCode.UNAVAILABLE, 503
    retryable, failover, counts_against_health = True, True, True


class NoBackend(MaestroError):
    reason, code, http_status = "NO_BACKEND", grpc.StatusCode.UNAVAILABLE, 503
    retryable = True


class ContentPolicy(MaestroError):
    reason, code, http_status = "CONTENT_POLICY", grpc.StatusCode.FAILED_PRECONDITION, 400


class OutputInvalid(MaestroError):
    reason, code, http_status = "OUTPUT_INVALID", grpc.StatusCode.FAILED_PRECONDITION, 422
    retryable, failover = True, True


class ToolFailed(MaestroError):
    reason, code, http_status = "TOOL_FAILED", grpc.StatusCode.UNKNOWN, 500


class ToolTimeout(MaestroError):
    reason, code, http_status = "TOOL_TIMEOUT", grpc.StatusCode.DEADLINE_EXCEEDED, 504


class ToolDenied(MaestroError):
    reason, code, http_status = "TOOL_DENIED", grpc.StatusCode.PERMISSION_DENIED, 403


class Cancelled(MaestroError):
    reason, code, http_status = "CANCELLED", grpc.StatusCode.CANCELLED, 499


class Unimplemented(MaestroError):
    reason, code, http_status = "UNIMPLEMENTED", grpc.StatusCode.UNIMPLEMENTED, 501


class TooLarge(MaestroError):
    reason, code, http_status = "TOO_LARGE", grpc.StatusCode.RESOURCE_EXHAUSTED, 413


class Conflict(MaestroError):
    reason, code, http_status = "CONFLICT", grpc.StatusCode.ABORTED, 409


class Internal(MaestroError):
    pass


def _tree(cls: type[MaestroError]) -> list[type[MaestroError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _tree(sub))]


BY_REASON: dict[str, type[MaestroError]] = {cls.reason: cls for cls in _tree(MaestroError) if cls is not MaestroError}

# Statuses that carry no ErrorInfo of ours: made by gRPC itself, by a proxy, or by a foreign adapter.
_BY_CODE: dict[grpc.StatusCode, type[MaestroError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: CapabilityUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimited,
    grpc.StatusCode.UNAVAILABLE: UpstreamError,
    grpc.StatusCode.DEADLINE_EXCEEDED: Timeout,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.ABORTED: Conflict,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_status(error: MaestroError) -> status_pb2.Status:
    """The status of an error, with `ErrorInfo`, and `RetryInfo` and `BadRequest` where they apply."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    info.metadata["retryable"] = _text(error.retryable)
    info.metadata["failover"] = _text(error.failover)
    info.metadata["counts_against_health"] = _text(error.counts_against_health)
    _pack(status.details.add(), info)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        _pack(status.details.add(), retry)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.message)
        _pack(status.details.add(), bad)
    return status


def from_status(status: status_pb2.Status) -> MaestroError:
    """The error of a status; a status without our `ErrorInfo` is judged by its code."""
    info: error_details_pb2.ErrorInfo | None = None
    retry_after: float | None = None
    violations: list[Violation] = []
    for detail in status.details:
        if detail.Unpack(candidate := error_details_pb2.ErrorInfo()):
            info = candidate if candidate.domain == DOMAIN else info
        elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(bad := error_details_pb2.BadRequest()):
            violations += [Violation(v.field, v.description) for v in bad.field_violations]
    if info is None:
        code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
        cls = _BY_CODE.get(code, Internal)
        if cls is RateLimited and "message larger than max" in status.message:
            # gRPC's own bound on messages shares its code with rate limits; waiting would not help.
            cls = TooLarge
        elif cls is Internal and "RST_STREAM" in status.message:
            # What gRPC calls an internal error when a proxy's peer went away in the middle of a stream.
            cls = StreamBroken
        # Nobody of the mesh said this: the peer was not reached, or something between broke.
        origin = {"origin": "transport"}
        return cls(status.message or code.name, retry_after=retry_after, violations=violations, metadata=origin)
    metadata = dict(info.metadata)
    verdicts = {
        name: metadata.pop(name) == "true"
        for name in ("retryable", "failover", "counts_against_health")
        if name in metadata
    }
    cls = BY_REASON.get(info.reason, Internal)
    return cls(status.message, retry_after=retry_after, violations=violations, metadata=metadata, **verdicts)


def from_rpc_error(error: grpc.RpcError) -> MaestroError:
    """The error behind a failed call, from its status details where there are any."""
    trailing: Any = error.trailing_metadata() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    for key, value in trailing or ():
        if key == STATUS_DETAILS_KEY:
            return from_status(status_pb2.Status.FromString(value))
    if isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        code = error.code() or grpc.StatusCode.UNKNOWN
        return from_status(status_pb2.Status(code=code.value[0], message=error.details() or ""))
    return Internal(str(error))


def to_detail(error: MaestroError) -> error_pb2.ErrorDetail:
    """The form inside messages, such as the result of one item of a batch."""
    detail = error_pb2.ErrorDetail(
        reason=error.reason_value,
        message=error.message,
        retryable=error.retryable,
        failover=error.failover,
        http_status=error.http_status,
        metadata=error.metadata,
    )
    if error.retry_after is not None:
        detail.retry_after.FromNanoseconds(round(error.retry_after * 1e9))
    return detail


def to_json(error: MaestroError) -> dict[str, Any]:
    """The REST form, under the HTTP status `error.http_status`."""
    body: dict[str, Any] = {
        "code": error.http_status,
        "reason": error.reason,
        "message": error.message,
        "details": [{"field": v.field, "message": v.message} for v in error.violations],
        "retryable": error.retryable,
    }
    if error.retry_after is not None:
        body["retry_after"] = error.retry_after
    if error.metadata:
        body["metadata"] = error.metadata
    return {"error": body}


def _pack(target: any_pb2.Any, message: Any) -> None:
    target.Pack(message)


def _text(value: bool) -> str:
    return "true" if value else "false"
