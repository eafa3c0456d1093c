"""What jobs need of the store of files: to read an input, and to keep an output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from maestro.llm.v1.file_pb2 import File


class JobFiles(Protocol):
    """Where the files of tenants are."""

    async def open(self, tenant: str, file_id: str) -> tuple[File, AsyncIterator[bytes]]:
        """The facts of a file, and its bytes. Raises `NotFound`, for those of other tenants too."""
        ...

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
        """Keeps a file for `lasting` seconds; its identifier, which is the same for the same `request_id`."""
        ...
