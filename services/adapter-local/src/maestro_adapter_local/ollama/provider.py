"""One Ollama server: which models it has, what they can do, and the calls."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import contextmanager

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_local.models import PROVIDER, Knowledge, Served
from maestro_adapter_local.ollama.answer import Stream, to_embeddings, to_events
from maestro_adapter_local.ollama.discovery import Tag, read_show, read_tags
from maestro_adapter_local.ollama.failure import to_error
from maestro_adapter_local.ollama.request import Defaults, Facts, to_embed_wire, to_wire
from maestro_adapter_local.settings import ServerSettings
from maestro_sdk.adapter.http import HttpWire, drain
from maestro_sdk.errors import MaestroError, Unimplemented

CHAT, EMBED, TAGS, SHOW = "/api/chat", "/api/embed", "/api/tags", "/api/show"
_AT_ONCE = 4
"""How many models are asked for at a time."""


class OllamaServer:
    """A `Provider`, `Completer` and `Embedder` for one server; its models are those of the last `refresh`."""

    name = "adapter-local"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: ServerSettings, knowledge: Knowledge, headers: Mapping[str, str]) -> None:
        """`headers` carry the key, where there is one."""
        self._knowledge = knowledge
        self._server = settings.name
        self._num_ctx = settings.num_ctx
        self._patience = settings.list_timeout * 2
        options = dict(settings.options)
        if settings.num_ctx:
            options["num_ctx"] = settings.num_ctx
        self._defaults = Defaults(settings.keep_alive, options)
        self._facts: dict[str, Facts] = {}
        self._shown: dict[tuple[str, str], Served] = {}
        self._wire = HttpWire(
            settings.base_url,
            headers,
            to_error,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        self._listing = HttpWire(
            settings.base_url,
            headers,
            to_error,
            connect_timeout=settings.list_timeout,
            read_timeout=settings.list_timeout,
        )

    async def refresh(self) -> list[Model]:
        """Asks the server for its models. Raises a `MaestroError`, or `ValueError` for a list that can't be read."""
        tags = read_tags(await self._listing.get(TAGS))
        gate = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._show(tag, gate)) for tag in tags]
            # However many models there are, the list does not wait for a server that is too busy to show them.
            late = (await asyncio.wait(tasks, timeout=self._patience))[1] if tasks else set[asyncio.Task[Served]]()
            for task in late:
                task.cancel()
        served = [
            Served(tag.name, family=tag.family) if task.cancelled() else task.result()
            for tag, task in zip(tags, tasks, strict=True)
        ]
        self._facts = {
            entry.name: Facts(self._knowledge.describe(entry), self._knowledge.think_levels(entry)) for entry in served
        }
        return [facts.model for facts in self._facts.values()]

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        with _about(request.model):
            outgoing = to_wire(request, self._of(request.model), self._defaults)
            answer = Stream(outgoing, _new_id())
            async with self._wire.stream(CHAT, orjson.dumps({**outgoing.body, "stream": True})) as chunks:
                async for chunk in chunks:
                    if events := answer.feed(chunk):
                        yield events
                    if answer.failure is not None:
                        raise answer.failure
                    if answer.finished:
                        break
                else:
                    if events := answer.end():
                        yield events
                await drain(chunks)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, with the events that `stream` would yield."""
        with _about(request.model):
            outgoing = to_wire(request, self._of(request.model), self._defaults)
            body = await self._wire.post(CHAT, orjson.dumps({**outgoing.body, "stream": False}))
            return to_events(body, outgoing, _new_id())

    async def count_tokens(self, request: ChatRequest) -> int:
        """Raises `Unimplemented`: Ollama counts no tokens ahead of an answer."""
        raise Unimplemented(f"the server {self._server} can't count tokens")

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per text, in their order; Ollama takes lists of any length."""
        with _about(request.model):
            outgoing = to_embed_wire(request, self._defaults)
            return to_embeddings(await self._wire.post(EMBED, orjson.dumps(outgoing.body)), outgoing)

    async def models(self) -> Sequence[Model]:
        """The models of the last `refresh`."""
        return [facts.model for facts in self._facts.values()]

    async def check(self) -> str:
        """Empty: whether the server answers is told by `refresh`."""
        return ""

    async def close(self) -> None:
        """Closes all connections."""
        await self._wire.close()
        await self._listing.close()

    def _of(self, model: str) -> Facts:
        name = model.removeprefix(f"{PROVIDER}/")
        return self._facts.get(name) or Facts(self._knowledge.describe(Served(name)))

    async def _show(self, tag: Tag, gate: asyncio.Semaphore) -> Served:
        """The facts of one model: asked for once per digest. One that the server won't show has the basic features."""
        known = self._shown.get((tag.name, tag.digest))
        if known is not None:
            return known
        try:
            async with gate:
                body = await self._listing.post(SHOW, orjson.dumps({"model": tag.name}))
            served = read_show(body, tag, self._num_ctx)
        except (MaestroError, ValueError):
            return Served(tag.name, family=tag.family)
        self._shown[tag.name, tag.digest] = served
        return served


@contextmanager
def _about(model: str) -> Generator[None]:
    """Adds provider and model to the facts of an error."""
    try:
        yield
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        error.metadata.setdefault("model", model.removeprefix(f"{PROVIDER}/"))
        raise


def _new_id() -> str:
    return f"ollama_{os.urandom(12).hex()}"
