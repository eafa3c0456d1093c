"""Batches: a file of requests in Cloud Storage, a job over it, and the files of results that the job leaves there."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import quote

import orjson

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro_adapter_vertex.api import Api
from maestro_adapter_vertex.batch_wire import ITEMS_LABEL, OVER, keys_of, left_over, read_results, to_batch, to_line
from maestro_adapter_vertex.failure import unreadable
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.adapter.options import merge_patch, own_options
from maestro_sdk.errors import (
    CapabilityUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    ProviderAuth,
    StreamBroken,
    TooLarge,
)

MAX_INPUT = 256 * 2**20
"""Bytes of one batch's input; it is held in memory until it is stored."""
_BUCKET = "bucket"


class Batches:
    """The batch jobs of one project and location."""

    def __init__(self, settings: VertexSettings, api: Api, storage: Api) -> None:
        self._settings = settings
        self._api = api
        self._storage = storage

    async def create(self, header: BatchHeader, model: VertexModel, items: AsyncIterator[BatchItem]) -> Batch:
        """Stores the items and starts a job; nothing is stored when one of them is wrong."""
        options = own_options(header.provider_options, PROVIDER)
        place = str(options.pop(_BUCKET, "") or self._settings.batch_bucket).rstrip("/")
        if not place.startswith("gs://"):
            path = f"header.provider_options.{PROVIDER}.{_BUCKET}"
            raise InvalidRequest.at(path, "is needed: a place for input and output such as gs://bucket/folder")
        lines: list[bytes] = []
        size = 0
        async for item in items:
            lines.append(to_line(item, model, len(lines)))
            size += len(lines[-1])
            if size > MAX_INPUT:
                raise TooLarge(f"the batch has more than {MAX_INPUT >> 20} MiB; send it in several")
        folder = f"{place}/maestro-{uuid.uuid4().hex}"
        source = f"{folder}/input.jsonl"
        bucket, name = _split(source)
        upload = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        await self._storage.post(upload, b"".join(lines))
        job: dict[str, Any] = {
            "displayName": header.display_name or f"maestro {model.model.name}",
            "model": f"publishers/google/models/{model.model.name}",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [source]}},
            "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": folder}},
            "labels": {**header.metadata, ITEMS_LABEL: str(len(lines))},
        }
        merge_patch(job, options)
        return to_batch(_read(await self._api.post(self._path(), orjson.dumps(job))))

    async def get(self, batch_id: str) -> Batch:
        """A batch. Raises `NotFound`."""
        return to_batch(await self._job(batch_id))

    async def list(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """Batches, newest first."""
        query = f"?pageSize={request.page_size or 100}"
        if request.page_token:
            query += f"&pageToken={quote(request.page_token, safe='')}"
        page = _read(await self._api.get(self._path() + query))
        token = str(page.get("nextPageToken") or "")
        return ListBatchesResponse(
            batches=[to_batch(job) for job in _list(page, "batchPredictionJobs")], next_page_token=token
        )

    async def cancel(self, batch_id: str) -> Batch:
        """Asks to stop a batch; one that is over is returned unchanged."""
        batch = await self.get(batch_id)
        if batch.state in OVER:
            return batch
        await self._api.post(f"{self._path(batch_id)}:cancel", b"{}")
        return await self.get(batch_id)

    async def results(self, batch_id: str) -> AsyncGenerator[Sequence[BatchItemResult]]:
        """The results, file by file, then those of the items that no file has."""
        job = await self._job(batch_id)
        batch = to_batch(job)
        if batch.state not in OVER:
            raise Conflict(f"batch {batch_id} is under way: {batch.raw_state}")
        source, folder = _places(job)
        waiting = dict.fromkeys(keys_of(await self._download(source)))
        for file in await self._files(folder) if folder else ():
            # Each item once, whatever the files repeat.
            given = {result.item_id: result for result in read_results(await self._download(file), batch.model)}
            if found := [result for key, result in given.items() if key in waiting]:
                for result in found:
                    del waiting[result.item_id]
                yield found
        if waiting:
            yield left_over(list(waiting), batch)

    async def _job(self, batch_id: str) -> Mapping[str, Any]:
        return _read(await self._api.get(self._path(batch_id)))

    async def _files(self, folder: str) -> Sequence[str]:
        """The addresses of the files of results in a folder."""
        bucket, prefix = _split(folder)
        found: list[str] = []
        token = ""
        while True:
            query = f"?prefix={quote(prefix + '/', safe='')}" + (f"&pageToken={quote(token, safe='')}" if token else "")
            page = _read(await self._storage.get(f"/storage/v1/b/{bucket}/o{query}"))
            names = [str(entry.get("name") or "") for entry in _list(page, "items")]
            found += [f"gs://{bucket}/{name}" for name in names if name.endswith(".jsonl")]
            token = str(page.get("nextPageToken") or "")
            if not token:
                return found

    async def _download(self, address: str) -> bytes:
        bucket, name = _split(address)
        return await self._storage.get(f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media")

    def _path(self, batch_id: str = "") -> str:
        if not self._settings.project:
            raise ProviderAuth("there is no Google Cloud project: set GOOGLE_CLOUD_PROJECT")
        path = f"{self._settings.parent}/batchPredictionJobs"
        if not batch_id:
            return path
        last = batch_id.rpartition("/")[2]
        if not last.isalnum():
            raise NotFound(f"there is no batch {batch_id!r}")
        return f"{path}/{last}"


def _split(address: str) -> tuple[str, str]:
    """Bucket and name of a gs:// address."""
    bucket, _, name = address.removeprefix("gs://").partition("/")
    return bucket, name


def _places(job: Mapping[str, Any]) -> tuple[str, str]:
    """Where a job's input is, and the folder of its output, empty when it has none."""
    match job.get("inputConfig"):
        case {"gcsSource": {"uris": [str(source), *_]}}:
            pass
        case _:
            raise CapabilityUnavailable("the batch has no input in Cloud Storage; only such batches have results here")
    match job.get("outputInfo"):
        case {"gcsOutputDirectory": str(folder)}:
            return source, folder
        case _:
            return source, ""


def _read(content: bytes) -> Mapping[str, Any]:
    try:
        document: Any = orjson.loads(content or b"{}")
    except ValueError as error:
        raise unreadable("answer", error) from error
    if not isinstance(document, dict):
        raise StreamBroken("the provider's answer is no JSON object")
    return cast("Mapping[str, Any]", document)


def _list(page: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """The objects in a page of a list."""
    found: Any = page.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in cast("list[Any]", found)):
        raise StreamBroken(f"the provider's page can't be read: {name} is no list of objects")
    return cast("list[Mapping[str, Any]]", found)
