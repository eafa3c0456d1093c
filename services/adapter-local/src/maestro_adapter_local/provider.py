"""The models of this machine behind one name: the offline model, embedders, and servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from importlib.resources import files
from pathlib import Path
from typing import TypeVar, cast

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_local.hashing import HashingEmbedder
from maestro_adapter_local.minilm.embedder import MiniLM
from maestro_adapter_local.models import PROVIDER
from maestro_adapter_local.offline.model import OfflineModel
from maestro_adapter_local.offline.script import load_script
from maestro_adapter_local.servers import Server
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.models import load_models
from maestro_sdk.errors import NotFound
from maestro_sdk.service.settings import AdapterConfig, Config

_log = logging.getLogger(__name__)

_MODELS = Path(str(files("maestro_adapter_local") / "models.yaml"))
_RECHECK = 5.0
"""Seconds after which servers are asked again when none of them answers and there is no offline model."""


class LocalProvider:
    """Sends a request to the backend that has its model.

    `local/offline` is the offline model, `local/hashing` the lexical embedder, `local/<model>` a model of a server.
    Where two backends have a model of one name, the first has it (the built-in models, then the servers in the order of
    the configuration); that of a later server is `local/<server>/<model>`. The models of a server that is down leave
    the list, but keep their names.
    """

    name = "adapter-local"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: LocalSettings) -> None:
        """Raises `ConfigError` for a script that is wrong."""
        self._offline_enabled = settings.offline.enabled
        self._servers = [Server(server) for server in settings.servers]
        self._places: dict[str, tuple[Server, str]] = {}
        self._looked = -_RECHECK
        offline = settings.offline
        script = load_script(offline.script) if offline.enabled and offline.script else None
        described = {model.name: model for model in load_models(_MODELS, PROVIDER)}
        self._offline = OfflineModel(described["offline"], offline.names, script, offline.pace)
        self._embedders: dict[str, HashingEmbedder | MiniLM] = {}
        if settings.hashing:
            self._embedders["hashing"] = HashingEmbedder(described["hashing"])
        if (own := settings.embedder) is not None:
            found = MiniLM(f"{PROVIDER}/{own.name}", own.path, own.batch)
            self._embedders[own.name] = found
            if found.problem:
                _log.warning("the embedder %s is not on offer: %s", own.name, found.problem)

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> LocalProvider:
        """The provider that a configuration asks for. Raises `ConfigError`."""
        return cls(adapter.settings_as(LocalSettings))

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        if self._is_offline(request):
            return self._offline.stream(request)
        return self._stream_from_server(request)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once."""
        if self._is_offline(request):
            return await self._offline.complete(request)
        server, model = await self._find(request.model)
        return _renamed(await server.caller(request, model).complete(_addressed(request, model)), request)

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`. Raises `Unimplemented` for models of servers that can't count."""
        if self._is_offline(request):
            return self._offline.count_tokens(request)
        server, model = await self._find(request.model)
        return await server.caller(request, model).count_tokens(_addressed(request, model))

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input, from the built-in embedder or the server that has the model."""
        embedder = self._embedders.get(request.model.removeprefix(f"{PROVIDER}/"))
        if embedder is not None:
            if embedder.problem:
                raise NotFound(f"{request.model} is not on offer: {embedder.problem}")
            return await embedder.embed(request)
        server, model = await self._find(request.model)
        return await server.embed(_addressed(request, model))

    async def models(self) -> Sequence[Model]:
        """The built-in models and those of all servers that answer now; one that is down never fails the rest."""
        await self._look()
        down = {server.name for server in self._servers if server.problem}
        found = list(self._offline.models.values()) if self._offline_enabled else []
        found += [embedder.model for embedder in self._embedders.values() if not embedder.problem]
        for name, (server, model) in self._places.items():
            if server.name not in down:
                described = Model()
                described.CopyFrom(server.models[model])
                described.id, described.name = f"{PROVIDER}/{name}", name
                found.append(described)
        return sorted(found, key=lambda model: model.id)

    async def check(self) -> str:
        """Why nothing can be answered: never while the offline model is enabled, else the problems of all servers."""
        if self._offline_enabled:
            return ""
        if all(server.problem for server in self._servers) and time.monotonic() - self._looked >= _RECHECK:
            await self._look()
        return "; ".join(self.problems()) if all(server.problem for server in self._servers) else ""

    def problems(self) -> list[str]:
        """What was wrong with each server that failed the last look, and with embedders."""
        found = [(server.name, server.problem) for server in self._servers]
        found += [(name, embedder.problem) for name, embedder in self._embedders.items()]
        return [f"{name}: {problem}" for name, problem in found if problem]

    async def close(self) -> None:
        """Closes all connections."""
        for server in self._servers:
            await server.close()

    def _is_offline(self, request: ChatRequest) -> bool:
        return self._offline_enabled and request.model.removeprefix(f"{PROVIDER}/") in self._offline.models

    async def _stream_from_server(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        server, model = await self._find(request.model)
        calls = cast(
            "AsyncGenerator[Sequence[ChatEvent]]", server.caller(request, model).stream(_addressed(request, model))
        )
        async with aclosing(calls) as batches:
            async for events in batches:
                yield _renamed(events, request)

    async def _find(self, name: str) -> tuple[Server, str]:
        plain = name.removeprefix(f"{PROVIDER}/")
        if plain not in self._places:
            await self._look()
        if plain not in self._places:
            raise NotFound(f"no server has the model {plain!r}" + "".join(f"; {text}" for text in self.problems()))
        return self._places[plain]

    async def _look(self) -> None:
        self._looked = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for server in self._servers:
                group.create_task(server.look())
        self._places = self._assign()

    def _assign(self) -> dict[str, tuple[Server, str]]:
        """The name of each model of each server. A server that is down keeps the names of its last look."""
        places: dict[str, tuple[Server, str]] = {}
        taken = set(self._embedders) | (set(self._offline.models) if self._offline_enabled else set[str]())
        for server in self._servers:
            for model in server.models:
                name = model if model not in taken else f"{server.name}/{model}"
                if name not in taken:
                    taken.add(name)
                    places[name] = (server, model)
        return places


Request = TypeVar("Request", ChatRequest, EmbedRequest)


def _addressed(request: Request, model: str) -> Request:
    """The request with the server's own name of the model."""
    if request.model == f"{PROVIDER}/{model}":
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.model = f"{PROVIDER}/{model}"
    return copy


def _renamed(events: Sequence[ChatEvent], request: ChatRequest) -> Sequence[ChatEvent]:
    """The events with the name under which the model was asked for."""
    if events and events[0].WhichOneof("kind") == "started":
        events[0].started.model = request.model.removeprefix(f"{PROVIDER}/")
    return events
