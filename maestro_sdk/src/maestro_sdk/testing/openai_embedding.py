"""Embeddings as OpenAI answers them: vectors that follow from the text alone, and its refusals."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

_SIZES: Mapping[str, int] = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072}
_ADA = 1536
_EMBEDDING_FIELDS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})


class Refused(Exception):
    """What the API refuses: status and error."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.document = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


def embed(body: Any, model: str) -> Any:
    """The answer to an embeddings request for the model or deployment. Raises `Refused`."""
    try:
        return _embed(body, model)
    except Refused:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(400, f"Invalid request: {error!r}") from error


def _embed(body: Any, model: str) -> Any:
    if strange := set(body) - _EMBEDDING_FIELDS:
        raise Refused(400, f"Unrecognized request argument supplied: {', '.join(sorted(strange))}")
    given = body["input"]
    single = isinstance(given, str) or bool(given and isinstance(given[0], int))
    inputs: list[str | list[int]] = cast("Any", [given] if single else given)
    if not inputs or len(inputs) > 2048 or len({type(entry) for entry in inputs}) != 1 or not all(inputs):
        refuse("'$.input' is invalid.", "input")
    counts = [len(entry) if isinstance(entry, list) else max(1, len(entry) // 4) for entry in inputs]
    if max(counts) > 8192:
        refuse("This model's maximum context length is 8192 tokens, however you requested more.", "input")
    if sum(counts) > 300_000:
        refuse("Requested more tokens than the maximum of 300000 per request.", "input")
    size = _SIZES.get(body["model"], _ADA)
    if (asked := body.get("dimensions")) is not None:
        if "ada" in model:
            refuse("This model does not support specifying dimensions.", "dimensions")
        if not 1 <= asked <= size:
            refuse(f"dimensions must be at most {size}.", "dimensions")
        size = asked
    form = body.get("encoding_format", "float")
    if form not in {"float", "base64"}:
        refuse(f"'{form}' is not one of ['float', 'base64']", "encoding_format")
    data = [
        {"object": "embedding", "index": place, "embedding": _encode(vector_of(entry, size), form)}
        for place, entry in enumerate(inputs)
    ]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def vector_of(entry: str | Sequence[int], size: int) -> list[float]:
    """The vector of a text or of tokens, of length 1."""
    numbers = random.Random(repr(entry))  # noqa: S311 - repeatable, not secret
    values = [numbers.gauss(0, 1) for _ in range(size)]
    length = math.hypot(*values)
    return [value / length for value in values]


def _encode(values: list[float], form: str) -> Any:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode() if form == "base64" else values


def refuse(message: str, param: str) -> NoReturn:
    """Refuses with status 400, naming the parameter."""
    raise Refused(400, message, param)
