"""Jobs over HTTP: what `JobService` does, for bodies and in answers of REST's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro_gateway.jobs.answer import encode_page
from maestro_gateway.jobs.items import read_items
from maestro_gateway.jobs.service import JobService
from maestro_gateway.json_codec.contract import encode_message, read_message
from maestro_gateway.json_codec.document import parse_object
from maestro_sdk.service.validation import validate

_MOST_ITEMS = 10_000
_STAND_IN = BatchItem(embed=EmbedRequest(inputs=[EmbedInput(text="-")]))
_PRIORITIES = ("low", "normal", "high")


class JobRest:
    """Asks a `JobService` for callers of HTTP."""

    def __init__(self, jobs: JobService) -> None:
        self._jobs = jobs

    async def create(self, raw: bytes, context: Any) -> bytes:
        """Makes the job that a body asks for. Raises `InvalidRequest` with the path of what is wrong."""
        document = parse_object(raw)
        values = document.pop("items", None)
        if document.get("priority") in _PRIORITIES:
            document["priority"] = f"JOB_PRIORITY_{document['priority'].upper()}"
        request = read_message(document, pb.CreateJobRequest())
        # The items are validated where they are read, one by one: the rules of the rest are asked without them.
        if values:
            request.items.append(_STAND_IN)
        validate(request)
        request.ClearField("items")
        if values:
            request.items.extend(await read_items(values, _MOST_ITEMS))
        return encode_message(await self._jobs.CreateJob(request, context))

    async def results(self, request: pb.ListJobResultsRequest, context: Any) -> Iterator[bytes]:
        """A page of results, piece by piece."""
        page = await self._jobs.ListJobResults(request, context)
        return encode_page(request.job_id, page.results, page.next_page_token)
