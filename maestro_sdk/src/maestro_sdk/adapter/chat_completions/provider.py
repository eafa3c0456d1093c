"""The calls of the chat-completions wire: one POST per answer, streamed or whole."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.adapter.chat_completions.answer import Stream
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.chat_completions.failure import to_error
from maestro_sdk.adapter.chat_completions.request import to_wire
from maestro_sdk.adapter.http import HttpWire, drain
from maestro_sdk.errors import MaestroError, ProviderAuth, StreamBroken

Authorize = Callable[[], Awaitable[Mapping[str, str]]]
"""Gives the headers that carry a key which changes from time to time."""


class ChatCompletionsProvider:
    """A `Provider` and `Completer` for one endpoint; its models, and what each understands, are given at the start."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        dialect: Dialect,
        models: Sequence[Model] = (),
        dialects: Mapping[str, Dialect] | None = None,
        headers: Mapping[str, str] | None = None,
        not_ready: str = "",
        path: str = "/chat/completions",
        paths: Mapping[str, str] | None = None,
        authorize: Authorize | None = None,
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
    ) -> None:
        """An endpoint whose answers come from `dialect.provider`.

        `dialects` and `paths` hold, by the name of the model, what differs from `dialect` and `path`; `headers` carry
        the key, or `authorize` makes those that do for each call; a text in `not_ready` says why no call can succeed
        and what to do, and refuses all of them. Timeouts in seconds: to connect, and between two reads.
        """
        self.name = name
        self.providers: Sequence[str] = (dialect.provider,)
        self._dialect = dialect
        self._dialects = dict(dialects or {})
        self._models = list(models)
        self._not_ready = not_ready
        self._path = path
        self._paths = dict(paths or {})
        self._authorize = authorize
        self._wire = HttpWire(
            base_url, headers or {}, self._to_error, connect_timeout=connect_timeout, read_timeout=read_timeout
        )

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers `request` piece by piece; see `Provider.stream`."""
        model, dialect = self._prepare(request)
        try:
            wire = to_wire(request, dialect, stream=True)
            stream = Stream(dialect, model, warnings=wire.warnings, fallback_id=_new_id(), tool_names=wire.tool_names)
            headers = await self._authorize() if self._authorize else None
            async with self._wire.stream(self._path_of(model), wire.encode(), headers, stream.hear) as chunks:
                async for chunk in chunks:
                    if events := stream.feed(chunk):
                        yield events
                    if stream.finished:
                        break
                else:
                    yield stream.end()
                await drain(chunks)
        except MaestroError as error:
            self._locate(error, model)
            raise

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers `request` at once, with the events that `stream` would yield."""
        model, dialect = self._prepare(request)
        try:
            wire = to_wire(request, dialect)
            stream = Stream(dialect, model, warnings=wire.warnings, fallback_id=_new_id(), tool_names=wire.tool_names)
            headers = await self._authorize() if self._authorize else None
            return stream.whole(await self._wire.post(self._path_of(model), wire.encode(), headers, stream.hear))
        except MaestroError as error:
            self._locate(error, model)
            raise

    async def models(self) -> Sequence[Model]:
        """The models that were given at the start."""
        return self._models

    async def served(self) -> list[str]:
        """The models that the server lists, sorted by name. Raises a `MaestroError` when it can't be asked."""
        body = await self._wire.get("/models", await self._authorize() if self._authorize else None)
        try:
            return sorted(str(entry["id"]) for entry in orjson.loads(body)["data"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StreamBroken(f"{self._dialect.provider} did not list its models: {error!r}") from error

    async def check(self) -> str:
        """Why no call can succeed and what to do about it; empty when nothing is known against it."""
        return self._not_ready

    async def close(self) -> None:
        """Closes all connections."""
        await self._wire.close()

    def _prepare(self, request: ChatRequest) -> tuple[str, Dialect]:
        self._check_ready()
        model = request.model.removeprefix(f"{self._dialect.provider}/")
        return model, self._dialects.get(model, self._dialect)

    def _check_ready(self) -> None:
        """Raises `ProviderAuth` when no call can succeed."""
        if self._not_ready:
            raise ProviderAuth(self._not_ready, metadata={"provider": self._dialect.provider})

    def _path_of(self, model: str) -> str:
        return self._paths.get(model, self._path)

    def _to_error(self, status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
        return to_error(status, body, headers, self._dialect.provider)

    def _locate(self, error: MaestroError, model: str) -> None:
        error.metadata.setdefault("provider", self._dialect.provider)
        error.metadata.setdefault("model", model)


def _new_id() -> str:
    return f"chatcmpl_{os.urandom(12).hex()}"
