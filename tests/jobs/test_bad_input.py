"""Input that is wrong is refused as a whole, with the item and the field, before anything of it runs."""

from __future__ import annotations

import io
import json
import time
from typing import Any

import aiohttp
import pytest

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.testing.chaos.provider import Providers
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEYS, MODEL, Jobs, chat, questions, status_of

GOOD: dict[str, Any] = {
    "chat": {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "[r1] hi"}}]}]}
}


def changed(**fields: Any) -> dict[str, Any]:
    return {"chat": {**GOOD["chat"], **fields}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"items": []}, "", id="no items"),
        pytest.param({"items": [GOOD], "input_file_id": "file_1"}, "", id="items and a file"),
        pytest.param({"items": [GOOD, {"item_id": "x"}]}, "items[1].request", id="an item without a request"),
        pytest.param({"items": [GOOD, changed(messages=[])]}, "items[1].chat.messages", id="no message"),
        pytest.param(
            {"items": [GOOD, GOOD, changed(temperature=9)]}, "items[2].chat.temperature", id="a field out of range"
        ),
        pytest.param({"items": [GOOD, changed(model="openai/none")]}, "items[1].chat.model", id="an unknown model"),
        pytest.param({"items": [{"item_id": "a b", **GOOD}]}, "items[0].item_id", id="a name that is none"),
        pytest.param(
            {"items": [{"item_id": "x", **GOOD}, GOOD, {"item_id": "x", **GOOD}]}, "items[2].item_id", id="a name twice"
        ),
        pytest.param({"items": [GOOD, {"item_id": "0", **GOOD}]}, "items[1].item_id", id="the name of a position"),
        pytest.param({"items": [GOOD], "max_parallel": 0}, "max_parallel", id="nothing at a time"),
        pytest.param({"items": [GOOD], "max_runs": 11}, "max_runs", id="too many runs"),
        pytest.param({"items": [GOOD], "max_cost_usd": "-1"}, "max_cost_usd", id="a negative amount"),
        pytest.param({"items": [GOOD], "timeout": "0.5s"}, "timeout", id="too short"),
        pytest.param({"items": [GOOD], "timeout": "9999999s"}, "timeout", id="too long"),
        pytest.param({"items": [GOOD], "keep_results": "1s"}, "keep_results", id="kept too short"),
    ],
)
async def test_wrong_input_names_its_field(mesh: MeshProcess, providers: Providers, body: dict[str, Any], field: str):
    headers = {"authorization": f"Bearer {KEYS['globex']}"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        async with http.get("/v1/jobs") as response:
            before = await response.json()
        async with http.post("/v1/jobs", json=body) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["reason"]) == (400, "INVALID_REQUEST"), answer
        if field:
            assert field in [detail["field"] for detail in answer["error"]["details"]], answer
        async with http.get("/v1/jobs") as response:
            assert await response.json() == before
    assert providers.calls == []


def asked(part: Any) -> dict[str, Any]:
    return {"items": [GOOD, changed(messages=[{"role": "ROLE_USER", "parts": [part]}])]}


VECTORS: dict[str, Any] = {"model": "openai/text-embedding-3-small", "inputs": [{"text": "a"}]}


def embedded(**fields: Any) -> dict[str, Any]:
    return {"items": [GOOD, {"embed": {**VECTORS, **fields}}]}


def within(**fields: Any) -> dict[str, Any]:
    return {"items": [GOOD, changed(**fields)]}


BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "[r1] hi"}]}
REST: dict[str, Any] = {"chat": BODY}


def rest(**fields: Any) -> dict[str, Any]:
    return {"items": [REST, {"chat": {**BODY, **fields}}]}


def line(**fields: Any) -> dict[str, Any]:
    whole = {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
    return {"items": [REST, {**whole, **fields}]}


WRONG: tuple[tuple[Any, str], ...] = (
    # What can't be read.
    (b"", "body: is empty"),
    (b"{", "body: is not JSON"),
    (b"[]", "body: must be a JSON object"),
    (b"null", "body: must be a JSON object"),
    (b'"x"', "body: must be a JSON object"),
    (b'{"max_parallel": NaN}', "body: is not JSON"),
    (b'{"items": "\xff"}', "body: is not JSON"),
    (b'{"items": [], "items": []}', "body: the key 'items' stands twice"),
    (b'{"items": ' + b"[" * 100_000, "body: is not JSON"),
    (b'{"items": ' + b"[" * 80 + b"]" * 80 + b"}", "body: is nested more"),
    ({"items": "x"}, "items"),
    ({"items": [1]}, "items[0]"),
    ({"items": [{**GOOD, "embed": VECTORS}]}, "items[0]"),
    ({"items": [{"chat": "hi"}]}, "items[0].chat"),
    ({"items": [{**GOOD, "item_id": 5}]}, "items[0].item_id"),
    ({"items": [GOOD], "priority": "URGENT"}, "priority"),
    ({"items": [GOOD], "max_parallel": "many"}, "max_parallel"),
    ({"items": [GOOD], "max_cost_usd": 5}, "max_cost_usd"),
    ({"items": [GOOD], "timeout": 5}, "timeout"),
    ({"items": [GOOD], "timeout": "5 minutes"}, "timeout"),
    ({"items": [GOOD], "metadata": []}, "metadata"),
    ({"items": [GOOD], "metadata": {"a": 1}}, "metadata"),
    ({"input_file_id": 5}, "input_file_id"),
    (within(messages="hi"), "items[1].chat.messages"),
    (within(messages=[{"role": "user?"}]), "items[1].chat.messages[0].role"),
    (within(temperature="hot"), "items[1].chat.temperature"),
    (within(max_tokens=1.5), "items[1].chat.max_tokens"),
    (within(model=5), "items[1].chat.model"),
    (asked({"text": {"text": 1}}), "items[1].chat.messages[0].parts[0].text.text"),
    # What breaks a rule.
    ({"items": [{}]}, "items[0].request"),
    ({"items": [{"chat": None}]}, "items[0].request"),
    ({"items": [{"chat": {}}]}, "items[0].chat.messages"),
    ({"items": [{"embed": {}}]}, "items[0].embed.input"),
    ({"items": [{"item_id": "a" * 65, **GOOD}]}, "items[0].item_id"),
    ({"items": [GOOD], "priority": 9}, "priority"),
    ({"items": [GOOD], "max_parallel": -1}, "max_parallel"),
    ({"items": [GOOD], "max_parallel": 10**9}, "max_parallel"),
    ({"items": [GOOD], "max_runs": 0}, "max_runs"),
    ({"items": [GOOD], "max_cost_usd": "1e3"}, "max_cost_usd"),
    ({"items": [GOOD], "max_cost_usd": "NaN"}, "max_cost_usd"),
    ({"items": [GOOD], "max_cost_usd": "1" * 50}, "max_cost_usd"),
    ({"items": [GOOD], "max_cost_usd": "0." + "1" * 100_000}, "max_cost_usd"),
    ({"items": [GOOD], "timeout": "-5s"}, "timeout"),
    ({"items": [GOOD], "keep_results": "99999999s"}, "keep_results"),
    ({"items": [GOOD], "metadata": {f"k{number}": "v" for number in range(33)}}, "metadata"),
    ({"items": [GOOD], "metadata": {"k": "v" * 513}}, "metadata"),
    ({"items": [GOOD], "metadata": {"": "v"}}, "metadata"),
    ({"items": [GOOD], "display_name": "x" * 257}, "display_name"),
    ({"items": [GOOD], "request_id": "x" * 129}, "request_id"),
    (within(messages=[{"role": "ROLE_USER"}]), "items[1].chat.messages[0].parts"),
    (within(messages=[{"parts": [{"text": {"text": "x"}}]}]), "items[1].chat.messages[0].role"),
    (within(max_tokens=-1), "items[1].chat.max_tokens"),
    (within(model="x" * 300), "items[1].chat.model"),
    (within(tools=[{"function": {"name": "a b"}}]), "items[1].chat.tools[0]"),
    (asked({}), "items[1].chat.messages[0].parts[0].kind"),
    (asked({"image": {}}), "items[1].chat.messages[0].parts[0].image.source"),
    (embedded(inputs=[{}]), "items[1].embed.inputs[0].kind"),
    (embedded(dimensions=0), "items[1].embed.dimensions"),
    (embedded(dimensions=10**7), "items[1].embed.dimensions"),
    (embedded(model="none/such"), "items[1].embed.model"),
    # The same in the shape of REST, in which nothing is passed over.
    ({"items": [GOOD], "prioritaet": "high"}, "prioritaet"),
    (rest(mesages=[]), "items[1].chat.mesages: is not a field of a chat request; did you mean messages?"),
    (rest(max_completion_tokens=5), "items[1].chat.max_completion_tokens"),
    (rest(messages=[{"role": "user", "contents": "hi"}]), "items[1].chat.messages[0].contents"),
    (rest(messages=[{"role": "user", "content": [{"type": "text", "text": 1}]}]), "chat.messages[0].content[0].text"),
    (rest(messages=[{"role": "usr", "content": "hi"}]), "items[1].chat.messages[0].role"),
    (rest(temperature=10**400), "body: is not JSON"),
    (rest(temperature=1e300), "items[1].chat.temperature"),
    (rest(max_tokens=10**15), "items[1].chat.max_tokens"),
    (rest(seed=2**70), "items[1].chat.seed"),
    (rest(routing={"persona": "a", "skil": "b"}), "items[1].chat.routing.skil"),
    (rest(model="none/such"), "items[1].chat.model"),
    ({"items": [REST, {**REST, "priority": "high"}]}, "items[1].priority"),
    ({"items": [REST, {**REST, "embeddings": {"input": "x"}}]}, "items[1].request"),
    ({"items": [{"embeddings": {"inputs": ["x"]}}]}, "items[0].embeddings.input"),
    ({"items": [{"embeddings": {"input": []}}]}, "items[0].embeddings.input"),
    ({"items": [{"embeddings": {"input": ["a", 5]}}]}, "items[0].embeddings.input[1]"),
    ({"items": [{"embeddings": {"input": "a", "shout": 1}}]}, "items[0].embeddings.shout"),
    ({"items": [{"embeddings": {"input": "a", "model": "none/such"}}]}, "items[0].embeddings.model"),
    # And in that of OpenAI's batches.
    (line(custom_id=None), "items[1].custom_id"),
    (line(custom_id="a b"), "items[1].custom_id"),
    (line(method="GET"), "items[1].method"),
    (line(url="/v1/responses"), "items[1].url"),
    (line(body=None), "items[1].body"),
    (line(extra=1), "items[1].extra"),
    (line(body={"model": MODEL}), "items[1].body.messages"),
    (line(body={**BODY, "n": 2}), "items[1].body.n"),
    (line(body={**BODY, "stream": True}), "items[1].body.stream"),
    (line(body={**BODY, "model": "none/such"}), "items[1].body.model"),
    (line(url="/v1/embeddings", body={"model": "none/such", "input": "a"}), "items[1].body.model"),
    ({"items": [line()["items"][1], line()["items"][1]]}, "items[1].custom_id: 'b' is the name of items[0] already"),
)


async def test_whatever_is_wrong_is_named(mesh: MeshProcess, providers: Providers):
    headers = {"authorization": f"Bearer {KEYS['globex']}", "content-type": "application/json"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        for body, path in WRONG:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with http.post("/v1/jobs", data=data) as response:
                answer = await response.json()
            assert (response.status, answer["error"]["reason"]) == (400, "INVALID_REQUEST"), (data[:200], answer)
            assert path in answer["error"]["message"], (data[:200], answer)
    assert providers.calls == []


async def test_files_that_are_not_there_are_named(mesh: MeshProcess, jobs: Jobs, others: Jobs):
    """Those of other tenants are not there, either."""
    async with aiohttp.ClientSession(mesh.url, headers={"authorization": f"Bearer {KEYS['acme']}"}) as http:
        inputs = await upload(http, "job_input", (json.dumps(GOOD) + "\n").encode(), "a.jsonl", "application/jsonl")
        image = await upload(http, "content", _PIXEL, "a.png", "image/png")
    items = [questions(1)[0], BatchItem(chat=seeing(image)), BatchItem(chat=seeing(image))]
    made = await jobs.stub.CreateJob(pb.CreateJobRequest(items=items), metadata=jobs.key)
    await jobs.cancel(made.job_id)
    for request, field, code in (
        (pb.CreateJobRequest(items=items), "items[1].chat.messages[0].parts[1].image.file_id", "INVALID_ARGUMENT"),
        (pb.CreateJobRequest(input_file_id=inputs), "input_file_id", "NOT_FOUND"),
    ):
        status, text = await status_of(others.stub.CreateJob(request, metadata=others.key))
        assert (status, field in text, "there is no file" in text) == (code, True, True), text


async def test_a_file_with_one_bad_line_names_it(mesh: MeshProcess):
    lines = [json.dumps(GOOD)] * 710
    lines[699] = json.dumps(changed(temperature=9))
    headers = {"authorization": f"Bearer {KEYS['acme']}"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        for wrong, field in (
            (json.dumps(changed(temperature=9)), "line 700: chat.temperature"),
            (json.dumps(changed(model="none/such")), "line 700: chat.model"),
            (json.dumps({"item_id": "0", **GOOD}), "line 700: item_id"),
            ('{"chat": ', "line 700"),
        ):
            lines[699] = wrong
            file_id = await upload(http, "job_input", "\n".join(lines).encode(), "a.jsonl", "application/jsonl")
            async with http.post("/v1/jobs", json={"input_file_id": file_id}) as response:
                answer = await response.json()
            assert (response.status, answer["error"]["details"][0]["field"]) == (400, field), answer


async def test_a_million_items_are_refused_before_they_are_read(mesh: MeshProcess):
    headers = {"authorization": f"Bearer {KEYS['acme']}"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        file_id = await upload(http, "job_input", b"{}\n" * 1_000_000, "a.jsonl", "application/jsonl")
        begun = time.monotonic()
        async with http.post("/v1/jobs", json={"input_file_id": file_id}) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["reason"]) == (413, "TOO_LARGE")
        assert "50000 items" in answer["error"]["message"]
        assert time.monotonic() - begun < 5


_PIXEL = b"\x89PNG\r\n\x1a\n" + bytes(64)


def seeing(file_id: str) -> ChatRequest:
    """A question about an image."""
    question = chat("[r1] what is it?")
    question.messages[0].parts.add().image.file_id = file_id
    return question


async def upload(http: aiohttp.ClientSession, purpose: str, data: bytes, name: str, kind: str) -> str:
    """The identifier of a file that is uploaded."""
    form = aiohttp.FormData()
    form.add_field("purpose", purpose)
    form.add_field("file", io.BytesIO(data), filename=name, content_type=kind)
    async with http.post("/v1/files", data=form) as response:
        answer = await response.json()
    assert response.status == 200, answer
    return answer["file_id"]


async def test_a_key_without_the_scope_is_refused(mesh: MeshProcess):
    async with aiohttp.ClientSession(mesh.url) as http:
        async with http.post("/v1/jobs", json={"items": [GOOD]}) as response:
            assert response.status == 401
        headers = {"authorization": f"Bearer {KEYS['chatter']}"}
        async with http.post("/v1/jobs", json={"items": [GOOD]}, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["reason"]) == (403, "PERMISSION_DENIED")
