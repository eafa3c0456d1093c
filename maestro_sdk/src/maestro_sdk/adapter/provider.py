"""The small interface that an adapter implements, and the optional ones that it may add."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import IO, Protocol, runtime_checkable

from maestro.llm.v1.batch_pb2 import Batch, BatchHeader, BatchItem, BatchItemResult, ListBatchesRequest
from maestro.llm.v1.batch_pb2 import ListBatchesResponse as BatchPage
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest
from maestro.llm.v1.file_pb2 import ListFilesResponse as FilePage
from maestro.llm.v1.model_pb2 import Model


class Provider(Protocol):
    """A source of answers: `name` of the adapter ("adapter-openai"), `providers` it speaks to ("openai", "azure")."""

    name: str
    providers: Sequence[str]

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers `request`: yields all events that one read from the provider brought, at once.

        The first event is `started`, the last one `finish`; `request.model` is "provider/name" of one of `models()`.
        Errors are raised as `maestro_sdk.errors.MaestroError`. Closing the iterator closes the provider's connection.
        """
        ...

    async def models(self) -> Sequence[Model]:
        """The models on offer now, with features and prices. Raises a `MaestroError` when it is out of reach."""
        ...

    async def check(self) -> str:
        """Why requests can't be answered now and what to do about it; empty when they can."""
        ...

    async def close(self) -> None:
        """Releases connections; called once, after the last request."""
        ...


@runtime_checkable
class Completer(Protocol):
    """A provider with a unary endpoint: cheaper than folding a stream."""

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers `request` with the same events that `stream` would yield, all at once."""
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """A provider that counts tokens itself."""

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`, as the provider counts them."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """A provider that turns content into vectors. Models that do so have the feature EMBEDDINGS."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input, `embeddings[i].index == i`; lists that are too long are split and joined here.

        `request.model` is "provider/name" of one of `models()`. `usage` is unset when the provider reports none.
        """
        ...


@runtime_checkable
class FileStore(Protocol):
    """A provider that keeps files. Identifiers are the provider's own."""

    async def upload_file(self, header: FileHeader, content: IO[bytes]) -> File:
        """Stores `content`, which stands at its start and is whole; `header.mime_type` is always set."""
        ...

    async def get_file(self, file_id: str) -> File:
        """The facts about a file. Raises `NotFound`."""
        ...

    async def list_files(self, request: ListFilesRequest) -> FilePage:
        """Files, newest first."""
        ...

    def download_file(self, file_id: str) -> AsyncIterator[bytes]:
        """All bytes of a file in pieces of any size. Raises `NotFound`."""
        ...

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file. Raises `NotFound`."""
        ...


@runtime_checkable
class Batcher(Protocol):
    """A provider with a batch API. Models that it takes have the feature BATCH; identifiers are the provider's own."""

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch. `header.model` is "provider/name", every item has an id of its own and "provider/name".

        An error raised by `items` means that nothing may be started.
        """
        ...

    async def get_batch(self, batch_id: str) -> Batch:
        """A batch. Raises `NotFound`."""
        ...

    async def list_batches(self, request: ListBatchesRequest) -> BatchPage:
        """Batches, newest first."""
        ...

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Asks to stop a batch; one that is over is returned unchanged. Raises `NotFound`."""
        ...

    def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results of a batch that is over, each item once; costs may be left to the kit.

        Raises `NotFound`, and `Conflict` while the batch is under way.
        """
        ...
