"""What an item of a provider's batch used, told like that of any other request: to the ledger and to the job."""

from __future__ import annotations

import asyncio
import time

from maestro.event.v1.event_pb2 import AttemptFate
from maestro.llm.v1.batch_pb2 import BatchItem, BatchItemResult
from maestro.llm.v1.chat_pb2 import Finish
from maestro_gateway.jobs.outcome import Note, error_from
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.runner import enter_item
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.table import Backend
from maestro_sdk.mesh.trail import Attempt, Trail


def attempt_of(found: BatchItemResult, backend: Backend) -> Attempt:
    """The one attempt that a batch makes at an item."""
    now = time.monotonic()
    failed = found.WhichOneof("outcome") not in {"chat", "embed"}
    fate = AttemptFate.ATTEMPT_FATE_FAILED if failed else AttemptFate.ATTEMPT_FATE_ANSWERED
    return Attempt(
        backend,
        1,
        now,
        ended=now,
        fate=fate,
        error=error_from(found.error) if failed else None,
        usage=found.usage if found.HasField("usage") else None,
        cost=found.cost if found.HasField("cost") else None,
    )


def count_in(note: Note, found: BatchItemResult, backend: Backend) -> None:
    """Adds what an item used to what its earlier runs did."""
    trail = Trail(attempts=[attempt_of(found, backend)])
    note.count(trail, failed=trail.attempts[0].error is not None)


async def account_for(
    mesh: Mesh, record: JobRecord, index: int, item: BatchItem, found: BatchItemResult, backend: Backend
) -> None:
    """Opens the account of an item and ends it: it is charged, and its end is an event that is told once."""
    # In a task of its own: what it sets for its item holds for nobody else.
    await asyncio.create_task(_account_for(mesh, record, index, item, found, backend))


async def _account_for(
    mesh: Mesh, record: JobRecord, index: int, item: BatchItem, found: BatchItemResult, backend: Backend
) -> None:
    request = item.chat if item.HasField("chat") else item.embed
    call = enter_item(record, index, request, 1)
    try:
        account = mesh.accountant.open(request, call, streamed=False, job_id=record.job_id)
        # The provider has answered and is paid: limits and budgets count it, and can't refuse it any more.
        account.take_over()
        if account.counted:
            await account.admit()
        attempt = attempt_of(found, backend)
        account.trail.attempts.append(attempt)
        with account:
            if attempt.error is not None:
                account.trail.failed.append(attempt)
                raise attempt.error
            account.trail.answering = attempt
            account.trail.finish = Finish(reason=found.chat.finish_reason) if found.HasField("chat") else Finish()
    except MaestroError:
        return  # it is told by the account
