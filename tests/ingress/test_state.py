"""State that only a provider understands survives a stock client's tool loop, byte for byte, through two gateways."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic.types import MessageParam
from google.api.httpbody_pb2 import HttpBody
from openai.types.chat import ChatCompletionMessageParam

from maestro.gateway.v1.openai_pb2_grpc import OpenAIServiceStub
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing import bedrock_converse, gemini_content
from maestro_sdk.testing.anthropic_messages import PATH
from maestro_sdk.testing.anthropic_strict import Block, StrictMessages, call, redacted, text, thinking
from maestro_sdk.testing.faults import FaultServer, Reply, Seen, SendJson, Sse, Step
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.obliging_gemini import StrictGemini
from maestro_sdk.testing.wire import Answer, ToolCall

from .conftest import KEY
from .test_openai_sdk import WEATHER

CLAUDE = "anthropic/claude-sonnet-5"
BEDROCK = "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0"
PARIS: ChatCompletionMessageParam = {"role": "user", "content": "Use get_weather for Paris"}
BYE: ChatCompletionMessageParam = {"role": "user", "content": "Bye."}
TURNS: dict[str, Sequence[Block]] = {
    "thought": (thinking("Let me see.", "c2lnbmVk+/="), call("t1", "get_weather", {"city": "Paris"})),
    "unseen": (thinking("", "dW5zZWVu"), text("I look."), call("t2", "get_weather", {"city": "Paris"})),
    "hidden": (redacted("aGlkZGVu"), thinking("So.", "c28="), call("t3", "get_weather", {"city": "Paris"})),
    "parallel": (
        thinking("Both.", "Ym90aA=="),
        text("I look."),
        call("t4", "get_weather", {"city": "Paris"}),
        call("t5", "get_weather", {"city": "Rome"}),
    ),
}


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client as its users make it."""
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def messages(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The same of Anthropic."""
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key=KEY, max_retries=0) as made:
        yield made


async def ask(
    client: openai.AsyncOpenAI, asked: Sequence[ChatCompletionMessageParam], streamed: bool, **fields: Any
) -> Any:
    """The message of an answer, as the client's own helpers give it."""
    if not streamed:
        answer = await client.chat.completions.create(messages=asked, **fields)
        return answer.choices[0].message
    async with client.chat.completions.stream(messages=asked, **fields) as stream:
        async for _ in stream:
            pass
        return (await stream.get_final_completion()).choices[0].message


def turn_of(message: Any) -> ChatCompletionMessageParam:
    """What a client that knows no more than OpenAI's shape sends back; arguments are written anew."""
    calls: Any = [
        {
            "id": made.id,
            "type": "function",
            "function": {
                "name": made.function.name,
                "arguments": json.dumps(json.loads(made.function.arguments), indent=1),
            },
        }
        for made in message.tool_calls or []
    ]
    turn: Any = {"role": "assistant", "content": message.content}
    if calls:
        turn["tool_calls"] = calls
    return turn


def results_of(message: Any) -> list[ChatCompletionMessageParam]:
    """A result for each call."""
    return [{"role": "tool", "tool_call_id": made.id, "content": "21 degrees"} for made in message.tool_calls]


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_thoughts_of_claude_come_back_to_it(
    client: openai.AsyncOpenAI, provider: FaultServer, name: str, streamed: bool
):
    strict = StrictMessages(TURNS[name], [text("It is sunny.")])
    provider.replace("POST", PATH, strict.reply)
    fields: Any = {"model": CLAUDE, "reasoning_effort": "high", "tools": [WEATHER]}
    asked = [PARIS]
    message = await ask(client, asked, streamed, **fields)
    asked += [turn_of(message), *results_of(message)]
    last = await ask(client, asked, streamed, **fields)
    assert last.content == "It is sunny."
    assert strict.refused == []
    assert strict.accepted[1]["messages"][1]["content"] == list(TURNS[name])


async def test_thoughts_of_a_long_loop_come_back_through_any_gateway(client: openai.AsyncOpenAI, provider: FaultServer):
    turns = [(thinking(f"Step {n}.", f"c2ln{n:04}"), call(f"s{n}", "get_weather", {"city": "Paris"})) for n in range(8)]
    strict = StrictMessages(*turns, [text("Done.")])
    provider.replace("POST", PATH, strict.reply)
    asked = [PARIS]
    for number in range(9):
        message = await ask(client, asked, number % 2 == 0, model=CLAUDE, reasoning_effort="low", tools=[WEATHER])
        asked.append(turn_of(message))
        if message.tool_calls:
            asked += results_of(message)
    assert strict.refused == []
    sent = [turn["content"] for turn in strict.accepted[-1]["messages"] if turn["role"] == "assistant"]
    assert sent == [list(turn) for turn in turns]


@pytest.mark.parametrize("streamed", [False, True])
async def test_thoughts_before_plain_words_come_back(client: openai.AsyncOpenAI, provider: FaultServer, streamed: bool):
    turn = (thinking("A greeting.", "Z3JlZXQ="), text("Hello there."))
    strict = StrictMessages(turn, [text("Good bye.")])
    provider.replace("POST", PATH, strict.reply)
    asked: list[ChatCompletionMessageParam] = [PARIS]
    message = await ask(client, asked, streamed, model=CLAUDE, reasoning_effort="high")
    asked += [turn_of(message), BYE]
    await ask(client, asked, streamed, model=CLAUDE, reasoning_effort="high")
    assert strict.refused == []
    assert strict.accepted[1]["messages"][1]["content"] == list(turn)


async def test_a_turn_that_the_client_made_up_stays_its_own(client: openai.AsyncOpenAI, provider: FaultServer):
    strict = StrictMessages(TURNS["thought"], [text("It is sunny.")])
    provider.replace("POST", PATH, strict.reply)
    message = await ask(client, [PARIS], False, model=CLAUDE, reasoning_effort="high", tools=[WEATHER])
    turn: Any = turn_of(message)
    turn["tool_calls"][0]["function"]["arguments"] = '{"city": "Oslo"}'
    asked: list[ChatCompletionMessageParam] = [PARIS, turn, *results_of(message)]
    # Without its thoughts: they belong to another call. (This provider then wants the thinking left out.)
    await ask(client, asked, False, model=CLAUDE, reasoning_effort="none", tools=[WEATHER])
    [sent] = strict.accepted[1]["messages"][1]["content"]
    assert sent["input"] == {"city": "Oslo"}


def named_anew(reply: Reply) -> Reply:
    """Gives each answer an identifier of its own, as the provider does: this adapter makes those of calls from it."""

    def answered(seen: Seen) -> Sequence[Step]:
        name = {"responseId": f"resp-{uuid4().hex}"}
        steps: list[Step] = []
        for step in reply(seen):
            match step:
                case SendJson(value):
                    steps.append(SendJson({**value, **name}))
                case Sse(event, data) if not isinstance(data, str):
                    steps.append(Sse(event, {**data, **name}))
                case _:
                    steps.append(step)
        return steps

    return answered


@pytest.mark.parametrize("words", ["Use get_weather for Paris", "Use get_weather for Paris and Rome, parallel"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_signatures_of_gemini_come_back_to_it(
    client: openai.AsyncOpenAI, provider: FaultServer, words: str, streamed: bool
):
    strict = StrictGemini()
    provider.replace("POST", gemini_content.PATH, named_anew(strict.reply))
    fields: Any = {"model": "vertex/gemini-3.1-pro-preview", "tools": [WEATHER]}
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": words}]
    message = await ask(client, asked, streamed, **fields)
    asked += [turn_of(message), *results_of(message)]
    last = await ask(client, asked, streamed, **fields)
    assert "21 degrees" in last.content
    # Not the word that stands for a missing one: just what was given.
    parts = provider.requests[-1].json()["contents"][1]["parts"]
    calls = [part for part in parts if "functionCall" in part]
    assert len(calls) == words.count(" and ") + 1
    assert [calls[0]["thoughtSignature"]] == list(strict.signed)


@pytest.mark.parametrize("streamed", [False, True])
async def test_thoughts_of_claude_on_bedrock_come_back_to_it(
    client: openai.AsyncOpenAI, provider: FaultServer, streamed: bool
):
    cities = ("Paris", "Rome")
    calls = [ToolCall(f"tooluse_{city}_{streamed}", "get_weather", {"city": city}) for city in cities]
    thought = Answer(pieces=("I look.",), thoughts=("Let me", " see."), signature="YmVkcm9jaw+/=", calls=calls)
    provider.replace("POST", bedrock_converse.PATH, bedrock_converse.answer(thought))
    fields: Any = {"model": BEDROCK, "reasoning_effort": "high", "tools": [WEATHER]}
    asked = [PARIS]
    message = await ask(client, asked, streamed, **fields)
    asked += [turn_of(message), *results_of(message)]
    await ask(client, asked, streamed, **fields)
    sent = provider.requests[-1].json()["messages"][1]["content"]
    reasoning = {"text": "Let me see.", "signature": "YmVkcm9jaw+/="}
    assert sent[0] == {"reasoningContent": {"reasoningText": reasoning}}
    assert sent[1] == {"text": "I look."}
    assert [block["toolUse"]["input"] for block in sent[2:]] == [{"city": city} for city in cities]


async def test_a_loop_that_another_gateway_goes_on_with(mesh: MeshProcess, provider: FaultServer):
    strict = StrictMessages(TURNS["parallel"], [text("It is sunny.")])
    provider.replace("POST", PATH, strict.reply)
    body: Any = {"model": CLAUDE, "reasoning_effort": "high", "tools": [WEATHER], "messages": [PARIS]}
    first = await post(mesh.address("gateway"), body)
    message = first["choices"][0]["message"]
    turn = {"role": "assistant", "content": message["content"], "tool_calls": message["tool_calls"]}
    results = [{"role": "tool", "tool_call_id": made["id"], "content": "21"} for made in message["tool_calls"]]
    await post(mesh.address("gateway-2"), {**body, "messages": [PARIS, turn, *results]})
    assert strict.refused == []
    assert strict.accepted[1]["messages"][1]["content"] == list(TURNS["parallel"])


async def post(address: str, body: Any) -> Any:
    """One completion from a gateway itself."""
    channel = open_channel(address)
    try:
        call: Any = OpenAIServiceStub(channel).CreateChatCompletion(
            HttpBody(data=json.dumps(body).encode()), metadata=(("authorization", f"Bearer {KEY}"),), timeout=10
        )
        return json.loads(b"".join([message.data async for message in call]))
    finally:
        await channel.close()


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropics_client_carries_thoughts_itself(
    messages: anthropic.AsyncAnthropic, provider: FaultServer, name: str, streamed: bool
):
    strict = StrictMessages(TURNS[name], [text("It is sunny.")])
    provider.replace("POST", PATH, strict.reply)
    first, last = await loop(messages, CLAUDE, streamed, thinking={"type": "adaptive"})
    assert [block.type for block in first.content] == [block["type"] for block in TURNS[name]]
    assert "sunny" in last.content[0].text
    assert strict.refused == []
    assert strict.accepted[1]["messages"][1]["content"] == list(TURNS[name])


@pytest.mark.parametrize("words", ["Use get_weather for Paris", "Use get_weather for Paris and Rome, parallel"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropics_client_carries_signatures_of_gemini(
    messages: anthropic.AsyncAnthropic, provider: FaultServer, words: str, streamed: bool
):
    strict = StrictGemini()
    provider.replace("POST", gemini_content.PATH, named_anew(strict.reply))
    first, _ = await loop(messages, "vertex/gemini-3.1-pro-preview", streamed, words)
    calls = [block for block in first.content if block.type == "tool_use"]
    assert len(calls) == words.count(" and ") + 1
    parts = provider.requests[-1].json()["contents"][1]["parts"]
    [signed] = [part["thoughtSignature"] for part in parts if "thoughtSignature" in part]
    assert [signed] == list(strict.signed)
    assert "thoughtSignature" in next(part for part in parts if "functionCall" in part)


@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropics_client_carries_thoughts_of_claude_on_bedrock(
    messages: anthropic.AsyncAnthropic, provider: FaultServer, streamed: bool
):
    calls = [ToolCall("tooluse_1", "get_weather", {"city": "Paris"})]
    thought = Answer(pieces=(), thoughts=("Let me", " see."), signature="YmVkcm9jaw+/=", calls=calls)
    provider.replace("POST", bedrock_converse.PATH, bedrock_converse.answer(thought))
    await loop(messages, BEDROCK, streamed, thinking={"type": "enabled", "budget_tokens": 1024})
    sent = provider.requests[-1].json()["messages"][1]["content"]
    assert sent[0]["reasoningContent"]["reasoningText"]["signature"] == "YmVkcm9jaw+/="


async def loop(
    messages: anthropic.AsyncAnthropic, model: str, streamed: bool, words: str = "Weather?", **fields: Any
) -> tuple[Any, Any]:
    """An answer with calls, and the one after their results."""
    tool: Any = {"name": "get_weather", "input_schema": WEATHER["function"].get("parameters")}
    fields |= {"model": model, "max_tokens": 4000, "tools": [tool]}

    async def answer(asked: list[MessageParam]) -> Any:
        if not streamed:
            return await messages.messages.create(messages=asked, **fields)
        async with messages.messages.stream(messages=asked, **fields) as stream:
            return await stream.get_final_message()

    asked: list[MessageParam] = [{"role": "user", "content": words}]
    first = await answer(asked)
    calls = [block for block in first.content if block.type == "tool_use"]
    results: Any = [{"type": "tool_result", "tool_use_id": made.id, "content": "21 degrees"} for made in calls]
    return first, await answer(
        [*asked, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    )
