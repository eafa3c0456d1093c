"""The official OpenAI client, unmodified, in front of every provider: it only has another base URL."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from maestro_sdk.conformance.prompts import COLOUR, FRUIT, page, red_square
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY, MODELS

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
COUNT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Count from 1 to 5"}]


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client as its users make it."""
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("model", MODELS)
async def test_chat(client: openai.AsyncOpenAI, model: str):
    answer = await client.chat.completions.create(model=model, messages=COUNT)
    [choice] = answer.choices
    assert choice.message.content is not None
    assert "1" in choice.message.content
    assert "5" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.model == model
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


@pytest.mark.parametrize("model", MODELS)
async def test_stream(client: openai.AsyncOpenAI, model: str):
    whole = await client.chat.completions.create(model=model, messages=COUNT)
    stream = await client.chat.completions.create(
        model=model, messages=COUNT, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_there_and_back(client: openai.AsyncOpenAI, model: str, streamed: bool):
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Use get_weather for Paris"}]
    calls = await ask_for_calls(client, model, asked, streamed=streamed)
    [(call_id, name, arguments)] = calls
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Paris"})
    asked.append(
        {
            "role": "assistant",
            "tool_calls": [{"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}],
        }
    )
    asked.append({"role": "tool", "tool_call_id": call_id, "content": "21 degrees, sunny"})
    answer = await client.chat.completions.create(model=model, messages=asked, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "stop"
    assert "21 degrees" in (answer.choices[0].message.content or "")


async def ask_for_calls(
    client: openai.AsyncOpenAI, model: str, asked: list[ChatCompletionMessageParam], *, streamed: bool
) -> list[tuple[str, str, str]]:
    """The calls of an answer: id, name, arguments."""
    if not streamed:
        answer = await client.chat.completions.create(model=model, messages=asked, tools=[WEATHER])
        assert answer.choices[0].finish_reason == "tool_calls"
        found = answer.choices[0].message.tool_calls or []
        return [(call.id, call.function.name, call.function.arguments) for call in found if call.type == "function"]
    calls: dict[int, list[str]] = {}
    reasons: list[str] = []
    stream = await client.chat.completions.create(model=model, messages=asked, tools=[WEATHER], stream=True)
    async for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(delta.index, ["", "", ""])
            call[0] += delta.id or ""
            if delta.function is not None:
                call[1] += delta.function.name or ""
                call[2] += delta.function.arguments or ""
        reasons += [reason for reason in [chunk.choices[0].finish_reason] if reason]
    assert reasons == ["tool_calls"]
    return [(call[0], call[1], call[2]) for call in calls.values()]


@pytest.mark.parametrize("model", MODELS)
async def test_structured_output(client: openai.AsyncOpenAI, model: str):
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}},
    )
    person = json.loads(answer.choices[0].message.content or "")
    assert set(person) == {"name", "age"}
    assert type(person["age"]) is int


@pytest.mark.parametrize("model", MODELS)
async def test_limits(client: openai.AsyncOpenAI, model: str):
    short = await client.chat.completions.create(model=model, messages=COUNT, max_completion_tokens=2)
    assert short.choices[0].finish_reason == "length"
    stopped = await client.chat.completions.create(model=model, messages=COUNT, stop=["3"])
    assert "4" not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"


async def test_what_only_openai_obeys_reaches_it_and_is_told_elsewhere(
    client: openai.AsyncOpenAI, provider: FaultServer
):
    await client.chat.completions.create(model="openai/gpt-4.1", messages=COUNT, presence_penalty=0.5, user="u-1")
    sent = provider.requests[-1].json()
    assert (sent["presence_penalty"], sent["user"]) == (0.5, "u-1")
    answer = await client.chat.completions.create(
        model="anthropic/claude-sonnet-5", messages=COUNT, presence_penalty=0.5, extra_body={"colour": "red"}
    )
    facts: Any = (answer.model_extra or {})["maestro"]
    assert {warning["field"] for warning in facts["warnings"]} == {"presence_penalty", "colour"}
    assert facts["provider"] == "anthropic"


@pytest.mark.parametrize(
    ("fields", "kind", "param", "words"),
    [
        ({"model": "openai/no-such"}, openai.NotFoundError, None, "no model or route"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature", "must be a number"),
        ({"n": 2}, openai.BadRequestError, "n", "one answer per request"),
        ({"messages": []}, openai.BadRequestError, "messages", "at least one message"),
        ({"messages": [{"role": "poet"}]}, openai.BadRequestError, "messages[0].role", "must be one of"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
            openai.BadRequestError,
            "messages[0].content[0].image_url.url",
            "data:MIME",
        ),
        ({"tools": [{"type": "custom"}]}, openai.BadRequestError, "tools[0].type", "must be function"),
        ({"functions": []}, openai.BadRequestError, "functions", "use tools"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format.type", "json_schema"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs", "needs logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_input_is_told_with_its_place_and_costs_nothing(
    client: openai.AsyncOpenAI,
    provider: FaultServer,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    param: str | None,
    words: str,
    stream: bool,
):
    body: Any = {"model": "openai/gpt-4.1", "messages": COUNT, **fields}
    before = len(provider.requests)
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(**body, stream=stream)
    assert raised.value.param == param
    assert words in raised.value.message
    assert raised.value.request_id
    assert len(provider.requests) == before


@pytest.mark.parametrize(
    ("status", "model", "kind", "code"),
    [
        (400, "openai/gpt-4.1", openai.BadRequestError, "invalid_request"),
        # A model of its own: it is left alone for as long as the provider asks.
        (429, "openai/gpt-5.1", openai.RateLimitError, "rate_limit_exceeded"),
        (500, "openai/gpt-4.1", openai.InternalServerError, "upstream_error"),
        (503, "openai/gpt-4.1", openai.InternalServerError, "overloaded"),
    ],
)
async def test_errors_of_providers_keep_their_class(
    client: openai.AsyncOpenAI,
    provider: FaultServer,
    status: int,
    model: str,
    kind: type[openai.APIStatusError],
    code: str,
):
    hint = {"retry-after": "7"} if status == 429 else {}
    provider.replace("POST", openai_chat.PATH, openai_chat.error(status, headers=hint))
    with pytest.raises(kind) as raised:
        await client.chat.completions.create(model=model, messages=COUNT)
    assert raised.value.code == code
    if status == 429:
        assert raised.value.response.headers["retry-after"] == "7"


async def test_an_error_after_content_is_raised_by_the_stream(client: openai.AsyncOpenAI, provider: FaultServer):
    provider.replace("POST", openai_chat.PATH, openai_chat.cut_after(2))
    stream = await client.chat.completions.create(model="second", messages=COUNT, stream=True)
    seen: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        async for chunk in stream:
            seen += [chunk.choices[0].delta.content or ""]
    assert "".join(seen)
    assert raised.value.code == "stream_broken"


async def test_a_wrong_key_is_an_authentication_error(mesh: MeshProcess, provider: FaultServer):
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="mk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.chat.completions.create(model="default", messages=COUNT)
    assert raised.value.code == "invalid_api_key"


async def test_models(client: openai.AsyncOpenAI):
    names = {model.id async for model in client.models.list()}
    assert set(MODELS) <= names


@pytest.mark.parametrize("streamed", [False, True])
async def test_probabilities_of_tokens(client: openai.AsyncOpenAI, streamed: bool):
    fields: Any = {"model": "openai/gpt-4.1", "messages": COUNT, "logprobs": True, "top_logprobs": 2}
    if streamed:
        chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
        choices: list[Any] = [chunk.choices[0] for chunk in chunks if chunk.choices]
    else:
        choices = [(await client.chat.completions.create(**fields)).choices[0]]
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    assert tokens
    assert all(token.logprob <= 0 and len(token.top_logprobs) <= 2 for token in tokens)
    assert any(token.top_logprobs for token in tokens)


@pytest.mark.parametrize("model", MODELS[:4])
async def test_pictures_and_documents_are_seen_by_every_provider(client: openai.AsyncOpenAI, model: str):
    picture = f"data:image/png;base64,{base64.b64encode(red_square()).decode()}"
    paper = f"data:application/pdf;base64,{base64.b64encode(page()).decode()}"
    for part, word in (
        ({"type": "image_url", "image_url": {"url": picture}}, COLOUR),
        ({"type": "file", "file": {"filename": "a.pdf", "file_data": paper}}, FRUIT),
    ):
        content: Any = [part, {"type": "text", "text": "What do you see?"}]
        answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
        assert answer.choices[0].message.content == word


async def test_a_refusal_is_told_as_one(client: openai.AsyncOpenAI, provider: FaultServer):
    message = {"role": "assistant", "content": None, "refusal": "I won't."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    document = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4.1", "choices": [choice]}
    provider.replace("POST", openai_chat.PATH, SendJson(document))
    answer = await client.chat.completions.create(model="openai/gpt-4.1", messages=COUNT)
    assert (answer.choices[0].message.refusal, answer.choices[0].message.content) == ("I won't.", None)
