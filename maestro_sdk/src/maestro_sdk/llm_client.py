"""The client of callers for models: ask, stream, count, list, and let a model use the program's own functions.

    async with LLMClient(model="claude") as client:
        answer = await client.chat("Hello!")
        async with client.stream("Tell me a story.") as stream:
            async for piece in stream.text():
                print(piece, end="")

It speaks to a gateway or straight to an adapter: both serve the same contract. Failures are `maestro_sdk.errors`, never
gRPC's; `error.metadata["request_id"]` names the call in logs and traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    CountTokensResponse,
    StreamChatResponse,
)
from maestro.llm.v1.model_pb2 import ListModelsRequest, ListModelsResponse, Model
from maestro_sdk.adapter.fold import Fold
from maestro_sdk.connection import DEFAULT_TIMEOUT, Connection
from maestro_sdk.conversation import Conversation, RequestFields, chat_request
from maestro_sdk.errors import MaestroError
from maestro_sdk.event_stream import EventStream
from maestro_sdk.resumption import Resumption
from maestro_sdk.tool_loop import Function, ToolRun, run_tools

_CHAT = "/maestro.llm.v1.ChatService/Chat"
_STREAM_CHAT = "/maestro.llm.v1.ChatService/StreamChat"
_COUNT_TOKENS = "/maestro.llm.v1.ChatService/CountTokens"
_LIST_MODELS = "/maestro.llm.v1.ModelService/ListModels"


class ChatStream(EventStream[ChatEvent]):
    """A running answer: an asynchronous iterator of `ChatEvent`, ending after `finish` as `EventStream` tells."""

    def __init__(self, connection: Connection, request: ChatRequest, *, timeout: float | None, request_id: str) -> None:
        super().__init__(connection, _STREAM_CHAT, request, StreamChatResponse, timeout=timeout, request_id=request_id)
        self._fold = Fold()
        self._resumption = Resumption(connection, request, timeout, self.request_id) if request.resumable else None

    @property
    def complete(self) -> bool:
        """Whether `finish` was received."""
        return self._fold.finished

    def text(self) -> TextPieces:
        """The text alone, piece by piece. Raises what the stream raises."""
        return TextPieces(self)

    async def response(self) -> ChatResponse:
        """The whole answer, once it is complete: reads what is left, and equals what `chat` would have returned."""
        await self._drain()
        return self._fold.response()

    def _take(self, message: StreamChatResponse) -> Sequence[ChatEvent]:
        self._fold.feed(message.events)
        if self._resumption is not None:
            self._resumption.note(message)
        return message.events

    async def _go_on(self, failure: MaestroError) -> Any | None:
        return await self._resumption.go_on(failure) if self._resumption is not None else None


class TextPieces:
    """The text of a stream, never empty pieces. Closing it cancels the call; leaving a loop over it does not, while the
    stream is held.
    """

    def __init__(self, stream: ChatStream) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        async for event in self._stream:
            if event.text.text:
                return event.text.text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels the call, unless it has ended."""
        self._stream.cancel()


class LLMClient:
    """A client for one gateway or adapter; concurrent calls share one connection. Close it, or use it as a context
    manager.
    """

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        model: str = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """`target`: "http://host:port", "https://host" or "host:port"; without it MAESTRO_URL, else
        http://127.0.0.1:8080. `key`: without it MAESTRO_KEY. `model` is asked where a request names none. `timeout`:
        seconds for a whole answer, None for no limit. `roots`: PEM of the authorities to trust under https, instead
        of the public ones.
        """
        self._connection = Connection(target, key=key, timeout=timeout, roots=roots)
        self._model = model

    async def chat(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> ChatResponse:
        """The whole answer to a text, messages or a request. `timeout` in seconds, `math.inf` for none; without it the
        client's. `request_id` names the call in logs and traces; without it the client makes one.
        """
        request = self._request(messages, fields)
        return await self._connection.call(_CHAT, request, ChatResponse, timeout=timeout, request_id=request_id)

    def stream(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> ChatStream:
        """The answer as it comes; the call begins at once. Parameters as in `chat`.

        With `resumable=True` a stream whose connection or gateway is lost goes on where it was, by itself.
        """
        return ChatStream(self._connection, self._request(messages, fields), timeout=timeout, request_id=request_id)

    async def count_tokens(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> CountTokensResponse:
        """The number of tokens that the same request would send to the model. Parameters as in `chat`."""
        request = CountTokensRequest(request=self._request(messages, fields))
        return await self._connection.call(
            _COUNT_TOKENS, request, CountTokensResponse, timeout=timeout, request_id=request_id
        )

    async def models(self, *, timeout: float | None = None, request_id: str = "") -> list[Model]:
        """All models that this key may ask, with their features, windows and prices."""
        found: list[Model] = []
        request = ListModelsRequest(page_size=1000)
        while True:
            page = await self._connection.call(
                _LIST_MODELS, request, ListModelsResponse, timeout=timeout, request_id=request_id
            )
            found.extend(page.models)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def run_tools(
        self,
        messages: Conversation,
        functions: Mapping[str, Function],
        *,
        max_turns: int = 16,
        timeout: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> ToolRun:
        """Asks, runs the functions that the model calls, and asks again with their results, until it answers without
        calls.

        `functions` by the names in `tools`; each gets the call's arguments as keywords, may be asynchronous, and
        returns what `tool_result` takes; others run in threads of their own, calls of one answer side by side. What a
        function raises is told to the model as a failed call. `timeout` holds per answer. Raises `TurnsExhausted` when
        answer `max_turns` still calls.
        """
        return await run_tools(self, self._request(messages, fields), functions, max_turns=max_turns, timeout=timeout)

    async def close(self) -> None:
        """Closes the connection; calls that still run end with `Cancelled`."""
        await self._connection.close()

    def _request(self, messages: Conversation, fields: RequestFields) -> ChatRequest:
        request = chat_request(messages, **fields)
        request.model = request.model or self._model
        return request

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
