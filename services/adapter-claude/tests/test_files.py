"""Files at the provider, through its own SDK, against a strict emulator of its API."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from maestro.llm.v1.file_pb2 import FileHeader, FilePurpose, ListFilesRequest
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.adapter.provider import FileStore
from maestro_sdk.errors import (
    CapabilityUnavailable,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    Timeout,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.anthropic_auxiliary import FILES, AnthropicAuxiliary
from maestro_sdk.testing.anthropic_strict import StrictMessages
from maestro_sdk.testing.faults import Cut, FaultServer, Headers, Send, SendJson, Stall

CONTENT = b"%PDF-1.7 \x00\xff" * 1000


def header(**fields: Any) -> FileHeader:
    told: dict[str, Any] = {
        "filename": "report.pdf",
        "mime_type": "application/pdf",
        "purpose": FilePurpose.FILE_PURPOSE_CONTENT,
    }
    return FileHeader(**{**told, **fields})


async def test_the_life_of_a_file(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url, betas=["b1"]) as provider:
        auxiliary = AnthropicAuxiliary(downloadable=True)
        auxiliary.install(server)
        assert isinstance(provider, FileStore)
        wanted = header()
        wanted.expire_after.FromSeconds(7200)
        # As the kit hands it over: spooled, and on disk when it is large.
        with tempfile.SpooledTemporaryFile(max_size=10) as content:
            content.write(CONTENT)
            content.seek(0)
            kept = await provider.upload_file(wanted, content)
        assert auxiliary.files[kept.file_id].content == CONTENT
        assert (kept.filename, kept.mime_type, kept.size_bytes) == ("report.pdf", "application/pdf", len(CONTENT))
        assert (kept.provider, kept.purpose) == ("anthropic", FilePurpose.FILE_PURPOSE_CONTENT)
        assert kept.expire_time.ToSeconds() - kept.create_time.ToSeconds() == 7200
        assert await provider.get_file(kept.file_id) == kept
        assert b"".join([piece async for piece in provider.download_file(kept.file_id)]) == CONTENT
        await provider.delete_file(kept.file_id)
        for gone in (provider.get_file, provider.delete_file):
            with pytest.raises(NotFound):
                await gone(kept.file_id)
        with pytest.raises(NotFound):
            _ = [piece async for piece in provider.download_file(kept.file_id)]
        head = server.requests[0].headers
    assert head["authorization"] == "Bearer sk-ant-test-key"
    assert (head["anthropic-version"], head["anthropic-beta"]) == ("2026-10-21", "b1")


async def test_pages(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        kept = [await provider.upload_file(header(filename=f"{n}.pdf"), io.BytesIO(b"x")) for n in range(5)]
        token, names = "", list[str]()
        for size in (2, 2, 1):
            page = await provider.list_files(ListFilesRequest(page_size=2, page_token=token))
            assert len(page.files) == size
            names += [file.file_id for file in page.files]
            token = page.next_page_token
        assert token == ""
        assert names == [file.file_id for file in reversed(kept)]
        only = ListFilesRequest(purpose=FilePurpose.FILE_PURPOSE_JOB_INPUT)
        assert len((await provider.list_files(only)).files) == 0


async def test_a_file_that_was_uploaded_does_not_come_back(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        kept = await provider.upload_file(header(), io.BytesIO(b"x"))
        with pytest.raises(CapabilityUnavailable, match="not downloadable"):
            _ = [piece async for piece in provider.download_file(kept.file_id)]


async def test_messages_refer_to_a_file(ask: Any, provider_at: Any) -> None:
    strict = StrictMessages()
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        strict.install(server)
        kept = await provider.upload_file(header(), io.BytesIO(b"x"))
        parts = [{"document": {"file_id": kept.file_id, "title": "T"}}, {"image": {"file_id": kept.file_id}}]
        await provider.complete(ask(messages=[{"role": "ROLE_USER", "parts": parts}]))
    source = {"type": "file", "file_id": kept.file_id}
    assert strict.accepted[0]["messages"][0]["content"] == [
        {"type": "document", "source": source, "title": "T"},
        {"type": "image", "source": source},
    ]


@pytest.mark.parametrize(
    ("fields", "seconds", "path"),
    [
        ({"purpose": FilePurpose.FILE_PURPOSE_JOB_INPUT}, 0, "header.purpose"),
        ({}, 3599, "header.expire_after"),
        ({}, 90 * 86400 + 1, "header.expire_after"),
    ],
)
async def test_what_the_provider_does_not_know(
    fields: dict[str, Any], seconds: int, path: str, provider_at: Any
) -> None:
    wanted = header(**fields)
    if seconds:
        wanted.expire_after.FromSeconds(seconds)
    async with FaultServer() as server, provider_at(server.url) as provider:
        with pytest.raises(UnsupportedParameter) as caught:
            await provider.upload_file(wanted, io.BytesIO(b"x"))
        assert server.requests == []
    assert [found.field for found in caught.value.violations] == [path]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((Headers(529), SendJson(wire.WIRE.refusal(529, "", "busy"))), Overloaded),
        ((Headers(401), SendJson(wire.WIRE.refusal(401, "", "key"))), ProviderAuth),
        ((Headers(200, {"content-length": "100"}), Send(b'{"id":'), Cut()), UpstreamError),
        ((Stall(),), Timeout),
        ((Cut(),), UpstreamError),
        ((Headers(404), SendJson({"type": "error", "error": {"type": "not_found_error", "message": "?"}})), NotFound),
    ],
)
async def test_faults(steps: Any, expected: type[MaestroError], provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url, read_timeout="200ms") as provider:
        server.on("GET", f"{FILES}/*", *steps)
        with pytest.raises(MaestroError) as caught:
            await provider.get_file("file_1")
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert type(caught.value) is expected
    assert caught.value.metadata["provider"] == "anthropic"


async def test_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    provider = ClaudeProvider(ClaudeSettings())
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: provider.get_file("file_1"),
        lambda: provider.get_batch("msgbatch_1"),
    ]
    for call in calls:
        with pytest.raises(ProviderAuth, match="set ANTHROPIC_API_KEY"):
            await call()
    await provider.close()


async def test_a_new_key_is_used_at_once(tmp_path: Any) -> None:
    key = tmp_path / "key"
    async with FaultServer() as server:
        AnthropicAuxiliary().install(server)
        provider = ClaudeProvider(
            ClaudeSettings.model_validate({"api_key": {"file": str(key)}, "base_url": server.url})
        )
        for value in ("sk-ant-first", "sk-ant-second", "sk-ant-second"):
            key.write_text(value)
            await provider.list_files(ListFilesRequest())
        await provider.close()
        sent = [seen.headers["authorization"] for seen in server.requests]
    assert sent == ["Bearer sk-ant-first", "Bearer sk-ant-second", "Bearer sk-ant-second"]
