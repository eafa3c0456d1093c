"""Gemini on Vertex AI as a source of answers: one POST to `:generateContent` or its stream per request."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import orjson

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, CountTokensResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro_adapter_vertex import models
from maestro_adapter_vertex.api import Api
from maestro_adapter_vertex.batches import Batches
from maestro_adapter_vertex.credentials import TokenSource
from maestro_adapter_vertex.embedding import EmbedCalls, Vectors, read_vectors, to_embed_calls, to_response
from maestro_adapter_vertex.failure import UNREADABLE, unreadable
from maestro_adapter_vertex.models import PROVIDER, VertexModel
from maestro_adapter_vertex.settings import VertexSettings
from maestro_adapter_vertex.translate import Outgoing, Stream, to_error, to_events, to_wire
from maestro_sdk.adapter.http import LINGER, HttpWire
from maestro_sdk.errors import MaestroError, NotFound, ProviderAuth
from maestro_sdk.service.settings import AdapterConfig, Config

_COUNTED = ("contents", "systemInstruction", "tools", "generationConfig")
"""What of a request `:countTokens` takes."""


class VertexProvider:
    """Speaks to Vertex AI, or to a server that speaks its wire."""

    name: str = "adapter-vertex"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: VertexSettings, tokens: TokenSource | None = None) -> None:
        """`tokens` is made from the settings unless it is given."""
        self._settings = settings
        self._models = models.load(settings.models)
        self._tokens = tokens or TokenSource(settings)
        self._api = self._api_at(settings.endpoint)
        self._storage = self._api_at(settings.storage_url)
        self._batches = Batches(settings, self._api, self._storage)
        if settings.batch_bucket:
            for found in self._models.values():
                if found.has(Feature.FEATURE_TOOLS):
                    found.model.features.add(feature=Feature.FEATURE_BATCH, support=Support.SUPPORT_NATIVE)

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> VertexProvider:
        """The provider that `adapters.vertex` of the configuration describes. Raises `ConfigError`."""
        return cls(adapter.settings_as(VertexSettings))

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        outgoing = self._translate(request)
        answer = Stream(outgoing, secrets.token_hex(8))
        with _about(request.model):
            path = self._path(outgoing.model, "streamGenerateContent") + "?alt=sse"
            async with self._api.open(path, orjson.dumps(outgoing.body)) as chunks:
                while (chunk := await _next(chunks, answer)) is not None:
                    events = answer.feed(chunk)
                    if events:
                        yield events
                    if answer.failure is not None:
                        raise answer.failure
                yield answer.end()

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, through the unary endpoint; see `Completer`."""
        outgoing = self._translate(request)
        with _about(request.model):
            content = await self._post(self._path(outgoing.model, "generateContent"), outgoing.body)
            return to_events(content, outgoing, secrets.token_hex(8))

    async def count_tokens(self, request: ChatRequest) -> int:
        """The tokens of a request as the provider counts them; see `TokenCounter`."""
        outgoing = self._translate(request)
        body = {name: outgoing.body[name] for name in _COUNTED if name in outgoing.body}
        with _about(request.model):
            content = await self._post(self._path(outgoing.model, "countTokens"), body)
            return _counted(content)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input; see `Embedder`."""
        model = self._model(request.model)
        calls = to_embed_calls(request, model)
        vectors = Vectors()
        with _about(request.model):
            answers = await self._post_all(self._path(model.model.name, calls.method), calls)
            for count, content in zip(calls.counts, answers, strict=True):
                read_vectors(calls.method, content, vectors, count)
            return to_response(calls, vectors)

    async def models(self) -> Sequence[Model]:
        """The models of `models.yaml`, and those that the operator added."""
        return [found.model for found in self._models.values()]

    async def check(self) -> str:
        """Whether project and credentials are there; the provider itself is not asked."""
        if not self._settings.project:
            return _NO_PROJECT
        return await self._tokens.check()

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.close()
        await self._storage.close()
        await self._tokens.close()

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch; see `Batcher`."""
        with _about(header.model):
            return await self._batches.create(header, self._model(header.model), items)

    async def get_batch(self, batch_id: str) -> Batch:
        """A batch; see `Batcher`."""
        with _about(""):
            return await self._batches.get(batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """Batches, newest first; see `Batcher`."""
        with _about(""):
            return await self._batches.list(request)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Asks to stop a batch; see `Batcher`."""
        with _about(""):
            return await self._batches.cancel(batch_id)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results of a batch that is over; see `Batcher`."""
        with _about(""):
            async with aclosing(self._batches.results(batch_id)) as some:
                async for results in some:
                    yield results

    def _api_at(self, url: str) -> Api:
        settings = self._settings
        wire = HttpWire(
            url,
            {"user-agent": "maestro-adapter-vertex"},
            to_error,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        return Api(wire, self._tokens)

    def _translate(self, request: ChatRequest) -> Outgoing:
        return to_wire(request, self._model(request.model))

    def _model(self, name: str) -> VertexModel:
        found = self._models.get(name)
        if found is None:
            raise NotFound(f"{self.name} has no model {name!r}; it has: {', '.join(self._models)}")
        return found

    def _path(self, model: str, method: str) -> str:
        if not self._settings.project:
            raise ProviderAuth(_NO_PROJECT)
        return f"{self._settings.parent}/publishers/google/models/{model}:{method}"

    async def _post(self, path: str, body: Mapping[str, Any]) -> bytes:
        return await self._api.post(path, orjson.dumps(body))

    async def _post_all(self, path: str, calls: EmbedCalls) -> Sequence[bytes]:
        """The answers to all calls, in order, so many at once; the first failure stops the others."""
        places = asyncio.Semaphore(self._settings.embed_concurrency)

        async def post(body: Mapping[str, Any]) -> bytes:
            async with places:
                return await self._post(path, body)

        if len(calls.bodies) == 1:
            return [await self._post(path, calls.bodies[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(post(body)) for body in calls.bodies]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]


_NO_PROJECT = "there is no Google Cloud project: set GOOGLE_CLOUD_PROJECT, or adapters.vertex.settings.project"


async def _next(chunks: AsyncIterator[bytes], answer: Stream) -> bytes | None:
    """The next bytes, None when there are no more.

    After the finish reason the answer is whole; what may follow is usage, and a server that neither sends it nor ends
    the stream is not waited for.
    """
    if not answer.stopped:
        return await anext(chunks, None)
    with suppress(TimeoutError, MaestroError):
        async with asyncio.timeout(LINGER):
            return await anext(chunks, None)
    return None


def _counted(content: bytes) -> int:
    try:
        counted = CountTokensResponse(input_tokens=orjson.loads(content)["totalTokens"]).input_tokens
        if counted < 0:
            raise ValueError("it is negative")
    except UNREADABLE as error:
        raise unreadable("count", error) from error
    return counted


@contextmanager
def _about(model: str) -> Generator[None]:
    """Adds provider and model to the facts of an error."""
    try:
        yield
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        if model:
            error.metadata.setdefault("model", model)
        raise
