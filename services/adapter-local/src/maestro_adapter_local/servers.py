"""One server: whether it answers, the models that it offers, and who makes the calls for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ToolChoiceMode
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro_adapter_local.compatible import CompatibleServer
from maestro_adapter_local.models import Knowledge
from maestro_adapter_local.ollama import OllamaServer
from maestro_adapter_local.settings import ServerSettings
from maestro_sdk.adapter.models import support_of
from maestro_sdk.adapter.polyfill import Polyfilled
from maestro_sdk.adapter.provider import Provider
from maestro_sdk.errors import MaestroError

_log = logging.getLogger(__name__)

_PATIENCE = 3
"""A whole look may take so many times `list_timeout`: the list, and what Ollama shows of each model."""
POLYFILLS = frozenset({"TOOLS", "TOOL_CHOICE", "JSON_SCHEMA"})
"""What polyfills make. A model whose `without` names one of them is served as it is."""


_TOOLS = frozenset({Feature.FEATURE_TOOLS, Feature.FEATURE_PARALLEL_TOOLS, Feature.FEATURE_TOOL_CHOICE})


class Caller(Provider, Protocol):
    """What makes the calls for a model: as `Provider` and `Completer`."""

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once."""
        ...

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`. Raises `Unimplemented` where nobody counts."""
        ...


class Backend(Caller, Protocol):
    """A server behind its wire."""

    async def refresh(self) -> list[Model]:
        """Asks the server for its models. Raises a `MaestroError`, or `ValueError` for a list that can't be read."""
        ...

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input."""
        ...


class WithoutTools:
    """A backend whose models have no tools of their own, for requests in which those are of no use."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.name = backend.name
        self.providers = backend.providers

    async def models(self) -> Sequence[Model]:
        """The models of the backend, without TOOLS and what belongs to it."""
        models: list[Model] = []
        for model in await self._backend.models():
            copy = Model()
            copy.CopyFrom(model)
            del copy.features[:]
            copy.features.extend(entry for entry in model.features if entry.feature not in _TOOLS)
            models.append(copy)
        return models

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """What the backend answers."""
        return self._backend.stream(request)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """What the backend answers, at once."""
        return await self._backend.complete(request)

    async def count_tokens(self, request: ChatRequest) -> int:
        """What the backend counts."""
        return await self._backend.count_tokens(request)

    async def check(self) -> str:
        """What the backend says."""
        return await self._backend.check()

    async def close(self) -> None:
        """Closes the backend."""
        await self._backend.close()


class Server:
    """The connection to one server. `models` are of the last look that succeeded, `problem` is why the last failed."""

    def __init__(self, settings: ServerSettings) -> None:
        self.name = settings.name
        self.models: dict[str, Model] = {}
        """By the server's own name."""
        self.problem = "it was not asked yet"
        self._settings = settings
        self._knowledge = Knowledge(settings)
        key = settings.api_key.get() if settings.api_key else None
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._backend = _connect(settings, self._knowledge, headers)
        # Whether a server can hold an answer to a schema may differ between its models.
        self._polyfilled = {constrained: Polyfilled(self._backend, constrained) for constrained in (False, True)}
        self._writing = Polyfilled(WithoutTools(self._backend), constrained=True)
        self._callers: dict[str, Caller] = {}

    async def look(self) -> None:
        """Asks the server for its models. When it fails, the last ones stay in mind and `problem` says why."""
        try:
            # Each read has a bound of its own; a server that sends a byte now and then keeps within it forever.
            async with asyncio.timeout(self._settings.list_timeout * _PATIENCE):
                found = await self._backend.refresh()
            listed = {flag: await each.models() for flag, each in self._polyfilled.items()}
            await self._writing.models()
        except MaestroError as error:
            self._note(error.message)
        except ValueError as error:
            self._note(f"its list of models can't be read: {error}")
        except TimeoutError:
            self._note(f"it did not tell its models within {self._settings.list_timeout * _PATIENCE:g} s")
        else:
            self._note("" if found else "it lists no models")
            self.models, self._callers = {}, {}
            for place, model in enumerate(found):
                constrained = support_of(model, Feature.FEATURE_JSON_SCHEMA) == Support.SUPPORT_NATIVE
                plain = not self._settings.polyfill or self._knowledge.without(model.name) & POLYFILLS
                self.models[model.name] = model if plain else listed[constrained][place]
                self._callers[model.name] = self._backend if plain else self._polyfilled[constrained]

    def caller(self, request: ChatRequest, model: str) -> Caller:
        """What makes the calls of `request` for the server's model `model`."""
        caller = self._callers.get(model, self._backend)
        if caller is self._polyfilled[True] and self._settings.api == "ollama" and _wants_calls_and_form(request):
            # With `format`, Ollama holds the model to it from the first token on: it could never call a tool.
            return self._writing
        return caller

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """The vectors of a model of this server."""
        return await self._backend.embed(request)

    async def close(self) -> None:
        """Closes all connections."""
        await self._backend.close()

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("server %s at %s has no models on offer: %s", self.name, self._settings.base_url, problem)
        elif self.problem and not problem:
            _log.info("server %s at %s answers", self.name, self._settings.base_url)
        self.problem = problem


def _wants_calls_and_form(request: ChatRequest) -> bool:
    wants_calls = request.tools and request.tool_choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    return bool(wants_calls) and request.response_format.WhichOneof("kind") in {"json", "json_schema"}


def _connect(settings: ServerSettings, knowledge: Knowledge, headers: Mapping[str, str]) -> Backend:
    if settings.api == "ollama":
        return OllamaServer(settings, knowledge, headers)
    return CompatibleServer(settings, knowledge, headers)
