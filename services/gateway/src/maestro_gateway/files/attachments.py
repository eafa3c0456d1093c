"""Files of the mesh in a conversation: their bytes take the place of their names before a provider is asked."""

from __future__ import annotations

from collections.abc import Iterator

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.file_pb2 import FilePurpose
from maestro.llm.v1.message_pb2 import AudioPart, DocumentPart, ImagePart, Part
from maestro.llm.v1.model_pb2 import Feature
from maestro_gateway.files.files import Files
from maestro_gateway.files.record import is_file_id, purpose_of
from maestro_sdk.errors import InvalidRequest, MaestroError, NotFound, TooLarge

MEDIA = 1 << Feature.FEATURE_VISION | 1 << Feature.FEATURE_AUDIO | 1 << Feature.FEATURE_DOCUMENTS
"""Needs of requests that may name files."""
MOST = 20 * 2**20
"""Bytes of all files of one request: what one part may have, and what a message inside the mesh has room for."""


async def are_there(files: Files, tenant: str, request: ChatRequest) -> bool:
    """Whether every file of the mesh that the request names can still be read, as far as that is known."""
    try:
        for file_id in {part.file_id for _, part in _named(request)}:
            await files.find(tenant, file_id)
    except MaestroError:
        # Deleted or expired; or nobody can tell now. What it is, `attach` tells.
        return False
    return True


async def require(files: Files, tenant: str, request: ChatRequest, known: set[str]) -> None:
    """Raises `InvalidRequest` with the path of a file of the mesh that is not there, for those of other tenants too.

    `known` are the files that were found before.
    """
    for path, part in _named(request):
        file_id = part.file_id
        if file_id in known:
            continue
        if purpose_of(file_id) != FilePurpose.FILE_PURPOSE_CONTENT:
            raise InvalidRequest.at(path, f"the file {file_id} was not uploaded with the purpose 'content'")
        try:
            await files.find(tenant, file_id)
        except NotFound:
            raise InvalidRequest.at(path, f"there is no file {file_id!r}") from None
        known.add(file_id)


async def attach(files: Files, tenant: str, request: ChatRequest) -> ChatRequest:
    """The request with the bytes of the files of the mesh that it names; itself when it names none.

    Identifiers of providers stay. Raises `InvalidRequest` with the path, for files of other tenants too.
    """
    if not any(True for _ in _named(request)):
        return request
    attached = ChatRequest()
    attached.CopyFrom(request)
    left = MOST - request.ByteSize()
    for path, part in _named(attached):
        file_id = part.file_id
        if purpose_of(file_id) != FilePurpose.FILE_PURPOSE_CONTENT:
            raise InvalidRequest.at(path, f"the file {file_id} was not uploaded with the purpose 'content'")
        try:
            record, data = await files.content(tenant, file_id, max(0, left))
        except NotFound:
            raise InvalidRequest.at(path, f"there is no file {file_id!r}") from None
        except TooLarge:
            raise InvalidRequest.at(path, f"all files of a request may have {MOST} bytes together") from None
        left -= len(data)
        part.data = data
        part.mime_type = part.mime_type or record.mime_type
        if isinstance(part, DocumentPart):
            part.title = part.title or record.filename
    return attached


def _named(request: ChatRequest) -> Iterator[tuple[str, ImagePart | AudioPart | DocumentPart]]:
    """Every part that names a file of the mesh, with its path."""
    for number, message in enumerate(request.messages):
        for index, part in enumerate(message.parts):
            yield from _within(f"messages[{number}].parts[{index}]", part)


def _within(path: str, part: Part) -> Iterator[tuple[str, ImagePart | AudioPart | DocumentPart]]:
    kind = part.WhichOneof("kind")
    match kind:
        case "image":
            held: ImagePart | AudioPart | DocumentPart = part.image
        case "audio":
            held = part.audio
        case "document":
            held = part.document
        case "tool_result":
            for index, inner in enumerate(part.tool_result.parts):
                yield from _within(f"{path}.tool_result.parts[{index}]", inner)
            return
        case _:
            return
    if held.WhichOneof("source") == "file_id" and is_file_id(held.file_id):
        yield f"{path}.{kind}.file_id", held
