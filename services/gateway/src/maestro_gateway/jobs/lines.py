"""The items of a job that come as a file: one as JSON per line. What is wrong is told with its line and path."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator

from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.jobs.items import placed, read_item, rootless
from maestro_gateway.json_codec.document import parse_object
from maestro_sdk.errors import InvalidRequest, TooLarge

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
        document = parse_object(line)
    except InvalidRequest as error:
        raise placed(rootless(error), place) from None
    return read_item(document, place)


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
