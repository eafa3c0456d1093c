"""Serves a `FileStore` as `FileService`: whole and checked uploads, ranges, and repetition without harm."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from maestro.llm.v1.file_pb2 import (
    DeleteFileRequest,
    DeleteFileResponse,
    DownloadFileRequest,
    DownloadFileResponse,
    File,
    GetFileRequest,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileRequest,
)
from maestro.llm.v1.file_pb2_grpc import FileServiceServicer
from maestro_sdk.adapter.once import Once
from maestro_sdk.adapter.provider import FileStore
from maestro_sdk.adapter.uploads import check_whole, data_of, read_header
from maestro_sdk.errors import InvalidRequest, StreamBroken, TooLarge, Violation

MAX_BYTES = 512 * 2**20
"""The largest file that is taken: what the providers take at most."""
_IN_MEMORY = 4 * 2**20
_PIECE = 2**20


class FileServicer(FileServiceServicer):
    """Keeps files at a provider. Only this process knows the `request_id` of an upload or deletion that is repeated."""

    def __init__(self, store: FileStore, max_bytes: int = MAX_BYTES) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._uploads = Once[File]()
        self._deletions = Once[DeleteFileResponse]()

    async def UploadFile(self, request_iterator: AsyncIterator[UploadFileRequest], context: Any) -> File:
        header = await read_header(request_iterator)
        # The whole file is here before the provider hears of it: what is cut or damaged is never kept.
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as content:
            digest, size = hashlib.sha256(), 0
            async for request in request_iterator:
                data = data_of(request)
                size += len(data)
                if size > self._max_bytes:
                    raise TooLarge(f"the file has more than {self._max_bytes} bytes")
                digest.update(data)
                content.write(data)
            check_whole(header, size, digest.hexdigest())
            content.seek(0)

            async def store() -> File:
                return await self._store.upload_file(header, content)

            return await self._uploads.do(header.request_id, store)

    async def GetFile(self, request: GetFileRequest, context: Any) -> File:
        return await self._store.get_file(request.file_id)

    async def ListFiles(self, request: ListFilesRequest, context: Any) -> ListFilesResponse:
        return await self._store.list_files(request)

    async def DownloadFile(self, request: DownloadFileRequest, context: Any) -> None:
        file = await self._store.get_file(request.file_id)
        if request.offset > file.size_bytes:
            raise InvalidRequest(
                f"the file has {file.size_bytes} bytes",
                violations=[Violation("offset", f"is beyond the end: the file has {file.size_bytes} bytes")],
            )
        await context.write(DownloadFileResponse(file=file))
        skip, left = request.offset, file.size_bytes - request.offset
        if request.HasField("limit"):
            left = min(left, request.limit)
        if not left:
            return
        pieces = cast("Any", self._store.download_file(request.file_id))
        async with aclosing(pieces):
            async for piece in pieces:
                data = piece[skip : skip + left]
                skip = max(0, skip - len(piece))
                left -= len(data)
                for start in range(0, len(data), _PIECE):
                    await context.write(DownloadFileResponse(data=data[start : start + _PIECE]))
                if not left:
                    return
        # A download that ends well has sent all.
        raise StreamBroken(f"the provider's file ended {left} bytes too early")

    async def DeleteFile(self, request: DeleteFileRequest, context: Any) -> DeleteFileResponse:
        async def delete() -> DeleteFileResponse:
            await self._store.delete_file(request.file_id)
            return DeleteFileResponse(file_id=request.file_id)

        return await self._deletions.do(request.request_id, delete)
