"""Scripts: what matches, what is sent, which errors are raised, and how a wrong file is told."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason, Tool
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart, ToolResultPart
from maestro_adapter_local.offline.prose import NOTICE
from maestro_adapter_local.offline.script import load_script
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.errors import BY_REASON, MaestroError, RateLimited, StreamBroken, from_rpc_error
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.testing.servers import serve

SCRIPT = """
rules:
  - match: {has_tool_result: true}
    reply: "The tool said {result}, in turn {turn}."
  - match: "(?i)weather in (?P<city>\\\\w+)"
    reply: "Let me look."
    tool_calls:
      - {name: get_weather, arguments: {city: "{city}", days: 3}}
      - {name: broken, arguments: "{not json"}
  - match: as json
    json: {answer: "{question}", list: [1, 2.5, true, null]}
  - match: slow down
    error: {reason: RATE_LIMITED, message: too fast, retry_after: 2s}
  - match: break off
    reply: one two three four
    error: {reason: STREAM_BROKEN}
    after: 2
  - match: break at once
    error: {reason: OVERLOADED}
    after: 0
  - match: count
    reply: free
    reasoning: thinking hard
    usage: {input_tokens: 1000, output_tokens: 500, cache_read_tokens: 900}
    finish_reason: CONTENT_FILTER
  - match: late
    reply: a b c
    delay: 50ms
    pace: 10ms
  - match: {text: hello, system: pirate, turn: 1, tools: [clock], model: offline}
    reply: Arr!
  - match: {model: second}
    reply: "I am {model}, {unknown} stays."
"""


def ask(text: str, model: str = "local/offline", **fields: Any) -> ChatRequest:
    """A request with one user turn."""
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model=model, messages=[turn], **fields)


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    path = tmp_path / "script.yaml"
    path.write_text(SCRIPT)
    return LocalProvider(LocalSettings.model_validate({"offline": {"script": path, "names": ["second"]}}))


async def events_of(provider: LocalProvider, request: ChatRequest) -> tuple[list[ChatEvent], MaestroError | None]:
    """The events of a stream up to its end or its error."""
    events: list[ChatEvent] = []
    try:
        async for batch in provider.stream(request):
            events += batch
    except MaestroError as error:
        return events, error
    return events, None


def kinds(events: Sequence[ChatEvent]) -> list[str | None]:
    return [event.WhichOneof("kind") for event in events]


async def test_a_reply_and_calls_with_placeholders(provider: LocalProvider) -> None:
    request = ask("What is the weather in Lima?")
    whole = fold(await provider.complete(request))
    events, error = await events_of(provider, request)
    assert error is None
    assert fold(events) == whole
    assert whole.parts[0].text.text == "Let me look."
    assert json.loads(whole.parts[1].tool_call.arguments_json) == {"city": "Lima", "days": 3}
    assert whole.parts[2].tool_call.arguments_json == "{not json"
    assert whole.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS


async def test_the_turn_after_a_tool(provider: LocalProvider) -> None:
    request = ask("What is the weather in Lima?")
    first = fold(await provider.complete(request))
    request.messages.add(role=Role.ROLE_ASSISTANT, parts=first.parts)
    result = ToolResultPart(call_id=first.parts[1].tool_call.call_id, parts=[Part(text=TextPart(text="rain"))])
    request.messages.add(role=Role.ROLE_TOOL, parts=[Part(tool_result=result)])
    assert fold(await provider.complete(request)).parts[0].text.text == "The tool said rain, in turn 2."


async def test_json_is_sent_as_text(provider: LocalProvider) -> None:
    said = fold(await provider.complete(ask("as json"))).parts[0].text.text
    assert json.loads(said) == {"answer": "as json", "list": [1, 2.5, True, None]}


async def test_an_error_instead_of_an_answer(provider: LocalProvider) -> None:
    with pytest.raises(RateLimited, match="too fast") as caught:
        await provider.complete(ask("slow down"))
    assert caught.value.retry_after == 2.0
    events, error = await events_of(provider, ask("slow down"))
    assert events == []
    assert isinstance(error, RateLimited)


async def test_an_error_after_some_events(provider: LocalProvider) -> None:
    events, error = await events_of(provider, ask("break off"))
    assert kinds(events) == ["started", "text", "text"]
    assert isinstance(error, StreamBroken)
    with pytest.raises(StreamBroken):
        await provider.complete(ask("break off"))
    events, error = await events_of(provider, ask("break at once"))
    assert kinds(events) == ["started"]
    assert error is not None
    assert error.reason == "OVERLOADED"


async def test_usage_reasoning_and_finish_reason(provider: LocalProvider) -> None:
    whole = fold(await provider.complete(ask("count")))
    assert whole.parts[0].reasoning.text == "thinking hard"
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.cache_read_tokens) == (1000, 500, 900)
    assert whole.usage.reasoning_tokens == 2
    assert whole.finish_reason == FinishReason.FINISH_REASON_CONTENT_FILTER


async def test_delay_and_pace(provider: LocalProvider) -> None:
    began = time.monotonic()
    whole = fold(await provider.complete(ask("late")))
    middle = time.monotonic()
    events, _ = await events_of(provider, ask("late"))
    assert middle - began >= 0.08
    assert time.monotonic() - middle >= 0.08
    assert fold(events) == whole


async def test_all_conditions_must_hold_and_the_rest_is_as_usual(provider: LocalProvider) -> None:
    async def said(request: ChatRequest) -> str:
        return fold(await provider.complete(request)).parts[0].text.text

    assert await said(ask("hello", system="You are a pirate", tools=[Tool(name="clock")])) == "Arr!"
    assert (await said(ask("hello", tools=[Tool(name="clock")]))).startswith(NOTICE)
    assert (await said(ask("hello", system="You are a pirate"))).startswith(NOTICE)
    assert await said(ask("hello", model="local/second")) == "I am second, {unknown} stays."


async def test_limits_hold_for_scripts_too(provider: LocalProvider) -> None:
    whole = fold(await provider.complete(ask("late", max_tokens=2)))
    assert (whole.parts[0].text.text, whole.finish_reason) == ("a b", FinishReason.FINISH_REASON_LENGTH)


@pytest.mark.parametrize("reason", sorted(BY_REASON))
async def test_every_error_arrives_as_itself(reason: str, tmp_path: Path) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(f"rules: [{{error: {{reason: {reason}, message: on purpose, retry_after: 1.5}}}}]")
    provider = LocalProvider(LocalSettings.model_validate({"offline": {"script": path}}))
    async with serve(ChatServicer(provider)) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ChatServiceStub(channel).Chat(ask("anything"))
    error = from_rpc_error(caught.value)
    assert (type(error), error.message, error.retry_after) == (BY_REASON[reason], "on purpose", 1.5)


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "rules:\n"
        "  - match: '('\n"
        "    reply: x\n"
        "  - match: a\n"
        "  - error: {reason: NO_SUCH_REASON}\n"
        "  - reply: x\n"
        "    json: 1\n"
        "  - reply: x\n"
        "    delay: soon\n"
        "  - {reply: x, repply: y}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_script(path)
    told = [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]
    assert [line.partition(":")[0] for line in told] == ["2", "4", "5", "6", "9", "10"]
    assert "rules[0].match.text" in told[0]
    assert told[1].endswith("rules[1]: give reply, json, tool_calls or error")
    assert "'NO_SUCH_REASON' is not one of" in told[2]
    assert told[3].endswith("give either reply or json")
    assert "'soon' is not a duration" in told[4]
    assert "did you mean reply?" in told[5]


def test_a_missing_script_is_told(tmp_path: Path) -> None:
    settings = LocalSettings.model_validate({"offline": {"script": tmp_path / "none.yaml"}})
    with pytest.raises(ConfigError, match="the script can't be read: No such file"):
        LocalProvider(settings)


def test_examples_of_the_documentation_load(tmp_path: Path) -> None:
    document = Path(__file__).parents[3] / "docs" / "offline-model.md"
    blocks = [block.partition("```")[0] for block in document.read_text().split("```yaml\n")[1:]]
    scripts = [block for block in blocks if block.startswith(("rules:", "# script"))]
    assert len(scripts) >= 2
    for number, text in enumerate(scripts):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert load_script(path).rules
