"""Checks the whole input of a job before anything of it is queued; an error names the item and the field."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from maestro.job.v1.job_pb2 import CreateJobRequest
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.files.attachments import require
from maestro_gateway.identity import permit
from maestro_gateway.jobs.items import joined, names_of, placed
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, MaestroError, NotFound
from maestro_sdk.mesh.needs import needs_of, needs_of_embedding
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.mesh.vectors import MOST_NUMBERS, refuse_too_many

_TURN = 50
"""Items that are checked before other tasks get a turn."""

Place = Callable[[int], str]
"""Names an item for people: "items[3]", or "line 4" of a file."""


def in_list(index: int) -> str:
    """The place of an item in a request."""
    return f"items[{index}]"


async def check(items: Sequence[BatchItem], place: Place, mesh: Mesh, tenant: str) -> None:
    """Gives each item its name, and raises what is wrong with the first wrong one; its path begins with its place."""
    known: dict[str, int] = {}
    files: set[str] = set()
    for index, item in enumerate(items):
        name = item.item_id or str(index)
        if (earlier := known.setdefault(name, index)) != index:
            message = f"{name!r} is the name of {place(earlier)} already"
            raise InvalidRequest.at(joined(place(index), names_of(item)[0]), message)
        item.item_id = name
        try:
            _check_one(item, mesh, tenant)
            if item.HasField("chat") and mesh.files is not None:
                await require(mesh.files, tenant, item.chat, files)
        except MaestroError as error:
            raise placed(error, joined(place(index), names_of(item)[1])) from None
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


def entries_of(job_id: str, items: Iterable[BatchItem]) -> Iterator[tuple[str, bytes]]:
    """Subject and bytes of each item as it waits."""
    for index, item in enumerate(items):
        yield f"maestro.jobs.items.{job_id}.{index}", item.SerializeToString()
