"""What a job with `max_cost_usd` may still spend, counted in the bucket: no gateway starts what would exceed it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Any

import orjson

from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.usage_pb2 import Cost
from maestro_gateway.budgets.quote import quotes_of, size_of
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.states import subject_of
from maestro_gateway.jobs.streams import STATES, Streams, Superseded
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import MaestroError, NoBackend
from maestro_sdk.mesh.needs import needs_of, needs_of_embedding
from maestro_sdk.service.bus import heed_cancellation

_USUAL_OUTPUT = 4096
"""Tokens of an answer whose request and model set no bound."""
_NANO = Decimal(10) ** 9


class Leave(Enum):
    """Whether an item may start."""

    GIVEN = auto()
    LATER = auto()
    """Others hold what it would need, and may give some of it back."""
    NEVER = auto()


@dataclass(slots=True)
class Purse:
    """Nano-dollars: those that ended items `spent`, and the most that each item under way may cost, by its index."""

    spent: int = 0
    held: dict[str, int] = field(default_factory=dict[str, int])

    def take(self, index: int, most: int, limit: int) -> Leave:
        """Holds what an item may cost, if that keeps the limit; what the item held before is its own."""
        others = sum(amount for each, amount in self.held.items() if each != str(index))
        if self.spent + others + most <= limit:
            self.held[str(index)] = most
            return Leave.GIVEN
        return Leave.LATER if others else Leave.NEVER


class Purses:
    """The purses of all jobs."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def take(self, record: JobRecord, index: int, most: int) -> Leave:
        """Asks for leave to start an item that costs at most so many nano-dollars."""
        return (await self.take_all(record, {index: most}))[index]

    async def take_all(self, record: JobRecord, costs: Mapping[int, int]) -> dict[int, Leave]:
        """Asks for leave to start many items at once; `costs` are the most that each costs, by its index."""
        while True:
            heed_cancellation()
            purse, revision = await self._load(record)
            limit = record.max_cost
            leaves = {
                index: Leave.GIVEN if limit is None else purse.take(index, most, limit) for index, most in costs.items()
            }
            if limit is None or Leave.GIVEN not in leaves.values() or await self._stored(record, purse, revision):
                return leaves

    async def settle_all(self, record: JobRecord, costs: Mapping[int, int]) -> None:
        """Tells what many items cost, for which nothing is held any more. Raises `NoBackend`."""
        while record.max_cost is not None and costs:
            heed_cancellation()
            purse, revision = await self._load(record)
            # What holds nothing was told already: only the acknowledgement was lost.
            told = [index for index in costs if purse.held.pop(str(index), None) is not None]
            purse.spent += sum(costs[index] for index in told)
            if not told or await self._stored(record, purse, revision):
                return

    async def settle(self, record: JobRecord, index: int, cost: int) -> None:
        """Tells what a run of an item cost, for which nothing is held any more. Waits for NATS, should it be away."""
        while True:
            heed_cancellation()
            try:
                await self.settle_all(record, {index: cost})
            except NoBackend:
                await asyncio.sleep(0.1)
            else:
                return

    async def _load(self, record: JobRecord) -> tuple[Purse, int]:
        found = await self._streams.get(STATES, _subject(record))
        if found is None:
            return Purse(), 0
        data: Any = orjson.loads(found.data)
        return Purse(data["spent"], data["held"]), found.sequence

    async def _stored(self, record: JobRecord, purse: Purse, revision: int) -> bool:
        data = orjson.dumps({"spent": purse.spent, "held": purse.held})
        try:
            await self._streams.put(_subject(record), data, expect=revision)
        except Superseded:
            await asyncio.sleep(0.005)
            return False
        return True


def most_cost(mesh: Mesh, item: BatchItem, tenant: str) -> int:
    """The most that a run of an item may cost at any backend, in nano-dollars; 0 without a known price."""
    if item.HasField("chat"):
        needs, size = needs_of(item.chat, tenant), size_of(item.chat)
    else:
        needs, size = needs_of_embedding(item.embed, tenant), size_of(item.embed)
    try:
        plan = mesh.plan(needs)
    except MaestroError:
        return 0  # it will fail without a call
    return sum(quote.nano_usd or 0 for quote in quotes_of(plan, size, _USUAL_OUTPUT))


def nano_of(cost: Cost | None) -> int:
    """A cost in nano-dollars; 0 when it is unknown."""
    return int(Decimal(cost.usd) * _NANO) if cost is not None and cost.usd else 0


def _subject(record: JobRecord) -> str:
    return f"{subject_of(record.tenant, record.job_id)}.cost"
