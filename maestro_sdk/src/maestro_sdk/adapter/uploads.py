"""What everyone who takes files asks of an upload: a header first, a type that is one, all the bytes announced."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator

from maestro.llm.v1.file_pb2 import FileHeader, UploadFileRequest
from maestro_sdk.errors import InvalidRequest, Violation

# It becomes a header elsewhere: a line break in it would begin another one.
_MIME_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+( ?; ?[\w!#$&^.+-]+=(\"[ -~]*\"|[!-~]+))*", re.ASCII)
# Control characters, ends of lines, and what turns the direction of a text round, so that "exe.txt" may be "txt.exe".
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_UNKNOWN = "application/octet-stream"
# What Python's own table lacks, or what it takes from the machine it runs on.
_TYPES = {
    ".jsonl": "application/jsonl",
    ".ndjson": "application/x-ndjson",
    ".json": "application/json",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".csv": "text/csv",
    ".webp": "image/webp",
}


async def read_header(requests: AsyncIterator[UploadFileRequest]) -> FileHeader:
    """The header that an upload begins with; its type is set. Raises `InvalidRequest`."""
    async for request in requests:
        if request.WhichOneof("kind") == "header":
            complete_header(request.header)
            return request.header
        break
    raise InvalidRequest("the first message has to hold the header")


def data_of(request: UploadFileRequest) -> bytes:
    """The bytes of a further message. Raises `InvalidRequest` for a second header."""
    if request.WhichOneof("kind") != "data":
        raise InvalidRequest("the header stands in the first message only")
    return request.data


def complete_header(header: FileHeader) -> None:
    """Sets the type of a file that does not tell it, by its name. Raises `InvalidRequest` for a bad type or name."""
    if _UNSEEN.search(header.filename) or header.filename in {".", ".."} or header.filename.isspace():
        raise InvalidRequest.at(
            "header.filename", "is no name for a file: it has characters that nobody sees, or is a folder's"
        )
    if header.mime_type and not _MIME_TYPE.fullmatch(header.mime_type):
        raise InvalidRequest.at("header.mime_type", "is not like text/plain or text/plain; charset=utf-8")
    if not header.mime_type:
        header.mime_type = type_of_name(header.filename)


def type_of_name(filename: str) -> str:
    """The MIME type that a name lets one expect."""
    dot = filename.rfind(".")
    known = _TYPES.get(filename[dot:].lower()) if dot >= 0 else None
    return known or mimetypes.guess_type(filename)[0] or _UNKNOWN


def check_whole(header: FileHeader, size: int, digest: str) -> None:
    """Raises `InvalidRequest` unless the bytes that came, and their SHA-256, are those that the header announced."""
    if not size:
        raise InvalidRequest("the file is empty")
    if header.HasField("size_bytes") and header.size_bytes != size:
        why = f"is {header.size_bytes}, but {size} bytes came"
        raise InvalidRequest(f"size_bytes {why}", violations=[Violation("header.size_bytes", why)])
    if header.sha256 and header.sha256 != digest:
        why = f"is not that of the bytes that came, {digest}"
        raise InvalidRequest(f"sha256 {why}", violations=[Violation("header.sha256", why)])
