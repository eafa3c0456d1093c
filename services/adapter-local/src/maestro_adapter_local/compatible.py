"""One server that speaks OpenAI's wire, vLLM among them: which models it has, and the calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_local.models import BASIC_FEATURES, PROVIDER, Knowledge, Served
from maestro_adapter_local.settings import ServerSettings
from maestro_sdk.adapter.chat_completions import ChatCompletionsProvider, Dialect, to_error, to_wire
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.adapter.openai_embeddings import EmbeddingDialect, Embeddings
from maestro_sdk.errors import MaestroError, StreamBroken, Unimplemented

TOKENIZE = "/tokenize"
VLLM_FEATURES = (*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "TOKEN_COUNTING")
"""What vLLM does itself, whatever the model; whether tools are called natively depends on how it was started.
PREFILL comes with models that do not reason."""
# Where servers tell how much fits into a call: vLLM and SGLang, LM Studio, OpenRouter and others.
_WINDOW_FIELDS = ("max_model_len", "max_context_length", "context_length", "context_window")
_MANY = 1000
_COUNTED = (
    *("model", "messages", "tools", "chat_template_kwargs", "add_special_tokens"),
    *("add_generation_prompt", "continue_final_message"),
)
_DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(provider=PROVIDER),
    "vllm": Dialect(
        provider=PROVIDER,
        max_tokens="max_completion_tokens",
        stop_limit=_MANY,
        reasoning_fields=("reasoning", "reasoning_content"),
        continue_final=True,
    ),
}


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


class CompatibleServer:
    """A `Provider`, `Completer`, `TokenCounter` and `Embedder` for one server; its models are those of `refresh`."""

    name = "adapter-local"
    providers: Sequence[str] = (PROVIDER,)

    def __init__(self, settings: ServerSettings, knowledge: Knowledge, headers: Mapping[str, str]) -> None:
        """`headers` carry the key, where there is one."""
        self._settings = settings
        self._knowledge = knowledge
        self._models: list[Model] = []
        self._listing = self._open(settings.base_url, headers, settings.list_timeout, settings.list_timeout)
        self._calls = self._open(settings.base_url, headers, settings.connect_timeout, settings.read_timeout)
        # vLLM counts tokens beside /v1, not below it.
        root = settings.base_url.removesuffix("/v1")
        self._root = self._open(root, headers, settings.connect_timeout, settings.read_timeout)
        self._embeddings = Embeddings(self._calls)
        # One per entry of the configuration: what a model understands decides what may be sent to it.
        self._dialects = [
            _DIALECTS[settings.api].for_model(knowledge.describe(Served("model", None, self._told(place)), place))
            for place in range(len(knowledge.entries))
        ]
        self._callers = [
            ChatCompletionsProvider(
                name=self.name,
                base_url=settings.base_url,
                dialect=dialect,
                headers=headers,
                connect_timeout=settings.connect_timeout,
                read_timeout=settings.read_timeout,
            )
            for dialect in self._dialects
        ]

    async def refresh(self) -> list[Model]:
        """Asks the server for its models. Raises a `MaestroError`, or `ValueError` for a list that can't be read."""
        listed = read_listing(await self._listing.get("/models"))
        self._models = [
            self._knowledge.describe(replace(served, features=self._told(self._knowledge.place(served.name))))
            for served in listed
        ]
        return self._models

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers piece by piece; see `Provider.stream`."""
        return self._callers[self._place(request.model)].stream(request)

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, with the events that `stream` would yield."""
        return await self._callers[self._place(request.model)].complete(request)

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`, as vLLM counts them. Raises `Unimplemented` for other servers."""
        if self._settings.api != "vllm":
            raise Unimplemented(f"the server {self._settings.name} can't count tokens")
        body = to_wire(request, self._dialects[self._place(request.model)]).body
        counted = {name: body[name] for name in _COUNTED if name in body}
        answer = await self._root.post(TOKENIZE, orjson.dumps({"add_generation_prompt": True, **counted}))
        try:
            return int(orjson.loads(answer)["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise StreamBroken(f"the server {self._settings.name} did not count tokens: {error!r}") from error

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per input; see `Embedder.embed`."""
        return await self._embeddings.embed(request, EmbeddingDialect(provider=PROVIDER))

    async def models(self) -> Sequence[Model]:
        """The models of the last `refresh`."""
        return self._models

    async def check(self) -> str:
        """Empty: whether the server answers is told by `refresh`."""
        return ""

    async def close(self) -> None:
        """Closes all connections."""
        for opened in (self._listing, self._calls, self._root, *self._callers):
            await opened.close()

    def _told(self, place: int) -> Sequence[str] | None:
        """What the server can do for models of that entry; None where it does not say."""
        if self._settings.api != "vllm":
            return None
        # A parser for reasoning that finds no end of it, since it came before, may take all the text for reasoning.
        named = (*self._settings.features, *self._knowledge.entries[place].features)
        return VLLM_FEATURES if "REASONING" in named else (*VLLM_FEATURES, "PREFILL")

    def _place(self, model: str) -> int:
        return self._knowledge.place(model.removeprefix(f"{PROVIDER}/"))

    @staticmethod
    def _open(url: str, headers: Mapping[str, str], connect: float, read: float) -> HttpWire:
        return HttpWire(url, headers, _error, connect_timeout=connect, read_timeout=read)


def _error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    return to_error(status, body, headers, PROVIDER)


def _window(entry: Mapping[str, Any]) -> int | None:
    for field in _WINDOW_FIELDS:
        value = entry.get(field)
        if isinstance(value, int) and value > 1:  # true is an int to Python, and no window
            return min(value, 2**31 - 1)
    return None
