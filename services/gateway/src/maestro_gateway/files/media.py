"""Which types of files are taken, and whether the first bytes of a file are what its type says. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from maestro.llm.v1.file_pb2 import FilePurpose
from maestro_sdk.errors import InvalidRequest

LOOK = 64
"""Bytes at the start of a file that tell its type."""
_LINES = ("application/jsonl", "application/x-ndjson", "application/json", "application/octet-stream", "text/*")
"""Types of files with one JSON document per line."""
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ\x90\x00", "application/x-executable"),
    (b"{\\rtf", "application/rtf"),
)
_FORMS = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
"""What the fourth word of a RIFF file says."""
_SAME = {"image/jpg": "image/jpeg", "audio/x-wav": "audio/wav", "audio/wave": "audio/wav", "audio/mp3": "audio/mpeg"}
_CERTAIN = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf", "audio/wav"))
"""Types whose files always begin with their mark."""
_WITHIN = {"application/zip": ("application/vnd.", "application/zip", "application/epub"), "audio/ogg": ("video/ogg",)}
"""What else files with a mark may be."""


def check_type(mime_type: str, purpose: int, allowed: Iterable[str]) -> None:
    """Raises `InvalidRequest` when files of this type are not taken, or not for this purpose."""
    kind = essence(mime_type)
    permitted = tuple(allowed)
    if not _matches(kind, permitted):
        raise InvalidRequest.at("header.mime_type", f"{kind} is not taken here; there are {', '.join(permitted)}")
    if purpose == FilePurpose.FILE_PURPOSE_JOB_INPUT and not _matches(kind, _LINES):
        raise InvalidRequest.at(
            "header.mime_type", f"{kind} can't be the input of a job, which is one JSON document per line"
        )


def check_start(mime_type: str, start: bytes) -> None:
    """Raises `InvalidRequest` when the first bytes are those of another type; unknown ones are what is said."""
    kind, found = essence(mime_type), sniff(start)
    if kind in {"application/octet-stream", found}:
        return
    if found and not kind.startswith(_WITHIN.get(found, (found,))):
        raise InvalidRequest.at("header.mime_type", f"says {kind}, but the bytes are those of {found}")
    if not found and kind in _CERTAIN:
        raise InvalidRequest.at("header.mime_type", f"says {kind}, but the bytes are no such file")


def essence(mime_type: str) -> str:
    """The type without its parameters, by its usual name."""
    kind = mime_type.partition(";")[0].strip().lower()
    return _SAME.get(kind, kind)


def sniff(start: bytes) -> str:
    """The type that the first bytes tell; empty when they tell none."""
    if start[:4] == b"RIFF":
        return _FORMS.get(start[8:12], "")
    return next((kind for mark, kind in _STARTS if start.startswith(mark)), "")


def _matches(kind: str, patterns: Iterable[str]) -> bool:
    return any(kind.startswith(each[:-1]) if each.endswith("*") else kind == each for each in patterns)
