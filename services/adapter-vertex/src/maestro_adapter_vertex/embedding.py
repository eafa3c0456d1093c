"""Embeddings on both of Vertex AI's wires: `:predict` takes many texts per call, `:embedContent` takes one."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.embedding_pb2 import EmbedPurpose, EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_vertex.failure import UNREADABLE, unreadable
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.options import merge_patch, own_options, refuse_reserved
from maestro_sdk.errors import CapabilityUnavailable, StreamBroken, UnsupportedParameter, Violation

_TASKS: Mapping[int, str] = {
    EmbedPurpose.EMBED_PURPOSE_SEARCH_QUERY: "RETRIEVAL_QUERY",
    EmbedPurpose.EMBED_PURPOSE_SEARCH_DOCUMENT: "RETRIEVAL_DOCUMENT",
    EmbedPurpose.EMBED_PURPOSE_SIMILARITY: "SEMANTIC_SIMILARITY",
    EmbedPurpose.EMBED_PURPOSE_CLASSIFICATION: "CLASSIFICATION",
    EmbedPurpose.EMBED_PURPOSE_CLUSTERING: "CLUSTERING",
}
_RESERVED: Mapping[str, str] = {"content": "the request's inputs", "instances": "the request's inputs"}
MAX_CHARACTERS = 40_000
"""Characters of one call with many texts: below the 20 000 tokens that `:predict` takes."""

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EmbedCalls:
    """The calls that a request needs: what to POST to the model's `method`, in the order of the inputs."""

    method: str
    bodies: Sequence[dict[str, Any]]
    counts: Sequence[int]
    """How many texts stand in each."""
    normalize: bool = False
    warnings: Sequence[chat_pb2.Warning] = ()


@dataclass(slots=True)
class Vectors:
    """What the calls brought so far."""

    values: list[list[float]] = field(default_factory=list[list[float]])
    tokens: int = 0
    characters: int = 0
    counted: bool = False


def to_embed_calls(request: EmbedRequest, model: VertexModel) -> EmbedCalls:
    """The wire's form of `request`. Raises `UnsupportedParameter` for an input that is no text."""
    if not model.wire.embeds:
        raise CapabilityUnavailable(f"{model.model.id} has no EMBEDDINGS")
    notes = Notes(request.strict)
    texts = [_text(request, number) for number in range(len(request.inputs))]
    options = own_options(request.provider_options, PROVIDER)
    refuse_reserved(options, PROVIDER, _RESERVED)
    config: dict[str, Any] = {}
    task = _TASKS.get(request.purpose)
    if request.HasField("dimensions"):
        config["outputDimensionality"] = request.dimensions
    if request.HasField("truncate"):
        config["autoTruncate"] = request.truncate
    if model.wire.embeds == "predict":
        groups = _groups(texts, model.wire.inputs)
        bodies = [_predict(some, task, config) for some in groups]
    else:
        groups = [[text] for text in texts]
        bodies = [_embed_content(text, task, config) for text in texts]
    for body in bodies:
        merge_patch(body, options)
    notes.settle()
    return EmbedCalls(model.wire.embeds, bodies, [len(some) for some in groups], request.normalize, notes.warnings)


def _predict(texts: Sequence[str], task: str | None, config: Json) -> dict[str, Any]:
    instances = [{"content": text, **({"task_type": task} if task else {})} for text in texts]
    return {"instances": instances, **({"parameters": dict(config)} if config else {})}


def _embed_content(text: str, task: str | None, config: Json) -> dict[str, Any]:
    body: dict[str, Any] = {"content": {"role": "user", "parts": [{"text": text}]}}
    if settled := {**({"taskType": task} if task else {}), **config}:
        body["embedContentConfig"] = settled
    return body


def _groups(texts: Sequence[str], most: int) -> list[list[str]]:
    """The texts in groups that one call takes."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        if not groups or len(groups[-1]) == most or len(text) > room:
            groups.append([])
            room = MAX_CHARACTERS
        groups[-1].append(text)
        room -= len(text)
    return groups


def _text(request: EmbedRequest, number: int) -> str:
    given = request.inputs[number]
    kind = given.WhichOneof("kind")
    if kind == "text":
        return given.text
    path, message = f"inputs[{number}].{kind}", "can't be embedded by this model; only text can"
    raise UnsupportedParameter(f"{path}: {message}", violations=[Violation(path, message)])


def read_vectors(method: str, content: bytes, vectors: Vectors, count: int) -> None:
    """Adds what one call brought for `count` texts. Raises `StreamBroken` for an answer that can't be read."""
    before = len(vectors.values)
    try:
        document: Any = orjson.loads(content)
        if method == "predict":
            for prediction in document["predictions"]:
                found = prediction["embeddings"]
                vectors.values.append(_vector(found["values"]))
                _count(vectors, found.get("statistics", {}).get("token_count"))
            characters = document.get("metadata", {}).get("billableCharacterCount")
            vectors.characters += int(characters or 0)
        else:
            vectors.values.append(_vector(document["embedding"]["values"]))
            _count(vectors, document.get("usageMetadata", {}).get("promptTokenCount"))
    except UNREADABLE as error:
        raise unreadable("vectors", error) from error
    if (found := len(vectors.values) - before) != count:
        # Too few here and too many there would give texts the vectors of others.
        raise StreamBroken(f"there are {count} texts in a call, and the provider returned {found} vectors")


def _vector(values: Any) -> list[float]:
    """Raises `ValueError` for one that has something else in it than numbers that a vector can hold."""
    vector = array("f", values)
    if not math.isfinite(sum(vector)):
        raise ValueError("a vector has numbers that are none")
    return values


def _count(vectors: Vectors, tokens: Any) -> None:
    if tokens is not None:
        vectors.tokens += int(tokens)
        vectors.counted = True


def to_response(calls: EmbedCalls, vectors: Vectors) -> EmbedResponse:
    """The answer of the contract."""
    response = EmbedResponse(warnings=calls.warnings)
    for index, values in enumerate(vectors.values):
        response.embeddings.add(index=index, values=_unit(values) if calls.normalize else values)
    if vectors.counted or vectors.characters:
        try:
            response.usage.CopyFrom(Usage(input_tokens=vectors.tokens, input_characters=vectors.characters))
        except ValueError as error:
            raise unreadable("count", error) from error
    return response


def _unit(values: Sequence[float]) -> list[float]:
    """The vector at length 1: the provider's are that only at their full length."""
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values] if length else list(values)
