"""Bedrock as a source of answers: one signed POST to `/model/<id>/converse` or `…/converse-stream` per request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

import orjson

from maestro.llm.v1.batch_pb2 import Batch, BatchHeader, BatchItem, BatchItemResult, ListBatchesRequest
from maestro.llm.v1.batch_pb2 import ListBatchesResponse as BatchPage
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, CountTokensResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_bedrock import models
from maestro_adapter_bedrock.access import Access
from maestro_adapter_bedrock.batches import Batches
from maestro_adapter_bedrock.embedding import Vectors, join_vectors, to_embed_wire, to_vectors
from maestro_adapter_bedrock.failure import UNREADABLE, unreadable
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel, path_of
from maestro_adapter_bedrock.runtime import Heard, Runtime
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_adapter_bedrock.translate import Outgoing, Stream, to_events, to_wire
from maestro_sdk.adapter.http import drain
from maestro_sdk.errors import CapabilityUnavailable, MaestroError, NotFound
from maestro_sdk.service.settings import AdapterConfig, Config

_COUNTED = ("messages", "system", "toolConfig", "additionalModelRequestFields")


class BedrockProvider:
    """Speaks to Bedrock's runtime in one region."""

    name: str = "adapter-bedrock"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: BedrockSettings) -> None:
        self._settings = settings
        self._models = models.load(settings.models, batches=settings.batch.complete)
        self._access = Access(settings)
        self._batches = Batches(settings, self._access, self._models)
        self._runtime: Runtime | None = None

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> BedrockProvider:
        """The provider that `adapters.bedrock` of the configuration describes. Raises `ConfigError`."""
        return cls(adapter.settings_as(BedrockSettings))

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        outgoing = to_wire(request, self._model(request.model))
        if not outgoing.streams:
            # The model can't stream what is asked for: its answer comes at once.
            yield await self._complete(outgoing)
            return
        with self._about(outgoing.model):
            runtime = await self._open()
            body, path, heard = orjson.dumps(outgoing.body), f"{outgoing.path}/converse-stream", Heard()
            async with runtime.open(path, body, heard) as chunks:
                answer = Stream(outgoing, heard.response_id)
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
            if last := answer.end():
                yield last

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, through the unary endpoint; see `Completer`."""
        return await self._complete(to_wire(request, self._model(request.model)))

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens, as Bedrock counts them. Raises `CapabilityUnavailable` where it does not."""
        model = self._model(request.model)
        if not model.has(Feature.FEATURE_TOKEN_COUNTING):
            raise CapabilityUnavailable(f"Bedrock does not count the tokens of {request.model}")
        outgoing = to_wire(request, model)
        counted = {name: value for name, value in outgoing.body.items() if name in _COUNTED}
        with self._about(outgoing.model):
            # Counting takes a model's own id, never that of a profile.
            path = f"{path_of(model.lineage)}/count-tokens"
            return _counted(await (await self._open()).post(path, {"input": {"converse": counted}}))

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input; see `Embedder`. Several calls run at once, as many as the settings allow."""
        model = self._model(request.model)
        plan = to_embed_wire(request, model)
        with self._about(model.name):
            runtime, room = await self._open(), asyncio.Semaphore(self._settings.embed_concurrency)
            first = Heard()

            async def call(number: int, body: Mapping[str, Any], count: int) -> Vectors:
                async with room:
                    heard = Heard() if number else first
                    return to_vectors(await runtime.post(plan.path, body, heard), count, heard.headers)

            try:
                async with asyncio.TaskGroup() as group:
                    calls = [group.create_task(call(n, *planned)) for n, planned in enumerate(plan.calls)]
            except BaseExceptionGroup as errors:
                # The first failure cancelled all others; it is the answer.
                raise errors.exceptions[0] from None
            return join_vectors([made.result() for made in calls], plan, first.response_id)

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch; see `Batcher`."""
        return await self._batches.create(header, items)

    async def get_batch(self, batch_id: str) -> Batch:
        """A batch."""
        return await self._batches.get(batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> BatchPage:
        """Batches, newest first."""
        return await self._batches.list(request)

    async def cancel_batch(self, batch_id: str) -> Batch:
        """Asks to stop a batch."""
        return await self._batches.cancel(batch_id)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results of a batch that is over."""
        async with aclosing(self._batches.results(batch_id)) as results:
            async for some in results:
                yield some

    async def models(self) -> Sequence[Model]:
        """The models of `models.yaml`, and those that the operator added."""
        return [found.model for found in self._models.values()]

    async def check(self) -> str:
        """Whether there are a region and credentials; Bedrock itself is not asked, since that would cost its limits."""
        return await self._access.check()

    async def close(self) -> None:
        """Closes all connections."""
        if self._runtime is not None:
            await self._runtime.wire.close()

    async def _complete(self, outgoing: Outgoing) -> Sequence[ChatEvent]:
        with self._about(outgoing.model):
            heard = Heard()
            content = await (await self._open()).post(f"{outgoing.path}/converse", _unary(outgoing.body), heard)
            return to_events(content, outgoing, heard.response_id)

    def _model(self, name: str) -> BedrockModel:
        found = self._models.get(name)
        if found is None:
            raise NotFound(
                f"{self.name} has no model {name!r}; any model of Bedrock can be added to its settings. "
                f"It has: {', '.join(self._models)}"
            )
        return found

    async def _open(self) -> Runtime:
        if self._runtime is None:
            settings = self._settings
            base_url = settings.base_url or f"https://bedrock-runtime.{await self._access.region()}.amazonaws.com"
            # Another call may have been faster.
            self._runtime = self._runtime or Runtime(base_url, self._access, settings)
        return self._runtime

    @staticmethod
    @contextmanager
    def _about(model: str) -> Generator[None]:
        """Adds provider and model to the facts of an error."""
        try:
            yield
        except MaestroError as error:
            error.metadata.setdefault("provider", PROVIDER)
            error.metadata.setdefault("model", f"{PROVIDER}/{model}")
            raise


def _unary(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body without what only streams know."""
    guardrail: Any = body.get("guardrailConfig")
    if not isinstance(guardrail, dict) or "streamProcessingMode" not in guardrail:
        return body
    plain = cast("dict[str, Any]", guardrail)
    return {**body, "guardrailConfig": {name: plain[name] for name in plain if name != "streamProcessingMode"}}


def _counted(content: bytes) -> int:
    try:
        counted = CountTokensResponse(input_tokens=orjson.loads(content)["inputTokens"]).input_tokens
        if counted < 0:
            raise ValueError("it is negative")
    except UNREADABLE as error:
        raise unreadable("count", error) from error
    return counted
