"""Results of jobs as JSON: each in the shape in which its item was asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from maestro.job.v1.job_pb2 import JobItemState, JobResult
from maestro.llm.v1.batch_pb2 import AnswerShape
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_gateway.jobs.outcome import error_from
from maestro_gateway.json_codec.answer import encode_answer, usage_data
from maestro_gateway.openai.answer import encode_completion
from maestro_gateway.openai.answer import encode_error as encode_openai_error
from maestro_gateway.openai.embeddings import AskedVectors, pieces
from maestro_gateway.openai.request import Asked
from maestro_sdk.errors import to_json

_dumps = orjson.dumps
_UNANSWERED = {
    ErrorReason.ERROR_REASON_CANCELLED: "batch_cancelled",
    ErrorReason.ERROR_REASON_TIMEOUT: "batch_expired",
}
"""What OpenAI's batches say of lines that were never answered."""


def encode_page(job_id: str, results: Iterable[JobResult], next_page_token: str) -> Iterator[bytes]:
    """A page of results, piece by piece: vectors may be long."""
    before = b'{"results":['
    for result in results:
        yield before
        yield from encode_result(job_id, result)
        before = b","
    yield (b'{"results":[' if before != b"," else b"") + b'],"next_page_token":%b}' % _dumps(next_page_token)


def encode_result(job_id: str, result: JobResult) -> Iterator[bytes]:
    """One result, piece by piece; also a line of the output file."""
    facts: dict[str, Any] = {
        "index": result.index,
        "item_id": result.item.item_id,
        "state": JobItemState.Name(result.state),
        "runs": result.runs,
        "economy": result.economy,
        "end_time": result.end_time.ToJsonString() if result.HasField("end_time") else None,
        "usage": usage_data(result.item.usage) if result.item.HasField("usage") else None,
        "cost_usd": result.item.cost.usd if result.item.HasField("cost") else None,
    }
    if result.answer_shape == AnswerShape.ANSWER_SHAPE_OPENAI:
        yield from _batch_line(job_id, result, facts)
        return
    head = _dumps(facts)[:-1]
    match result.item.WhichOneof("outcome"):
        case "chat":
            yield head + b',"chat":'
            yield encode_answer(result.item.chat, result.route)
        case "embed":
            yield head + b',"embeddings":'
            yield from _vectors(result)
        case _:
            yield head + b',"error":'
            yield _dumps(to_json(error_from(result.item.error))["error"])
    yield b"}"


def _batch_line(job_id: str, result: JobResult, facts: dict[str, Any]) -> Iterator[bytes]:
    """A line of the output of OpenAI's batches; what only the mesh tells stands under `maestro`."""
    request_id = f"{job_id}-{result.index}"
    head = _dumps({"id": f"batch_req_{request_id}", "custom_id": facts.pop("item_id")})[:-1]
    answered = b',"response":{"status_code":%d,"request_id":%b,"body":'
    rest = b',"maestro":%b}' % _dumps(facts)
    match result.item.WhichOneof("outcome"):
        case "chat":
            yield head + answered % (200, _dumps(request_id))
            yield encode_completion(result.item.chat, Asked(ChatRequest()), result.route, result.end_time.seconds)
            yield b'},"error":null' + rest
        case "embed":
            yield head + answered % (200, _dumps(request_id))
            yield from _vectors(result)
            yield b'},"error":null' + rest
        case _ if (code := _UNANSWERED.get(result.item.error.reason)) is not None:
            error = {"code": code, "message": result.item.error.message}
            yield head + b',"response":null,"error":%b' % _dumps(error) + rest
        case _:
            error = error_from(result.item.error)
            yield head + answered % (error.http_status, _dumps(request_id))
            yield encode_openai_error(error, request_id)
            yield b'},"error":null' + rest


def _vectors(result: JobResult) -> Iterator[bytes]:
    return pieces(result.item.embed, AskedVectors(EmbedRequest(), packed=result.base64_vectors), result.route)
