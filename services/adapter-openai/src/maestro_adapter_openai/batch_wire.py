"""Batches on the wire, pure: lines of requests, lines of results, states and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from maestro.llm.v1.batch_pb2 import Batch, BatchItem, BatchItemResult, BatchState
from maestro.llm.v1.chat_pb2 import ChatRequest, Warning  # noqa: A004 - the contract's name
from maestro_sdk.adapter import openai_embeddings
from maestro_sdk.adapter.chat_completions import Dialect, answer, to_error, to_wire
from maestro_sdk.adapter.chat_completions.failure import stream_error
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.openai_embeddings import EmbeddingDialect
from maestro_sdk.errors import (
    Cancelled,
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    ProviderQuota,
    StreamBroken,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
    Violation,
    to_detail,
)

if TYPE_CHECKING:
    from openai.types import Batch as WireBatch

NAME_LABEL = "maestro_name"
MODEL_LABEL = "maestro_model"
"""Labels in which the batch keeps what the wire has no field for."""
OVER = frozenset({"completed", "failed", "cancelled", "expired"})
_STATES: Mapping[str, BatchState.ValueType] = {
    "validating": BatchState.BATCH_STATE_VALIDATING,
    "in_progress": BatchState.BATCH_STATE_RUNNING,
    "finalizing": BatchState.BATCH_STATE_RUNNING,
    "cancelling": BatchState.BATCH_STATE_CANCELLING,
    "completed": BatchState.BATCH_STATE_COMPLETED,
    "failed": BatchState.BATCH_STATE_FAILED,
    "cancelled": BatchState.BATCH_STATE_CANCELLED,
    "expired": BatchState.BATCH_STATE_EXPIRED,
}
# Codes of items without an answer, and of batches that failed as a whole. What is not here is the provider's fault.
_CODES: Mapping[str, type[MaestroError]] = {
    "batch_expired": Timeout,
    "batch_cancelled": Cancelled,
    "token_limit_exceeded": ProviderQuota,
    "billing_hard_limit_reached": ProviderQuota,
    "insufficient_quota": ProviderQuota,
    "empty_file": InvalidRequest,
    "empty_batch": InvalidRequest,
    "invalid_json_line": InvalidRequest,
    "invalid_request": InvalidRequest,
    "invalid_url": InvalidRequest,
    "url_mismatch": InvalidRequest,
    "model_mismatch": InvalidRequest,
    "mismatched_model": InvalidRequest,
    "missing_required_parameter": InvalidRequest,
    "duplicate_custom_id": InvalidRequest,
    "too_many_tasks": TooLarge,
    "context_length_exceeded": ContextTooLong,
    "model_not_found": NotFound,
}


@dataclass(frozen=True, slots=True)
class BatchWire:
    """Batches of one account: endpoints, what each model understands, and how much a batch takes."""

    provider: str
    chat: Mapping[str, Dialect]
    """By the name of the model; what is not here takes no batches."""
    embed: Mapping[str, EmbeddingDialect] = field(default_factory=dict[str, EmbeddingDialect])
    chat_url: str = "/v1/chat/completions"
    embed_url: str = "/v1/embeddings"
    max_items: int = 50_000
    max_bytes: int = 200_000_000
    window: str = "24h"


def to_line(item: BatchItem, place: str, wire: BatchWire) -> tuple[dict[str, Any], list[Warning]]:
    """The line that asks for an item, and what it can't do as asked. Errors begin with the item's place."""
    kind = item.WhichOneof("request")
    request = item.chat if kind == "chat" else item.embed
    model = request.model.removeprefix(f"{wire.provider}/")
    try:
        match kind:
            case "chat" if model in wire.chat:
                made = to_wire(item.chat, wire.chat[model])
                _refuse_renamed(item.chat, made.tool_names)
                url, body, warnings = wire.chat_url, made.body, made.warnings
            case "embed" if model in wire.embed:
                wires = openai_embeddings.to_wire(item.embed, wire.embed[model])
                if len(wires.bodies) != 1:
                    raise UnsupportedParameter.at("inputs", "are too many or mixed for one item; make several of it")
                url, body, warnings = wire.embed_url, wires.bodies[0], wires.warnings
            case "chat" | "embed":
                raise UnsupportedParameter.at("model", f"{wire.provider} takes no batches for {model}")
            case _:
                raise InvalidRequest.at("request", "is required")
    except InvalidRequest as error:
        path = f"{place}.{kind}"
        violations = [Violation(f"{path}.{one.field}", one.message) for one in error.violations]
        raise type(error)(f"{path}: {error.message}", violations=violations, metadata=error.metadata) from error
    return {"custom_id": item.item_id, "method": "POST", "url": url, "body": body}, warnings


def _refuse_renamed(request: ChatRequest, names: Mapping[str, str]) -> None:
    # Results come hours later, maybe to another process, and nobody could turn the names back.
    for place, tool in enumerate(request.tools):
        if tool.name in names.values():
            message = f"{tool.name!r} is no name on the wire, and a batch's answers would not bring it back; rename it"
            raise UnsupportedParameter.at(f"tools[{place}].name", message)


def encode_line(line: Mapping[str, Any]) -> bytes:
    """The bytes of a line."""
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def read_line(line: bytes, batch: WireBatch, wire: BatchWire) -> BatchItemResult | None:
    """The result in a line of an output or error file. What can't be read is the item's error.

    None for a line that does not even tell whose it is: no other item may suffer for it.
    """
    entry, item_id = _item_of(line)
    if not item_id:
        return None
    result = BatchItemResult(item_id=item_id)
    try:
        response: Any = entry.get("response")
        if failure := entry.get("error"):
            raise _item_error(failure, wire)
        if not response:
            raise StreamBroken(f"{wire.provider} tells neither an answer nor an error for {item_id!r}")
        body = orjson.dumps(response["body"])
        status = int(response["status_code"])
        if status >= 400:
            headers = {"x-request-id": str(response.get("request_id") or "")}
            raise to_error(status, body, headers, wire.provider)
        _answer(result, body, response["body"], batch, wire)
    except MaestroError as error:
        error.metadata.setdefault("provider", wire.provider)
        result.error.CopyFrom(to_detail(error))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        broken = StreamBroken(f"{wire.provider} sent a result that can't be read: {error!r}")
        result.error.CopyFrom(to_detail(broken))
    return result


def unanswered(
    line: bytes, batch: WireBatch, wire: BatchWire, seen: set[str], *, broken: bool = False
) -> BatchItemResult | None:
    """What an item of the input file, which no output tells about, ended with; None for items that were `seen`.

    `broken`: the outputs have lines that could not be read. A line that names no item is nobody's: None too.
    """
    _, item_id = _item_of(line)
    if not item_id or item_id in seen:
        return None
    seen.add(item_id)
    where = {"provider": wire.provider}
    match batch.status:
        case "cancelled":
            error: MaestroError = Cancelled("the batch was cancelled before this item was answered", metadata=where)
        case "expired":
            error = Timeout("the batch expired before this item was answered", metadata=where)
        case "failed":
            error = _batch_error(batch, wire.provider)
        case _ if broken:
            error = StreamBroken(f"{wire.provider} sent a result that can't be read", metadata=where)
        case _:
            error = UpstreamError(f"{wire.provider} tells nothing about this item", metadata=where)
    return BatchItemResult(item_id=item_id, error=to_detail(error))


def _item_of(line: bytes) -> tuple[Any, str]:
    """A line's object and the name of its item, empty when there is none."""
    try:
        entry: Any = orjson.loads(line)
        name: Any = entry["custom_id"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None, ""
    return entry, name if isinstance(name, str) else ""


def to_batch(found: WireBatch, provider: str) -> Batch:
    """A batch as the contract tells it; the labels that hold name and model are no labels of the caller."""
    labels = dict(found.metadata or {})
    batch = Batch(
        batch_id=found.id,
        display_name=labels.pop(NAME_LABEL, ""),
        provider=provider,
        model=labels.pop(MODEL_LABEL, "") or getattr(found, "model", None) or "",
        # A word that is not known yet is no end.
        state=_STATES.get(found.status, BatchState.BATCH_STATE_RUNNING),
        raw_state=found.status,
        metadata=labels,
    )
    _count(batch, found)
    batch.create_time.FromSeconds(found.created_at)
    ended = found.completed_at or found.failed_at or found.cancelled_at or found.expired_at
    if found.status in OVER and ended:
        batch.end_time.FromSeconds(ended)
    elif found.status not in OVER and found.expires_at:
        batch.expire_time.FromSeconds(found.expires_at)
    if found.status == "failed":
        batch.error.CopyFrom(to_detail(_batch_error(found, provider)))
    files = {"input_file_id": found.input_file_id, "output_file_id": found.output_file_id}
    files["error_file_id"] = found.error_file_id
    batch.provider_metadata[provider].update({name: value for name, value in files.items() if value})
    return batch


def _count(batch: Batch, found: WireBatch) -> None:
    if found.request_counts is None:
        return
    counts = batch.counts
    counts.total, counts.succeeded = found.request_counts.total, found.request_counts.completed
    counts.failed = found.request_counts.failed
    # The wire counts what was cancelled or not reached nowhere, or among the failed.
    rest = max(0, counts.total - counts.succeeded - counts.failed)
    match found.status:
        case "cancelled":
            counts.cancelled = rest
        case "expired":
            counts.expired = rest
        case "completed" | "failed":
            counts.failed += rest
        case _:
            counts.pending = rest


def _answer(result: BatchItemResult, body: bytes, document: Any, batch: WireBatch, wire: BatchWire) -> None:
    labelled = (batch.metadata or {}).get(MODEL_LABEL, "")
    if batch.endpoint == wire.chat_url:
        name = _named(str(document.get("model") or ""), labelled, wire.chat)
        dialect = wire.chat.get(name) or next(iter(wire.chat.values()))
        result.chat.CopyFrom(fold(answer(body, dialect, name, fallback_id=result.item_id)))
    elif batch.endpoint == wire.embed_url:
        name = _named(str(document.get("model") or ""), labelled, wire.embed)
        dialect = wire.embed.get(name) or EmbeddingDialect(wire.provider)
        found = openai_embeddings.read(body, dialect, len(document["data"]))
        result.embed.provider, result.embed.model, result.embed.attempt = wire.provider, name, 1
        result.embed.response_id = result.item_id
        for place, values in enumerate(found.vectors):
            result.embed.embeddings.add(index=place, values=values)
        if found.usage is not None:
            result.embed.usage.CopyFrom(found.usage)
    else:
        raise UnsupportedParameter(f"{wire.provider} answered at {batch.endpoint}, which is not read here")


def _named(said: str, labelled: str, known: Mapping[str, object]) -> str:
    """The model of the mesh behind what an answer names: mostly a dated version of it."""
    if labelled or said in known:
        return labelled or said
    # The longest, since gpt-4.1-mini-2025-04-14 begins with gpt-4.1 too.
    return max((name for name in known if said.startswith(f"{name}-")), key=len, default=said)


def _item_error(failure: Any, wire: BatchWire) -> MaestroError:
    code = str(failure["code"] or "")
    cls = _CODES.get(code)
    if cls is None:
        return stream_error(failure, wire.provider)
    return cls(f"{wire.provider}: {failure['message'] or code}", metadata=_facts(wire.provider, code))


def _batch_error(batch: WireBatch, provider: str) -> MaestroError:
    causes = (batch.errors.data if batch.errors else None) or []
    if not causes:
        return UpstreamError(f"{provider}: the batch failed, and nobody says why", metadata={"provider": provider})
    first = causes[0]
    line = f" (line {first.line} of its input)" if first.line is not None else ""
    more = f", and {len(causes) - 1} further problems" if len(causes) > 1 else ""
    cls = _CODES.get(first.code or "", UpstreamError)
    return cls(f"{provider}: {first.message or first.code}{line}{more}", metadata=_facts(provider, first.code or ""))


def _facts(provider: str, code: str) -> dict[str, str]:
    return {"provider": provider, **({"upstream_code": code} if code else {})}
