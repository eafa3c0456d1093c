"""The emulated account refuses what OpenAI and Azure refuse, so that an adapter that passes here is right there."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from maestro_sdk.testing import openai_auxiliary
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary

KEY = {"authorization": "Bearer k"}
Ask = Callable[..., Any]


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def ask(server: FaultServer) -> AsyncIterator[Ask]:
    """Asks the server; gives status and document."""
    async with aiohttp.ClientSession() as session:

        async def call(method: str, path: str, headers: Any = KEY, **more: Any) -> tuple[int, Any]:
            async with session.request(method, f"{server.url}{path}", headers=headers, **more) as response:
                return response.status, json.loads(await response.read())

        yield call


def form(filename: str = "a.jsonl", content: bytes = b"{}", **fields: Any) -> aiohttp.FormData:
    made = aiohttp.FormData()
    for name, value in fields.items():
        made.add_field(name.replace("__", "[") + ("]" if "__" in name else ""), value)
    made.add_field("file", content, filename=filename)
    return made


async def upload(ask: Ask, *lines: Any) -> str:
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    _, file = await ask("POST", "/v1/files", data=form(content=content, purpose="batch"))
    return str(file["id"])


def line(custom_id: str = "a", model: str = "m", **more: Any) -> dict[str, Any]:
    body = {"model": model, "messages": []}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


async def start(ask: Ask, file_id: str, **more: Any) -> tuple[int, Any]:
    told = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
    found: tuple[int, Any] = await ask("POST", "/v1/batches", json=told)
    return found


async def test_without_a_key_or_a_version(server: FaultServer, ask: Ask) -> None:
    OpenAIAuxiliary(server)
    OpenAIAuxiliary(server, openai_auxiliary.AZURE)
    assert (await ask("GET", "/v1/files", headers={}))[0] == 401
    assert (await ask("GET", "/openai/files", headers={"api-key": "k"}))[0] == 404
    assert (await ask("GET", "/openai/files?api-version=1", headers={"api-key": "k"}))[0] == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch_output"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "filename": "a.txt"}, "file"),
        ({"purpose": "batch", "expires_after__seconds": "7200"}, "expires_after"),
        ({"purpose": "batch", "expires_after__seconds": "60", "expires_after__anchor": "created_at"}, "expires_after"),
        ({"purpose": "batch", "colour": "red"}, None),
    ],
)
async def test_uploads_that_are_refused(
    server: FaultServer, ask: Ask, fields: dict[str, Any], param: str | None
) -> None:
    account = OpenAIAuxiliary(server)
    status, document = await ask("POST", "/v1/files", data=form(**fields))
    assert (status, document["error"]["param"]) == (400, param)
    assert not account.files


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"completion_window": "12h"}, "completion_window"),
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"input_file_id": "file-9"}, "input_file_id"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"priority": 1}, "priority"),
    ],
)
async def test_batches_that_are_refused(server: FaultServer, ask: Ask, more: dict[str, Any], param: str) -> None:
    account = OpenAIAuxiliary(server)
    status, document = await start(ask, await upload(ask, line()), **more)
    assert (status, document["error"]["param"]) == (400, param)
    assert not account.batches


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([line("a"), line("a")], "duplicate_custom_id"),
        ([line("a", "m"), line("b", "n")], "mismatched_model"),
        ([line(url="/v1/embeddings")], "url_mismatch"),
        ([line(method="GET")], "invalid_json_line"),
        ([line(extra=1)], "invalid_json_line"),
        ([], "empty_file"),
    ],
)
async def test_batches_that_fail_as_a_whole(server: FaultServer, ask: Ask, lines: list[Any], code: str) -> None:
    OpenAIAuxiliary(server, takes=0)
    _, begun = await start(ask, await upload(ask, *lines))
    _, ended = await ask("GET", f"/v1/batches/{begun['id']}")
    assert (ended["status"], ended["errors"]["data"][0]["code"]) == ("failed", code)


async def test_a_batch_moves_on(server: FaultServer, ask: Ask) -> None:
    account = OpenAIAuxiliary(server, takes=1e9)
    _, begun = await start(ask, await upload(ask, line("a"), line("b")))
    assert begun["status"] == "validating"
    account.takes = 0
    _, ended = await ask("GET", f"/v1/batches/{begun['id']}")
    assert (ended["status"], ended["request_counts"]) == ("completed", {"total": 2, "completed": 2, "failed": 0})
    status, refused = await ask("POST", f"/v1/batches/{begun['id']}/cancel")
    assert (status, "Cannot cancel" in refused["error"]["message"]) == (409, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": ["word " * 10_000]}, "input"),
        ({"input": [[1] * 8_000] * 40}, "input"),
        ({"input": "a", "dimensions": 1537}, "dimensions"),
        ({"input": "a", "dimensions": 8, "model": "text-embedding-ada-002"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "purpose": "search"}, None),
        ({}, None),
    ],
)
async def test_embeddings_that_are_refused(
    server: FaultServer, ask: Ask, fields: dict[str, Any], param: str | None
) -> None:
    OpenAIAuxiliary(server)
    status, document = await ask("POST", "/v1/embeddings", json={"model": "text-embedding-3-small", **fields})
    assert (status, document["error"]["param"]) == (400, param)
