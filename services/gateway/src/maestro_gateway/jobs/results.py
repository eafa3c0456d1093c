"""The results of items: stored once each, and read as they are stored. One that is lost says so in its own place."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

from maestro.job.v1 import job_pb2 as pb
from maestro_gateway.jobs.outcome import Note, detail_of, totals_from, totals_text
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.streams import RESULTS, Streams, Superseded
from maestro_sdk.errors import Internal

log = logging.getLogger(__name__)

_STATE, _TOTALS, _ITEM, _RUNS = "Maestro-State", "Maestro-Totals", "Maestro-Item", "Maestro-Runs"


async def store_result(streams: Streams, record: JobRecord, result: pb.JobResult, note: Note) -> None:
    """Stores a result, unless the item has one."""
    # An item that has a result is not run again, so the ledger has to know of its runs by then.
    await streams.secure()
    data, headers = await streams.pack(record.job_id, f"out.{result.index}", result.SerializeToString())
    headers |= {_STATE: pb.JobItemState.Name(result.state), _TOTALS: totals_text(note.totals)}
    headers |= {_ITEM: result.item.item_id or str(result.index), _RUNS: str(result.runs)}
    try:
        await streams.put(result_subject(record, result.index), data, expect=0, headers=headers)
    except Superseded:
        log.debug("item %d of job %s has a result already", result.index, record.job_id)


def result_subject(record: JobRecord, index: int) -> str:
    """Where the result of an item lies."""
    return f"maestro.jobs.results.{record.job_id}.{index}"


async def read_results(
    streams: Streams, job_id: str, after: int, *, size: int = 4 * 2**20
) -> AsyncIterator[tuple[int, pb.JobResult]]:
    """The results of a job behind a place, each with its own, in the order in which items ended.

    One of which JetStream lost a piece is FAILED, with its cost and with what to do: it hides none of the others.
    """
    subject = f"maestro.jobs.results.{job_id}.*"
    while found := await streams.read(RESULTS, subject, after, size=size):
        for stored in found:
            index = stored.subject.rpartition(".")[2]
            try:
                data = await streams.unpack(job_id, f"out.{index}", stored.data, stored.headers)
                result = pb.JobResult.FromString(data)
            except LookupError as error:
                log.error("a result of job %s is lost: %s", job_id, error)
                result = _lost(int(index), stored.headers)
            yield stored.sequence, result
        after = found[-1].sequence


def _lost(index: int, headers: Mapping[str, str]) -> pb.JobResult:
    """What is left of a result whose pieces are gone: JetStream keeps its counts and sums in one message."""
    state = headers.get(_STATE, "JOB_ITEM_STATE_FAILED")
    error = Internal(
        f"the result of this item ({state.removeprefix('JOB_ITEM_STATE_')}) was stored, but a piece of it is lost in "
        "JetStream; run the item again in a new job",
        metadata={"result": "lost"},
    )
    result = pb.JobResult(index=index, state=pb.JobItemState.JOB_ITEM_STATE_FAILED, runs=int(headers.get(_RUNS, "1")))
    result.item.item_id = headers.get(_ITEM, str(index))
    result.item.error.CopyFrom(detail_of(error))
    if _TOTALS in headers and (totals := totals_from(headers[_TOTALS])).HasField("cost_usd"):
        result.item.cost.usd = totals.cost_usd
    return result
