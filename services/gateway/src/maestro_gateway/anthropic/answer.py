"""Answers in the shape of Anthropic's messages, as a document. Pure.

What that shape has no place for (provider, route, attempts, cost, warnings) stands under `maestro`, which Anthropic's
clients pass over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import orjson
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from maestro.llm.v1.chat_pb2 import (
    ChatResponse,
    FinishReason,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Citation, Part
from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.anthropic.request import OWN, Asked
from maestro_gateway.anthropic.seal import seal
from maestro_gateway.dialect import facts, foreign_to, warnings_data
from maestro_sdk.errors import MaestroError

_REASONS: Mapping[FinishReason.ValueType, str] = {
    FinishReason.FINISH_REASON_STOP: "end_turn",
    FinishReason.FINISH_REASON_STOP_SEQUENCE: "stop_sequence",
    FinishReason.FINISH_REASON_LENGTH: "max_tokens",
    FinishReason.FINISH_REASON_CONTEXT_WINDOW: "model_context_window_exceeded",
    FinishReason.FINISH_REASON_TOOL_CALLS: "tool_use",
    FinishReason.FINISH_REASON_CONTENT_FILTER: "refusal",
    FinishReason.FINISH_REASON_REFUSAL: "refusal",
    FinishReason.FINISH_REASON_PAUSED: "pause_turn",
}
STATUSES: Mapping[str, int] = {"OVERLOADED": 529, "CAPABILITY_UNAVAILABLE": 400, "OUTPUT_INVALID": 500}
"""HTTP statuses by reason where Anthropic's clients expect another one than the mesh's."""
_KINDS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def encode_message(response: ChatResponse, asked: Asked, route: str) -> bytes:
    """The unary answer; `route` is empty when the model was named directly."""
    cost = response.cost if response.HasField("cost") else None
    return orjson.dumps(
        {
            **frame(response.response_id, f"{response.provider}/{response.model}"),
            "content": [block for part in response.parts for block in blocks(part)],
            "stop_reason": reason_word(response.finish_reason, response.raw_reason),
            "stop_sequence": response.stop_sequence or None,
            "stop_details": stop_details(response.finish_reason, response.provider_metadata),
            "usage": usage_data(response.usage),
            "maestro": facts(
                response.provider,
                response.attempt,
                route,
                cost,
                warnings_of(asked, response.provider, response.warnings),
            ),
        }
    )


def encode_error(error: MaestroError, request_id: str) -> bytes:
    """The body of an error; Anthropic's clients choose their exception class by the status that goes with it."""
    status = STATUSES.get(error.reason, error.http_status)
    fields = "; ".join(f"{each.field}: {each.message}" for each in error.violations)
    message = error.message if not fields or fields in error.message else f"{error.message}: {fields}"
    code = error.metadata.get("error_code")
    details = {"error_code": code, "unsupported": [each.field for each in error.violations]}
    return orjson.dumps(
        {
            "type": "error",
            "error": {
                "type": _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error"),
                "message": message,
                **({"details": details} if code else {}),
                "maestro": {"reason": error.reason, "retryable": error.retryable},
            },
            "request_id": request_id,
        }
    )


def frame(response_id: str, model: str) -> dict[str, Any]:
    """What every message has."""
    return {"id": response_id, "type": "message", "role": "assistant", "model": model}


def blocks(part: Part) -> list[dict[str, Any]]:
    """The blocks of a part; a state that Anthropic's shape has no place for follows as a block of its own."""
    found: list[dict[str, Any]] = []
    match part.WhichOneof("kind"):
        case "text":
            if part.text.text:
                cited = [citation_data(each) for each in part.text.citations]
                found.append({"type": "text", "text": part.text.text, "citations": cited or None})
        case "refusal":
            if part.refusal.text:
                found.append({"type": "text", "text": part.refusal.text, "citations": None})
        case "tool_call":
            found.append(
                {
                    "type": "tool_use",
                    "id": part.tool_call.call_id,
                    "name": part.tool_call.name,
                    "input": _arguments(part.tool_call.arguments_json),
                }
            )
        case "reasoning":
            if part.reasoning.redacted:
                return [{"type": "redacted_thinking", "data": seal(part)}]
            signature = seal(part) if part.HasField("provider_state") else ""
            return [{"type": "thinking", "thinking": part.reasoning.text, "signature": signature}]
        case "opaque" if part.origin.provider == OWN:
            return [orjson.loads(part.opaque.json)]
        case _:
            return []  # Has no place in this shape.
    if part.HasField("provider_state"):
        found.append({"type": "redacted_thinking", "data": seal(part)})
    return found


def _arguments(text: str) -> Any:
    """The arguments as an object; text that a model broke has no place in this shape."""
    try:
        value: Any = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        value = None
    return cast("Any", value) if type(value) is dict else {}


def reason_word(reason: FinishReason.ValueType, raw: str) -> str:
    """Anthropic's word for the end of an answer; the provider's own where it has none."""
    return _REASONS.get(reason) or raw or "other"


def citation_data(citation: Citation) -> dict[str, Any]:
    """A source in Anthropic's shape; what the contract does not know of it is null."""
    cited = citation.cited_text
    if citation.url:
        found = {"title": citation.title or None, "url": citation.url, "encrypted_index": ""}
        return {"type": "web_search_result_location", "cited_text": cited, **found}
    return {
        "type": "char_location",
        "cited_text": cited,
        "document_index": None,
        "document_title": citation.title or None,
        "start_char_index": citation.start if citation.HasField("start") else None,
        "end_char_index": citation.end if citation.HasField("end") else None,
        "file_id": None,
    }


def stop_details(reason: FinishReason.ValueType, metadata: Mapping[str, Struct]) -> Any:
    """Why Claude refused, where it told."""
    if reason != FinishReason.FINISH_REASON_REFUSAL or OWN not in metadata or "stop_details" not in metadata[OWN]:
        return None
    return MessageToDict(metadata[OWN])["stop_details"]


def usage_data(usage: Usage) -> dict[str, Any]:
    """Counts as Anthropic has them: what came from the cache and went into it stands beside the input, not in it."""
    short, long = usage.cache_write_5m_tokens, usage.cache_write_1h_tokens
    return {
        "input_tokens": max(0, usage.input_tokens - usage.cache_read_tokens - short - long),
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def warnings_of(asked: Asked, provider: str, told: Iterable[Warning]) -> list[dict[str, Any]]:
    """What was not done as asked."""
    foreign = foreign_to(provider, (OWN,), asked.passed)
    return warnings_data(asked.unknown, foreign, provider, told)
