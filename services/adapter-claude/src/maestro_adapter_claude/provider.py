"""Claude as a source of answers: one POST to `/v1/messages` per request; beside that counts, batches and files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import IO, TYPE_CHECKING, cast

import orjson

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest, ListFilesResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_claude import models
from maestro_adapter_claude.batches import Batches
from maestro_adapter_claude.claude_code.provider import INSTALL, ClaudeCodeProvider, is_installed
from maestro_adapter_claude.files import Files
from maestro_adapter_claude.location import locate
from maestro_adapter_claude.models import PROVIDER, ClaudeModel
from maestro_adapter_claude.sdk import Sdk
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_adapter_claude.translate import Outgoing, Stream, read_count, to_count, to_error, to_wire
from maestro_sdk.adapter.group import ProviderGroup
from maestro_sdk.adapter.http import HttpWire, drain
from maestro_sdk.adapter.provider import Provider
from maestro_sdk.errors import InvalidRequest, MaestroError, NotFound, ProviderAuth
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.settings import AdapterConfig, Config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"


class ClaudeProvider:
    """Speaks to Anthropic's API, or to a server that speaks its Messages wire."""

    name: str = "adapter-claude"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: ClaudeSettings) -> None:
        self._settings = settings
        self._models = models.load(settings.models)
        self._wire = HttpWire(
            settings.base_url,
            {"anthropic-version": settings.api_version, "user-agent": "maestro-adapter-claude"},
            to_error,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        self._sdk = Sdk(settings)
        self._files = Files(self._sdk)
        self._batches = Batches(
            self._sdk, self._translate, frozenset(found.model.name for found in self._models.values())
        )

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> Provider:
        """The provider that `adapters.claude` of the configuration describes. Raises `ConfigError`.

        With `claude_code.enabled` it is a group: Anthropic's API and Claude Code.
        """
        settings = adapter.settings_as(ClaudeSettings)
        api = cls(settings)
        if not settings.claude_code.enabled:
            return api
        if not is_installed():
            path = "adapters.claude.settings.claude_code.enabled"
            raise ConfigError([config.problem_at(path, f"is true, but {INSTALL}")])
        return ProviderGroup(cls.name, [api, ClaudeCodeProvider(settings, models.load(settings.models))])

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        outgoing = self._translate(request)
        body = orjson.dumps({**outgoing.body, "stream": True})
        answer = Stream(outgoing)
        with _about(request, outgoing):
            async with self._wire.stream(PATH, body, self._headers(outgoing), answer.hear) as chunks:
                async for chunk in chunks:
                    events = answer.feed(chunk)
                    if events:
                        yield events
                    if answer.failure is not None:
                        raise answer.failure
                    if answer.finished:
                        break
                if answer.finished:
                    await drain(chunks)
            answer.end()

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, through the unary endpoint; see `Completer`."""
        outgoing = self._translate(request)
        answer = Stream(outgoing)
        with _about(request, outgoing):
            body = orjson.dumps(outgoing.body)
            return answer.whole(await self._wire.post(PATH, body, self._headers(outgoing), answer.hear))

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`, as the provider counts them."""
        outgoing = self._translate(request)
        with _about(request, outgoing):
            content = await self._wire.post(COUNT_PATH, orjson.dumps(to_count(outgoing)), self._headers(outgoing))
            return read_count(content)

    async def upload_file(self, header: FileHeader, content: IO[bytes]) -> File:
        """Stores a file at the provider; see `Files.upload`."""
        return await self._files.upload(header, content)

    async def get_file(self, file_id: str) -> File:
        """The facts about a file."""
        return await self._files.get(file_id)

    async def list_files(self, request: ListFilesRequest) -> ListFilesResponse:
        """Files, newest first."""
        return await self._files.list(request)

    async def download_file(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of a file that the provider's own tools made."""
        async with aclosing(cast("AsyncGenerator[bytes]", self._files.download(file_id))) as pieces:
            async for piece in pieces:
                yield piece

    async def delete_file(self, file_id: str) -> None:
        """Deletes a file."""
        await self._files.delete(file_id)

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a message batch; see `Batches.create`."""
        return await self._batches.create(header, items)

    async def get_batch(self, batch_id: str) -> Batch:
        """A message batch."""
        return await self._batches.get(batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """Message batches, newest first."""
        return await self._batches.list(request)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Asks to stop a message batch."""
        return await self._batches.cancel(batch_id)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """What came of a message batch."""
        async with aclosing(
            cast("AsyncGenerator[Sequence[BatchItemResult]]", self._batches.results(batch_id))
        ) as results:
            async for some in results:
                yield some

    async def models(self) -> Sequence[Model]:
        """The models of `models.yaml`, and those that the operator added."""
        return [found.model for found in self._models.values()]

    async def check(self) -> str:
        """Whether there is a key; the provider itself is not asked, since that would cost its rate limits."""
        return "" if self._settings.api_key.get() else self._settings.missing_key()

    async def close(self) -> None:
        """Closes all connections."""
        await self._wire.close()
        await self._sdk.close()

    def _translate(self, request: ChatRequest) -> Outgoing:
        return to_wire(request, self._model(request.model), self._settings.default_max_tokens)

    def _model(self, name: str) -> ClaudeModel:
        found = self._models.get(name)
        if found is None:
            raise NotFound(f"{self.name} has no model {name!r}; it has: {', '.join(self._models)}")
        return found

    def _headers(self, outgoing: Outgoing) -> Mapping[str, str]:
        key = self._settings.api_key.get()
        if not key:
            raise ProviderAuth(self._settings.missing_key())
        # The provider's SDK sends the key as a bearer token since API version 2026-10-21.
        headers = {"authorization": f"Bearer {key}"}
        if betas := (*self._settings.betas, *outgoing.betas):
            headers["anthropic-beta"] = ",".join(betas)
        return headers


@contextmanager
def _about(request: ChatRequest, outgoing: Outgoing) -> Generator[None]:
    """Adds provider and model to the facts of an error, and the field of the request that a refusal names."""
    try:
        yield
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        error.metadata.setdefault("model", request.model)
        if isinstance(error, InvalidRequest):
            locate(error, request, outgoing)
        raise
