"""Batches at the provider: one file of requests goes up, files of results and errors come down."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import IO, TYPE_CHECKING, Any

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro_adapter_openai.batch_wire import (
    MODEL_LABEL,
    NAME_LABEL,
    OVER,
    BatchWire,
    encode_line,
    read_line,
    to_batch,
    to_line,
    unanswered,
)
from maestro_adapter_openai.files import Files
from maestro_adapter_openai.sdk import Sdk
from maestro_sdk.adapter.options import own_options
from maestro_sdk.errors import (
    Conflict,
    InvalidRequest,
    MaestroError,
    NotFound,
    StreamBroken,
    TooLarge,
    UnsupportedParameter,
)

if TYPE_CHECKING:
    from openai.types import Batch as WireBatch

_IN_MEMORY = 4 * 2**20
_AT_ONCE = 100
"""Lines of results that are read in one go."""
_MOST_LABELS = 16
_MOST_WARNINGS = 100
_DAY = 24 * 3600


class Batches:
    """A `Batcher` of one account. A batch has one endpoint and one model, as its provider demands."""

    def __init__(self, sdk: Sdk, files: Files, wire: BatchWire) -> None:
        self._sdk = sdk
        self._files = files
        self._wire = wire

    async def create(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """See `Batcher.create_batch`.

        What could not be done as asked stands in `provider_metadata` of the answer, under `warnings`: a batch has no
        other place for it.
        """
        fields = self._fields(header)
        client = await self._sdk.client()
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as content:
            endpoint, warnings = await self._write(items, content)
            content.seek(0)
            with self._sdk.errors():
                file = await client.files.create(
                    file=("batch.jsonl", content, "application/jsonl"),
                    purpose="batch",
                )
        try:
            with self._sdk.errors():
                made: Any = client.batches.create
                found = await made(
                    input_file_id=file.id, endpoint=endpoint, completion_window=self._wire.window, **fields
                )
                batch = to_batch(found, self._wire.provider)
        except MaestroError:
            await self._discard(file.id)
            raise
        batch.model = batch.model or header.model.removeprefix(f"{self._wire.provider}/")
        batch.display_name = batch.display_name or header.display_name
        if warnings:
            batch.provider_metadata[self._wire.provider].update({"warnings": warnings[:_MOST_WARNINGS]})
            batch.provider_metadata[self._wire.provider].update({"warning_count": len(warnings)})
        return batch

    async def get(self, batch_id: str) -> Batch:
        """See `Batcher.get_batch`."""
        return to_batch(await self._find(batch_id), self._wire.provider)

    async def list(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """See `Batcher.list_batches`. The provider gives at most 100 at a time."""
        query: dict[str, Any] = {"limit": min(request.page_size or 100, 100)}
        if request.page_token:
            query["after"] = request.page_token
        client = await self._sdk.client()
        with self._sdk.errors(f"page {request.page_token!r}"):
            page = await client.batches.list(**query)
            found = [to_batch(batch, self._wire.provider) for batch in page.data]
            return ListBatchesResponse(batches=found, next_page_token=page.data[-1].id if page.has_next_page() else "")

    async def cancel(self, batch_id: str) -> Batch:
        """See `Batcher.cancel_batch`."""
        found = await self._find(batch_id)
        if found.status in OVER:
            return to_batch(found, self._wire.provider)
        client = await self._sdk.client()
        try:
            with self._sdk.errors(f"batch {batch_id!r}"):
                return to_batch(await client.batches.cancel(batch_id), self._wire.provider)
        except MaestroError:
            # It may have ended in between; then there is nothing to stop and nothing to complain about.
            found = await self._find(batch_id)
            if found.status not in OVER:
                raise
            return to_batch(found, self._wire.provider)

    async def results(self, batch_id: str) -> AsyncGenerator[list[BatchItemResult]]:
        """See `Batcher.batch_results`. Items that no file tells about get the reason of the batch."""
        batch = await self._find(batch_id)
        if batch.status not in OVER:
            said = f"batch {batch_id!r} is {batch.status}: ask again when it is over"
            raise Conflict(said, metadata={"provider": self._wire.provider})
        seen: set[str] = set()
        broken = False
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            async with aclosing(self._lines(file_id)) as pieces:
                async for lines in pieces:
                    fresh: list[BatchItemResult] = []
                    for line in lines:
                        result = read_line(line, batch, self._wire)
                        if result is None:
                            broken = True
                        elif result.item_id not in seen:
                            seen.add(result.item_id)
                            fresh.append(result)
                    if fresh:
                        yield fresh
        total = batch.request_counts.total if batch.request_counts else 0
        if total and len(seen) >= total:
            return
        try:
            async with aclosing(self._lines(batch.input_file_id)) as pieces:
                async for lines in pieces:
                    found = (unanswered(line, batch, self._wire, seen, broken=broken) for line in lines)
                    if left := [result for result in found if result is not None]:
                        yield left
        except NotFound as error:
            said = f"batch {batch_id!r} left items without a result, and its input, which names them, is deleted"
            raise StreamBroken(said, metadata=error.metadata) from error

    async def _find(self, batch_id: str) -> WireBatch:
        client = await self._sdk.client()
        with self._sdk.errors(f"batch {batch_id!r}"):
            found = await client.batches.retrieve(batch_id)
            if not found.status:
                raise ValueError("a batch without status")
            return found

    async def _lines(self, file_id: str) -> AsyncGenerator[list[bytes]]:
        """The whole lines that each read brought, a few at a time: other calls want the loop too."""
        rest = b""
        async with aclosing(self._files.read(file_id)) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                lines = [line for line in lines if line.strip()]
                for start in range(0, len(lines), _AT_ONCE):
                    yield lines[start : start + _AT_ONCE]
        if rest.strip():
            yield [rest]

    async def _write(self, items: AsyncIterator[BatchItem], content: IO[bytes]) -> tuple[str, list[dict[str, str]]]:
        """Writes the items as lines; returns their endpoint, and what can't be done as asked."""
        endpoint, model, count, size = "", "", 0, 0
        warnings: list[dict[str, str]] = []
        async for item in items:
            place = f"items[{count}]"
            line, found = to_line(item, place, self._wire)
            kind = item.WhichOneof("request")
            asked = (item.chat if kind == "chat" else item.embed).model
            endpoint, model = endpoint or line["url"], model or asked
            if line["url"] != endpoint:
                why = "a batch has one endpoint: send conversations and embeddings as two batches"
                raise UnsupportedParameter.at(place, why)
            if asked != model:
                why = f"a batch has one model here, and this one has {model}"
                raise UnsupportedParameter.at(f"{place}.{kind}.model", why)
            warnings += [_plain(item, warning) for warning in found]
            data = encode_line(line)
            size, count = size + len(data), count + 1
            if count > self._wire.max_items:
                raise InvalidRequest.at("items", f"{self._wire.provider} takes {self._wire.max_items} items per batch")
            if size > self._wire.max_bytes:
                raise TooLarge(
                    f"{self._wire.provider} takes {self._wire.max_bytes} bytes per batch, and these are more"
                )
            content.write(data)
        if not count:
            raise InvalidRequest.at("items", "the batch has no items")
        return endpoint, warnings

    def _fields(self, header: BatchHeader) -> dict[str, Any]:
        """What is sent with the batch: labels, name and model as labels, the caller's own parameters."""
        if header.HasField("completion_window") and header.completion_window.seconds < _DAY:
            raise UnsupportedParameter.at("header.completion_window", "the provider promises an end within 24h only")
        labels = dict(header.metadata)
        own = {MODEL_LABEL: header.model.removeprefix(f"{self._wire.provider}/"), NAME_LABEL: header.display_name}
        for name, value in own.items():
            if value and len(labels) < _MOST_LABELS:
                labels[name] = value
        fields: dict[str, Any] = {"metadata": labels}
        if options := own_options(header.provider_options, self._wire.provider):
            fields["extra_body"] = options
        return fields

    async def _discard(self, file_id: str) -> None:
        try:
            await self._files.delete(file_id)
        except MaestroError:
            # It deletes itself after 30 days; why the batch was refused matters more.
            return


def _plain(item: BatchItem, warning: Warning) -> dict[str, str]:
    return {"item_id": item.item_id, "code": warning.code, "field": warning.field, "message": warning.message}
