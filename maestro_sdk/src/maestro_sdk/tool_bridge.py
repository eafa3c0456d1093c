"""The client of callers for the tools of the mesh: list them, run them, and offer them to a model. Conventions as in
`llm_client`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from maestro.llm.v1.chat_pb2 import Tool
from maestro.tool.v1.tool_pb2 import (
    GetToolRequest,
    InvokeToolRequest,
    InvokeToolResponse,
    ListToolsRequest,
    ListToolsResponse,
    StreamInvokeToolResponse,
    ToolEvent,
    ToolResult,
    ToolSpec,
)
from maestro_sdk.connection import DEFAULT_TIMEOUT, Connection
from maestro_sdk.errors import StreamBroken
from maestro_sdk.event_stream import EventStream

_LIST = "/maestro.tool.v1.ToolService/ListTools"
_GET = "/maestro.tool.v1.ToolService/GetTool"
_INVOKE = "/maestro.tool.v1.ToolService/InvokeTool"
_STREAM_INVOKE = "/maestro.tool.v1.ToolService/StreamInvokeTool"


class InvokeFields(TypedDict, total=False):
    """Fields of `InvokeToolRequest`; what is missing or None stays unset.

    `tool_timeout`: seconds for the tool itself, ending in `ToolTimeout`, while `timeout` ends the call as a whole.
    `idempotency_key`: the contract's `request_id`; a repeated call with it returns the first result.
    """

    version: str | None
    call_id: str | None
    persona: str | None
    skill: str | None
    approved: bool | None
    tool_timeout: float | None
    validate_only: bool | None
    metadata: Mapping[str, str] | None
    idempotency_key: str | None


_KNOWN = frozenset(InvokeFields.__annotations__)


class ToolStream(EventStream[ToolEvent]):
    """A running tool: an asynchronous iterator of `ToolEvent`, ending after `result`. See `EventStream` for its end."""

    def __init__(
        self, connection: Connection, request: InvokeToolRequest, *, timeout: float | None, request_id: str
    ) -> None:
        super().__init__(
            connection, _STREAM_INVOKE, request, StreamInvokeToolResponse, timeout=timeout, request_id=request_id
        )
        self._result: ToolResult | None = None

    @property
    def complete(self) -> bool:
        """Whether the result was received."""
        return self._result is not None

    async def result(self) -> ToolResult:
        """The result, once it is there: reads what is left, and equals what `invoke` would have returned."""
        await self._drain()
        if self._result is None:
            raise StreamBroken("the run ended without a result")
        return self._result

    def _take(self, message: StreamInvokeToolResponse) -> Sequence[ToolEvent]:
        for event in message.events:
            if self._result is not None:
                raise StreamBroken("the run went on after its result")
            match event.WhichOneof("kind"):
                case "result":
                    self._result = event.result
                case None:
                    raise StreamBroken("an event has no kind; the tool bridge speaks a newer contract")
                case _:
                    pass
        return message.events


class ToolBridgeClient:
    """A client for one gateway or tool bridge. Close it, or use it as a context manager."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`."""
        self._connection = Connection(target, key=key, timeout=timeout, roots=roots)

    async def list(
        self,
        *,
        name_prefix: str = "",
        persona: str = "",
        skill: str = "",
        only_available: bool = False,
        timeout: float | None = None,
        request_id: str = "",
    ) -> Sequence[ToolSpec]:
        """All tools that this key may use, in their newest versions, by name. `tool_of` makes one ready for a model."""
        request = ListToolsRequest(
            page_size=1000, name_prefix=name_prefix, persona=persona, skill=skill, only_available=only_available
        )
        found: list[ToolSpec] = []
        while True:
            page = await self._connection.call(
                _LIST, request, ListToolsResponse, timeout=timeout, request_id=request_id
            )
            found.extend(page.tools)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def get(
        self, name: str, *, version: str = "", timeout: float | None = None, request_id: str = ""
    ) -> ToolSpec:
        """A tool, in its newest version unless one is given. Raises `NotFound`."""
        request = GetToolRequest(name=name, version=version)
        return await self._connection.call(_GET, request, ToolSpec, timeout=timeout, request_id=request_id)

    async def invoke(
        self,
        name: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[InvokeFields],
    ) -> ToolResult:
        """Runs a tool; `arguments` as a mapping or as JSON text, which is sent as it is. A failure that the tool
        reports is a result with `is_error`; raises `ToolFailed`, `ToolTimeout`, `ToolDenied`, `InvalidRequest`
        otherwise.
        """
        request = _invocation(name, arguments, fields)
        answer = await self._connection.call(
            _INVOKE, request, InvokeToolResponse, timeout=timeout, request_id=request_id
        )
        return answer.result

    def stream(
        self,
        name: str,
        arguments: Mapping[str, Any] | str | None = None,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[InvokeFields],
    ) -> ToolStream:
        """Runs a tool and tells how it goes on; closing the stream cancels the tool. Parameters as in `invoke`."""
        request = _invocation(name, arguments, fields)
        return ToolStream(self._connection, request, timeout=timeout, request_id=request_id)

    def bind(self, name: str, **fields: Unpack[InvokeFields]) -> Callable[..., Awaitable[ToolResult]]:
        """The tool as an asynchronous function of its arguments, for `LLMClient.run_tools`."""

        async def invoke(**arguments: Any) -> ToolResult:
            return await self.invoke(name, arguments, **fields)

        return invoke

    async def close(self) -> None:
        """Closes the connection; calls that still run end with `Cancelled`."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def tool_of(spec: ToolSpec) -> Tool:
    """A tool of the mesh as a model sees it."""
    return Tool(name=spec.name, description=spec.description, input_schema=spec.input_schema)


def _invocation(name: str, arguments: Mapping[str, Any] | str | None, fields: InvokeFields) -> InvokeToolRequest:
    unknown = fields.keys() - _KNOWN
    if unknown:
        raise TypeError(f"a call has no field {', '.join(sorted(unknown))}; it has: {', '.join(sorted(_KNOWN))}")
    if arguments is None or isinstance(arguments, str):
        text = arguments or ""
    else:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    request = InvokeToolRequest(name=name, arguments_json=text)
    for field, value in fields.items():
        if value is not None:
            _set_field(request, field, value)
    return request


def _set_field(request: InvokeToolRequest, name: str, value: Any) -> None:
    match name:
        case "tool_timeout":
            request.timeout.FromNanoseconds(round(value * 1e9))
        case "metadata":
            request.metadata.update(value)
        case "idempotency_key":
            request.request_id = value
        case _:
            setattr(request, name, value)
