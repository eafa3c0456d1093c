"""The results of a job, written into a file when its input was one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from maestro.llm.v1.file_pb2 import FilePurpose
from maestro_gateway.jobs.answer import encode_result
from maestro_gateway.jobs.files import JobFiles
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.results import read_results
from maestro_gateway.jobs.streams import Streams


class Output:
    """Writes output files into `files`."""

    def __init__(self, streams: Streams, files: JobFiles) -> None:
        self._streams = streams
        self._files = files

    async def write(self, record: JobRecord) -> str:
        """Stores the results of a job that has all of them; the file's identifier, the same at every call."""
        name = record.job.display_name or record.job_id
        safe = "".join(each if each.isalnum() or each in "-_. " else "_" for each in name)[:200]
        return await self._files.store(
            record.tenant,
            filename=f"{safe}.results.jsonl",
            mime_type="application/jsonl",
            purpose=FilePurpose.FILE_PURPOSE_JOB_OUTPUT,
            request_id=f"output of {record.job_id}",
            lasting=record.keep,
            metadata=dict(record.job.metadata),
            data=self._lines(record),
        )

    async def _lines(self, record: JobRecord) -> AsyncIterator[bytes]:
        """The results in the order in which items ended: each line names its item."""
        async for _, result in read_results(self._streams, record.job_id, 0):
            for piece in encode_result(record.job_id, result):
                yield piece
            yield b"\n"
