"""The section of a configuration that bounds the files of tenants."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from maestro_sdk.service.values import Duration, Settings, Size

USUAL_TYPES = (
    "text/*",
    "image/*",
    "audio/*",
    "video/*",
    "application/pdf",
    "application/json",
    "application/jsonl",
    "application/x-ndjson",
    "application/xml",
    "application/yaml",
    "application/rtf",
    "application/zip",
    "application/msword",
    "application/vnd.*",
    "application/octet-stream",
)
_TYPE = re.compile(r"\*|[a-z0-9!#$&^_.+-]+/([a-z0-9!#$&^_.+-]+\*?|\*)")
_LARGEST = 8 * 2**30

Limit = Annotated[Size, Field(ge=1, le=2**50)]
Lasting = Annotated[Duration, Field(ge=60)]


class TenantFilesConfig(Settings):
    """What holds for the files of one tenant; what is left out is what holds for all."""

    max_file: Annotated[Limit, Field(le=_LARGEST)] | None = None
    max_tenant: Limit | None = None
    max_files: Annotated[int, Field(ge=1, le=10**5, strict=True)] | None = None
    expire_after: Lasting | None = None


class FilesConfig(Settings):
    """Files that tenants keep at the gateway.

    `max_file` is the largest one, `max_tenant` and `max_files` are all of a tenant together. A file that does not say
    when it expires does so after `expire_after`, and none may say later. `types` are the MIME types that are taken,
    with `*` at an end for all that begin so.
    """

    max_file: Annotated[Limit, Field(le=_LARGEST)] = 512 * 2**20
    max_tenant: Limit = 2 * 2**30
    max_files: Annotated[int, Field(ge=1, le=10**5, strict=True)] = 10_000
    expire_after: Lasting = 30 * 86400.0
    types: tuple[str, ...] = USUAL_TYPES
    tenants: dict[str, TenantFilesConfig] = Field(default_factory=dict[str, TenantFilesConfig])

    @field_validator("types")
    @classmethod
    def _check_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for kind in value:
            if not _TYPE.fullmatch(kind):
                raise ValueError(f"{kind!r} is not a MIME type such as application/pdf, image/* or *")
        return value

    def of(self, tenant: str) -> FilesConfig:
        """What holds for a tenant."""
        own = self.tenants.get(tenant)
        return self if own is None else self.model_copy(update=own.model_dump(exclude_none=True))
