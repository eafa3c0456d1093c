"""Images, documents and sound as Converse takes them: a format, and bytes or a place in S3."""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

from maestro.llm.v1.message_pb2 import AudioPart, DocumentPart, ImagePart
from maestro_sdk.errors import UnsupportedParameter, Violation

_IMAGES: Mapping[str, str] = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_DOCUMENTS: Mapping[str, str] = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}
_AUDIO: Mapping[str, str] = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/opus": "opus",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/mp4": "mp4",
    "audio/ogg": "ogg",
    "audio/webm": "webm",
}
_EXTENSIONS: Mapping[str, str] = {"jpg": "jpeg", "htm": "html", "markdown": "md"}
_WRONG_IN_NAME = re.compile(r"[^a-zA-Z0-9 ()\[\]-]+")
_SPACES = re.compile(r"\s+")
_MAX_NAME = 200


def image_block(image: ImagePart, path: str) -> dict[str, Any]:
    """An `image` block."""
    return {"image": {"format": _format(image, _IMAGES, path), "source": _source(image, path)}}


def audio_block(audio: AudioPart, path: str) -> dict[str, Any]:
    """An `audio` block."""
    return {"audio": {"format": _format(audio, _AUDIO, path), "source": _source(audio, path)}}


def document_block(document: DocumentPart, path: str, taken: set[str]) -> dict[str, Any]:
    """A `document` block. `taken` has the names of the request's documents so far, and takes this one's."""
    form = _format(document, _DOCUMENTS, path)
    name = _name(document.title, taken)
    return {"document": {"format": form, "name": name, "source": _source(document, path)}}


def _format(part: ImagePart | AudioPart | DocumentPart, known: Mapping[str, str], path: str) -> str:
    kind = part.mime_type.partition(";")[0].strip().lower()
    if kind in known:
        return known[kind]
    address = _address(part)
    if not kind and address:
        extension = address.rpartition(".")[2].lower()
        extension = _EXTENSIONS.get(extension, extension)
        if extension in known.values():
            return extension
    raise refuse(f"{path}.mime_type", f"is {part.mime_type!r}, not one of {', '.join(known)}")


def _source(part: ImagePart | AudioPart | DocumentPart, path: str) -> dict[str, Any]:
    if part.WhichOneof("source") == "data":
        return {"bytes": b2a_base64(part.data, newline=False).decode("ascii")}
    address = _address(part)
    if not address.startswith("s3://"):
        kind = part.WhichOneof("source")
        raise refuse(f"{path}.{kind}", "is not an s3:// address, and Bedrock loads no other; send the bytes")
    return {"s3Location": {"uri": address}}


def _address(part: ImagePart | AudioPart | DocumentPart) -> str:
    match part.WhichOneof("source"):
        case "url":
            return part.url
        case "file_id":
            return part.file_id
        case _:
            return ""


def _name(title: str, taken: set[str]) -> str:
    """A name of the characters that Bedrock takes, another one for each document of a request."""
    plain = _SPACES.sub(" ", _WRONG_IN_NAME.sub(" ", title)).strip()[:_MAX_NAME].strip() or "document"
    name, number = plain, 1
    while name in taken:
        number += 1
        name = f"{plain[: _MAX_NAME - 8]} ({number})"
    taken.add(name)
    return name


def refuse(path: str, message: str) -> UnsupportedParameter:
    """The error for a part that can't be sent."""
    return UnsupportedParameter(f"{path}: {message}", violations=[Violation(path, message)])
