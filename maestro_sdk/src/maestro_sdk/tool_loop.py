"""The tool loop: a model calls functions of this program until it has an answer."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, FinishReason, ToolChoiceMode
from maestro.llm.v1.message_pb2 import Message, Part, ToolCallPart
from maestro.tool.v1.tool_pb2 import ToolResult
from maestro_sdk.types import arguments_of, assistant, tool_result, tool_results

Function: TypeAlias = Callable[..., Any]
"""A function that a model may call, plain or asynchronous; arguments come as keywords."""

_log = logging.getLogger(__name__)


class Asker(Protocol):
    """Who answers a request: an `LLMClient`."""

    def chat(self, messages: ChatRequest, *, timeout: float | None = None) -> Awaitable[ChatResponse]:
        """The answer to a request."""
        ...


@dataclass(frozen=True, slots=True)
class ToolRun:
    """What a tool loop did: every answer of the model, and the whole conversation, ready to go on with."""

    responses: tuple[ChatResponse, ...]
    messages: tuple[Message, ...]

    @property
    def response(self) -> ChatResponse:
        """The last answer."""
        return self.responses[-1]


class TurnsExhausted(RuntimeError):
    """The model still wanted to go on after the last turn it was allowed; `run` holds what was done. Its last calls
    were not run.
    """

    def __init__(self, run: ToolRun) -> None:
        super().__init__(f"the model was not done after {len(run.responses)} turns")
        self.run = run


async def run_tools(
    client: Asker,
    request: ChatRequest,
    functions: Mapping[str, Function],
    *,
    max_turns: int = 16,
    timeout: float | None = None,
) -> ToolRun:
    """See `LLMClient.run_tools`. Raises `ValueError` when a tool of the request has no function."""
    if max_turns < 1:
        raise ValueError("max_turns must be at least 1")
    missing = [tool.name for tool in request.tools if tool.name not in functions]
    if missing:
        raise ValueError(f"no function is given for {', '.join(missing)}")
    asked = ChatRequest()
    asked.CopyFrom(request)
    offered = {tool.name for tool in request.tools}
    responses: list[ChatResponse] = []
    for _ in range(max_turns):
        response = await client.chat(asked, timeout=timeout)
        responses.append(response)
        if response.parts:
            asked.messages.append(assistant(response))
        calls = [part.tool_call for part in response.parts if part.HasField("tool_call")]
        if response.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS and calls:
            if len(responses) < max_turns:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(_answer(call, functions, offered)) for call in calls]
                asked.messages.append(tool_results(*(task.result() for task in tasks)))
                _relax(asked)
        elif response.finish_reason != FinishReason.FINISH_REASON_PAUSED:
            # Any other end is the model's last word; a call that its length cut off must not be run.
            return ToolRun(tuple(responses), tuple(asked.messages))
    raise TurnsExhausted(ToolRun(tuple(responses), tuple(asked.messages)))


async def _answer(call: ToolCallPart, functions: Mapping[str, Function], offered: set[str]) -> Part:
    """The result of one call; a failure is a result as well, since the model can do something about it."""
    if call.name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        return tool_result(call, f"there is no tool {call.name!r}; there are: {known}", is_error=True)
    try:
        function, arguments = functions[call.name], arguments_of(call)
        if inspect.iscoroutinefunction(function):
            value = await function(**arguments)
        else:
            value = await asyncio.to_thread(function, **arguments)
            if inspect.isawaitable(value):
                value = await value
        if isinstance(value, ToolResult):
            return tool_result(call, list(value.parts) or value.result_json or None, is_error=value.is_error)
        return tool_result(call, value)
    except Exception as error:  # noqa: BLE001 - whatever it is, the model is told
        _log.info("the tool %s failed", call.name, exc_info=True)
        return tool_result(call, f"{type(error).__name__}: {error}", is_error=True)


def _relax(request: ChatRequest) -> None:
    """Leaves the choice to the model from now on: a call that stays required would be made for ever."""
    choice = request.tool_choice
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
        del choice.names[:]
    if choice.mode in {ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED}:
        choice.mode = ToolChoiceMode.TOOL_CHOICE_MODE_AUTO
