"""Claude as a source of answers: one POST to `/v1/messages` per request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import contextmanager

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_claude import models
from maestro_adapter_claude.models import PROVIDER, ClaudeModel
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_adapter_claude.translate import Outgoing, Stream, to_error, to_events, to_wire
from maestro_sdk.adapter.http import HttpWire, drain
from maestro_sdk.errors import MaestroError, NotFound, ProviderAuth
from maestro_sdk.service.settings import AdapterConfig, Config

PATH = "/v1/messages"


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

    @classmethod
    def from_config(cls, config: Config, adapter: AdapterConfig) -> ClaudeProvider:
        """The provider that `adapters.claude` of the configuration describes. Raises `ConfigError`."""
        return cls(adapter.settings_as(ClaudeSettings))

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        outgoing = self._translate(request)
        body = orjson.dumps({**outgoing.body, "stream": True})
        answer = Stream(outgoing)
        with _about(request.model):
            async with self._wire.stream(PATH, body, self._headers(outgoing)) as chunks:
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
        with _about(request.model):
            content = await self._wire.post(PATH, orjson.dumps(outgoing.body), self._headers(outgoing))
            return to_events(content, outgoing)

    async def models(self) -> Sequence[Model]:
        """The models of `models.yaml`, and those that the operator added."""
        return [found.model for found in self._models.values()]

    async def check(self) -> str:
        """Whether there is a key; the provider itself is not asked, since that would cost its rate limits."""
        return "" if self._settings.api_key.get() else self._missing_key()

    async def close(self) -> None:
        """Closes all connections."""
        await self._wire.close()

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
            raise ProviderAuth(self._missing_key())
        # The provider's SDK sends the key as a bearer token since API version 2026-10-21.
        headers = {"authorization": f"Bearer {key}"}
        if betas := (*self._settings.betas, *outgoing.betas):
            headers["anthropic-beta"] = ",".join(betas)
        return headers

    def _missing_key(self) -> str:
        secret = self._settings.api_key
        if secret.env:
            return f"there is no API key: set {secret.env} to a key of the Claude console"
        return f"there is no API key: {secret.file} is missing or empty"


@contextmanager
def _about(model: str) -> Generator[None]:
    """Adds provider and model to the facts of an error."""
    try:
        yield
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        error.metadata.setdefault("model", model)
        raise
