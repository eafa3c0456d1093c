"""The tool loop over the wire: what goes back to the model, and when it ends."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    PartState,
    ReasoningDelta,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import Message, Origin, Role
from maestro.llm.v1.usage_pb2 import Usage
from maestro.tool.v1.tool_pb2 import ToolResult
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.errors import RateLimited
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.tool_loop import Function, TurnsExhausted
from maestro_sdk.types import only_tool, text, text_of, tool, user

ADD = tool("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})


class Turns(ScriptedProvider):
    """Answers each request with the next of several scripts; the last one repeats."""

    def __init__(self, *scripts: Sequence[ChatEvent]) -> None:
        super().__init__()
        self.scripts = list(scripts)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        copy = ChatRequest()
        copy.CopyFrom(request)
        self.requests.append(copy)
        yield self.scripts[min(len(self.requests), len(self.scripts)) - 1]


@asynccontextmanager
async def asking(provider: ScriptedProvider) -> AsyncGenerator[LLMClient]:
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model="scripted/model") as client:
        yield client


def results_of(message: Message) -> list[tuple[str, str, bool]]:
    assert message.role == Role.ROLE_TOOL
    results = [part.tool_result for part in message.parts]
    return [(r.call_id, "".join(part.text.text for part in r.parts), r.is_error) for r in results]


async def test_calls_run_side_by_side_and_their_results_go_back_in_order():
    both = threading.Barrier(2, timeout=5)
    entered = asyncio.Event()

    def add(a: int, b: int) -> int:
        both.wait()
        return a + b

    async def look(at: str) -> dict[str, str]:
        entered.set()
        return {"seen": at}

    provider = Turns(
        answer(
            "Let me see.",
            calls=[("c1", "add", '{"a":1,"b":2}'), ("c2", "look", '{"at":"x"}'), ("c3", "add", '{"a":3,"b":4}')],
        ),
        answer("3, x and 7."),
    )
    async with asking(provider) as client:
        run = await client.run_tools("Go", {"add": add, "look": look}, tools=[ADD, tool("look")])
    assert text_of(run.response) == "3, x and 7."
    assert len(run.responses) == 2
    assert entered.is_set()
    second = provider.requests[1]
    assert results_of(second.messages[2]) == [("c1", "3", False), ("c2", '{"seen": "x"}', False), ("c3", "7", False)]
    # Ready to go on with: the whole conversation, the last answer included.
    assert [m.role for m in run.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_TOOL, Role.ROLE_ASSISTANT]
    assert text_of(run.messages[-1]) == "3, x and 7."


async def test_reasoning_and_its_state_go_back_byte_identical():
    origin = Origin(provider="scripted", api="messages", model="model")
    begin, *rest = answer(calls=[("c1", "add", '{"a": 1, "b":2}')])
    rest[0].tool_call.index = 1
    thought = [
        ChatEvent(reasoning=ReasoningDelta(index=0, text="hm")),
        ChatEvent(part_state=PartState(index=0, origin=origin, provider_state=b"\x00\xff\x01signature")),
    ]
    provider = Turns([begin, *thought, *rest], answer("3"))
    async with asking(provider) as client:
        run = await client.run_tools("Go", {"add": lambda a, b: a + b}, tools=[ADD])
    sent = provider.requests[1].messages[1]
    assert [p.SerializeToString(deterministic=True) for p in sent.parts] == [
        p.SerializeToString(deterministic=True) for p in run.responses[0].parts
    ]
    assert (sent.parts[0].provider_state, sent.parts[0].origin) == (b"\x00\xff\x01signature", origin)
    assert sent.parts[1].tool_call.arguments_json == '{"a": 1, "b":2}'


class Callable3:
    async def __call__(self, a: int) -> int:
        return a * 3


def broken(**_: Any) -> None:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [
        (broken, "{}", ("KeyError: 'gone'", True)),
        (object, "{}", ("TypeError: Object of type object is not JSON serializable", True)),
        (lambda a: a, '{"b":1}', ("TypeError", True)),
        (lambda: 1, '{"a":', ("OutputInvalid: the arguments of add are no JSON", True)),
        (lambda: 1, "[]", ("OutputInvalid: the arguments of add are no JSON object", True)),
        (lambda: None, "{}", ("", False)),
        (lambda: text("part"), "{}", ("part", False)),
        (Callable3(), '{"a":2}', ("6", False)),
        (lambda: ToolResult(parts=[text("bridge")], is_error=True), "{}", ("bridge", True)),
        (lambda: ToolResult(result_json='{"x":1}'), "{}", ('{"x":1}', False)),
    ],
)
async def test_what_a_function_does_is_told_to_the_model(function: Function, arguments: str, result: tuple[str, bool]):
    provider = Turns(answer(calls=[("c1", "add", arguments)]), answer("done"))
    async with asking(provider) as client:
        run = await client.run_tools("Go", {"add": function}, tools=[ADD])
    assert text_of(run.response) == "done"
    [(call_id, content, is_error)] = results_of(provider.requests[1].messages[2])
    assert (call_id, is_error) == ("c1", result[1])
    assert content.startswith(result[0])
    assert bool(content) is bool(result[0])


async def test_a_tool_that_was_not_offered_is_never_run():
    ran: list[str] = []
    provider = Turns(answer(calls=[("c1", "delete", "{}")]), answer("sorry"))
    async with asking(provider) as client:
        await client.run_tools("Go", {"add": ran.append, "delete": lambda: ran.append("deleted")}, tools=[ADD])
    assert ran == []
    assert results_of(provider.requests[1].messages[2]) == [("c1", "there is no tool 'delete'; there are: add", True)]


async def test_turns_are_bounded_and_the_work_is_not_lost():
    ran: list[int] = []

    def add(a: int) -> None:
        ran.append(a)

    provider = Turns(answer("again", calls=[("c1", "add", '{"a":1}')]))
    async with asking(provider) as client:
        with pytest.raises(TurnsExhausted, match="after 3 turns") as exhausted:
            await client.run_tools("Go", {"add": add}, tools=[ADD], max_turns=3)
    # The calls of the last answer are not run: nobody would read their results.
    assert (ran, len(provider.requests)) == ([1, 1], 3)
    assert len(exhausted.value.run.responses) == 3
    assert exhausted.value.run.messages[-1].role == Role.ROLE_ASSISTANT


async def test_a_call_that_its_length_cut_off_is_not_run():
    ran: list[str] = []
    cut = answer(calls=[("c1", "add", '{"a":1')])
    cut[-1] = ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_LENGTH, usage=Usage(output_tokens=1)))
    provider = Turns(cut)
    async with asking(provider) as client:
        run = await client.run_tools("Go", {"add": lambda **_: ran.append("ran")}, tools=[ADD])
    assert run.response.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert ran == []


async def test_a_paused_answer_is_gone_on_with():
    paused = answer("half")
    paused[-1] = ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_PAUSED, usage=Usage(output_tokens=1)))
    provider = Turns(paused, answer("whole"))
    async with asking(provider) as client:
        run = await client.run_tools("Go", {})
    assert text_of(run.response) == "whole"
    assert [text_of(message) for message in provider.requests[1].messages] == ["Go", "half"]


async def test_a_required_call_is_required_once():
    provider = Turns(answer(calls=[("c1", "add", "{}")]), answer("done"))
    async with asking(provider) as client:
        await client.run_tools("Go", {"add": lambda: 1}, tools=[ADD], tool_choice=only_tool("add"))
    first, second = (request.tool_choice for request in provider.requests)
    assert (first.mode, list(first.names)) == (ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, ["add"])
    assert (second.mode, list(second.names)) == (ToolChoiceMode.TOOL_CHOICE_MODE_AUTO, [])


async def test_an_error_of_the_model_ends_the_loop():
    class Failing(Turns):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
            if self.requests:
                raise RateLimited("slow down", retry_after=1.0)
            async for events in super().stream(request):
                yield events

    async with asking(Failing(answer(calls=[("c1", "add", "{}")]))) as client:
        with pytest.raises(RateLimited, match="slow down"):
            await client.run_tools("Go", {"add": lambda: 1}, tools=[ADD])


async def test_cancelling_the_loop_cancels_its_functions():
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with asking(Turns(answer(calls=[("c1", "add", "{}")]))) as client:
        task = asyncio.create_task(client.run_tools("Go", {"add": wait}, tools=[ADD]))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended.is_set()


async def test_a_loop_that_could_not_work_does_not_begin():
    provider = Turns(answer("never"))
    async with asking(provider) as client:
        with pytest.raises(ValueError, match="no function is given for add"):
            await client.run_tools([user("Go")], {}, tools=[ADD])
        with pytest.raises(ValueError, match="at least 1"):
            await client.run_tools("Go", {}, max_turns=0)
    assert provider.requests == []
