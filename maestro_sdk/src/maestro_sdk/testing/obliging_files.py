"""Files of the obliging model, kept in memory."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from typing import IO

from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest, ListFilesResponse
from maestro_sdk.errors import NotFound

_PIECE = 512


class ObligingFiles:
    """A `FileStore`."""

    def __init__(self, provider: str = "obliging") -> None:
        self._provider = provider
        self._files: dict[str, tuple[File, bytes]] = {}
        self._made = 0

    async def upload_file(self, header: FileHeader, content: IO[bytes]) -> File:
        """Keeps a file."""
        data = content.read()
        self._made += 1
        file = File(
            file_id=f"file-{self._made:06d}",
            filename=header.filename,
            mime_type=header.mime_type,
            purpose=header.purpose,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            metadata=header.metadata,
            provider=self._provider,
        )
        file.create_time.FromNanoseconds(time.time_ns())
        self._files[file.file_id] = (file, data)
        return file

    async def get_file(self, file_id: str) -> File:
        """The facts about a file."""
        return self._file(file_id)[0]

    async def list_files(self, request: ListFilesRequest) -> ListFilesResponse:
        """Files, newest first; the token is the id of the last one told."""
        newest = sorted((file for file, _ in self._files.values()), key=lambda file: file.file_id, reverse=True)
        found = [file for file in newest if request.purpose in {0, file.purpose}]
        if request.page_token:
            found = [file for file in found if file.file_id < request.page_token]
        size = request.page_size or 100
        more = found[size - 1].file_id if len(found) > size else ""
        return ListFilesResponse(files=found[:size], next_page_token=more)

    async def download_file(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of a file, in small pieces."""
        data = self._file(file_id)[1]
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE]

    async def delete_file(self, file_id: str) -> None:
        """Forgets a file."""
        self._file(file_id)
        del self._files[file_id]

    def _file(self, file_id: str) -> tuple[File, bytes]:
        if file_id not in self._files:
            raise NotFound(f"there is no file {file_id!r}")
        return self._files[file_id]
