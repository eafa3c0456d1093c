"""The files of a gateway as its jobs see them: inputs are read, outputs are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from maestro.llm.v1.file_pb2 import File, FileHeader, FilePurpose
from maestro_gateway.files.files import Files

_SHORTEST = 60.0


class FilesOfJobs:
    """Gives and takes files in the name of a tenant."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def open(self, tenant: str, file_id: str) -> tuple[File, AsyncIterator[bytes]]:
        """The facts of a file, and its bytes. Raises `NotFound`, for those of other tenants too."""
        record = await self._files.find(tenant, file_id)
        return record.message(), self._files.read(tenant, record)

    async def store(
        self,
        tenant: str,
        *,
        filename: str,
        mime_type: str,
        purpose: int,
        request_id: str,
        lasting: float,
        metadata: Mapping[str, str],
        data: AsyncIterator[bytes],
    ) -> str:
        """Keeps a file for `lasting` seconds, or as long as the tenant's files are kept at most; gives its identifier.

        A second time under one `request_id` it gives the first file.
        """
        header = FileHeader(
            filename=filename,
            mime_type=mime_type,
            purpose=FilePurpose.ValueType(purpose),
            request_id=request_id,
            metadata=metadata,
        )
        longest = self._files.limits(tenant).expire_after
        header.expire_after.FromNanoseconds(int(max(_SHORTEST, min(lasting, longest)) * 1e9))
        return (await self._files.store(tenant, header, data, by_caller=False)).file_id
