"""What an event of the ledger becomes in the audit: a record without its place in the chain. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from maestro.event.v1.event_pb2 import (
    AdminActed,
    AttemptUsage,
    Caller,
    Event,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestOperation,
)
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.usage.v1.usage_pb2 import (
    AUDIT_OUTCOME_CANCELLED,
    AUDIT_OUTCOME_DENIED,
    AUDIT_OUTCOME_FAILED,
    AUDIT_OUTCOME_SUCCEEDED,
    AuditAttempt,
    AuditRecord,
)

KINDS = ("request.completed", "request.failed", "request.denied", "admin.acted")
"""Kinds of events that get a record."""
_OPERATIONS: Mapping[int, str] = {
    RequestOperation.REQUEST_OPERATION_CHAT: "chat",
    RequestOperation.REQUEST_OPERATION_EMBED: "embed",
}
_SERVICES = {
    "ChatService": "chat",
    "OpenAIService": "chat",
    "AnthropicService": "chat",
    "EmbeddingService": "embed",
    "ToolService": "tool",
    "SchemaService": "tool",
    "JobService": "job",
    "BatchService": "job",
    "FileService": "file",
    "MemoryService": "memory",
    "KeyService": "admin",
    "UsageService": "admin",
    "WebhookService": "admin",
}
"""Operations of refused calls, by the service that they asked for."""
_ACTS = {"file": "file", "job": "job"}
"""Operations of acts, by the kind of what they were done to; of all others "admin"."""
_METHODS = {
    "/maestro.gateway.v1.HttpService/Chat": "chat",
    "/maestro.gateway.v1.HttpService/CreateJob": "job",
    "/maestro.gateway.v1.HttpService/ListJobResults": "job",
    "/maestro.gateway.v1.HttpService/CancelJob": "job",
    "/maestro.gateway.v1.HttpService/EstimateCost": "admin",
    "/maestro.gateway.v1.HttpService/CreateKey": "admin",
    "/maestro.gateway.v1.HttpService/RotateKey": "admin",
    "/maestro.gateway.v1.HttpService/RevokeKey": "admin",
    "/maestro.gateway.v1.HttpService/ReplayDeadLetters": "admin",
    "/maestro.gateway.v1.HttpService/TestWebhook": "admin",
    "/v1/chat/stream": "chat",
}


def record_of(event: Event) -> AuditRecord | None:
    """The record of an event, without sequence and hashes; None for kinds that get none."""
    match event.WhichOneof("payload"):
        case "request_completed":
            record = _completed(event.request_completed)
        case "request_failed":
            record = _failed(event.request_failed)
        case "request_denied":
            record = _denied(event.request_denied)
        case "admin_acted":
            record = _acted(event.admin_acted)
        case _:
            return None
    record.record_id, record.tenant, record.trace_id = event.id, event.tenant, event.trace_id
    ended = event.time.ToNanoseconds()
    record.time.FromNanoseconds(max(0, ended - record.latency.ToNanoseconds()))
    return record


def operation_of(method: str) -> str:
    """The kind of a call by its method or path; "call" when that does not tell it."""
    if found := _METHODS.get(method):
        return found
    return _SERVICES.get(method[1:].partition("/")[0].rpartition(".")[2], "call")


def _completed(told: RequestCompleted) -> AuditRecord:
    record = _request(told, told.caller)
    record.outcome = AUDIT_OUTCOME_SUCCEEDED
    record.cached = told.cached
    return record


def _failed(told: RequestFailed) -> AuditRecord:
    record = _request(told, told.caller)
    cancelled = told.failure.reason == ErrorReason.ERROR_REASON_CANCELLED
    record.outcome = AUDIT_OUTCOME_CANCELLED if cancelled else AUDIT_OUTCOME_FAILED
    record.reason = told.failure.reason
    return record


def _request(told: RequestCompleted | RequestFailed, caller: Caller) -> AuditRecord:
    record = _called(caller)
    record.operation = _OPERATIONS.get(told.operation, "call")
    record.target, record.request_id, record.key_id = told.requested_model, told.request_id, told.key_id
    record.persona, record.skill, record.job_id = told.persona, told.skill, told.job_id
    record.metadata.update(told.metadata)
    record.route, record.content_digest = told.route, told.content_digest
    record.latency.CopyFrom(told.latency)
    record.attempts.extend(_attempt(used) for used in told.attempt_usages)
    if told.HasField("decision"):
        record.table_version = told.decision.table_version
    if told.HasField("usage"):
        record.usage.CopyFrom(told.usage)
    if told.HasField("cost"):
        record.cost.CopyFrom(told.cost)
    return record


def _attempt(used: AttemptUsage) -> AuditAttempt:
    return AuditAttempt(
        attempt=used.attempt,
        adapter=used.adapter,
        provider=used.provider,
        model=used.model,
        reason=used.reason,
        usage=used.usage if used.HasField("usage") else None,
        cost=used.cost if used.HasField("cost") else None,
        latency=used.latency if used.HasField("latency") else None,
    )


def _denied(told: RequestDenied) -> AuditRecord:
    record = _called(told.caller)
    record.operation = _OPERATIONS.get(told.operation) or operation_of(told.caller.method)
    record.target, record.request_id, record.key_id = told.requested_model, told.request_id, told.key_id
    record.persona, record.skill, record.job_id = told.persona, told.skill, told.job_id
    record.metadata.update(told.metadata)
    record.outcome, record.reason, record.calls = AUDIT_OUTCOME_DENIED, told.failure.reason, told.calls
    return record


def _acted(told: AdminActed) -> AuditRecord:
    record = _called(told.caller)
    record.operation = _ACTS.get(told.target.partition("/")[0], "admin")
    record.outcome = AUDIT_OUTCOME_SUCCEEDED
    record.target = f"{told.action} {told.target}"
    record.request_id, record.key_id = told.request_id, told.key_id
    return record


def _called(caller: Caller) -> AuditRecord:
    return AuditRecord(
        principal=caller.principal,
        client_address=caller.client_address,
        user_agent=caller.user_agent,
        method=caller.method,
    )
