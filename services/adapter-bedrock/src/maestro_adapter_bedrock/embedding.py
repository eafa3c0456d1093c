"""Embeddings by InvokeModel, whose body is the model's own: Amazon's Titan, and Cohere's models. Pure.

Titan takes one text per call, Cohere 96; the calls of a request are planned here, and their answers joined in order.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.embedding_pb2 import Embedding, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_bedrock.failure import UNREADABLE, unreadable
from maestro_adapter_bedrock.media import refuse
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_patch, own_options, refuse_reserved
from maestro_sdk.errors import StreamBroken

COHERE_MAX = 96
TOKENS_HEADER = "x-amzn-bedrock-input-token-count"

_PURPOSES: Mapping[EmbedPurpose.ValueType, str] = {
    EmbedPurpose.EMBED_PURPOSE_SEARCH_QUERY: "search_query",
    EmbedPurpose.EMBED_PURPOSE_SEARCH_DOCUMENT: "search_document",
    EmbedPurpose.EMBED_PURPOSE_CLASSIFICATION: "classification",
    EmbedPurpose.EMBED_PURPOSE_CLUSTERING: "clustering",
}

_RESERVED: Mapping[str, str] = {
    "inputText": "the request's inputs",
    "texts": "the request's inputs",
    "modelId": "the request's model",
}


@dataclass(frozen=True, slots=True)
class EmbedPlan:
    """The bodies to send to `path`, each with how many vectors it brings, and what could not be carried."""

    path: str
    calls: Sequence[tuple[dict[str, Any], int]]
    warnings: Sequence[chat_pb2.Warning]


@dataclass(frozen=True, slots=True)
class Vectors:
    """The answer to one call; `tokens` is None when Bedrock does not tell."""

    values: Sequence[Sequence[float]]
    tokens: int | None


def to_embed_wire(request: EmbedRequest, model: BedrockModel) -> EmbedPlan:
    """The calls of a request. What the model can't be told is a warning, or an error under `strict`."""
    notes = Notes(request.strict)
    options = own_options(request.provider_options, PROVIDER)
    refuse_reserved(options, PROVIDER, _RESERVED)
    texts = _texts(request)
    calls: list[tuple[dict[str, Any], int]] = []
    match model.wire.embed:
        case "titan":
            common = _titan(request, notes)
            calls = [({"inputText": text, **common}, 1) for text in texts]
        case "cohere" | "cohere4":
            common = _cohere(request, model, notes)
            for start in range(0, len(texts), COHERE_MAX):
                some = texts[start : start + COHERE_MAX]
                calls.append(({"texts": some, **common}, len(some)))
        case "none":
            raise refuse("model", f"{model.name} is not known to embed; give its entry a wire of models.yaml that does")
    for body, _ in calls:
        merge_patch(body, options)
    notes.settle()
    return EmbedPlan(f"{model.path}/invoke", calls, notes.warnings)


def _texts(request: EmbedRequest) -> list[str]:
    texts: list[str] = []
    for number, given in enumerate(request.inputs):
        kind = given.WhichOneof("kind")
        if kind != "text":
            raise refuse(f"inputs[{number}].{kind}", "is no text, and this adapter embeds nothing else")
        texts.append(given.text)
    return texts


def _titan(request: EmbedRequest, notes: Notes) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if request.HasField("dimensions"):
        common["dimensions"] = request.dimensions
    if request.HasField("normalize"):
        common["normalize"] = request.normalize
    if request.HasField("truncate"):
        notes.unsupported("truncate", "Titan refuses texts that are too long, and can't be told otherwise")
    if request.purpose:
        notes.unsupported("purpose", "Titan embeds for all purposes alike")
    return common


def _cohere(request: EmbedRequest, model: BedrockModel, notes: Notes) -> dict[str, Any]:
    # The wire demands a purpose; most texts are kept to be searched.
    common: dict[str, Any] = {"input_type": _PURPOSES.get(request.purpose, "search_document")}
    if request.purpose and request.purpose not in _PURPOSES:
        notes.unsupported("purpose", "Cohere knows none of that name; search_document is used")
    if request.HasField("truncate"):
        common["truncate"] = "END" if request.truncate else "NONE"
    if request.HasField("normalize"):
        notes.unsupported("normalize", "Cohere's vectors come as they are")
    if model.wire.embed == "cohere4":
        common["embedding_types"] = ["float"]
        if request.HasField("dimensions"):
            common["output_dimension"] = request.dimensions
    elif request.HasField("dimensions"):
        notes.unsupported("dimensions", f"{model.name} has vectors of one length only")
    return common


def to_vectors(body: bytes, count: int, headers: Mapping[str, str]) -> Vectors:
    """The vectors of one call's answer. Raises `StreamBroken` when it has not `count` of them."""
    try:
        document: Any = orjson.loads(body)
        if "embedding" in document:
            found: Any = [document["embedding"]]
        else:
            found = document["embeddings"]
            if isinstance(found, dict):
                found = cast("dict[str, Any]", found)["float"]
        values = [_vector(vector) for vector in found]
        tokens = document.get("inputTextTokenCount", headers.get(TOKENS_HEADER))
        told = None if tokens is None else Usage(input_tokens=int(tokens)).input_tokens
    except UNREADABLE as error:
        raise unreadable("vectors", error) from error
    if len(values) != count:
        raise StreamBroken(f"there are {count} texts in a call, and the provider returned {len(values)} vectors")
    return Vectors(values, told)


def _vector(values: Any) -> Sequence[float]:
    """Raises `ValueError` for one that has something else in it than numbers that a vector can hold."""
    vector = array("f", values)
    if not math.isfinite(sum(vector)):
        raise ValueError("a vector has numbers that are none")
    return vector


def join_vectors(parts: Sequence[Vectors], plan: EmbedPlan, response_id: str) -> EmbedResponse:
    """The answer to a request, out of those to its calls in order. Usage is unset unless all of them told theirs."""
    response = EmbedResponse(response_id=response_id, provider=PROVIDER, attempt=1, warnings=plan.warnings)
    for part in parts:
        for vector in part.values:
            response.embeddings.append(Embedding(index=len(response.embeddings), values=vector))
    if all(part.tokens is not None for part in parts):
        response.usage.CopyFrom(Usage(input_tokens=sum(part.tokens or 0 for part in parts)))
    return response
