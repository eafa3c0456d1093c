"""Several providers behind one adapter, such as OpenAI and Azure: each answers for the models of its name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import IO, NoReturn, TypeVar, cast

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest, ListFilesResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.adapter.provider import Batcher, Completer, Embedder, FileStore, Provider, TokenCounter
from maestro_sdk.errors import InvalidRequest, MaestroError, NotFound, ProviderAuth, Unimplemented, Violation

Answer = TypeVar("Answer")
Page = TypeVar("Page", ListFilesResponse, ListBatchesResponse)
Extra = TypeVar("Extra")


class ProviderGroup:
    """A provider made of others. Identifiers of files and batches stay their provider's own; each one is asked in turn.

    A member that is not ready offers no models and fails nobody else; the group is ready while one member is.
    """

    def __init__(self, name: str, members: Sequence[Provider]) -> None:
        """`members` in the order in which they are asked; each speaks for the names in its `providers`."""
        self.name = name
        self.providers: Sequence[str] = [provider for member in members for provider in member.providers]
        self._members = members
        self._told: dict[tuple[str, ...], Sequence[Model]] = {}
        self._by_name = {provider: member for member in members for provider in member.providers}
        # Asked once: what a protocol asks of an object costs more than all else here.
        self._completers = {name: member for name, member in self._by_name.items() if isinstance(member, Completer)}

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """What the model's provider answers. Raises `NotFound` for the name of another provider."""
        return self._of(request.model).stream(request)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """What the model's provider answers, at once."""
        completer = self._completers.get(request.model.partition("/")[0])
        if completer is not None:
            return await completer.complete(request)
        return [event async for events in self._of(request.model).stream(request) for event in events]

    async def count_tokens(self, request: ChatRequest) -> int:
        """What the model's provider counts. Raises `Unimplemented` where it can't."""
        member = self._of(request.model)
        if not isinstance(member, TokenCounter):
            raise _unable(request.model, "count tokens")
        return await member.count_tokens(request)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """The vectors of the model's provider. Raises `Unimplemented` where it makes none."""
        member = self._of(request.model)
        if not isinstance(member, Embedder):
            raise _unable(request.model, "make embeddings")
        return await member.embed(request)

    async def models(self) -> Sequence[Model]:
        """The models of all members that are ready, or of all while none is.

        A member that can't tell them now keeps those that it told last; only when all of them fail, the first
        one's error is raised.
        """
        members = await self._ready() or list(self._members)
        errors: list[MaestroError] = []
        for member in members:
            try:
                self._told[member.name, *member.providers] = await member.models()
            except MaestroError as error:
                errors.append(error)
        if len(errors) == len(members):
            raise errors[0]
        return [model for member in members for model in self._told.get((member.name, *member.providers), ())]

    async def check(self) -> str:
        """Why no member can answer; empty when one can."""
        reasons = [await member.check() for member in self._members]
        return "; ".join(reasons) if all(reasons) else ""

    async def close(self) -> None:
        """Closes all members."""
        for member in self._members:
            await member.close()

    async def upload_file(self, header: FileHeader, content: IO[bytes]) -> File:
        """Stores the file at `header.provider`, else at the first member that is ready and keeps files."""
        if header.provider:
            named = self._by_name.get(header.provider)
            if not isinstance(named, FileStore):
                why = f"{header.provider!r} keeps no files here"
                raise InvalidRequest(f"provider {why}", violations=[Violation("header.provider", why)])
            return await named.upload_file(header, content)
        return await (await self._stores())[0].upload_file(header, content)

    async def get_file(self, file_id: str) -> File:
        """The facts about a file, from whoever has it."""
        return await _first(await self._stores(), lambda store: store.get_file(file_id), f"file {file_id!r}")

    async def list_files(self, request: ListFilesRequest) -> ListFilesResponse:
        """The files of all members, one member after the other, newest first within each."""

        async def page(store: FileStore, token: str) -> ListFilesResponse:
            inner = ListFilesRequest(page_size=request.page_size, page_token=token, purpose=request.purpose)
            return await store.list_files(inner)

        return await _page(await self._stores(), request.page_token, page)

    async def download_file(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of a file, from whoever has it."""

        async def owner(store: FileStore) -> FileStore:
            await store.get_file(file_id)
            return store

        store = await _first(await self._stores(), owner, f"file {file_id!r}")
        async with aclosing(cast("AsyncGenerator[bytes]", store.download_file(file_id))) as pieces:
            async for piece in pieces:
                yield piece

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file at whoever has it."""
        await _first(await self._stores(), lambda store: store.delete_file(file_id), f"file {file_id!r}")

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch at the provider of `header.model`."""
        member = self._of(header.model)
        if not isinstance(member, Batcher):
            raise _unable(header.model, "run batches")
        return await member.create_batch(header, items)

    async def get_batch(self, batch_id: str) -> Batch:
        """A batch, from whoever runs it."""
        return await _first(await self._batchers(), lambda batcher: batcher.get_batch(batch_id), f"batch {batch_id!r}")

    async def list_batches(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """The batches of all members, one member after the other, newest first within each."""

        async def page(batcher: Batcher, token: str) -> ListBatchesResponse:
            return await batcher.list_batches(ListBatchesRequest(page_size=request.page_size, page_token=token))

        return await _page(await self._batchers(), request.page_token, page)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Asks whoever runs a batch to stop it."""
        return await _first(
            await self._batchers(), lambda batcher: batcher.cancel_batch(batch_id), f"batch {batch_id!r}"
        )

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results of a batch, from whoever ran it."""

        async def owner(batcher: Batcher) -> Batcher:
            await batcher.get_batch(batch_id)
            return batcher

        batcher = await _first(await self._batchers(), owner, f"batch {batch_id!r}")
        async with aclosing(cast("AsyncGenerator[Sequence[BatchItemResult]]", batcher.batch_results(batch_id))) as some:
            async for results in some:
                yield results

    def _of(self, model: str) -> Provider:
        provider = model.partition("/")[0]
        member = self._by_name.get(provider)
        if member is None:
            raise NotFound(f"{self.name} speaks for {', '.join(self.providers)}, not for {provider!r}")
        return member

    async def _ready(self) -> list[Provider]:
        return [member for member in self._members if not await member.check()]

    async def _stores(self) -> Sequence[FileStore]:
        """The members that keep files, at least one."""
        found = [member for member in await self._ready() if isinstance(member, FileStore)]
        return found or await self._nobody("keeps files")

    async def _batchers(self) -> Sequence[Batcher]:
        """The members that run batches, at least one."""
        found = [member for member in await self._ready() if isinstance(member, Batcher)]
        return found or await self._nobody("runs batches")

    async def _nobody(self, does: str) -> NoReturn:
        if reason := await self.check():
            raise ProviderAuth(reason)
        raise Unimplemented(f"no provider of {self.name} that is ready {does}")


async def _first(members: Sequence[Extra], ask: Callable[[Extra], Awaitable[Answer]], missing: str) -> Answer:
    """The answer of the first member that knows what is asked for.

    Raises `NotFound` when all say that they don't; else what the first one of the others said: it may be there.
    """
    failure: MaestroError | None = None
    for member in members:
        try:
            return await ask(member)
        except NotFound:
            continue
        except MaestroError as error:
            failure = failure or error
    raise failure or NotFound(f"there is no {missing}")


async def _page(members: Sequence[Extra], token: str, ask: Callable[[Extra, str], Awaitable[Page]]) -> Page:
    """One page of one member; its token begins with the member's place, and the last page leads to the next member."""
    place, _, inner = token.partition(":")
    number = int(place) if place.isdecimal() else 0 if not token else len(members)
    if number >= len(members):
        raise InvalidRequest("page_token is none of ours", violations=[Violation("page_token", "is none of ours")])
    page = await ask(members[number], inner)
    if page.next_page_token:
        page.next_page_token = f"{number}:{page.next_page_token}"
    elif number + 1 < len(members):
        page.next_page_token = f"{number + 1}:"
    return page


def _unable(model: str, what: str) -> Unimplemented:
    return Unimplemented(f"{model.partition('/')[0]} can't {what}")
