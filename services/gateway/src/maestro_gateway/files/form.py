"""What an upload over HTTP says of its file: fields of a form, or headers and the query beside a raw body. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

import orjson

from maestro.llm.v1.file_pb2 import FileHeader, UploadFileRequest
from maestro_gateway.files.answer import read_purpose
from maestro_sdk.adapter.uploads import complete_header
from maestro_sdk.errors import InvalidRequest, Violation
from maestro_sdk.service.validation import validate

FIELDS = frozenset(
    (
        *("purpose", "filename", "mime_type", "expire_after", "size_bytes", "sha256", "request_id", "metadata"),
        # OpenAI's.
        *("expires_after[anchor]", "expires_after[seconds]"),
    )
)
"""Fields of a form beside `file`, and parameters of a query."""
_METADATA = re.compile(r"metadata\[([^\]]{1,64})\]")
_SECONDS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?s?")
_NAME = re.compile(
    r"""filename\*\s*=\s*utf-8'[^']*'([^;]+)|filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))""", re.IGNORECASE
)


def is_field(name: str) -> bool:
    """Whether there is such a field."""
    return name in FIELDS or _METADATA.fullmatch(name) is not None


def read_header(fields: Mapping[str, str]) -> FileHeader:
    """The header of a file from the fields that tell of it. Raises `InvalidRequest` with the name of a field."""
    for name in fields:
        if not is_field(name):
            raise InvalidRequest.at(name, f"is no field of an upload; there are file, {', '.join(sorted(FIELDS))}")
    if "purpose" not in fields:
        raise InvalidRequest.at("purpose", "is missing: content for what messages refer to, job_input for jobs")
    header = FileHeader(
        filename=fields.get("filename", ""),
        mime_type=fields.get("mime_type", ""),
        purpose=read_purpose(fields["purpose"]),
        sha256=fields.get("sha256", "").lower(),
        request_id=fields.get("request_id", ""),
        metadata=_labels(fields),
    )
    if fields.get("size_bytes"):
        header.size_bytes = _number(fields["size_bytes"], "size_bytes")
    _set_expiry(header, fields)
    try:
        validate(UploadFileRequest(header=header))
        complete_header(header)
    except InvalidRequest as error:
        raise as_fields(error) from None
    return header


def as_fields(error: InvalidRequest) -> InvalidRequest:
    """The error with the names that fields have in a form: without the message that they are part of elsewhere."""
    return type(error)(
        error.message.replace("header.", "", 1) if error.message.startswith("header.") else error.message,
        violations=[Violation(each.field.removeprefix("header."), each.message) for each in error.violations],
    )


def name_in(disposition: str) -> str:
    """The file's name in a `content-disposition`; empty when it has none."""
    found = _NAME.search(disposition)
    if found is None:
        return ""
    encoded, quoted, bare = found.groups()
    if encoded is not None:
        return unquote(encoded.strip())
    return re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare


def _labels(fields: Mapping[str, str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    if text := fields.get("metadata", ""):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise InvalidRequest.at("metadata", "is no JSON object of texts")
        for name, value in found.items():  # pyright: ignore[reportUnknownVariableType] - JSON: checked here
            if not isinstance(value, str):
                raise InvalidRequest.at(f"metadata.{name}"[:80], "is no text")
            labels[str(name)] = value  # pyright: ignore[reportUnknownArgumentType]
    for name, value in fields.items():
        if label := _METADATA.fullmatch(name):
            labels[label[1]] = value
    return labels


def _set_expiry(header: FileHeader, fields: Mapping[str, str]) -> None:
    name = "expire_after" if "expire_after" in fields else "expires_after[seconds]"
    if fields.get("expires_after[anchor]", "created_at") != "created_at":
        raise InvalidRequest.at("expires_after[anchor]", "only created_at is served")
    if text := fields.get(name, ""):
        found = _SECONDS.fullmatch(text)
        if found is None:
            raise InvalidRequest.at(name, "is no number of seconds such as 3600 or 3600s")
        header.expire_after.seconds = int(found[1])
        header.expire_after.nanos = int((found[2] or "").ljust(9, "0"))


def _number(text: str, field: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidRequest.at(field, "is no number of bytes")
    return int(text)
