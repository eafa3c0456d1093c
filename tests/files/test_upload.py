"""Uploads and downloads through Envoy: streamed, checked, bounded, and each tenant's own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import grpc
import pytest

from maestro.llm.v1.file_pb2 import (
    DeleteFileRequest,
    DownloadFileRequest,
    FileHeader,
    FilePurpose,
    GetFileRequest,
    ListFilesRequest,
    UploadFileRequest,
)
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro_sdk.errors import TooLarge, from_rpc_error
from maestro_sdk.service.channel import open_channel

from .conftest import GATEWAYS, KEY, MAX_FILE, MIB, NARROW, OTHER, SIZE, Mesh

TEXT = b"one line\n" * 100
RAW = "/v1/files?purpose=content&filename=a.txt"


def form(fields: Mapping[str, str], content: Any = TEXT, *, last: Mapping[str, str] | None = None) -> Any:
    """A form with its fields before the file; those of `last` follow it."""
    data = aiohttp.FormData()
    for name, value in fields.items():
        data.add_field(name, value)
    data.add_field("file", content, filename="a.txt", content_type="text/plain")
    for name, value in (last or {}).items():
        data.add_field(name, value)
    return data


async def generated(size: int, digest: Any = None) -> AsyncIterator[bytes]:
    block = bytes(range(256)) * 1024
    while size > 0:
        data = block[: min(size, len(block))]
        size -= len(data)
        if digest is not None:
            digest.update(data)
        yield data


@pytest.mark.parametrize("last", [None, {"purpose": "user_data", "expires_after[seconds]": "3600"}])
async def test_a_form_in_any_order(mesh: Mesh, last: dict[str, str] | None) -> None:
    first = {"metadata[team]": "a"} if last else {"purpose": "FILE_PURPOSE_CONTENT", "metadata": '{"team": "a"}'}
    status, file = await mesh.rest("POST", "/v1/files", data=form(first, last=last))
    assert status == 200, file
    assert (file["filename"], file["mime_type"], file["purpose"]) == ("a.txt", "text/plain", "FILE_PURPOSE_CONTENT")
    assert (file["size_bytes"], file["sha256"]) == (str(len(TEXT)), hashlib.sha256(TEXT).hexdigest())
    assert (file["id"], file["object"], file["bytes"]) == (file["file_id"], "file", len(TEXT))
    assert file["metadata"] == {"team": "a"}
    assert file["expires_at"] - file["created_at"] == (3600 if last else 30 * 86400)
    assert await mesh.rest("GET", f"/v1/files/{file['file_id']}") == (200, file)
    status, headers, content = await mesh.download(file["file_id"])
    assert (status, content, headers["content-type"]) == (200, TEXT, "text/plain")
    assert headers["content-disposition"] == "inline; filename*=UTF-8''a.txt"
    status, gone = await mesh.rest("DELETE", f"/v1/files/{file['file_id']}")
    assert (status, gone["deleted"], gone["file_id"]) == (200, True, file["file_id"])
    status, told = await mesh.rest("GET", f"/v1/files/{file['file_id']}")
    assert (status, told["error"]["reason"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "field"),
    [
        ("/v1/files?filename=a.txt", TEXT, {}, 400, "purpose"),
        ("/v1/files?purpose=nonsense&filename=a.txt", TEXT, {}, 400, "purpose"),
        ("/v1/files?purpose=content&filename=a%2Fb", TEXT, {}, 400, "filename"),
        ("/v1/files?purpose=content", TEXT, {}, 400, "filename"),
        (RAW + "&sha256=" + "0" * 64, TEXT, {}, 400, "sha256"),
        (RAW + "&sha256=short", TEXT, {}, 400, "sha256"),
        (RAW + "&size_bytes=3", TEXT, {}, 400, "size_bytes"),
        (RAW + "&size_bytes=-3", TEXT, {}, 400, "size_bytes"),
        (RAW + "&expire_after=1", TEXT, {}, 400, "expire_after"),
        (RAW + "&expire_after=31536000", TEXT, {}, 400, "expire_after"),
        (RAW + "&expire_after=tomorrow", TEXT, {}, 400, "expire_after"),
        (RAW + "&metadata=[1]", TEXT, {}, 400, "metadata"),
        (RAW + "&colour=red", TEXT, {}, 400, "colour"),
        (RAW, TEXT, {"content_type": "application/x-msdownload"}, 400, "mime_type"),
        (RAW, TEXT, {"content_type": "image/png"}, 400, "mime_type"),
        (RAW, b"", {}, 400, ""),
        ("/v1/files", b"--x\r\nnothing", {"content_type": "multipart/form-data; boundary=x"}, 400, ""),
        ("/v1/files", b"x", {"content_type": "multipart/form-data"}, 400, ""),
        ("/v1/files", b"--x--\r\n", {"content_type": "multipart/form-data; boundary=x"}, 400, "file"),
        ("/v1/files", form({"purpose": "content"}, last={"purpose": "content"}), {}, 400, "purpose"),
        ("/v1/files", form({"purpose": "content", "colour": "red"}), {}, 400, "colour"),
        ("/v1/files", form({"purpose": "content"}, last={"sha256": "0" * 64}), {}, 400, "sha256"),
        ("/v1/files", form({"purpose": "job_input"}, b"\x89PNG\r\n\x1a\n"), {}, 400, "mime_type"),
    ],
)
async def test_what_is_wrong_is_told_and_not_kept(
    mesh: Mesh, path: str, data: Any, headers: dict[str, str], status: int, field: str
) -> None:
    before = await mesh.listed()
    got, told = await mesh.rest("POST", path, data=data, **headers)
    assert got == status, told
    assert {each["field"] for each in told["error"]["details"]} == ({field} if field else set())
    assert told["error"]["message"]
    assert await mesh.listed() == before


async def test_limits_of_a_tenant(mesh: Mesh) -> None:
    status, told = await mesh.rest("POST", RAW, OTHER, data=b"x" * 1001)
    assert (status, told["error"]["reason"]) == (413, "TOO_LARGE")
    # Also where nothing tells the size in advance, and while the client still sends.
    status, told = await mesh.rest("POST", RAW, OTHER, data=generated(8 * MIB))
    assert (status, told["error"]["reason"]) == (413, "TOO_LARGE")
    status, told = await mesh.rest("POST", RAW, data=generated(10), content_length=str(MAX_FILE + 2 * MIB))
    assert (status, told["error"]["reason"]) == (413, "TOO_LARGE")
    assert (await mesh.rest("POST", RAW, OTHER, data=b"x" * 1000))[0] == 200
    status, told = await mesh.rest("POST", RAW, OTHER, data=b"x" * 501)
    assert (status, told["error"]["reason"]) == (413, "TOO_LARGE")


async def test_nobody_else_gets_in(mesh: Mesh) -> None:
    _, file = await mesh.rest("POST", RAW, data=TEXT)
    path = f"/v1/files/{file['file_id']}"
    doors = (("GET", path), ("GET", path + "/content"), ("DELETE", path))
    for method, at in doors:
        status, told = await mesh.rest(method, at, OTHER)
        assert (status, told["error"]["reason"]) == (404, "NOT_FOUND"), (method, at)
    for method, at in (*doors, ("GET", "/v1/files"), ("POST", RAW)):
        status, told = await mesh.rest(method, at, NARROW)
        assert (status, told["error"]["reason"]) == (403, "PERMISSION_DENIED"), (method, at)
        status, told = await mesh.rest(method, at, "mk-nobody-0123456789")
        assert (status, told["error"]["reason"]) == (401, "UNAUTHENTICATED"), (method, at)
    assert file["file_id"] in await mesh.listed()
    assert file["file_id"] not in await mesh.listed(OTHER)


async def test_ranges(mesh: Mesh) -> None:
    _, file = await mesh.rest("POST", RAW, data=TEXT)
    size = len(TEXT)
    wanted = {
        "bytes=0-9": (206, TEXT[:10], f"bytes 0-9/{size}"),
        "bytes=890-": (206, TEXT[890:], f"bytes 890-899/{size}"),
        "bytes=-5": (206, TEXT[-5:], f"bytes 895-899/{size}"),
        "bytes=890-9999": (206, TEXT[890:], f"bytes 890-899/{size}"),
        "bytes=900-": (416, b"", f"bytes */{size}"),
        "bytes=5-2": (200, TEXT, None),
        "bytes=0-1,3-4": (200, TEXT, None),
        "lines=1-2": (200, TEXT, None),
    }
    for asked, (status, content, told) in wanted.items():
        got, headers, data = await mesh.download(file["file_id"], range=asked)
        assert (got, data, headers.get("content-range")) == (status, content, told), asked
    got, _, data = await mesh.download(file["file_id"], range="bytes=0-9", if_range='"other"')
    assert (got, data) == (200, TEXT)


async def test_a_repeated_upload_or_deletion(mesh: Mesh) -> None:
    _, first = await mesh.rest("POST", RAW, data=TEXT, idempotency_key="again")
    assert await mesh.rest("POST", RAW + "&request_id=again", data=TEXT) == (200, first)
    assert await mesh.rest("POST", "/v1/files", data=form({"purpose": "content", "request_id": "again"})) == (
        200,
        first,
    )
    path = f"/v1/files/{first['file_id']}"
    for _ in range(2):
        assert (await mesh.rest("DELETE", path, idempotency_key="gone"))[0] == 200
    assert (await mesh.rest("DELETE", path))[0] == 404


async def test_a_large_file_passes_through_little_memory(mesh: Mesh, figures: list[str]) -> None:
    for name in GATEWAYS:
        mesh.forget_highest(name)
    before = {name: mesh.memory(name) for name in GATEWAYS}
    digest, begun = hashlib.sha256(), time.monotonic()
    status, file = await mesh.rest("POST", RAW + "&mime_type=application/octet-stream", data=generated(SIZE, digest))
    assert (status, file["bytes"], file["sha256"]) == (200, SIZE, digest.hexdigest())
    uploaded = time.monotonic()
    got = hashlib.sha256()
    headers = {"authorization": f"Bearer {KEY}"}
    async with mesh.http.get(f"{mesh.process.url}/v1/files/{file['id']}/content", headers=headers) as response:
        assert response.status == 200
        async for data in response.content.iter_any():
            got.update(data)
    assert got.digest() == digest.digest()
    grown = max(mesh.highest(name) - size for name, size in before.items())
    figures.append(
        f"{SIZE // MIB} MiB through Envoy: {uploaded - begun:.1f} s up, {time.monotonic() - uploaded:.1f} s down; "
        f"the gateways grew by {grown / MIB:.1f} MiB at most"
    )
    assert grown < 24 * MIB
    assert (await mesh.rest("DELETE", f"/v1/files/{file['id']}"))[0] == 200


async def test_a_reader_that_stops_holds_no_file_in_memory(mesh: Mesh, figures: list[str]) -> None:
    _, file = await mesh.rest("POST", RAW, data=generated(16 * MIB), content_type="application/octet-stream")
    before = {name: mesh.memory(name) for name in GATEWAYS}
    readers = []
    for _ in range(8):
        reader, writer = await asyncio.open_connection(*mesh.process.target.split(":"), limit=4096)
        writer.write(
            f"GET /v1/files/{file['id']}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        readers.append((reader, writer))
    for reader, _ in readers:
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
    grown = max(mesh.memory(name) - size for name, size in before.items())
    figures.append(f"8 readers of 16 MiB that stop: the gateways grew by {grown / MIB:.1f} MiB at most")
    assert grown < 32 * MIB
    for _, writer in readers:
        writer.close()
    assert (await mesh.download(file["id"], range="bytes=-3"))[0] == 206


@pytest.mark.parametrize("told", [True, False], ids=["length", "chunked"])
async def test_an_upload_that_is_cut_leaves_nothing(mesh: Mesh, *, told: bool) -> None:
    before = await mesh.listed()
    _, writer = await asyncio.open_connection(*mesh.process.target.split(":"))
    length = f"content-length: {4 * MIB}" if told else "transfer-encoding: chunked"
    writer.write(f"POST {RAW} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n{length}\r\n\r\n".encode())
    writer.write((b"" if told else f"{2 * MIB:x}\r\n".encode()) + bytes(2 * MIB))
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    # It is gone without a sweep: its room is free again.
    end = time.monotonic() + 5
    while (left := await _open_uploads(mesh)) and time.monotonic() < end:
        await asyncio.sleep(0.02)
    assert left == 0
    assert await mesh.listed() == before


async def _open_uploads(mesh: Mesh, tenant: str = "acme") -> int:
    import nats

    connect: Any = nats.connect
    client = await connect(mesh.process.address("nats"))
    try:
        found = await client.jetstream().get_last_msg("KV_MAESTRO_FILE_FACTS", f"$KV.MAESTRO_FILE_FACTS.quota.{tenant}")
        return len(json.loads(found.data)["open"])
    finally:
        await client.close()


async def test_files_outlive_a_restart_of_nats_and_of_a_gateway(mesh: Mesh) -> None:
    _, file = await mesh.rest("POST", RAW, data=TEXT)
    killed = [mesh.process.kill(name) for name in ("nats", "gateway")]
    for member in killed:
        await mesh.process.wait_restarted(member)
    end = time.monotonic() + 20
    while (got := await mesh.download(file["file_id"]))[0] != 200 and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert got[2] == TEXT


async def test_grpc(mesh: Mesh) -> None:
    bearer = (("authorization", f"Bearer {KEY}"),)
    async with open_channel(mesh.process.target) as channel:
        stub: Any = FileServiceStub(channel)
        header = FileHeader(filename="a.txt", purpose=FilePurpose.FILE_PURPOSE_CONTENT, size_bytes=len(TEXT))
        requests = [UploadFileRequest(header=header), UploadFileRequest(data=TEXT)]
        file = await stub.UploadFile(iter(requests), metadata=bearer)
        assert await stub.GetFile(GetFileRequest(file_id=file.file_id), metadata=bearer) == file
        page = await stub.ListFiles(ListFilesRequest(page_size=1), metadata=bearer)
        assert list(page.files) == [file]
        asked = DownloadFileRequest(file_id=file.file_id, offset=9, limit=9)
        first, *rest = [message async for message in stub.DownloadFile(asked, metadata=bearer)]
        assert (first.file, b"".join(message.data for message in rest)) == (file, b"one line\n")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.UploadFile(
                iter([UploadFileRequest(header=FileHeader(filename="x", purpose=FilePurpose.FILE_PURPOSE_CONTENT))])
            )
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        header.provider = "openai"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.UploadFile(iter([UploadFileRequest(header=header), requests[1]]), metadata=bearer)
        assert [each.field for each in from_rpc_error(caught.value).violations] == ["header.provider"]
        header.provider, header.size_bytes = "", 3 * MIB
        much = [UploadFileRequest(header=header), *(UploadFileRequest(data=bytes(MIB)) for _ in range(3))]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.UploadFile(iter(much), metadata=(("authorization", f"Bearer {OTHER}"),))
        assert isinstance(from_rpc_error(caught.value), TooLarge)
        await stub.DeleteFile(DeleteFileRequest(file_id=file.file_id), metadata=bearer)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetFile(GetFileRequest(file_id=file.file_id), metadata=bearer)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
