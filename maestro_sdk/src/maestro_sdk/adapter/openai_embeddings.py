"""The embeddings wire of OpenAI, Azure and every server that calls itself compatible: `POST …/embeddings`.

`to_wire` and `read` are pure; `Embeddings` makes the calls, one after the other where a list is longer than the server
takes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import os
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import Embedding, EmbedInput, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.adapter.notes import refuse_warnings
from maestro_sdk.adapter.options import merge_options
from maestro_sdk.errors import InvalidRequest, MaestroError, StreamBroken, UnsupportedParameter

PATH = "/embeddings"
_INLINE = 2**18
"""Bytes of answers that are read at once; more go to a thread, so that streams beside them don't wait."""
_RESERVED: Mapping[str, str] = {
    "model": "the model is chosen by `model`",
    "input": "the contents stand in `inputs`",
    "encoding_format": "the adapter reads what it asks for",
}


@dataclass(frozen=True, slots=True)
class EmbeddingDialect:
    """What a server, or one model behind it, understands. The defaults fit one of which nothing is known."""

    provider: str
    """Who answers: the key of `provider_options` and `provider_metadata`."""
    wire_name: str = ""
    """What the server calls the model, such as a deployment; empty means the name in the mesh."""
    base64: bool = True
    """Whether to ask for base64, a quarter of the bytes of decimals; a server that refuses it is asked for decimals."""
    dimensions: bool = True
    """Whether vectors can be shortened."""
    tokens: bool = True
    """Whether inputs may be token numbers."""
    truncates: bool | None = None
    """What becomes of an input that is too long: True cuts it, False refuses it, None is unknown."""
    normalized: bool | None = None
    """Whether vectors have length 1; where that is not known, the adapter scales those that shall have it."""
    max_inputs: int = 2048
    """The most inputs per call."""
    max_tokens: int = 300_000
    """The most tokens per call, all inputs together."""


@dataclass(slots=True)
class EmbeddingWire:
    """The calls for one request: their bodies, the places of their inputs, and what was not done as asked."""

    bodies: list[dict[str, Any]]
    places: list[list[int]]
    warnings: list[Warning] = field(default_factory=list[Warning])


@dataclass(slots=True)
class Answer:
    """What one call returned: vectors in the order of its inputs, usage where it was told, the model's own name."""

    vectors: list[array[float]]
    usage: Usage | None
    model: str


class Embeddings:
    """The embeddings of one endpoint; `wire` belongs to the caller."""

    def __init__(self, wire: HttpWire) -> None:
        self._wire = wire
        self._decimals: set[str] = set()

    async def embed(
        self,
        request: EmbedRequest,
        dialect: EmbeddingDialect,
        *,
        path: str = PATH,
        headers: Mapping[str, str] | None = None,
    ) -> EmbedResponse:
        """See `Embedder.embed`. Errors carry provider and model in their metadata."""
        model = request.model.removeprefix(f"{dialect.provider}/")
        try:
            bodies, wire, dialect = await self._ask(request, dialect, path, headers)
            if sum(map(len, bodies)) > _INLINE:
                response = await asyncio.to_thread(_read_all, request, dialect, wire, bodies)
            else:
                response = _read_all(request, dialect, wire, bodies)
        except MaestroError as error:
            error.metadata.setdefault("provider", dialect.provider)
            error.metadata.setdefault("model", model)
            raise
        response.response_id = f"embd_{os.urandom(12).hex()}"
        response.model = model
        return response

    async def _ask(
        self, request: EmbedRequest, dialect: EmbeddingDialect, path: str, headers: Mapping[str, str] | None
    ) -> tuple[list[bytes], EmbeddingWire, EmbeddingDialect]:
        """The bodies of the answers, and what was asked by which dialect."""
        if path in self._decimals:
            dialect = replace(dialect, base64=False)
        wire = to_wire(request, dialect)
        try:
            # One after the other: side by side they would only meet the provider's limits together.
            bodies = [await self._wire.post(path, orjson.dumps(body), headers) for body in wire.bodies]
        except InvalidRequest as error:
            if not dialect.base64 or "encoding_format" not in error.message:
                raise
            self._decimals.add(path)
            return await self._ask(request, dialect, path, headers)
        return bodies, wire, dialect


def _read_all(
    request: EmbedRequest, dialect: EmbeddingDialect, wire: EmbeddingWire, bodies: Sequence[bytes]
) -> EmbedResponse:
    answers = [read(body, dialect, len(places)) for body, places in zip(bodies, wire.places, strict=True)]
    return join(request, dialect, wire, answers)


def to_wire(request: EmbedRequest, dialect: EmbeddingDialect) -> EmbeddingWire:
    """The calls that ask for `request`.

    Raises `UnsupportedParameter` for inputs that the wire can't carry, with their path; under `strict` also for what
    would else be left out with a warning.
    """
    warnings: list[Warning] = []
    frame: dict[str, Any] = {"model": dialect.wire_name or request.model.removeprefix(f"{dialect.provider}/")}
    more: dict[str, Any] = {"encoding_format": "base64" if dialect.base64 else "float"}
    if request.HasField("dimensions"):
        if dialect.dimensions:
            more["dimensions"] = request.dimensions
        else:
            _unsupported(warnings, "dimensions", "this model's vectors have one length")
    if request.purpose != EmbedPurpose.EMBED_PURPOSE_UNSPECIFIED:
        _unsupported(warnings, "purpose", f"{dialect.provider} embeds alike for every purpose")
    if request.HasField("truncate") and request.truncate is not dialect.truncates:
        does = {True: "cuts", False: "refuses", None: "decides what becomes of"}[dialect.truncates]
        _unsupported(warnings, "truncate", f"{dialect.provider} {does} an input that is too long")
    if request.HasField("normalize") and not request.normalize and dialect.normalized:
        _unsupported(warnings, "normalize", "this model's vectors always have length 1")
    merge_options(request.provider_options, dialect.provider, more, _RESERVED)
    if request.strict:
        refuse_warnings(warnings)
    groups = _split(request.inputs, dialect)
    bodies = [{**frame, "input": [_plain(request.inputs[place]) for place in places], **more} for places in groups]
    return EmbeddingWire(bodies, groups, warnings)


def read(body: bytes, dialect: EmbeddingDialect, count: int) -> Answer:
    """The `count` vectors of an answer. Raises `StreamBroken` for anything else."""
    try:
        document: Any = orjson.loads(body)
        found: dict[int, array[float]] = {}
        for position, entry in enumerate(document["data"]):
            place = entry.get("index")
            found[position if place is None else int(place)] = _vector(entry["embedding"])
        usage = _usage(document.get("usage"))
        model = str(document.get("model") or "")
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise StreamBroken(f"{dialect.provider} sent embeddings that can't be read: {error!r}") from error
    if len(document["data"]) != count or sorted(found) != list(range(count)):
        raise StreamBroken(f"{dialect.provider} was given {count} inputs and returned vectors {sorted(found)[:8]}")
    return Answer([found[place] for place in range(count)], usage, model)


def join(
    request: EmbedRequest, dialect: EmbeddingDialect, wire: EmbeddingWire, answers: Sequence[Answer]
) -> EmbedResponse:
    """The answers as one, vectors in the order of the inputs; usage only where every call told it."""
    vectors: dict[int, array[float]] = {}
    for places, answer in zip(wire.places, answers, strict=True):
        vectors.update(zip(places, answer.vectors, strict=True))
    response = EmbedResponse(provider=dialect.provider, attempt=1, warnings=wire.warnings)
    scale = request.HasField("normalize") and request.normalize and not dialect.normalized
    for place in range(len(request.inputs)):
        values = vectors[place]
        response.embeddings.append(Embedding(index=place, values=_scaled(values) if scale else values))
    counts = [answer.usage for answer in answers if answer.usage is not None]
    if counts and len(counts) == len(answers):
        response.usage.input_tokens = sum(count.input_tokens for count in counts)
    model = next((answer.model for answer in answers if answer.model), "")
    if model and model != request.model.removeprefix(f"{dialect.provider}/"):
        response.provider_metadata[dialect.provider].update({"model": model})
    return response


def _split(inputs: Sequence[EmbedInput], dialect: EmbeddingDialect) -> list[list[int]]:
    """The places of the inputs of each call: texts and tokens can't share one, and none may be too large."""
    groups: list[list[int]] = []
    for kind in ("text", "tokens"):
        size = 0
        group: list[int] = []
        for place, entry in enumerate(inputs):
            match entry.WhichOneof("kind"):
                case "text":
                    # No token is shorter than a byte: what fits in bytes fits in tokens.
                    length = len(entry.text.encode())
                case "tokens":
                    if not dialect.tokens:
                        raise UnsupportedParameter.at(f"inputs[{place}].tokens", "the server takes texts only")
                    length = len(entry.tokens.ids)
                case "image":
                    raise UnsupportedParameter.at(f"inputs[{place}].image", "the wire carries texts and tokens only")
                case None:
                    raise InvalidRequest.at(f"inputs[{place}]", "has no content")
                case _:
                    raise UnsupportedParameter.at(f"inputs[{place}]", "the contract is newer than this adapter")
            if entry.WhichOneof("kind") != kind:
                continue
            if group and (len(group) == dialect.max_inputs or size + length > dialect.max_tokens):
                groups.append(group)
                group, size = [], 0
            group.append(place)
            size += length
        if group:
            groups.append(group)
    return groups


def _plain(entry: EmbedInput) -> str | list[int]:
    return entry.text if entry.WhichOneof("kind") == "text" else list(entry.tokens.ids)


def _vector(value: Any) -> array[float]:
    if isinstance(value, str):
        numbers = array("f")
        numbers.frombytes(base64.b64decode(value, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
    else:
        # A server may send decimals although base64 was asked for.
        numbers = array("f", value)
    # One that is no number, or too large for one, makes the sum so too; no sum of others gets there.
    if not math.isfinite(sum(numbers)):
        raise ValueError("a vector holds what is no number")
    return numbers


def _usage(usage: Any) -> Usage | None:
    if not usage or usage.get("prompt_tokens") is None:
        return None
    if usage["prompt_tokens"] < 0:
        raise ValueError("the usage is negative")
    return Usage(input_tokens=usage["prompt_tokens"])


def _scaled(values: array[float]) -> array[float]:
    length = math.sqrt(math.fsum(value * value for value in values))
    return array("f", [value / length for value in values]) if length else values


def _unsupported(warnings: list[Warning], path: str, message: str) -> None:
    warnings.append(Warning(code="unsupported_parameter", message=f"{path} was not sent: {message}", field=path))
