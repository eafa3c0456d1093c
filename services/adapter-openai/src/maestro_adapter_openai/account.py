"""What OpenAI and Azure share: chat over the kit's wire, embeddings, and by the SDK files and batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import IO, Any

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest, ListFilesResponse
from maestro_adapter_openai.batch_wire import BatchWire
from maestro_adapter_openai.batches import Batches
from maestro_adapter_openai.files import Files
from maestro_adapter_openai.sdk import Sdk
from maestro_sdk.adapter.chat_completions import ChatCompletionsProvider
from maestro_sdk.adapter.openai_embeddings import PATH, EmbeddingDialect, Embeddings
from maestro_sdk.errors import CapabilityUnavailable


class Account(ChatCompletionsProvider):
    """A provider with all that one key opens. Without the key it stands, and refuses every call with the reason."""

    def __init__(
        self,
        *,
        sdk: Sdk,
        files: Files,
        batch_wire: BatchWire,
        embeddings: Mapping[str, EmbeddingDialect],
        embedding_paths: Mapping[str, str] | None = None,
        **chat: Any,
    ) -> None:
        """`files` and batches by `sdk`, which is closed with this.

        `embeddings` and `embedding_paths` by the name of the model; `chat` as in `ChatCompletionsProvider`.
        """
        super().__init__(**chat)
        self._sdk = sdk
        self._files = files
        self._batches = Batches(sdk, files, batch_wire)
        self._embedding_dialects = dict(embeddings)
        self._embedding_paths = dict(embedding_paths or {})
        self._embeddings = Embeddings(self._wire)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """See `Embedder.embed`."""
        self._check_ready()
        model = request.model.removeprefix(f"{self._dialect.provider}/")
        dialect = self._embedding_dialects.get(model)
        if dialect is None:
            raise CapabilityUnavailable(f"{request.model} has no EMBEDDINGS")
        path = self._embedding_paths.get(model, PATH)
        headers = await self._authorize() if self._authorize else None
        return await self._embeddings.embed(request, dialect, path=path, headers=headers)

    async def upload_file(self, header: FileHeader, content: IO[bytes]) -> File:
        """See `FileStore.upload_file`."""
        self._check_ready()
        return await self._files.upload(header, content)

    async def get_file(self, file_id: str) -> File:
        """See `FileStore.get_file`."""
        self._check_ready()
        return await self._files.get(file_id)

    async def list_files(self, request: ListFilesRequest) -> ListFilesResponse:
        """See `FileStore.list_files`."""
        self._check_ready()
        return await self._files.list(request)

    def download_file(self, file_id: str) -> AsyncGenerator[bytes]:
        """See `FileStore.download_file`."""
        self._check_ready()
        return self._files.read(file_id)

    async def delete_file(self, file_id: str) -> None:
        """See `FileStore.delete_file`."""
        self._check_ready()
        await self._files.delete(file_id)

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """See `Batcher.create_batch`."""
        self._check_ready()
        return await self._batches.create(header, items)

    async def get_batch(self, batch_id: str) -> Batch:
        """See `Batcher.get_batch`."""
        self._check_ready()
        return await self._batches.get(batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """See `Batcher.list_batches`."""
        self._check_ready()
        return await self._batches.list(request)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """See `Batcher.cancel_batch`."""
        self._check_ready()
        return await self._batches.cancel(batch_id)

    def batch_results(self, batch_id: str) -> AsyncGenerator[list[BatchItemResult]]:
        """See `Batcher.batch_results`."""
        self._check_ready()
        return self._batches.results(batch_id)

    async def close(self) -> None:
        """Closes all connections."""
        await super().close()
        await self._sdk.close()
