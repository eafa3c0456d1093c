"""Files as JSON: what the contract says of them, and beside it what OpenAI's clients look for. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.file_pb2 import File, FilePurpose, ListFilesRequest, ListFilesResponse
from maestro_sdk.errors import InvalidRequest

_PURPOSES = {
    "content": FilePurpose.FILE_PURPOSE_CONTENT,
    "job_input": FilePurpose.FILE_PURPOSE_JOB_INPUT,
    "job_output": FilePurpose.FILE_PURPOSE_JOB_OUTPUT,
    # OpenAI's words.
    "user_data": FilePurpose.FILE_PURPOSE_CONTENT,
    "vision": FilePurpose.FILE_PURPOSE_CONTENT,
    "assistants": FilePurpose.FILE_PURPOSE_CONTENT,
    "batch": FilePurpose.FILE_PURPOSE_JOB_INPUT,
    "batch_output": FilePurpose.FILE_PURPOSE_JOB_OUTPUT,
}
_PREFIX = "file_purpose_"
_LISTING = frozenset(("page_size", "page_token", "purpose", "limit", "after", "order"))
_MOST = 1000


def read_purpose(text: str, field: str = "purpose") -> FilePurpose.ValueType:
    """What a file is for, in our words or OpenAI's. Raises `InvalidRequest`."""
    found = _PURPOSES.get(text.lower().removeprefix(_PREFIX))
    if found is None:
        raise InvalidRequest.at(field, f"{text[:60]!r} is none of {', '.join(_PURPOSES)}")
    return found


def read_listing(query: Mapping[str, str]) -> ListFilesRequest:
    """What a list is asked for, by our names or OpenAI's. Raises `InvalidRequest`."""
    for name in query:
        if name not in _LISTING:
            raise InvalidRequest.at(name, f"is none of {', '.join(sorted(_LISTING))}")
    if query.get("order", "desc") != "desc":
        raise InvalidRequest.at("order", "files are listed newest first: only 'desc' is served")
    size, token = (_one_of(query, *names) for names in (("page_size", "limit"), ("page_token", "after")))
    request = ListFilesRequest(page_token=token[1])
    if size[1]:
        if not (size[1].isascii() and size[1].isdigit() and len(size[1]) < 9 and int(size[1]) <= _MOST):
            raise InvalidRequest.at(size[0], f"is not a number up to {_MOST}")
        request.page_size = int(size[1])
    if purpose := query.get("purpose", ""):
        request.purpose = FilePurpose.FILE_PURPOSE_UNSPECIFIED
        if purpose.lower() not in {_PREFIX + "unspecified", "unspecified"}:
            request.purpose = read_purpose(purpose)
    return request


def file_data(file: File) -> dict[str, Any]:
    """One file."""
    data = MessageToDict(file, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return data | {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.create_time.seconds,
        "expires_at": file.expire_time.seconds if file.HasField("expire_time") else None,
        "status": "processed",
    }


def encode_file(file: File) -> bytes:
    """One file as JSON."""
    return orjson.dumps(file_data(file))


def encode_list(page: ListFilesResponse) -> bytes:
    """A page of files as JSON: `files` as the contract has it, `data` for OpenAI's clients."""
    files = [file_data(file) for file in page.files]
    return orjson.dumps(
        {
            "files": files,
            "next_page_token": page.next_page_token,
            "object": "list",
            "data": files,
            "has_more": bool(page.next_page_token),
            "first_id": files[0]["id"] if files else None,
            "last_id": files[-1]["id"] if files else None,
        }
    )


def encode_deletion(file_id: str) -> bytes:
    """The word that a file is gone, as JSON."""
    return orjson.dumps({"file_id": file_id, "id": file_id, "object": "file", "deleted": True})


def _one_of(query: Mapping[str, str], ours: str, theirs: str) -> tuple[str, str]:
    name = theirs if theirs in query and ours not in query else ours
    return name, query.get(name, "")
