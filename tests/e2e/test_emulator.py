"""Both providers' wires against an emulator that nobody here wrote: text, tools, parallel tools, unary and streamed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.servers import Aimock

MODELS = ["openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"]
KEY = "mk-emulated-0123456789"
TOOLS = [
    {
        "name": "get_weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
]
ONE = {"name": "get_weather", "arguments": {"city": "Paris"}}
TWO = {"name": "get_weather", "arguments": {"city": "Rome"}}
USAGE = {"input_tokens": 11, "output_tokens": 9}
TEXT = "Hello from the emulator, at some length."
FIXTURES = [
    {"match": {"userMessage": "weather", "hasToolResult": True}, "response": {"content": "Sunny everywhere."}},
    {"match": {"userMessage": "weather of both"}, "response": {"toolCalls": [ONE, TWO]}},
    {"match": {"userMessage": "weather"}, "response": {"toolCalls": [ONE]}},
    {
        "match": {"userMessage": "hello"},
        "response": {"content": TEXT, "usage": USAGE},
    },
    {
        "match": {"userMessage": "overload"},
        "response": {"error": {"message": "busy", "type": "overloaded"}, "status": 503},
    },
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def emulated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """A caller of a mesh whose providers are the emulator."""
    config = {"version": 1, "gateway": {"keys": [{"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}}]}}
    async with Aimock(FIXTURES, chunk=8) as aimock:
        environment = {
            "MAESTRO_KEY": KEY,
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "ANTHROPIC_BASE_URL": aimock.url,
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": aimock.openai_url,
        }
        async with (
            MeshProcess(tmp_path_factory.mktemp("emulated"), config, environment) as mesh,
            Caller(mesh.url, KEY) as caller,
        ):
            yield caller


def arguments(calls: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("model", MODELS)
async def test_text(emulated: Caller, model: str):
    answer = (await emulated.chat(question("hello", model=model))).json()
    assert (answer["text"], answer["finish_reason"]) == (TEXT, "stop")
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (11, 9)
    events = await emulated.collect(question("hello", model=model))
    pieces = [event.json()["text"] for event in events if event.name == "text"]
    assert "".join(pieces) == answer["text"]
    assert len(pieces) > 1
    assert events[-2].json()["finish_reason"] == "stop"
    assert events[-1].data == "[DONE]"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("text", "calls"), [("the weather", [ONE]), ("the weather of both", [ONE, TWO])])
async def test_tools(emulated: Caller, model: str, text: str, calls: list[dict[str, Any]]):
    asked = question(text, model=model, tools=TOOLS)
    answer = (await emulated.chat(asked)).json()
    assert answer["finish_reason"] == "tool_calls"
    assert arguments(answer["tool_calls"]) == arguments(calls)
    events = await emulated.collect(asked)
    indexes = {event.json()["index"] for event in events if event.name == "tool_call"}
    assert len(indexes) == len(calls)
    assert events[-2].json()["finish_reason"] == "tool_calls"
    results = [{"type": "tool_result", "call_id": call["call_id"], "content": "sunny"} for call in answer["tool_calls"]]
    follow_up = [
        *asked["messages"],
        {"role": "assistant", "parts": answer["parts"]},
        {"role": "tool", "content": results},
    ]
    final = (await emulated.chat({**asked, "messages": follow_up})).json()
    assert (final["text"], final["finish_reason"]) == ("Sunny everywhere.", "stop")


@pytest.mark.parametrize("model", MODELS)
async def test_errors(emulated: Caller, model: str):
    answer = await emulated.chat(question("overload", model=model))
    assert answer.status == 503
    assert answer.error["reason"] in {"OVERLOADED", "UPSTREAM_ERROR"}
