"""Checks the whole input of a job before anything of it is queued; an error names the item and the field."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from google.protobuf import json_format

from maestro.job.v1.job_pb2 import CreateJobRequest
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.identity import permit
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, MaestroError, NotFound, TooLarge, Violation
from maestro_sdk.mesh.needs import needs_of, needs_of_embedding
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.mesh.vectors import MOST_NUMBERS, refuse_too_many
from maestro_sdk.service.validation import validate

_TURN = 50
"""Items that are checked before other tasks get a turn."""
_LONGEST_LINE = 16 * 2**20
_LONGEST_INPUT = 256 * 2**20

Place = Callable[[int], str]
"""Names an item for people: "items[3]", or "line 4" of a file."""


def in_list(index: int) -> str:
    """The place of an item in a request."""
    return f"items[{index}]"


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


async def check(items: Sequence[BatchItem], place: Place, mesh: Mesh, tenant: str) -> None:
    """Gives each item its name, and raises what is wrong with the first wrong one; its path begins with its place."""
    known: dict[str, int] = {}
    for index, item in enumerate(items):
        name = item.item_id or str(index)
        if (earlier := known.setdefault(name, index)) != index:
            message = f"{name!r} is the name of {place(earlier)} already"
            raise InvalidRequest.at(_joined(place(index), "item_id"), message)
        item.item_id = name
        kind = item.WhichOneof("request")
        try:
            _check_one(item, mesh, tenant)
        except MaestroError as error:
            raise _placed(error, f"{place(index)}.{kind}" if kind else place(index)) from None
        if not index % _TURN:
            await asyncio.sleep(0)


def digest_of(request: CreateJobRequest) -> str:
    """What the same input has in common."""
    bare = CreateJobRequest()
    bare.CopyFrom(request)
    bare.ClearField("request_id")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def _check_one(item: BatchItem, mesh: Mesh, tenant: str) -> None:
    match item.WhichOneof("request"):
        case "chat":
            permit(item.chat)
            needs = needs_of(item.chat, tenant)
        case "embed":
            permit(item.embed)
            refuse_too_many(len(item.embed.inputs), item.embed.dimensions, MOST_NUMBERS)
            needs = needs_of_embedding(item.embed, tenant)
            if not needs.model:
                return  # which route that means is known when it runs
        case _:
            raise InvalidRequest.at("", "one of chat and embed has to be set")
    try:
        plan = mesh.plan(needs)
    except NotFound as error:
        raise InvalidRequest.at("model", error.message) from None
    if not plan.kept and isinstance(
        reason := refusal(plan, needs, time.time()), InvalidRequest | CapabilityUnavailable
    ):
        # What is only down now may be back when the item's turn comes.
        raise reason


def _parsed(line: bytes, place: str) -> BatchItem:
    if len(line) > _LONGEST_LINE:
        raise TooLarge(f"{place}: has {len(line)} bytes, more than the {_LONGEST_LINE} that are allowed for one item")
    try:
        item = json_format.Parse(line, BatchItem())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest.at(place, f"is no item as JSON: {error}") from None
    try:
        validate(item)
    except InvalidRequest as error:
        raise _placed(error, place) from None
    return item


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


def _placed(error: MaestroError, place: str) -> MaestroError:
    """The error with paths that begin with the place of its item."""
    violations = [Violation(_joined(place, found.field), found.message) for found in error.violations]
    field = next((found.field for found in error.violations if found.field), "")
    message = error.message if not field or error.message.startswith(field) else f"{field}: {error.message}"
    return type(error)(
        _joined(place, message) if field else f"{place}: {message.removeprefix(': ')}",
        violations=violations or [Violation(place, error.message)],
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def _joined(place: str, path: str) -> str:
    if not path:
        return place
    return f"{place}: {path}" if place.startswith("line ") and "." not in place else f"{place}.{path}"


def entries_of(job_id: str, items: Iterable[BatchItem]) -> Iterator[tuple[str, bytes]]:
    """Subject and bytes of each item as it waits."""
    for index, item in enumerate(items):
        yield f"maestro.jobs.items.{job_id}.{index}", item.SerializeToString()
