"""The form that an answer has to have: its schema, the JSON in what a model said, and whether it meets the schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import referencing.exceptions
from jsonschema import Draft202012Validator, exceptions
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import validator_for

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.adapter.polyfill import json_text
from maestro_sdk.adapter.polyfill.bounded import TooMuch, bounded, errors_of
from maestro_sdk.adapter.polyfill.json_text import NotJson
from maestro_sdk.errors import InvalidRequest

DEFAULT_REPAIRS = 1
"""What `max_repairs` means when it is unset, as the contract has it."""
_best_match: Any = cast("Any", exceptions).best_match
_ANY_OBJECT = '{"type":"object"}'
_FENCED = re.compile(r"```[A-Za-z0-9_-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_DEEPEST = 64
"""Nesting up to which values are checked: the validator recurses several times per level."""
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Violation:
    """Where a value does not meet a schema, as a path such as `$.days[2].high`, and how."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class Form:
    """What `response_format` asks for: `schema` as text and parsed, and the words around it."""

    text: str
    schema: Any
    name: str
    description: str
    max_repairs: int


def form_of(request: ChatRequest) -> Form:
    """The form of the answer to a request that asks for JSON. Raises `InvalidRequest` for a schema that is none."""
    match request.response_format.WhichOneof("kind"):
        case "json":
            return Form(_ANY_OBJECT, schema_of(_ANY_OBJECT, "response_format.json"), "", "", DEFAULT_REPAIRS)
        case "json_schema":
            asked = request.response_format.json_schema
            repairs = asked.max_repairs if asked.HasField("max_repairs") else DEFAULT_REPAIRS
            schema = schema_of(asked.schema, "response_format.json_schema.schema")
            return Form(asked.schema, schema, asked.name, asked.description, repairs)
        case other:
            raise ValueError(f"response_format.{other} is no JSON")


def strip_fences(text: str) -> str:
    """The JSON text in what a model said: all of it, or what its only fenced block holds. It may be none."""
    plain = text.strip()
    blocks = _FENCED.findall(plain) if "```" in plain and plain[:1] not in {"{", "["} else []
    return blocks[0].strip() if len(blocks) == 1 else plain


def violation_of(text: str, schema: str, path: str) -> Violation | None:
    """How `text` fails to be JSON that meets `schema` (JSON text), None when it does not fail.

    Raises `InvalidRequest` at `path`, the schema's place in the request, for a schema that can't be used.
    """
    try:
        value = json_text.parse(text)
    except NotJson as error:
        return Violation("$", f"it is not JSON: {error}")
    if _depth(value) > _DEEPEST:
        return Violation("$", f"it is nested deeper than {_DEEPEST} levels")
    _, validator = _compiled(schema, path)
    try:
        flaw: ValidationError | None = _best_match(errors_of(validator, value))
    except referencing.exceptions.Unresolvable as unknown:
        raise InvalidRequest.at(path, f"refers to {unknown.ref!r}, which is not in it") from unknown
    except RecursionError as endless:
        raise InvalidRequest.at(path, "refers to itself without an end") from endless
    except TooMuch as much:
        raise InvalidRequest.at(path, "takes too many steps to check an answer against it") from much
    if flaw is None:
        return None
    message = flaw.message if len(flaw.message) <= _LONGEST_MESSAGE else f"{flaw.message[:_LONGEST_MESSAGE]}…"
    return Violation(flaw.json_path, message)


def schema_of(text: str, path: str) -> Any:
    """The schema in `text`, parsed. Raises `InvalidRequest` at `path`, its place in the request, when it is none."""
    return _compiled(text, path)[0]


def _compiled(text: str, path: str) -> tuple[Any, Any]:
    compiled = _compile(text)
    if isinstance(compiled, str):
        raise InvalidRequest.at(path, compiled)
    return compiled


@lru_cache(maxsize=512)
def _compile(text: str) -> tuple[Any, Any] | str:
    """The parsed schema and its validator, or what is wrong with it. An agent sends the same schemas with each turn."""
    try:
        schema: Any = json_text.parse(text)
    except NotJson as error:
        return f"is not JSON: {error}"
    if not _is_schema(schema):
        return "is not a JSON object"
    if _depth(schema) > 2 * _DEEPEST:
        return f"is nested deeper than {2 * _DEEPEST} levels"
    cls: Any = validator_for(schema, default=Draft202012Validator)
    try:
        cls.check_schema(schema)
    except SchemaError as error:
        pointer = "".join(f"/{step}" for step in error.absolute_path)
        return f"#{pointer}: {error.message[:_LONGEST_MESSAGE]}"
    if dangling := _dangling(schema):
        return f"refers to {dangling!r}; only paths to what stands in it (#/$defs/…) are followed"
    return schema, bounded(cls, schema)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _dangling(schema: Any) -> str:
    """The first reference by path that leads nowhere; empty when there is none."""
    waiting: list[Any] = [schema]
    while waiting:
        match waiting.pop():
            case {**inside}:
                reference = inside.get("$ref")
                if isinstance(reference, str) and not _leads(schema, reference):
                    return reference
                waiting += [
                    below for key, below in inside.items() if key not in {"const", "enum", "default", "examples"}
                ]
            case [*found]:
                waiting += found
            case _:
                pass
    return ""


def _leads(schema: Any, reference: str) -> bool:
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False
    found = schema
    for step in reference[2:].split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        match found:
            case Mapping() if key in found:
                found = cast("Any", found[key])
            case list() if key.isdecimal() and int(key) < len(cast("list[Any]", found)):
                found = cast("list[Any]", found)[int(key)]
            case _:
                return False
    return True


def _depth(value: Any) -> int:
    """How deep a JSON value is nested."""
    depth, level = 0, [value]
    while level:
        depth += 1
        below: list[Any] = []
        for found in level:
            if isinstance(found, dict):
                below += cast("dict[str, Any]", found).values()
            elif isinstance(found, list):
                below += cast("list[Any]", found)
        level = below
    return depth
