"""The provider's store of files. Images and documents of a conversation refer to them by `file_id`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import IO, TYPE_CHECKING, Any

from maestro.llm.v1.file_pb2 import File, FileHeader, FilePurpose, ListFilesRequest, ListFilesResponse
from maestro_adapter_claude.models import PROVIDER
from maestro_adapter_claude.sdk import Sdk
from maestro_sdk.errors import UnsupportedParameter, Violation

if TYPE_CHECKING:
    from anthropic.types import FileMetadata

SHORTEST = 3600
LONGEST = 90 * 86400
"""Seconds for which the provider keeps a file that expires."""
_PAGE = 100
_PIECE = 2**16


class Files:
    """Stores, tells and deletes files. The provider gives back only files that its own tools made."""

    def __init__(self, sdk: Sdk) -> None:
        self._sdk = sdk

    async def upload(self, header: FileHeader, content: IO[bytes]) -> File:
        """Stores `content`. Raises `UnsupportedParameter` for a purpose or an expiry that the provider does not know.

        Labels are not kept: the provider has none, and the answer says so by having none.
        """
        if header.purpose != FilePurpose.FILE_PURPOSE_CONTENT:
            why = "files at Anthropic are content of messages; a batch takes its items directly"
            raise _unsupported("header.purpose", why)
        options: Any = {}
        if header.HasField("expire_after"):
            options["expires_in_seconds"] = _seconds(header)
        async with self._sdk.open() as client:
            stored = await client.files.upload(file=(header.filename, content, header.mime_type), **options)
        return to_file(stored)

    async def get(self, file_id: str) -> File:
        """The facts about a file."""
        async with self._sdk.open() as client:
            return to_file(await client.files.retrieve_metadata(file_id))

    async def list(self, request: ListFilesRequest) -> ListFilesResponse:
        """Files, newest first; none for a purpose other than content."""
        if request.purpose not in {FilePurpose.FILE_PURPOSE_UNSPECIFIED, FilePurpose.FILE_PURPOSE_CONTENT}:
            return ListFilesResponse()
        cursor: Any = {"page": request.page_token} if request.page_token else {}
        async with self._sdk.open() as client:
            page = await client.files.list(limit=request.page_size or _PAGE, **cursor)
        return ListFilesResponse(files=[to_file(found) for found in page.data], next_page_token=page.next_page or "")

    async def download(self, file_id: str) -> AsyncIterator[bytes]:
        """The bytes of a file that the provider's tools made; `CapabilityUnavailable` for one that was uploaded."""
        async with (
            self._sdk.open() as client,
            client.files.with_streaming_response.download(file_id) as response,
        ):
            async for piece in response.iter_bytes(_PIECE):
                yield piece

    async def delete(self, file_id: str) -> None:
        """Deletes a file."""
        async with self._sdk.open() as client:
            await client.files.delete(file_id)


def to_file(stored: FileMetadata) -> File:
    """A file of the provider as the contract has it."""
    file = File(
        file_id=stored.id,
        filename=stored.filename,
        mime_type=stored.mime_type,
        purpose=FilePurpose.FILE_PURPOSE_CONTENT,
        size_bytes=stored.size_bytes,
        provider=PROVIDER,
    )
    file.create_time.FromDatetime(stored.created_at)
    if stored.expires_at is not None:
        file.expire_time.FromDatetime(stored.expires_at)
    return file


def _seconds(header: FileHeader) -> int:
    """The expiry, rounded down: a file never outlives what was asked for."""
    seconds = math.floor(header.expire_after.seconds + header.expire_after.nanos / 1e9)
    if not SHORTEST <= seconds <= LONGEST:
        raise _unsupported("header.expire_after", f"is {seconds} s; the provider takes {SHORTEST} to {LONGEST} s")
    return seconds


def _unsupported(field: str, why: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{field}: {why}", violations=[Violation(field, why)])
