"""One OpenAI-compatible server: which models it has, what they can do by default, and the calls."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_adapter_local.settings import ModelSettings, ServerSettings
from maestro_sdk.adapter.chat_completions import ChatCompletionsProvider, Dialect, to_error
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.errors import MaestroError

_log = logging.getLogger(__name__)

PROVIDER = "local"
BASIC_FEATURES = ("CHAT", "STREAMING", "SYSTEM_PROMPT", "TEMPERATURE", "STOP_SEQUENCES", "SEED")
"""What is claimed of an unknown model. Tools, schemas and images depend on the model: the configuration tells."""
# Where servers tell how much fits into a call: vLLM and SGLang, LM Studio, OpenRouter and others.
_WINDOW_FIELDS = ("max_model_len", "max_context_length", "context_length", "context_window")
_ANY = ModelSettings(match="*")


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the server lists it."""

    name: str
    context_window: int | None


def read_listing(body: bytes) -> list[Served]:
    """The models of an answer to `GET /models`, by name. Raises `ValueError` for anything that is no such answer."""
    document: Any = orjson.loads(body)
    entries: Any = cast("dict[str, Any]", document).get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the answer has no list `data`")
    found: dict[str, Served] = {}
    for entry in cast("list[Any]", entries):
        fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        name = fields.get("id")
        if isinstance(name, str) and name:
            found[name] = Served(name, _window(fields))
    return [found[name] for name in sorted(found)]


def describe(served: Served, server: ServerSettings, known: ModelSettings) -> Model:
    """The model as the contract describes it; `known` is what the configuration says of it."""
    names = dict.fromkeys((*BASIC_FEATURES, *server.features, *known.features))
    without = {*server.without, *known.without}
    model = Model(
        id=f"{PROVIDER}/{served.name}",
        provider=PROVIDER,
        name=served.name,
        family=known.family,
        tags=known.tags,
        description=f"Served by {server.name}",
        features=[
            FeatureSupport(feature=Feature.Value(f"FEATURE_{name}"), support=Support.SUPPORT_NATIVE)
            for name in names
            if name not in without
        ],
    )
    window = known.context_window or served.context_window
    if window:
        model.context_window = window
    if known.max_output_tokens:
        model.max_output_tokens = known.max_output_tokens
    return model


class Server:
    """The connection to one server. `models` are of the last look that succeeded, `problem` is why the last failed."""

    def __init__(self, settings: ServerSettings) -> None:
        self.name = settings.name
        self.models: list[Model] = []
        self.problem = "it was not asked yet"
        self._settings = settings
        self._known = (*settings.models, _ANY)
        self._listing = HttpWire(
            settings.base_url,
            self._headers(),
            lambda status, body, headers: to_error(status, body, headers, PROVIDER),
            connect_timeout=settings.list_timeout,
            read_timeout=settings.list_timeout,
        )
        # One per entry of the configuration: what a model understands decides what may be sent to it.
        self._callers: list[ChatCompletionsProvider] = [self._caller(known) for known in self._known]

    async def look(self) -> None:
        """Asks the server for its models. When it fails, the last ones stay in mind and `problem` says why."""
        try:
            listed = read_listing(await self._listing.get("/models"))
        except MaestroError as error:
            self._note(error.message)
        except ValueError as error:
            self._note(f"its list of models can't be read: {error}")
        else:
            self._note("" if listed else "it lists no models")
            self.models = [describe(served, self._settings, self._known[self._entry(served.name)]) for served in listed]

    def caller(self, model: str) -> ChatCompletionsProvider:
        """What makes the calls for the server's model `model`."""
        return self._callers[self._entry(model)]

    async def close(self) -> None:
        """Closes all connections."""
        await self._listing.close()
        for caller in self._callers:
            await caller.close()

    def _caller(self, known: ModelSettings) -> ChatCompletionsProvider:
        model = describe(Served("model", None), self._settings, known)
        return ChatCompletionsProvider(
            name="adapter-local",
            base_url=self._settings.base_url,
            dialect=Dialect(provider=PROVIDER).for_model(model),
            headers=self._headers(),
            connect_timeout=self._settings.connect_timeout,
            read_timeout=self._settings.read_timeout,
        )

    def _headers(self) -> Mapping[str, str]:
        key = self._settings.api_key.get() if self._settings.api_key else None
        return {"authorization": f"Bearer {key}"} if key else {}

    def _entry(self, model: str) -> int:
        return next(place for place, known in enumerate(self._known) if fnmatch.fnmatchcase(model, known.match))

    def _note(self, problem: str) -> None:
        if problem and problem != self.problem:
            _log.warning("server %s at %s has no models on offer: %s", self.name, self._settings.base_url, problem)
        elif self.problem and not problem:
            _log.info("server %s at %s answers", self.name, self._settings.base_url)
        self.problem = problem


def _window(entry: Mapping[str, Any]) -> int | None:
    for field in _WINDOW_FIELDS:
        value = entry.get(field)
        if isinstance(value, int) and value > 0:
            return min(value, 2**31 - 1)
    return None
