"""Cases of files: kept whole or not at all, read in ranges, gone when deleted."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc

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
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance.case import Subject, feature
from maestro_sdk.conformance.outcome import Broken, NotApplicable, expect
from maestro_sdk.conformance.target import Refusal, Target, expect_refused

CONTENT = "".join(f"Line {number} of a file that proves something.\n" for number in range(80)).encode()
_PIECE = 2000
_PAGES = 5
"""Pages of a list that are read in search of a file."""
_NEEDS = ("files",)
_NOT_FOUND = {grpc.StatusCode.NOT_FOUND}
_INVALID = {grpc.StatusCode.INVALID_ARGUMENT}
_KEEPS_TO_ITSELF = frozenset({"UNIMPLEMENTED", "CAPABILITY_UNAVAILABLE"})


def _header(target: Target, **fields: Any) -> FileHeader:
    name = f"maestro-conformance-{uuid.uuid4().hex[:12]}.txt"
    told: dict[str, Any] = {"filename": name, "mime_type": "text/plain", "provider": target.asked.provider}
    told["purpose"] = FilePurpose.FILE_PURPOSE_CONTENT
    return FileHeader(**{**told, **fields})


async def upload(target: Target, header: FileHeader | None, content: bytes = CONTENT) -> File | Refusal:
    """Sends a file in several messages; None leaves the header out."""
    requests = [] if header is None else [UploadFileRequest(header=header)]
    pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
    return await target.send(target.files.UploadFile, [*requests, *(UploadFileRequest(data=data) for data in pieces)])


async def _delete(target: Target, file_id: str, request_id: str = "") -> Any:
    request = DeleteFileRequest(file_id=file_id, request_id=request_id)
    return await target.attempt(target.files.DeleteFile(request, timeout=target.timeout, metadata=target.metadata))


async def _facts(target: Target, file_id: str) -> File | Refusal:
    request = GetFileRequest(file_id=file_id)
    return await target.attempt(target.files.GetFile(request, timeout=target.timeout, metadata=target.metadata))


async def _download(target: Target, file_id: str, **fields: Any) -> tuple[File, bytes]:
    """The facts and bytes. Raises `NotApplicable` where the provider gives no uploaded file back."""
    where = f"DownloadFile {fields or 'whole'}"
    request = DownloadFileRequest(file_id=file_id, **fields)
    messages, refusal = await target.receive(target.files.DownloadFile, request)
    if refusal is not None:
        if refusal.info is not None and refusal.info.reason in _KEEPS_TO_ITSELF:
            raise NotApplicable(f"the provider gives no uploaded file back: {refusal.message[:120]}")
        raise Broken(f"ended with {refusal}", where)
    kinds = [message.WhichOneof("kind") for message in messages]
    first = kinds[:1] == ["file"] and "file" not in kinds[1:]
    expect(first, f"messages of the kinds {kinds[:4]}; the facts come first and once", where)
    return messages[0].file, b"".join(message.data for message in messages[1:])


@asynccontextmanager
async def _kept(target: Target, **fields: Any) -> AsyncGenerator[File]:
    """A file for the time of a case."""
    found = await upload(target, _header(target, **fields))
    if isinstance(found, Refusal):
        raise Broken(f"ended with {found}", "UploadFile")
    expect(found.file_id, "file_id is empty", "UploadFile")
    try:
        yield found
    finally:
        await _delete(target, found.file_id)


async def _search(target: Target, filename: str) -> File | None:
    """The file of that name in the list. Raises `Broken` when the list is not ordered."""
    token, last = "", None
    for _ in range(_PAGES):
        request = ListFilesRequest(page_size=100, page_token=token)
        page = await target.attempt(target.files.ListFiles(request, timeout=target.timeout, metadata=target.metadata))
        if isinstance(page, Refusal):
            raise Broken(f"ended with {page}", "ListFiles")
        for file in page.files:
            if last is not None and last.provider == file.provider and file.HasField("create_time"):
                ordered = file.create_time.ToNanoseconds() <= last.create_time.ToNanoseconds()
                expect(ordered, f"{file.file_id} is newer than {last.file_id} before it", "ListFiles, newest first")
            last = file
            if file.filename == filename:
                return file
        token = page.next_page_token
        if not token:
            break
    return None


@feature(
    Feature.FEATURE_FILES,
    "a file is kept, and gone when deleted",
    "file.proto FileService: UploadFile, GetFile, ListFiles (newest first), DownloadFile (facts first, then all "
    "bytes), DeleteFile at once and for good",
    subject=Subject.MODEL,
)
async def files(target: Target) -> str:
    """The whole life of a file."""
    header = _header(target)
    async with _kept(target, filename="maestro-conformance-older.txt"):
        kept = await upload(target, header)
        if isinstance(kept, Refusal):
            raise Broken(f"ended with {kept}", "UploadFile")
        expect(kept.filename == header.filename, f"filename is {kept.filename!r}", "UploadFile")
        expect(kept.size_bytes == len(CONTENT), f"{kept.size_bytes} of {len(CONTENT)} bytes", "UploadFile")
        digest = hashlib.sha256(CONTENT).hexdigest()
        expect(kept.sha256 in {"", digest}, f"sha256 is {kept.sha256}", "UploadFile")
        found = await _facts(target, kept.file_id)
        same = isinstance(found, File) and (found.file_id, found.size_bytes) == (kept.file_id, kept.size_bytes)
        expect(same, f"tells {found}", "GetFile")
        listed = await _search(target, header.filename)
        expect(listed is not None and listed.file_id == kept.file_id, "the file is not listed", "ListFiles")
        note = ""
        try:
            _, data = await _download(target, kept.file_id)
            expect(data == CONTENT, f"{len(data)} other bytes for {len(CONTENT)}", "DownloadFile")
        except NotApplicable as error:
            note = f"; {error}"
        gone = await _delete(target, kept.file_id)
        if isinstance(gone, Refusal):
            raise Broken(f"ended with {gone}", "DeleteFile")
        expect(gone.file_id == kept.file_id, f"says {gone.file_id!r}", "DeleteFile")
        expect_refused(await _facts(target, kept.file_id), "GetFile after DeleteFile", _NOT_FOUND)
        expect(await _search(target, header.filename) is None, "still listed", "ListFiles after DeleteFile")
    return f"{len(CONTENT)} bytes{note}"


@feature(
    Feature.FEATURE_FILES,
    "a part of a file can be read",
    "file.proto DownloadFileRequest.offset and limit: first byte, most bytes; an offset beyond the end is "
    "INVALID_ARGUMENT with the path",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def file_ranges(target: Target) -> str:
    """As a download that was cut goes on."""
    size = len(CONTENT)
    async with _kept(target) as kept:
        for offset, limit in ((size - 700, None), (0, 10), (1234, 1), (999, 1002), (size - 5, 100), (size, None)):
            fields = {"offset": offset} if limit is None else {"offset": offset, "limit": limit}
            told, data = await _download(target, kept.file_id, **fields)
            wanted = CONTENT[offset:] if limit is None else CONTENT[offset : offset + limit]
            expect(data == wanted, f"{len(data)} bytes, not the {len(wanted)} asked for", f"DownloadFile {fields}")
            expect(told.size_bytes == size, f"size_bytes is {told.size_bytes}", f"DownloadFile {fields}")
        request = DownloadFileRequest(file_id=kept.file_id, offset=size + 1)
        _, refusal = await target.receive(target.files.DownloadFile, request)
        expect_refused(refusal, "an offset beyond the end", _INVALID, path="offset")
    return "6 ranges"


@feature(
    Feature.FEATURE_FILES,
    "a damaged upload is refused and not kept",
    "file.proto FileHeader.size_bytes and sha256: an upload with others is refused; UploadFile: the first message "
    "holds the header; nothing is kept",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def file_checks(target: Target) -> str:
    """What arrived otherwise than it was sent is worse than nothing."""
    wrong: tuple[tuple[str, dict[str, Any]], ...] = (
        ("header.sha256", {"sha256": hashlib.sha256(b"something else").hexdigest()}),
        ("header.size_bytes", {"size_bytes": len(CONTENT) + 1}),
    )
    for path, fields in wrong:
        header = _header(target, **fields)
        await _expect_not_kept(target, header, await upload(target, header), path, f"a wrong {path}")
    good = _header(target, sha256=hashlib.sha256(CONTENT).hexdigest(), size_bytes=len(CONTENT))
    kept = await upload(target, good)
    if isinstance(kept, Refusal):
        raise Broken(f"ended with {kept}", "the right sha256 and size")
    await _delete(target, kept.file_id)
    expect_refused(await upload(target, None), "an upload without a header", _INVALID)
    nameless = _header(target, filename="a/b.txt")
    await _expect_not_kept(target, nameless, await upload(target, nameless), "header.filename", "a name with a slash")
    return "sha256, size_bytes, header, filename"


async def _expect_not_kept(target: Target, header: FileHeader, found: File | Refusal, path: str, where: str) -> None:
    if isinstance(found, File):
        await _delete(target, found.file_id)
    expect_refused(found, where, _INVALID, path=path)
    left = await _search(target, header.filename)
    if left is not None:
        await _delete(target, left.file_id)
    expect(left is None, "it is listed all the same", where)


@feature(
    Feature.FEATURE_FILES,
    "a repeated upload or deletion does no harm",
    "file.proto FileHeader.request_id: a repeated upload returns the first file; DeleteFileRequest.request_id: a "
    "repeated deletion succeeds again instead of NOT_FOUND",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def file_repetition(target: Target) -> str:
    """A caller whose connection broke asks again."""
    key = f"conformance-{uuid.uuid4().hex}"
    header = _header(target, request_id=key)
    first, second = await upload(target, header), await upload(target, header)
    for found in (first, second):
        if isinstance(found, Refusal):
            raise Broken(f"ended with {found}", "UploadFile with a request_id")
    ids = [found.file_id for found in (first, second) if isinstance(found, File)]
    if len(set(ids)) > 1:
        for file_id in ids:
            await _delete(target, file_id)
        raise Broken("two files", "the same upload twice")
    for number in ("first", "second"):
        gone = await _delete(target, ids[0], key)
        expect(not isinstance(gone, Refusal), f"ended with {gone}", f"the {number} deletion")
    return "one file of two uploads, two deletions"


@feature(
    Feature.FEATURE_FILES,
    "an unknown file is NOT_FOUND",
    "error.proto NOT_FOUND: the file does not exist",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def file_refusals(target: Target) -> str:
    """Whether it is to be read or deleted."""
    async with _kept(target) as kept:
        gone = kept.file_id
    reasons = {"NOT_FOUND"}
    expect_refused(await _facts(target, gone), "GetFile", _NOT_FOUND, reasons=reasons)
    expect_refused(await _delete(target, gone), "DeleteFile", _NOT_FOUND, reasons=reasons)
    messages, refusal = await target.receive(target.files.DownloadFile, DownloadFileRequest(file_id=gone))
    expect(not messages, f"{len(messages)} messages of a file that is gone", "DownloadFile")
    expect_refused(refusal, "DownloadFile", _NOT_FOUND, reasons=reasons)
    return "get, delete, download"
