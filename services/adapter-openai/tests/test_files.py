"""Files at OpenAI: purposes, times, pages, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from maestro.llm.v1.file_pb2 import FileHeader, FilePurpose, ListFilesRequest
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.errors import (
    CapabilityUnavailable,
    MaestroError,
    NotFound,
    ProviderAuth,
    RateLimited,
    StreamBroken,
    Timeout,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import Cut, FaultServer, Headers, Reply, Send, SendJson, Stall
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary

CONTENT = FilePurpose.FILE_PURPOSE_CONTENT
INPUT = FilePurpose.FILE_PURPOSE_JOB_INPUT
OUTPUT = FilePurpose.FILE_PURPOSE_JOB_OUTPUT


def header(filename: str = "facts.pdf", purpose: FilePurpose.ValueType = CONTENT, **fields: Any) -> FileHeader:
    return FileHeader(filename=filename, purpose=purpose, mime_type="application/pdf", **fields)


async def test_the_whole_life_of_a_file(server: FaultServer, openai: OpenAIProvider) -> None:
    state = OpenAIAuxiliary(server)
    made = await openai.upload_file(header(expire_after=Duration(seconds=7200)), io.BytesIO(b"%PDF-1.7"))
    assert (made.filename, made.size_bytes, made.purpose) == ("facts.pdf", 8, CONTENT)
    assert (made.provider, made.mime_type) == ("openai", "application/pdf")
    assert made.expire_time.seconds - 7200 == 1_790_000_000
    assert state.files[made.file_id].purpose == "user_data"
    assert await openai.get_file(made.file_id) == made
    # OpenAI gives no user data back; it says so, and so does the adapter.
    with pytest.raises(CapabilityUnavailable, match="keep the original"):
        await anext(openai.download_file(made.file_id))
    await openai.delete_file(made.file_id)
    for gone in (openai.get_file(made.file_id), openai.delete_file(made.file_id)):
        with pytest.raises(NotFound, match=rf"openai has no file '{made.file_id}'"):
            await gone
    assert not state.files


async def test_a_batch_file_is_read_back_whole(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    content = bytes(range(256)) * 4096
    made = await openai.upload_file(header("lines.jsonl", INPUT), io.BytesIO(content))
    assert b"".join([piece async for piece in openai.download_file(made.file_id)]) == content


async def test_pages_and_purposes(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    for number in range(5):
        await openai.upload_file(header(f"{number}.pdf"), io.BytesIO(b"x"))
    await openai.upload_file(header("lines.jsonl", INPUT), io.BytesIO(b"{}"))
    seen: list[str] = []
    token = ""
    while True:
        page = await openai.list_files(ListFilesRequest(page_size=2, page_token=token, purpose=CONTENT))
        seen += [file.filename for file in page.files]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["4.pdf", "3.pdf", "2.pdf", "1.pdf", "0.pdf"]
    every = await openai.list_files(ListFilesRequest())
    assert [file.purpose for file in every.files[:2]] == [INPUT, CONTENT]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (header(purpose=OUTPUT), "header.purpose"),
        (header(metadata={"a": "b"}), "header.metadata"),
        (header(expire_after=Duration(seconds=60)), "header.expire_after"),
        (header(expire_after=Duration(seconds=31 * 86400)), "header.expire_after"),
    ],
)
async def test_what_the_wire_can_not_carry(
    server: FaultServer, openai: OpenAIProvider, wrong: FileHeader, field: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await openai.upload_file(wrong, io.BytesIO(b"x"))
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not server.requests


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (openai_chat.error(401), ProviderAuth),
        (openai_chat.rate_limited(4), RateLimited),
        (openai_chat.error(500), UpstreamError),
        (lambda _: [Cut()], UpstreamError),
        (lambda _: [Stall()], Timeout),
        (lambda _: [Send(b"<html>")], StreamBroken),
        (lambda _: [SendJson({"object": "file"})], StreamBroken),
        (lambda _: [SendJson({"id": "file-1", "filename": "a", "created_at": 7, "purpose": "batch"})], StreamBroken),
        (lambda _: [SendJson({"bytes": 7, "filename": "a", "created_at": 7, "purpose": "batch"})], StreamBroken),
    ],
)
async def test_every_way_to_fail(
    server: FaultServer, openai: OpenAIProvider, reply: Reply, expected: type[MaestroError]
) -> None:
    server.on("GET", "/v1/files/*", reply)
    with pytest.raises(expected) as caught:
        await openai.get_file("file-1")
    assert type(caught.value) is expected
    assert caught.value.metadata["provider"] == "openai"
    if expected is RateLimited:
        assert caught.value.retry_after == 4.0
    # Once: retries belong to the mesh.
    assert len(server.requests) == 1


async def test_a_download_that_is_cut(server: FaultServer, openai: OpenAIProvider) -> None:
    server.on("GET", "/v1/files/*", Headers(200, {"content-type": "text/plain"}), Send(b"x" * 300_000), Cut())
    with pytest.raises(StreamBroken, match="cut"):
        assert [piece async for piece in openai.download_file("file-1")]


@pytest.mark.parametrize("key", ["sk-first\nsk-second", "sk-clé", "sk two"])
async def test_a_key_that_is_none_is_said_and_never_shown(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ADAPTER_TEST_KEY", key)
    fields = {"api_key": {"env": "ADAPTER_TEST_KEY"}, "base_url": f"{server.url}/v1"}
    provider = OpenAIProvider.from_settings(OpenAISettings.model_validate(fields))
    reason = await provider.check()
    assert "ADAPTER_TEST_KEY is none" in reason
    with pytest.raises(ProviderAuth) as caught:
        await provider.get_file("file-1")
    assert "sk-" not in reason + caught.value.message
    assert not server.requests
    await provider.close()
