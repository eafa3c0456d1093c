"""Files at the provider: the contract's purposes, times and pages on OpenAI's wire."""

from __future__ import annotations

import mimetypes
from collections.abc import AsyncGenerator, Mapping
from typing import IO, TYPE_CHECKING, Any

from maestro.llm.v1.file_pb2 import File, FileHeader, FilePurpose, ListFilesRequest, ListFilesResponse
from maestro_adapter_openai.sdk import Sdk
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from openai.types import FileObject

PURPOSES: Mapping[FilePurpose.ValueType, str] = {
    FilePurpose.FILE_PURPOSE_CONTENT: "user_data",
    FilePurpose.FILE_PURPOSE_JOB_INPUT: "batch",
    FilePurpose.FILE_PURPOSE_JOB_OUTPUT: "batch_output",
}
AZURE_PURPOSES = {**PURPOSES, FilePurpose.FILE_PURPOSE_CONTENT: "assistants"}
"""Azure takes no `user_data`."""
# Purposes of files that others made by the same key; what has none in the contract keeps none.
_MEANINGS: Mapping[str, FilePurpose.ValueType] = {
    **{word: purpose for purpose, word in PURPOSES.items()},
    "assistants": FilePurpose.FILE_PURPOSE_CONTENT,
    "vision": FilePurpose.FILE_PURPOSE_CONTENT,
}
_SHORTEST, _LONGEST = 3600, 30 * 24 * 3600
_PIECE = 2**18


class Files:
    """A `FileStore` of one account. Labels have no place on this wire, and are refused."""

    def __init__(self, sdk: Sdk, purposes: Mapping[FilePurpose.ValueType, str] = PURPOSES) -> None:
        self._sdk = sdk
        self._purposes = purposes

    async def upload(self, header: FileHeader, content: IO[bytes]) -> File:
        """See `FileStore.upload_file`."""
        fields = to_fields(header, self._purposes)
        client = await self._sdk.client()
        with self._sdk.errors():
            made = await client.files.create(file=(header.filename, content, header.mime_type), **fields)
            file = to_file(made, self._sdk.provider)
        file.mime_type = header.mime_type
        return file

    async def get(self, file_id: str) -> File:
        """See `FileStore.get_file`."""
        client = await self._sdk.client()
        with self._sdk.errors(f"file {file_id!r}"):
            return to_file(await client.files.retrieve(file_id), self._sdk.provider)

    async def list(self, request: ListFilesRequest) -> ListFilesResponse:
        """See `FileStore.list_files`."""
        query: dict[str, Any] = {"limit": request.page_size or 100, "order": "desc"}
        if request.page_token:
            query["after"] = request.page_token
        if request.purpose:
            query["purpose"] = self._purposes[request.purpose]
        client = await self._sdk.client()
        with self._sdk.errors(f"page {request.page_token!r}"):
            page = await client.files.list(**query)
            files = [to_file(found, self._sdk.provider) for found in page.data]
            return ListFilesResponse(files=files, next_page_token=page.data[-1].id if page.has_next_page() else "")

    async def read(self, file_id: str) -> AsyncGenerator[bytes]:
        """See `FileStore.download_file`. Raises `CapabilityUnavailable` for uploads that are not given back."""
        client = await self._sdk.client()
        with self._sdk.errors(f"file {file_id!r}"):
            try:
                async with client.files.with_streaming_response.content(file_id) as response:
                    async for piece in response.iter_bytes(_PIECE):
                        yield piece
            except _refused() as error:
                if b"Not allowed to download" not in error.response.content:
                    raise
                why = f"{self._sdk.provider} gives no uploaded content back; keep the original"
                raise CapabilityUnavailable(why, metadata={"provider": self._sdk.provider}) from error

    async def delete(self, file_id: str) -> None:
        """See `FileStore.delete_file`."""
        client = await self._sdk.client()
        with self._sdk.errors(f"file {file_id!r}"):
            await client.files.delete(file_id)


def to_fields(header: FileHeader, purposes: Mapping[FilePurpose.ValueType, str] = PURPOSES) -> dict[str, Any]:
    """The wire's fields beside the file itself. Raises `UnsupportedParameter` for what it can't carry."""
    if header.purpose == FilePurpose.FILE_PURPOSE_JOB_OUTPUT:
        raise UnsupportedParameter.at("header.purpose", "outputs of batches are made by the provider only")
    if header.purpose not in purposes:
        raise InvalidRequest.at("header.purpose", "is required")
    if header.metadata:
        raise UnsupportedParameter.at("header.metadata", "the provider keeps no labels of files")
    fields: dict[str, Any] = {"purpose": purposes[header.purpose]}
    if header.HasField("expire_after"):
        seconds = header.expire_after.seconds
        if not _SHORTEST <= seconds <= _LONGEST:
            raise UnsupportedParameter.at("header.expire_after", "the provider takes an hour to 30 days")
        fields["expires_after"] = {"anchor": "created_at", "seconds": seconds}
    return fields


def to_file(found: FileObject, provider: str) -> File:
    """The provider's facts as the contract's. It keeps no MIME type: that follows from the name.

    Raises `TypeError` or `ValueError` for facts that are none: the SDK checks nothing.
    """
    if not found.id or found.bytes is None:  # pyright: ignore[reportUnnecessaryComparison] - the SDK's types promise it
        raise ValueError("a file without id or size")
    file = File(
        file_id=found.id,
        filename=found.filename,
        mime_type=mimetypes.guess_type(found.filename)[0] or "",
        purpose=_MEANINGS.get(found.purpose, FilePurpose.FILE_PURPOSE_UNSPECIFIED),
        size_bytes=found.bytes,
        provider=provider,
    )
    file.create_time.FromSeconds(found.created_at)
    if found.expires_at:
        file.expire_time.FromSeconds(found.expires_at)
    return file


def _refused() -> Any:
    import openai  # here, as it is not loaded before its first use

    return openai.BadRequestError
