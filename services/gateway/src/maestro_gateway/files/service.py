"""`maestro.llm.v1.FileService` of the gateway: files that the mesh itself keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from maestro.llm.v1.file_pb2 import (
    DeleteFileRequest,
    DeleteFileResponse,
    DownloadFileRequest,
    DownloadFileResponse,
    File,
    FileHeader,
    GetFileRequest,
    ListFilesRequest,
    ListFilesResponse,
    UploadFileRequest,
)
from maestro.llm.v1.file_pb2_grpc import FileServiceServicer
from maestro_gateway.files.files import Files, check_offset
from maestro_gateway.mesh import calling
from maestro_sdk.adapter.uploads import data_of, read_header
from maestro_sdk.errors import InvalidRequest, Timeout, TooLarge

SILENCE = 30.0
"""Seconds that an upload may be silent."""
_PIECE = 2**20


class FileService(FileServiceServicer):
    """Serves files to the tenant of the current call."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def UploadFile(self, request_iterator: AsyncIterator[UploadFileRequest], context: Any) -> File:
        # Envoy bounds the time until an answer begins, and a large file may take longer.
        await context.send_initial_metadata(())
        tenant = calling().tenant
        requests = hurried(request_iterator)
        header = await read_header(requests)
        check_header(header)
        limit = self._files.limits(tenant).max_file
        return await self._files.store(tenant, header, _data(requests, limit))

    async def GetFile(self, request: GetFileRequest, context: Any) -> File:
        return await self._files.get(calling().tenant, request.file_id)

    async def ListFiles(self, request: ListFilesRequest, context: Any) -> ListFilesResponse:
        return await self._files.list(calling().tenant, request)

    async def DownloadFile(self, request: DownloadFileRequest, context: Any) -> None:
        tenant = calling().tenant
        file = await self._files.find(tenant, request.file_id)
        check_offset(file, request.offset)
        await context.write(DownloadFileResponse(file=file.message()))
        limit = request.limit if request.HasField("limit") else None
        async with aclosing(self._files.read(tenant, file, request.offset, limit)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), _PIECE):
                    await context.write(DownloadFileResponse(data=piece[start : start + _PIECE]))

    async def DeleteFile(self, request: DeleteFileRequest, context: Any) -> DeleteFileResponse:
        await self._files.delete(calling().tenant, request.file_id, request.request_id)
        return DeleteFileResponse(file_id=request.file_id)


def check_header(header: FileHeader) -> None:
    """Raises `InvalidRequest` for what the mesh itself can't do."""
    if header.provider:
        raise InvalidRequest.at("header.provider", "files of the gateway are kept by the mesh itself; leave it empty")


async def hurried(requests: AsyncIterator[UploadFileRequest]) -> AsyncGenerator[UploadFileRequest]:
    """The requests. Raises `Timeout` when none comes for too long."""
    while True:
        try:
            async with asyncio.timeout(SILENCE):
                request = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Timeout(f"nothing came for {SILENCE:.0f} seconds", counts_against_health=False) from None
        yield request


async def _data(requests: AsyncIterator[UploadFileRequest], limit: int) -> AsyncGenerator[bytes]:
    size = 0
    async for request in requests:
        data = data_of(request)
        size += len(data)
        # Also of what is only read on: a file that is there already.
        if size > limit:
            raise TooLarge(f"the file has more than the {limit} bytes that are allowed")
        yield data
