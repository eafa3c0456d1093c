"""`POST /v1/embeddings` in OpenAI's shape, both ways. Pure; every error names the field as OpenAI's clients know it.

The contract's own fields (`purpose`, `truncate`, `normalize`, `routing`, …) stand beside OpenAI's; its clients send
them as `extra_body`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from maestro.llm.v1.embedding_pb2 import Embedding, EmbedInput, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro_gateway.json_codec.decoder import (
    Path,
    Reading,
    fill_struct,
    mistyped,
    name_unknown,
    read_bool,
    read_choice,
    read_int,
    read_text,
    render,
    wrong,
)
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.json_codec.parts import compiler
from maestro_gateway.openai.request import OWN
from maestro_sdk.errors import InvalidRequest, MaestroError, TooLarge, Violation
from maestro_sdk.service.interceptors import validate

MOST_INPUTS = 8192
MOST_NUMBERS = 16_000_000
"""Numbers of one answer: 64 MiB of memory while it is made."""
_MOST_TOKENS = 65536
_LONGEST = 65536
_TOKEN = 2**31 - 1
_PIECE = 50_000
"""Numbers that are written at once: some milliseconds of work, within which no stream beside it goes on."""
_FORMATS: Mapping[str, bool] = {"float": False, "base64": True}
_PURPOSES: Mapping[str, EmbedPurpose.ValueType] = {
    name.removeprefix("EMBED_PURPOSE_").lower(): number for name, number in EmbedPurpose.items() if number
}
_INPUT = re.compile(r"^inputs(\[\d+\])?(\.\w+)?")
_SHARED = frozenset({"routing", "metadata", "provider_options"})
_fill_shared = compiler.fill(EmbedRequest.DESCRIPTOR)


@dataclass(slots=True)
class AskedVectors:
    """A decoded body. `passed` are parameters that only OpenAI obeys, `unknown` fields that nobody knows."""

    request: EmbedRequest
    packed: bool = False
    """Whether vectors are wanted as base64."""
    passed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def decode_embedding(raw: bytes) -> AskedVectors:
    """What a body asks. Raises `InvalidRequest` that names a wrong field by its path in the body, and `TooLarge`."""
    return read_embedding(parse_object(raw))


def read_embedding(document: dict[str, Any]) -> AskedVectors:
    """What a JSON object asks. Raises as `decode_embedding`."""
    request, reading = EmbedRequest(), Reading()
    asked = AskedVectors(request)
    if document.get("input") is None:
        raise wrong((None, "input"), "is required")
    for name, value in document.items():
        path = (None, name)
        if value is None or name == "input":
            continue
        match name:
            case "model":
                request.model = read_text(value, path)
            case "dimensions":
                request.dimensions = read_int(value, path, 1, _LONGEST)
            case "encoding_format":
                asked.packed = read_choice(value, path, _FORMATS)
            case "purpose":
                request.purpose = read_choice(value, path, _PURPOSES)
            case "truncate" | "normalize" | "strict":
                setattr(request, name, read_bool(value, path))
            case "user":
                for provider in OWN:
                    fill_struct(request.provider_options[provider], {"user": read_text(value, path)}, path, reading)
                asked.passed = (name,)
            case _ if name in _SHARED:
                _fill_shared(request, {name: value}, None, reading)
            case _:
                reading.unknown.append(path)
    # The rules of inputs are held below, where they are read: thousands would take the validator long.
    request.inputs.add(text="-")
    validate(request)
    request.ClearField("inputs")
    request.inputs.extend(_inputs(document["input"], (None, "input")))
    asked.unknown = name_unknown(reading)
    if request.strict and asked.unknown:
        raise InvalidRequest.at(asked.unknown[0], "is not a field of a request for embeddings")
    return asked


def with_our_paths(error: MaestroError) -> MaestroError:
    """The error of a backend, with the paths of its inputs as they stand in the body: `input[3]`."""
    error.message = _INPUT.sub(r"input\1", error.message)
    error.violations = tuple(
        Violation(_INPUT.sub(r"input\1", violation.field), violation.message) for violation in error.violations
    )
    return error


def pieces(response: EmbedResponse, asked: AskedVectors, route: str) -> Iterator[bytes]:
    """The document, piece by piece; `route` is empty when the model was named directly."""
    yield b'{"object":"list","data":['
    encode = _packed if asked.packed else _plain
    items: list[bytes] = []
    size = 0
    comma = b""
    for vector in response.embeddings:
        items.append(encode(vector))
        size += len(vector.values)
        if size >= _PIECE:
            yield comma + b",".join(items)
            items, size, comma = [], 0, b","
    if items:
        yield comma + b",".join(items)
    usage = response.usage
    end = {
        "model": f"{response.provider}/{response.model}",
        "usage": {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens + usage.output_tokens},
        "maestro": {
            "provider": response.provider,
            "route": route or None,
            "attempt": response.attempt,
            "cost_usd": response.cost.usd if response.HasField("cost") else None,
            "estimated": usage.estimated,
            "warnings": _warnings(response, asked),
        },
    }
    yield b"]," + orjson.dumps(end)[1:]


def _inputs(value: Any, path: Path) -> Iterator[EmbedInput]:
    """A text, token numbers, or a list of either."""
    if type(value) is str:
        yield EmbedInput(text=_text(value, path))
        return
    if type(value) is not list:
        raise mistyped(path, "a string, a list of strings, or lists of token numbers", value)
    items = cast("list[Any]", value)
    if not items:
        raise wrong(path, "must hold at least one input")
    if type(items[0]) is int:
        yield _tokens(items, path)
        return
    if len(items) > MOST_INPUTS:
        message = f"holds {len(items)} inputs, more than the {MOST_INPUTS} that one request may have"
        raise TooLarge(f"{render(path)}: {message}", violations=[Violation(render(path), message)])
    for index, item in enumerate(items):
        here = (path, index)
        if type(item) is str:
            yield EmbedInput(text=_text(item, here))
        elif type(item) is list:
            yield _tokens(cast("list[Any]", item), here)
        else:
            raise mistyped(here, "a string or a list of token numbers", item)


def _text(value: str, path: Path) -> str:
    if not value:
        raise wrong(path, "must not be empty")
    return value


def _tokens(values: Sequence[Any], path: Path) -> EmbedInput:
    if not values:
        raise wrong(path, "must not be empty")
    if len(values) > _MOST_TOKENS:
        raise wrong(path, f"holds {len(values)} tokens, more than {_MOST_TOKENS}")
    given = EmbedInput()
    given.tokens.ids.extend(read_int(item, (path, index), 0, _TOKEN) for index, item in enumerate(values))
    return given


def _plain(vector: Embedding) -> bytes:
    return orjson.dumps({"object": "embedding", "index": vector.index, "embedding": list(vector.values)})


def _packed(vector: Embedding) -> bytes:
    # The wire of the contract ends with the same bytes: taking them is ten times faster than going through numbers.
    vector.DiscardUnknownFields()
    wire = vector.SerializeToString()
    numbers = memoryview(wire)[len(wire) - 4 * len(vector.values) :]
    return b'{"object":"embedding","index":%d,"embedding":"%b"}' % (vector.index, base64.b64encode(numbers))


def _warnings(response: EmbedResponse, asked: AskedVectors) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {
            "code": "unknown_field",
            "message": f"{name} is not a field of a request for embeddings and was ignored",
            "field": name,
        }
        for name in asked.unknown
    ]
    if response.provider not in OWN:
        found += [
            {"code": "unsupported_parameter", "message": f"{name} means nothing to {response.provider}", "field": name}
            for name in asked.passed
        ]
    told = [{"code": each.code, "message": each.message, "field": each.field or None} for each in response.warnings]
    return found + told
