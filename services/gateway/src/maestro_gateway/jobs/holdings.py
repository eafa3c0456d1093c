"""What items hold of budgets while a provider has them in a batch: the most that they may cost, as any request does.

A hold has the name of the item's run, so that whoever tells the item's end charges it and ends the hold, at whatever
gateway. The one that follows the batch keeps it alive; when that dies, the next one holds the items again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.budgets.bill import hold_id
from maestro_gateway.identity import current_principal
from maestro_gateway.jobs.batched import Batched
from maestro_gateway.jobs.bundle import Bundle
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.runner import enter_item
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import MaestroError
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.store.holds import Hold

log = logging.getLogger(__name__)

_FIRST_RUN = 1
"""Items go into a batch before they have run in any other way."""


@dataclass(slots=True)
class Holdings:
    """What this gateway holds for items of jobs. Without budgets that is nothing, and everything fits."""

    mesh: Mesh
    _held: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    """The items, by job."""

    async def take(self, record: JobRecord, index: int, item: BatchItem) -> bool:
        """Holds what an item may cost; False when a budget has no room for it, or would send it elsewhere."""
        if not self._needed:
            return True
        # In a task of its own: what it sets for its item holds for nobody else.
        return await asyncio.create_task(self._take(record, index, item, again=False))

    async def keep(self, batched: Batched, bundle: Bundle) -> None:
        """Holds what items of a batch may cost, whatever the budgets have left, where the gateway is gone that did."""
        if not self._needed:
            return
        known = self._held.get(batched.record.job_id, set())
        for index in [each for each in bundle.indices if each not in known]:
            heed_cancellation()
            item = None if await batched.has_result(index) else await batched.item(index)
            if item is None:
                self._note(batched.record, index)
            else:
                await asyncio.create_task(self._take(batched.record, index, item, again=True))

    def give_back(self, record: JobRecord, indices: Iterable[int]) -> None:
        """Ends the holds of items that are in no batch any more."""
        if (budgets := self.mesh.accountant.budgets) is not None and self._needed:
            for index in indices:
                budgets.holds.undo(_hold(record, index))
        self.forget(record, indices)

    def forget(self, record: JobRecord, indices: Iterable[int]) -> None:
        """These items hold nothing any more."""
        if (known := self._held.get(record.job_id)) is not None:
            known.difference_update(indices)
            if not known:
                del self._held[record.job_id]

    def leave(self, batched: Batched) -> None:
        """Lets go of what items of a job hold: another gateway follows its batches, and keeps that."""
        self._leave(batched.record)

    def tidy(self, jobs: Mapping[str, JobRecord]) -> None:
        """Lets go of what is left of jobs that have no batch any more, by their identifiers."""
        for job_id in list(self._held):
            record = jobs.get(job_id)
            if record is None:
                del self._held[job_id]  # deleted long after its end
            elif record.over or (record.sorted and not record.batched):
                self._leave(record)

    def _leave(self, record: JobRecord) -> None:
        indices = self._held.pop(record.job_id, set())
        if (budgets := self.mesh.accountant.budgets) is not None:
            for index in indices:
                budgets.holds.leave(_hold(record, index))

    @property
    def _needed(self) -> bool:
        budgets = self.mesh.accountant.budgets
        return budgets is not None and bool(budgets.config)

    def _note(self, record: JobRecord, index: int) -> None:
        self._held.setdefault(record.job_id, set()).add(index)

    async def _take(self, record: JobRecord, index: int, item: BatchItem, *, again: bool) -> bool:
        budgets = self.mesh.accountant.budgets
        if budgets is None:
            return True
        self._note(record, index)
        request = item.chat if item.HasField("chat") else item.embed
        call = enter_item(record, index, request, _FIRST_RUN)
        principal = current_principal()
        key_id, name = (principal.key_id, principal.subject) if principal is not None else ("", "")
        bill = budgets.bill(request, call.tenant, key_id, name, request.routing.persona, call.key)
        if bill is None:
            return True
        try:
            if again:
                await bill.hold_on()
            else:
                await bill.reserve(lambda _: Event())
        except MaestroError as error:
            log.info("item %d of job %s is held by no budget: %s", index, record.job_id, error.message)
            return False
        if bill.degraded:
            # It runs as usual, where its budget sends it.
            self.give_back(record, (index,))
            return False
        return True


def _hold(record: JobRecord, index: int) -> Hold:
    return Hold(hold_id(record.tenant, f"{record.job_id}.{index}.{_FIRST_RUN}"), (), b"")
