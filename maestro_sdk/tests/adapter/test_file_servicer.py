"""A store behind the kit's servicer on a real socket: files whole or not at all, ranges, and repetition."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import IO, Any, cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.file_pb2 import (
    DeleteFileRequest,
    DownloadFileRequest,
    File,
    FileHeader,
    FilePurpose,
    GetFileRequest,
    ListFilesRequest,
    UploadFileRequest,
)
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro_sdk.adapter.file_servicer import FileServicer
from maestro_sdk.errors import InvalidRequest, MaestroError, NotFound, StreamBroken, TooLarge, from_rpc_error
from maestro_sdk.testing.obliging_files import ObligingFiles
from maestro_sdk.testing.servers import serve

CONTENT = bytes(range(256)) * 9


class Store(ObligingFiles):
    """Counts what it is asked to do; `cut` leaves out the end of what it sends."""

    uploads = 0
    cut = 0
    pieces: Sequence[int] = ()

    async def upload_file(self, header: FileHeader, content: Any) -> File:
        self.uploads += 1
        await asyncio.sleep(0.05)
        return await super().upload_file(header, content)

    async def download_file(self, file_id: str) -> AsyncIterator[bytes]:
        data = b"".join([piece async for piece in super().download_file(file_id)])
        data = data[: len(data) - self.cut]
        sizes = iter([*self.pieces, len(data) or 1])
        while data:
            size = max(1, next(sizes, len(data)))
            yield data[:size]
            data = data[size:]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def stub(store: Store) -> AsyncIterator[Any]:
    async with serve(FileServicer(store, max_bytes=4096)) as address, grpc.aio.insecure_channel(address) as channel:
        yield FileServiceStub(channel)


def header(**fields: Any) -> UploadFileRequest:
    told: dict[str, Any] = {"filename": "facts.txt", "purpose": FilePurpose.FILE_PURPOSE_CONTENT, **fields}
    return UploadFileRequest(header=FileHeader(**told))


def data(content: bytes = CONTENT, size: int = 1000) -> list[UploadFileRequest]:
    return [UploadFileRequest(data=content[start : start + size]) for start in range(0, len(content), size)]


async def upload(stub: Any, *requests: UploadFileRequest) -> File:
    file: File = await stub.UploadFile(iter(requests))
    return file


async def refusal(call: Any) -> MaestroError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def download(stub: Any, file_id: str, **fields: Any) -> tuple[File, bytes]:
    messages = [message async for message in stub.DownloadFile(DownloadFileRequest(file_id=file_id, **fields))]
    assert [message.WhichOneof("kind") for message in messages] == ["file", *["data"] * (len(messages) - 1)]
    return messages[0].file, b"".join(message.data for message in messages)


async def test_the_whole_life_of_a_file(stub: Any) -> None:
    kept = await upload(stub, header(), *data())
    assert (kept.filename, kept.mime_type, kept.size_bytes) == ("facts.txt", "text/plain", len(CONTENT))
    assert kept.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert await stub.GetFile(GetFileRequest(file_id=kept.file_id)) == kept
    assert list((await stub.ListFiles(ListFilesRequest())).files) == [kept]
    assert await download(stub, kept.file_id) == (kept, CONTENT)
    assert (await stub.DeleteFile(DeleteFileRequest(file_id=kept.file_id))).file_id == kept.file_id
    assert isinstance(await refusal(stub.GetFile(GetFileRequest(file_id=kept.file_id))), NotFound)


async def test_a_mime_type_that_is_given_stays(stub: Any) -> None:
    for kind in ("text/x-log", "image/svg+xml", 'text/plain; charset="utf-8"', "text/csv;header=present"):
        assert (await upload(stub, header(mime_type=kind), *data())).mime_type == kind
    assert (await upload(stub, header(filename="strange"), *data())).mime_type == "application/octet-stream"


@pytest.mark.parametrize(
    ("requests", "expected", "path"),
    [
        ([], InvalidRequest, ""),
        (data(), InvalidRequest, ""),
        ([header()], InvalidRequest, ""),
        ([header(), *data(), header()], InvalidRequest, ""),
        ([header(sha256="0" * 64), *data()], InvalidRequest, "header.sha256"),
        ([header(size_bytes=len(CONTENT) + 1), *data()], InvalidRequest, "header.size_bytes"),
        ([header(size_bytes=0), *data()], InvalidRequest, "header.size_bytes"),
        ([header(filename="a/b"), *data()], InvalidRequest, "header.filename"),
        ([header(mime_type="text/plain\r\nX-Other: 1"), *data()], InvalidRequest, "header.mime_type"),
        ([header(mime_type="text/plain\n"), *data()], InvalidRequest, "header.mime_type"),
        ([header(mime_type="clé"), *data()], InvalidRequest, "header.mime_type"),
        ([header(), *data(bytes(5000))], TooLarge, ""),
    ],
)
async def test_what_is_wrong_is_never_kept(
    stub: Any, store: Store, requests: list[UploadFileRequest], expected: type[MaestroError], path: str
) -> None:
    error = await refusal(stub.UploadFile(iter(requests)))
    assert type(error) is expected
    assert [violation.field for violation in error.violations] == ([path] if path else [])
    assert store.uploads == 0


@pytest.mark.parametrize("refused", [header(filename="a/b"), header(mime_type="no type"), header()])
async def test_the_error_reaches_a_client_that_still_writes(stub: Any, refused: UploadFileRequest) -> None:
    async def slowly() -> AsyncIterator[UploadFileRequest]:
        yield refused
        for piece in data(bytes(1_000_000), 50_000):
            yield piece
            await asyncio.sleep(0)

    async def send(number: int) -> MaestroError:
        pieces = slowly() if number % 2 else iter([refused, *data(bytes(20_000))])
        return await refusal(stub.UploadFile(pieces))

    told = [type(error) for _ in range(8) for error in await asyncio.gather(*map(send, range(4)))]
    assert set(told) == {TooLarge if refused == header() else InvalidRequest}


async def test_an_upload_that_is_left_is_never_kept(stub: Any, store: Store) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    async def begun() -> AsyncIterator[UploadFileRequest]:
        yield header()
        yield data()[0]
        reached.set()
        await never.wait()

    call = stub.UploadFile(begun())
    await asyncio.wait_for(reached.wait(), 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    # The same server still takes files, and has only this one.
    kept = await upload(stub, header(), *data())
    assert list((await stub.ListFiles(ListFilesRequest())).files) == [kept]


@pytest.mark.parametrize(
    ("offset", "limit"), [(0, None), (0, 1), (999, 1002), (2000, 5000), (len(CONTENT), None), (len(CONTENT) - 1, 1)]
)
@pytest.mark.parametrize("pieces", [(), (1, 998, 1, 1000)])
async def test_ranges(stub: Any, store: Store, offset: int, limit: int | None, pieces: Sequence[int]) -> None:
    store.pieces = pieces
    kept = await upload(stub, header(), *data())
    fields = {"offset": offset} if limit is None else {"offset": offset, "limit": limit}
    _, got = await download(stub, kept.file_id, **fields)
    assert got == CONTENT[offset:][:limit]


@given(st.integers(0, 300), st.one_of(st.none(), st.integers(1, 400)), st.lists(st.integers(1, 90), max_size=8))
def test_any_range_of_any_pieces(offset: int, limit: int | None, pieces: list[int]) -> None:
    class Context:
        def __init__(self) -> None:
            self.got = b""

        async def write(self, message: Any) -> None:
            self.got += message.data

    async def run() -> bytes:
        store, context = Store(), Context()
        store.pieces = pieces
        content = CONTENT[:300]
        kept = await ObligingFiles.upload_file(store, FileHeader(filename="x"), cast("IO[bytes]", _Readable(content)))
        fields = {"offset": offset} if limit is None else {"offset": offset, "limit": limit}
        await FileServicer(store).DownloadFile(DownloadFileRequest(file_id=kept.file_id, **fields), context)
        return context.got

    assert asyncio.run(run()) == CONTENT[:300][offset:][:limit]


class _Readable:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self) -> bytes:
        return self._content


async def test_an_offset_beyond_the_end(stub: Any) -> None:
    kept = await upload(stub, header(), *data())
    call = stub.DownloadFile(DownloadFileRequest(file_id=kept.file_id, offset=len(CONTENT) + 1))
    error = await refusal(call.read())
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["offset"]


@pytest.mark.parametrize("limit", [None, len(CONTENT)])
async def test_a_file_that_ends_early_is_no_success(stub: Any, store: Store, limit: int | None) -> None:
    kept = await upload(stub, header(), *data())
    store.cut = 3
    fields = {} if limit is None else {"limit": limit}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await download(stub, kept.file_id, **fields)
    assert isinstance(from_rpc_error(caught.value), StreamBroken)
    # What ends before the cut is whole.
    assert (await download(stub, kept.file_id, limit=5))[1] == CONTENT[:5]


async def test_repetition(stub: Any, store: Store) -> None:
    calls = [upload(stub, header(request_id="k"), *data()) for _ in range(4)]
    kept = await asyncio.gather(*calls)
    assert {file.file_id for file in kept} == {"file-000001"}
    assert store.uploads == 1
    assert (await upload(stub, header(request_id="other"), *data())).file_id == "file-000002"
    for _ in range(2):
        gone = await stub.DeleteFile(DeleteFileRequest(file_id="file-000001", request_id="d"))
        assert gone.file_id == "file-000001"
    assert isinstance(await refusal(stub.DeleteFile(DeleteFileRequest(file_id="file-000001"))), NotFound)
