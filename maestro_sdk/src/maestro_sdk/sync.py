"""The clients for programs without `await`: the same calls, answers and errors as the asynchronous ones.

    with SyncLLMClient() as client:
        print(text_of(client.chat("Hello!")))
        for piece in client.stream("Tell me a story.").text():
            print(piece, end="")

They work in scripts, in threads (one client may serve many), and inside a running event loop, whose thread they block
until they answer. Ctrl-C during a call cancels it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from maestro.job.v1.job_pb2 import Job, JobResult, JobState
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, CountTokensResponse
from maestro.llm.v1.embedding_pb2 import EmbedResponse
from maestro.llm.v1.model_pb2 import Model
from maestro.tool.v1.tool_pb2 import ToolEvent, ToolResult, ToolSpec
from maestro_sdk.background import Closing, background
from maestro_sdk.batch import JobFields, JobItem, JobsClient
from maestro_sdk.connection import DEFAULT_TIMEOUT
from maestro_sdk.conversation import Conversation, RequestFields
from maestro_sdk.embeddings import EmbeddingClient, EmbedFields, EmbedInputs
from maestro_sdk.event_stream import EventStream
from maestro_sdk.llm_client import ChatStream, LLMClient
from maestro_sdk.tool_bridge import InvokeFields, ToolBridgeClient, ToolStream
from maestro_sdk.tool_loop import Function, ToolRun

T = TypeVar("T")
EventT = TypeVar("EventT")
ClientT = TypeVar("ClientT", bound=Closing)


class SyncEventStream(Generic[EventT]):
    """An iterator of events, and a context manager that cancels what is left. Ends as `EventStream` does; one thread
    reads at a time.
    """

    def __init__(self, stream: EventStream[EventT]) -> None:
        self._stream = stream
        self._waiting: deque[EventT] = deque()

    @property
    def request_id(self) -> str:
        """The name of the call in logs and traces."""
        return self._stream.request_id

    def close(self) -> None:
        """Cancels the call at once, unless it has ended. Further reads raise `Cancelled`."""
        self._waiting.clear()
        background().post(self._stream.cancel)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EventT:
        if not self._waiting:
            self._waiting.extend(background().run(_read(self._stream)))
            if not self._waiting:
                raise StopIteration
        return self._waiting.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncChatStream(SyncEventStream[ChatEvent]):
    """A running answer: an iterator of `ChatEvent`, ending after `finish`."""

    def __init__(self, stream: ChatStream) -> None:
        super().__init__(stream)
        self._chat = stream

    def text(self) -> SyncTextPieces:
        """The text alone, piece by piece. Raises what the stream raises."""
        return SyncTextPieces(self)

    def response(self) -> ChatResponse:
        """The whole answer, once it is complete: reads what is left, and equals what `chat` would have returned."""
        self._waiting.clear()
        return background().run(self._chat.response())


class SyncTextPieces:
    """The text of a stream, as `TextPieces`."""

    def __init__(self, stream: SyncChatStream) -> None:
        self._stream = stream

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        for event in self._stream:
            if event.text.text:
                return event.text.text
        raise StopIteration

    def close(self) -> None:
        """Cancels the call, unless it has ended."""
        self._stream.close()


class SyncToolStream(SyncEventStream[ToolEvent]):
    """A running tool: an iterator of `ToolEvent`, ending after `result`."""

    def __init__(self, stream: ToolStream) -> None:
        super().__init__(stream)
        self._tool = stream

    def result(self) -> ToolResult:
        """The result, once it is there: reads what is left."""
        self._waiting.clear()
        return background().run(self._tool.result())


class _SyncClient(Generic[ClientT]):
    def __init__(self, client: ClientT) -> None:
        self._client = client

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = background()
        loop.own(self._client)
        return loop.run(work)

    def close(self) -> None:
        """Closes the connection; calls that still run end with `Cancelled`."""
        self._run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncLLMClient(_SyncClient[LLMClient]):
    """`LLMClient` without `await`."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        model: str = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`."""
        super().__init__(LLMClient(target, key, model=model, timeout=timeout, roots=roots))

    def chat(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> ChatResponse:
        """As `LLMClient.chat`."""
        return self._run(self._client.chat(messages, timeout=timeout, request_id=request_id, **fields))

    def stream(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> SyncChatStream:
        """As `LLMClient.stream`. Leaving a loop over it and dropping it, or closing it, cancels the call."""

        async def open_stream() -> ChatStream:
            return self._client.stream(messages, timeout=timeout, request_id=request_id, **fields)

        return SyncChatStream(self._run(open_stream()))

    def count_tokens(
        self,
        messages: Conversation,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[RequestFields],
    ) -> CountTokensResponse:
        """As `LLMClient.count_tokens`."""
        return self._run(self._client.count_tokens(messages, timeout=timeout, request_id=request_id, **fields))

    def models(self, *, timeout: float | None = None, request_id: str = "") -> list[Model]:
        """As `LLMClient.models`."""
        return self._run(self._client.models(timeout=timeout, request_id=request_id))

    def run_tools(
        self,
        messages: Conversation,
        functions: Mapping[str, Function],
        *,
        max_turns: int = 16,
        timeout: float | None = None,
        **fields: Unpack[RequestFields],
    ) -> ToolRun:
        """As `LLMClient.run_tools`. Functions don't run in the caller's thread."""
        return self._run(self._client.run_tools(messages, functions, max_turns=max_turns, timeout=timeout, **fields))


class SyncEmbeddingClient(_SyncClient[EmbeddingClient]):
    """`EmbeddingClient` without `await`."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        model: str = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`."""
        super().__init__(EmbeddingClient(target, key, model=model, timeout=timeout, roots=roots))

    def embed(
        self,
        inputs: EmbedInputs,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[EmbedFields],
    ) -> EmbedResponse:
        """As `EmbeddingClient.embed`."""
        return self._run(self._client.embed(inputs, timeout=timeout, request_id=request_id, **fields))


class SyncToolBridgeClient(_SyncClient[ToolBridgeClient]):
    """`ToolBridgeClient` without `await`."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`."""
        super().__init__(ToolBridgeClient(target, key, timeout=timeout, roots=roots))

    def list(
        self,
        *,
        name_prefix: str = "",
        persona: str = "",
        skill: str = "",
        only_available: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Sequence[ToolSpec]:
        """As `ToolBridgeClient.list`."""
        listing = self._client.list(
            name_prefix=name_prefix,
            persona=persona,
            skill=skill,
            only_available=only_available,
            timeout=timeout,
            request_id=request_id,
        )
        return self._run(listing)

    def get(self, name: str, *, version: str = "", timeout: float | None = None, request_id: str = "") -> ToolSpec:
        """As `ToolBridgeClient.get`."""
        return self._run(self._client.get(name, version=version, timeout=timeout, request_id=request_id))

    def invoke(
        self,
        name: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[InvokeFields],
    ) -> ToolResult:
        """As `ToolBridgeClient.invoke`."""
        return self._run(self._client.invoke(name, arguments, timeout=timeout, request_id=request_id, **fields))

    def stream(
        self,
        name: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[InvokeFields],
    ) -> SyncToolStream:
        """As `ToolBridgeClient.stream`."""

        async def open_stream() -> ToolStream:
            return self._client.stream(name, arguments, timeout=timeout, request_id=request_id, **fields)

        return SyncToolStream(self._run(open_stream()))


class SyncJobsClient(_SyncClient[JobsClient]):
    """`JobsClient` without `await`."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `JobsClient`."""
        super().__init__(JobsClient(target, key, timeout=timeout, roots=roots))

    def create(
        self,
        items: Iterable[JobItem] | None = None,
        *,
        input_file_id: str = "",
        model: str = "",
        request_id: str = "",
        **fields: Unpack[JobFields],
    ) -> Job:
        """As `JobsClient.create`."""
        creating = self._client.create(items, input_file_id=input_file_id, model=model, request_id=request_id, **fields)
        return self._run(creating)

    def get(self, job_id: str) -> Job:
        """As `JobsClient.get`."""
        return self._run(self._client.get(job_id))

    def list(self, *states: JobState.ValueType) -> Sequence[Job]:
        """As `JobsClient.list`."""
        return self._run(self._client.list(*states))

    def cancel(self, job_id: str) -> Job:
        """As `JobsClient.cancel`."""
        return self._run(self._client.cancel(job_id))

    def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """As `JobsClient.wait`."""
        return self._run(self._client.wait(job_id, timeout))

    def results(self, job_id: str) -> Iterator[JobResult]:
        """As `JobsClient.results`."""
        results = self._client.results(job_id)
        try:
            while (result := self._run(_next(results))) is not None:
                yield result
        finally:
            self._run(results.aclose())


async def _next(results: AsyncGenerator[JobResult]) -> JobResult | None:
    return await anext(results, None)


async def _read(stream: EventStream[EventT]) -> Sequence[EventT]:
    return await stream.read()
