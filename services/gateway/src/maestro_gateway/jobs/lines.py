"""The items of a job that come as a file: one as JSON per line. What is wrong is told with its line and path."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import AsyncIterator
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.message import Message

from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_sdk.errors import InvalidRequest, MaestroError, TooLarge, Violation
from maestro_sdk.service.validation import validate

_TURN = 50
"""Items that are read before other tasks get a turn."""
_LONGEST_LINE = 16 * 2**20
_LONGEST_INPUT = 256 * 2**20


async def read_lines(data: AsyncIterator[bytes], most: int) -> tuple[list[BatchItem], list[int]]:
    """The items of a file and the numbers of their lines, counted from 1; lines that hold nothing are passed over.

    Raises `InvalidRequest` with the line, and `TooLarge`.
    """
    items: list[BatchItem] = []
    numbers: list[int] = []
    number = 0
    async for text in _lines(data):
        number += 1
        line = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
        if not line.strip():
            continue
        if len(items) >= most:
            raise TooLarge(f"input_file_id: the file has more than the {most} items that a job may have")
        items.append(_parsed(line, f"line {number}"))
        numbers.append(number)
        if not number % _TURN:
            await asyncio.sleep(0)
    if not items:
        raise InvalidRequest.at("input_file_id", "the file holds no item")
    return items, numbers


async def count_lines(data: AsyncIterator[bytes], most: int) -> None:
    """Raises `TooLarge` for a file that has more items than `most`, before anything of it is looked at."""
    count, begun = 0, False
    async for piece in data:
        *ended, last = piece.split(b"\n")
        for line in ended:
            count += begun or bool(line.strip())
            begun = False
        begun = begun or bool(last.strip())
        if count + begun > most:
            raise TooLarge(f"input_file_id: the file has more than the {most} items that a job may have")


def _parsed(line: bytes, place: str) -> BatchItem:
    if len(line) > _LONGEST_LINE:
        raise TooLarge(f"{place}: has {len(line)} bytes, more than the {_LONGEST_LINE} that are allowed for one item")
    try:
        item = json_format.Parse(line, BatchItem())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        path, what = _find_wrong(line, error)
        raise InvalidRequest.at(joined(place, path), what) from None
    try:
        validate(item)
    except InvalidRequest as error:
        raise placed(error, place) from None
    return item


def _find_wrong(line: bytes, error: Exception) -> tuple[str, str]:
    """The path of what can't be read in a line that is no item, and why."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as wrong:
        return "", f"is no JSON: {wrong}"
    if not isinstance(value, dict):
        return "", "is no JSON object; each line is one item"
    return _find_within(BatchItem(), cast("dict[str, Any]", value), "", str(error))


def _find_within(message: Message, value: dict[str, Any], path: str, reason: str) -> tuple[str, str]:
    """As `_find_wrong`, for a `message` of an item, which has no fields yet."""
    for name, inner in value.items():
        if (why := _why(message, {name: inner})) is None:
            continue
        fields = message.DESCRIPTOR
        field = fields.fields_by_name.get(name) or fields.fields_by_camelcase_name.get(name)
        here = joined(path, name)
        if field is None:
            return here, "is no field of this message"
        of_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is None or of_map or field.message_type.full_name.startswith("google.protobuf."):
            return here, why
        if not field.is_repeated:
            return _find_below(getattr(type(message)(), field.name), inner, here, why)
        for index, each in enumerate(cast("list[Any]", inner) if isinstance(inner, list) else ()):
            below = getattr(type(message)(), field.name).add()
            if (why := _why(below, each)) is not None:
                return _find_below(below, each, f"{here}[{index}]", why)
        return here, "is no list"
    return path, reason


def _find_below(message: Message, value: Any, path: str, reason: str) -> tuple[str, str]:
    if isinstance(value, dict):
        return _find_within(type(message)(), cast("dict[str, Any]", value), path, reason)
    return path, f"is no JSON object: {json.dumps(value)[:64]}"


def _why(message: Message, value: Any) -> str | None:
    """Why a value is none of the kind of `message`; None when it is one."""
    try:
        json_format.ParseDict(value, type(message)())
    except (json_format.ParseError, TypeError, AttributeError, ValueError, RecursionError) as error:
        return str(error)
    return None


async def _lines(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    length = size = 0
    async for piece in data:
        size += len(piece)
        if size > _LONGEST_INPUT:
            raise TooLarge(
                f"input_file_id: the file has more than the {_LONGEST_INPUT} bytes that are allowed for jobs"
            )
        first, *others = piece.split(b"\n")
        begun.append(first)
        length += len(first)
        for line in others:
            yield b"".join(begun)
            begun, length = [line], len(line)
        if length > _LONGEST_LINE:
            raise TooLarge(f"a line has more than the {_LONGEST_LINE} bytes that are allowed for one item")
    if length:
        yield b"".join(begun)


def placed(error: MaestroError, place: str) -> MaestroError:
    """The error with paths that begin with the place of its item."""
    violations = [Violation(joined(place, found.field), found.message) for found in error.violations]
    field = next((found.field for found in error.violations if found.field), "")
    message = error.message if not field or error.message.startswith(field) else f"{field}: {error.message}"
    return type(error)(
        joined(place, message) if field else f"{place}: {message.removeprefix(': ')}",
        violations=violations or [Violation(place, error.message)],
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def joined(place: str, path: str) -> str:
    """The path of something at a place: "items[3].chat", "line 4: chat", "line 4: chat.model"."""
    if not path or not place:
        return place or path
    return f"{place}: {path}" if place.startswith("line ") and ": " not in place else f"{place}.{path}"
