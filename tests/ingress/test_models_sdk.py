"""Models, and what is not served, by the official clients of OpenAI and Anthropic: they only have another base URL."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
import pytest_asyncio
from anthropic import beta_async_tool
from yarl import URL

from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY, MODELS

NAMES = [
    *((model, model) for model in MODELS),
    *(("claude-sonnet-5", "anthropic/claude-sonnet-5"), ("sonnet", "anthropic/claude-sonnet-5")),
    *(("second", "second"), ("usual", "default")),
]
"""What a client may ask for, and what it stands for: models, a bare name, aliases and a route."""
STRANGE = (
    *(
        "openai/no-such",
        "a b",
        "é漢字",
        "a?limit=1",
        "a#b",
        "x" * 10_000,
        "a\nb",
        "a\x7fb",
        "a\x00b",
        "../chat",
        "a/../b",
    ),
    *("%2F", "%2e%2e%2fchat", "/", "//", "a/", "/a", "*", "**", "a\\b", "{model}", "x:cancel", "openai", "maestro"),
)
VERSION = {"anthropic-version": "2023-06-01"}


@pytest_asyncio.fixture(loop_scope="session")
async def gpt(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client as its users make it."""
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=KEY, max_retries=0, timeout=20) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def claude(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client as its users make it."""
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key=KEY, max_retries=0, timeout=20) as made:
        yield made


@pytest.mark.parametrize(("name", "meant"), NAMES)
async def test_one_model_is_told_of_as_in_the_list(
    gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, name: str, meant: str
):
    found = await gpt.models.retrieve(name)
    assert (found.id, found.object, found.created) == (meant, "model", 0)
    assert found.owned_by == (meant.partition("/")[0] if "/" in meant else "maestro")
    info = await claude.models.retrieve(name)
    assert (info.id, info.type) == (meant, "model")
    assert info.lifecycle == ("active" if info.retires_at is None else "deprecated")
    assert found.shutdown_date == (None if info.retires_at is None else info.retires_at.date().isoformat())
    assert info.display_name == meant.partition("/")[2] or meant
    assert info.created_at == datetime(1970, 1, 1, tzinfo=UTC)
    assert (await claude.beta.models.retrieve(name)).id == meant
    listed: dict[str, Any] = {model.id: model.to_dict() async for model in gpt.models.list()}
    if "/" in meant:
        assert found.to_dict() == listed[meant]
        assert info.to_dict(mode="json") == listed[meant]
    else:
        assert meant not in listed
        assert found.to_dict()["route"] in await routes(claude)


async def routes(client: anthropic.AsyncAnthropic) -> Any:
    return (await client.models.list()).to_dict()["routes"]


@pytest.mark.parametrize("name", STRANGE, ids=lambda name: ascii(name)[:20])
async def test_what_is_no_model_is_not_found(gpt: openai.AsyncOpenAI, claude: anthropic.AsyncAnthropic, name: str):
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)) as asked:
        await gpt.models.retrieve(name)
    with pytest.raises((anthropic.NotFoundError, anthropic.BadRequestError)) as other:
        await claude.models.retrieve(name)
    # HTTP itself has no place for a zero, and a word behind a colon is a method.
    status, code = (400, "invalid_request") if "\x00" in name else (404, "model_not_found")
    code = "not_found" if name == "x:cancel" else code
    assert (asked.value.status_code, asked.value.code, asked.value.type) == (status, code, "invalid_request_error")
    assert asked.value.message
    body: Any = other.value.body
    assert (other.value.status_code, body["type"]) == (status, "error")
    assert body["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert len(other.value.message) < 5000
    if status == 404:
        assert asked.value.request_id
        assert other.value.request_id


@pytest.mark.parametrize("name", ["", "."])
async def test_names_that_are_no_path_are_refused_by_the_clients(gpt: openai.AsyncOpenAI, name: str):
    with pytest.raises(ValueError, match=r"non-empty|dot-segment"):
        await gpt.models.retrieve(name)


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("local/able:8b", 200, "local/able:8b"),
        ("local/able:8b/", 200, "local/able:8b"),
        ("local%2Fable%3A8b", 200, "local/able:8b"),
        ("default?beta=true", 200, "default"),
        ("default?colour=red", 400, "invalid_request_error"),
        ("%ZZ", 404, "not_found"),
        ("..", 404, "not_found"),
        ("%2e%2e/chat", 404, "not_found"),
        ("a/" * 5000, 404, "not_found"),
        # No client makes such bytes of a name: they are no text at all.
        ("%FF%FE", 400, "INVALID_REQUEST"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("headers", [{}, VERSION], ids=["openai", "anthropic"])
async def test_paths_as_bytes(mesh: MeshProcess, path: str, status: int, found: str, headers: dict[str, str]):
    async with aiohttp.ClientSession(requote_redirect_url=False) as http:
        url = URL(f"{mesh.url}/v1/models/{path}", encoded=True)
        async with http.get(url, headers={"authorization": f"Bearer {KEY}", **headers}) as response:
            text = await response.text()
    assert response.status == status, text
    assert found.lower() in text.lower()


async def test_pages_in_both_directions(claude: anthropic.AsyncAnthropic):
    whole = await claude.models.list()
    ids = [model.id for model in whole.data]
    assert ids == sorted(ids)
    assert (whole.has_more, whole.first_id, whole.last_id) == (False, ids[0], ids[-1])
    assert [model.id async for model in claude.models.list(limit=7)] == ids
    assert [model.id async for model in claude.beta.models.list(limit=1000)] == ids
    page = await claude.models.list(limit=2, after_id=ids[3])
    assert ([model.id for model in page.data], page.has_more) == (ids[4:6], True)
    assert (page.first_id, page.last_id) == (ids[4], ids[5])
    page = await claude.models.list(limit=2, before_id=ids[3])
    assert ([model.id for model in page.data], page.has_more) == (ids[1:3], True)
    page = await claude.models.list(limit=2, before_id=ids[2])
    assert ([model.id for model in page.data], page.has_more) == (ids[:2], False)
    assert sorted([model.id async for model in claude.models.list(limit=7, before_id="~")]) == ids
    end = await claude.models.list(after_id=ids[-1])
    assert (end.data, end.has_more, end.first_id, end.last_id) == ([], False, None, None)
    # A model that has left meanwhile: the page goes on behind its place.
    page = await claude.models.list(limit=1, after_id=ids[3] + "-gone")
    assert [model.id for model in page.data] == [ids[4]]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"limit": 0}, "limit: must be between 1 and 1000"),
        ({"limit": -1}, "limit: must be between 1 and 1000"),
        ({"limit": 1001}, "limit: must be between 1 and 1000"),
        ({"limit": "many"}, 'limit: invalid value "many"'),
        ({"limit": 2**40}, "limit: invalid value"),
        ({"after_id": "a", "before_id": "b"}, "before_id: can't stand beside after_id"),
        ({"lifecycle": ["retired"]}, "lifecycle"),
    ],
)
async def test_pages_that_are_none(claude: anthropic.AsyncAnthropic, asked: dict[str, Any], words: str):
    with pytest.raises(anthropic.BadRequestError) as raised:
        await claude.models.list(**asked)
    assert words in raised.value.message
    assert raised.value.request_id


async def test_a_wrong_key_sees_no_model(mesh: MeshProcess):
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="mk-wrong", max_retries=0) as stranger:
        for name in ("default", "openai/no-such"):
            with pytest.raises(openai.AuthenticationError) as raised:
                await stranger.models.retrieve(name)
            assert raised.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.models.list()
        assert raised.value.code == "invalid_api_key"
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key="mk-wrong", max_retries=0) as stranger:
        for call in (stranger.models.retrieve("default"), stranger.models.list()):
            with pytest.raises(anthropic.AuthenticationError) as refused:
                await call
            assert refused.value.request_id


Ask = Callable[[Any], Awaitable[Any]]
LARGE = ("a.mp3", b"x" * 6_000_000)
OPENAI: dict[str, Ask] = {
    "responses": lambda client: client.responses.create(model="default", input="x"),
    "responses.parse": lambda client: client.responses.parse(model="default", input="x"),
    "responses.retrieve": lambda client: client.responses.retrieve("resp_1"),
    "conversations": lambda client: client.conversations.create(),
    "completions": lambda client: client.completions.create(model="default", prompt="x"),
    "chat.completions.list": lambda client: client.chat.completions.list(),
    "chat.completions.delete": lambda client: client.chat.completions.delete("chatcmpl-1"),
    "models.delete": lambda client: client.models.delete("openai/gpt-4.1"),
    "moderations": lambda client: client.moderations.create(input="x"),
    "images": lambda client: client.images.generate(prompt="x"),
    "audio.transcriptions": lambda client: client.audio.transcriptions.create(file=LARGE, model="x"),
    "batches.create": lambda client: client.batches.create(
        input_file_id="f", endpoint="/v1/chat/completions", completion_window="24h"
    ),
    "batches.list": lambda client: client.batches.list(),
    "uploads": lambda client: client.uploads.create(bytes=1, filename="a", mime_type="text/plain", purpose="batch"),
    "fine_tuning": lambda client: client.fine_tuning.jobs.create(model="default", training_file="f"),
    "vector_stores": lambda client: client.vector_stores.list(),
    "evals": lambda client: client.evals.list(),
    "realtime": lambda client: client.realtime.client_secrets.create(),
}
ANTHROPIC: dict[str, Ask] = {
    "messages.batches.create": lambda client: client.messages.batches.create(requests=[]),
    "messages.batches.results": lambda client: client.messages.batches.results("b"),
    "beta.messages.batches": lambda client: client.beta.messages.batches.list(),
    "beta.files.list": lambda client: client.beta.files.list(),
    "beta.files.upload": lambda client: client.beta.files.upload(file=LARGE),
    "beta.files.download": lambda client: client.beta.files.download("f"),
    "beta.skills": lambda client: client.beta.skills.list(),
    "beta.agents": lambda client: client.beta.agents.list(),
}


@pytest.mark.parametrize("name", OPENAI)
async def test_what_openais_clients_look_for_in_vain_is_told(gpt: openai.AsyncOpenAI, name: str):
    with pytest.raises(openai.NotFoundError) as raised:
        await OPENAI[name](gpt)
    assert (raised.value.code, raised.value.type) == ("not_found", "invalid_request_error")
    assert "POST /v1/chat/completions" in raised.value.message
    assert "/v1/jobs" in raised.value.message
    assert raised.value.request_id


@pytest.mark.parametrize("name", ANTHROPIC)
async def test_what_anthropics_clients_look_for_in_vain_is_told(claude: anthropic.AsyncAnthropic, name: str):
    with pytest.raises(anthropic.NotFoundError) as raised:
        await ANTHROPIC[name](claude)
    body: Any = raised.value.body
    assert body["error"]["type"] == "not_found_error"
    assert "POST /v1/messages," in raised.value.message
    assert "/v1/jobs" in raised.value.message
    assert raised.value.request_id


async def test_a_thread_is_refused_and_the_clients_tool_loop_goes_on_without(
    claude: anthropic.AsyncAnthropic, provider: FaultServer
):
    asked: Any = {"model": "default", "max_tokens": 99, "messages": [{"role": "user", "content": "And then?"}]}
    thread = {"type": "continue", "previous_message_id": "msg_1"}
    before = len(provider.requests)
    with pytest.raises(anthropic.BadRequestError, match="thread: conversations are not kept here"):
        await claude.beta.messages.create(**asked, extra_body={"thread": thread})
    assert len(provider.requests) == before

    @beta_async_tool
    async def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    runner = claude.beta.messages.tool_runner(
        model="anthropic/claude-sonnet-5",
        messages=[{"role": "user", "content": "Use get_weather for Paris"}],
        max_tokens=99,
        tools=[get_weather],
    )
    answer = await runner.until_done()
    assert "21 degrees in Paris" in "".join(block.text for block in answer.content if block.type == "text")
