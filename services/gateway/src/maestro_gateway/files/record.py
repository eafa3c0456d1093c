"""A file as it is kept: its facts, and where its bytes are. Pure: no clock, no bucket.

An identifier tells the purpose and the time of a file, so that a list can be ordered and filtered by names alone.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import orjson

from maestro.llm.v1.file_pb2 import File, FilePurpose

_MARK = "mfile-"
"""Start of every identifier: those of providers begin otherwise."""
_LETTERS = {
    FilePurpose.FILE_PURPOSE_CONTENT: "c",
    FilePurpose.FILE_PURPOSE_JOB_INPUT: "i",
    FilePurpose.FILE_PURPOSE_JOB_OUTPUT: "o",
}
_ID = re.compile(r"mfile-([cio])([0-9a-f]{14})[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Times are Unix time in microseconds, 0 never. At `place` are its pieces, of `piece` bytes all but the last."""

    file_id: str
    filename: str
    mime_type: str
    purpose: FilePurpose.ValueType
    size: int
    sha256: str
    created: int
    expires: int
    place: str
    piece: int
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    request: str = ""
    """Digest of the `request_id` that made it; empty when there was none."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The record that `encode` wrote. Raises `ValueError`; fields of later versions are left out."""
        found: Any = orjson.loads(data)
        try:
            return cls(**{name: found[name] for name in cls.__dataclass_fields__ if name in found})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"is no file: {error}") from None

    def encode(self) -> bytes:
        return orjson.dumps(asdict(self))

    def is_over(self, now: int) -> bool:
        """Whether it has expired at `now`."""
        return bool(self.expires) and self.expires <= now

    def message(self) -> File:
        """What its tenant is told of it."""
        file = File(
            file_id=self.file_id,
            filename=self.filename,
            mime_type=self.mime_type,
            purpose=self.purpose,
            size_bytes=self.size,
            sha256=self.sha256,
            metadata=self.metadata,
        )
        file.create_time.FromMicroseconds(self.created)
        if self.expires:
            file.expire_time.FromMicroseconds(self.expires)
        return file


def new_file_id(purpose: FilePurpose.ValueType, created: int) -> str:
    """An identifier that nobody can guess; `created` in microseconds."""
    return f"{_MARK}{_LETTERS[purpose]}{created:014x}{secrets.token_hex(8)}"


def is_file_id(text: str) -> bool:
    """Whether `text` may be a file of the mesh; a provider's identifiers look otherwise."""
    return text.startswith(_MARK) and _ID.fullmatch(text) is not None


def purpose_of(file_id: str) -> FilePurpose.ValueType:
    """What a file of the mesh is for."""
    letter = file_id[len(_MARK)]
    return next(purpose for purpose, known in _LETTERS.items() if known == letter)


def age_of(file_id: str) -> str:
    """What files are ordered by: later ones come after earlier ones."""
    return file_id[len(_MARK) + 1 :]


def digest_of(*parts: str) -> str:
    """A name for what a caller names as it likes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"%d:" % len(part.encode()))
        digest.update(part.encode())
    return digest.hexdigest()[:40]
