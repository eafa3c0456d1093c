"""Embeddings, files and batches that break one promise at a time; see `flawed_servicer`.

Unlike chat they stand on the kit's servicers: the flaw changes what goes in, or what comes out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import IO, Any, TypeVar

import grpc

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchItemResult,
    BatchState,
    CancelBatchRequest,
    CreateBatchRequest,
    GetBatchRequest,
    ListBatchesRequest,
    ListBatchesResponse,
    StreamBatchResultsRequest,
    StreamBatchResultsResponse,
)
from maestro.llm.v1.batch_pb2_grpc import BatchServiceServicer
from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro.llm.v1.file_pb2 import (
    DeleteFileRequest,
    DeleteFileResponse,
    DownloadFileRequest,
    File,
    FileHeader,
    FilePurpose,
    GetFileRequest,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileRequest,
)
from maestro.llm.v1.file_pb2_grpc import FileServiceServicer
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.adapter.file_servicer import FileServicer
from maestro_sdk.errors import STATUS_DETAILS_KEY, Conflict, MaestroError, NotFound, to_status
from maestro_sdk.service.validation import validate
from maestro_sdk.testing.flaws import Flaw
from maestro_sdk.testing.obliging import ObligingProvider

Result = TypeVar("Result")
_AT_ONCE = 96
"""Inputs after which the flawed embedder splits a list."""


async def refuse(error: MaestroError, context: Any) -> Any:
    """Ends a call with the status of `error`."""
    await context.abort(error.code, error.message, ((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),))


async def _answer(call: Awaitable[Result], context: Any) -> Result:
    try:
        return await call
    except MaestroError as error:
        return await refuse(error, context)


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        validate(request)
        yield request


class FlawedEmbeddings(EmbeddingServiceServicer):
    """Embeds as the obliging model, but for the flaw."""

    def __init__(self, flaw: Flaw | None, provider: ObligingProvider) -> None:
        self._flaw = flaw
        self._kit = EmbeddingServicer(provider, Catalogue(provider))
        self._asked = 0

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        return await _answer(self._embed(request, context), context)

    async def _embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        flaw = self._flaw
        self._asked += 1
        if flaw is not Flaw.EMPTY_EMBEDDED:
            validate(request)
        elif not request.inputs:
            request.inputs.add(text="nothing")
        deaf = flaw in {Flaw.LENGTH_IGNORED, Flaw.LENGTH_LENIENT} and request.HasField("dimensions")
        if deaf:
            request.ClearField("dimensions")
        answer = await self._kit.Embed(request, context)
        if deaf and flaw is Flaw.LENGTH_LENIENT:
            answer.warnings.append(Warning(code="unsupported_parameter", message="one length", field="dimensions"))
        self._spoil(answer)
        return answer

    def _spoil(self, answer: EmbedResponse) -> None:
        vectors = [list(vector.values) for vector in answer.embeddings]
        match self._flaw:
            case Flaw.LOST_VECTOR if len(vectors) > 1:
                del answer.embeddings[-1]
            case Flaw.MIXED_LENGTHS if len(vectors) > 1:
                del answer.embeddings[0].values[-1]
            case Flaw.SWAPPED_VECTORS if len(vectors) < _AT_ONCE:
                _put(answer, vectors[::-1])
            case Flaw.SHUFFLED_PIECES if len(vectors) > _AT_ONCE:
                _put(answer, vectors[_AT_ONCE:] + vectors[:_AT_ONCE])
            case Flaw.DRIFTING_VECTORS:
                _put(answer, [vector[self._asked % 7 :] + vector[: self._asked % 7] for vector in vectors])
            case Flaw.FREE_VECTORS:
                answer.cost.usd = "0"
            case _:
                pass


def _put(answer: EmbedResponse, vectors: Sequence[Sequence[float]]) -> None:
    for kept, values in zip(answer.embeddings, vectors, strict=True):
        del kept.values[:]
        kept.values.extend(values)


class FlawedFiles(FileServiceServicer):
    """Keeps files as the obliging model, but for the flaw."""

    def __init__(self, flaw: Flaw | None, provider: ObligingProvider) -> None:
        self._flaw = flaw
        self._store = provider
        self._kit = FileServicer(provider)

    async def UploadFile(self, request_iterator: AsyncIterator[UploadFileRequest], context: Any) -> File:
        return await _answer(self._kit.UploadFile(self._heard(request_iterator), context), context)

    async def GetFile(self, request: GetFileRequest, context: Any) -> File:
        return await _answer(self._kit.GetFile(request, context), context)

    async def ListFiles(self, request: ListFilesRequest, context: Any) -> ListFilesResponse:
        return await _answer(self._kit.ListFiles(request, context), context)

    async def DownloadFile(self, request: DownloadFileRequest, context: Any) -> None:
        if self._flaw is Flaw.RANGES_IGNORED:
            request.offset = 0
            request.ClearField("limit")
        if self._flaw is Flaw.LOST_BYTES and not request.HasField("limit"):
            request.limit = 1000
        await _answer(self._kit.DownloadFile(request, context), context)

    async def DeleteFile(self, request: DeleteFileRequest, context: Any) -> DeleteFileResponse:
        if self._flaw is Flaw.FILE_STAYS:
            return DeleteFileResponse(file_id=request.file_id)
        if self._flaw is Flaw.DELETED_ONCE:
            request.request_id = ""
        try:
            return await self._kit.DeleteFile(request, context)
        except NotFound as error:
            if self._flaw is Flaw.UNKNOWN_DELETED:
                return DeleteFileResponse(file_id=request.file_id)
            return await refuse(error, context)
        except MaestroError as error:
            return await refuse(error, context)

    async def _heard(self, requests: AsyncIterator[UploadFileRequest]) -> AsyncIterator[UploadFileRequest]:
        """The upload as far as the server takes notice of it."""
        first = True
        async for request in _checked(requests):
            header = request.header if request.HasField("header") else None
            match self._flaw:
                case Flaw.CHECKSUM_IGNORED if header is not None:
                    header.sha256 = ""
                case Flaw.SIZE_IGNORED if header is not None:
                    header.ClearField("size_bytes")
                case Flaw.KEPT_THOUGH_DAMAGED if header is not None and header.sha256:
                    await self._store.upload_file(header, _Empty())
                case Flaw.UPLOADED_TWICE if header is not None:
                    header.request_id = ""
                case Flaw.HEADERLESS if first and header is None:
                    purpose = FilePurpose.FILE_PURPOSE_CONTENT
                    yield UploadFileRequest(header=FileHeader(filename="unnamed", purpose=purpose))
                case _:
                    pass
            first = False
            yield request


class _Empty(IO[bytes]):
    """A file without content."""

    def read(self, n: int = -1, /) -> bytes:
        return b""


class FlawedBatches(BatchServiceServicer):
    """Runs batches as the obliging model, but for the flaw."""

    def __init__(self, flaw: Flaw | None, provider: ObligingProvider) -> None:
        self._flaw = flaw
        self._kit = BatchServicer(provider, Catalogue(provider))

    async def CreateBatch(self, request_iterator: AsyncIterator[CreateBatchRequest], context: Any) -> Batch:
        return await _answer(self._told(self._kit.CreateBatch(self._heard(request_iterator), context)), context)

    async def GetBatch(self, request: GetBatchRequest, context: Any) -> Batch:
        return await _answer(self._told(self._kit.GetBatch(request, context)), context)

    async def ListBatches(self, request: ListBatchesRequest, context: Any) -> ListBatchesResponse:
        page = await _answer(self._kit.ListBatches(request, context), context)
        if self._flaw is Flaw.BATCH_UNLISTED:
            del page.batches[:]
        return page

    async def CancelBatch(self, request: CancelBatchRequest, context: Any) -> Batch:
        if self._flaw is Flaw.BATCH_GOES_ON:
            return await self.GetBatch(GetBatchRequest(batch_id=request.batch_id), context)
        try:
            return await self._kit.CancelBatch(request, context)
        except MaestroError as error:
            if self._flaw is Flaw.BATCH_INVENTED:
                return Batch(batch_id=request.batch_id, state=BatchState.BATCH_STATE_CANCELLED)
            return await refuse(error, context)

    async def StreamBatchResults(self, request: StreamBatchResultsRequest, context: Any) -> None:
        try:
            await self._kit.StreamBatchResults(request, _Spoiling(self._flaw, context))
        except Conflict as error:
            if self._flaw is not Flaw.NO_RESULTS_YET:
                await refuse(error, context)
        except MaestroError as error:
            await refuse(error, context)

    async def _told(self, call: Awaitable[Batch]) -> Batch:
        batch = await call
        if self._flaw is Flaw.COUNTS_OFF:
            batch.counts.total += 1
        return batch

    async def _heard(self, requests: AsyncIterator[CreateBatchRequest]) -> AsyncIterator[CreateBatchRequest]:
        names: set[str] = set()
        async for request in _checked(requests):
            if self._flaw is Flaw.STARTED_TWICE and request.HasField("header"):
                request.header.request_id = ""
            for item in request.items.items if self._flaw is Flaw.NAMED_TWICE else ():
                item.item_id = f"{item.item_id}-again" if item.item_id in names else item.item_id
                names.add(item.item_id)
            yield request


class _Spoiling:
    """The context of a call whose results are spoiled on their way out."""

    def __init__(self, flaw: Flaw | None, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._flaw = flaw
        self._context = context

    async def write(self, response: StreamBatchResultsResponse) -> None:
        """Sends results."""
        match self._flaw:
            case Flaw.ITEM_TWICE:
                response.results.append(BatchItemResult.FromString(response.results[0].SerializeToString()))
            case Flaw.ITEM_RENAMED:
                response.results[0].item_id = "other"
            case Flaw.FULL_PRICE:
                for result in response.results:
                    result.cost.usd = str(2 * float(result.cost.usd or "0"))
            case _:
                pass
        await self._context.write(response)
