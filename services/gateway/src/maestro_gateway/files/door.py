"""Files over HTTP: bytes in and out as they come, in no one's memory, and the facts as JSON.

An upload is a form (`multipart/form-data`, as OpenAI's clients send it) or a raw body with what is said of the file in
the query. It is stored while it is read; what is said after the bytes, or wrong, decides at the end whether it is kept.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import TypeAlias, TypeVar
from urllib.parse import quote

from aiohttp import BodyPartReader, ClientPayloadError, MultipartReader, web
from aiohttp.http_exceptions import BadHttpMessage

from maestro.llm.v1.file_pb2 import DeleteFileRequest, File
from maestro_gateway.files.answer import encode_deletion, encode_file, encode_list, read_listing
from maestro_gateway.files.files import Files
from maestro_gateway.files.form import as_fields, is_field, name_in, read_header
from maestro_gateway.files.media import essence
from maestro_gateway.files.record import FileRecord
from maestro_gateway.files.service import SILENCE
from maestro_gateway.identity import Principal
from maestro_gateway.refusal import read_on
from maestro_sdk.errors import InvalidRequest, MaestroError, Timeout, TooLarge
from maestro_sdk.service.validation import validate
from maestro_sdk.tracing import REQUEST_ID_KEY, Call, enter_call

Result = TypeVar("Result")
Handler: TypeAlias = Callable[[web.Request, str], Awaitable[web.StreamResponse]]
Serve: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Identify: TypeAlias = Callable[[web.Request], Awaitable[tuple[Call, Principal]]]

log = logging.getLogger(__name__)

PATH = "/v1/files"
_PIECE = 64 * 2**10
_FIELD = 64 * 2**10
"""Bytes of all fields of a form together."""
_MOST_FIELDS = 80
_UNSAID = ("application/octet-stream", "application/x-www-form-urlencoded")
"""Types that clients send when nobody told them one: then the name decides."""
_PLAIN = ("", "binary", "8bit", "7bit")
_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)
_INLINE = re.compile(r"image/(png|jpeg|gif|webp)|(audio|video)/[\w.-]+|text/plain|application/(pdf|json)", re.ASCII)
"""Types that a browser may show. All others are only saved, for they might run, as all that ends with +xml does."""


class FileDoor:
    """Handlers of the gateway's HTTP port."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def routes(self, identify: Identify) -> Iterable[web.RouteDef]:
        """What is served where; `identify` tells who asks, or raises."""

        def served(handler: Handler) -> Serve:
            return lambda request: self._serve(request, identify, handler)

        one = PATH + "/{file_id}"
        return (
            web.post(PATH, served(self._upload)),
            web.get(PATH, served(self._list)),
            web.get(one, served(self._get)),
            web.get(one + "/content", served(self._download)),
            web.delete(one, served(self._delete)),
        )

    async def drain(self, grace: float) -> None:
        """Waits until what is under way has ended, `grace` seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()

    async def _serve(self, request: web.Request, identify: Identify, handler: Handler) -> web.StreamResponse:
        call, principal = await identify(request)
        enter_call(call)
        self._running += 1
        self._idle.clear()
        try:
            response = await handler(request, principal.tenant)
            if not response.prepared:
                response.headers[REQUEST_ID_KEY] = call.request_id
            return response
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _upload(self, request: web.Request, tenant: str) -> web.StreamResponse:
        try:
            _refuse_encoding(request)
            limit = self._files.limits(tenant).max_file
            if (request.content_length or 0) > limit + _FIELD + _PIECE:
                raise TooLarge(f"the body has {request.content_length} bytes, and a file may have {limit}")
            form = request.content_type == "multipart/form-data"
            file = await (self._upload_form(request, tenant) if form else self._upload_raw(request, tenant))
        except MaestroError as error:
            await read_on(request)
            raise as_fields(error) if isinstance(error, InvalidRequest) else error from None
        except ClientPayloadError:
            raise InvalidRequest("the body ended before all of it had come; nothing was kept") from None
        return _json(encode_file(file))

    async def _upload_raw(self, request: web.Request, tenant: str) -> File:
        fields = _fields_beside(request)
        fields.setdefault("filename", name_in(request.headers.get("content-disposition", "")))
        if request.content_type not in _UNSAID:
            fields.setdefault("mime_type", request.headers["content-type"])
        if request.content_length is not None:
            fields.setdefault("size_bytes", str(request.content_length))
        return await self._files.store(tenant, read_header(fields), _hurried(request.content.readany))

    async def _upload_form(self, request: web.Request, tenant: str) -> File:
        fields = _fields_beside(request)
        try:
            parts = await request.multipart()
            if (part := await _fields_until_file(parts, fields)) is None:
                raise InvalidRequest.at("file", "is missing")
            fields.setdefault("filename", part.filename or "")
            if part.headers.get("content-transfer-encoding", "").lower() not in _PLAIN:
                raise InvalidRequest.at("file", "has to be sent as it is, without a content-transfer-encoding")
            if (kind := part.headers.get("content-type", "")) not in {"", *_UNSAID}:
                fields.setdefault("mime_type", kind)
            if "purpose" in fields:
                # Then most of what may be wrong is known before the first byte.
                known = read_header(fields)
                if (earlier := await self._files.earlier(tenant, known.request_id)) is not None:
                    await read_on(request)
                    return earlier
            return await self._store_part(tenant, parts, part, fields)
        except (ValueError, KeyError, AssertionError, BadHttpMessage, web.HTTPException) as error:
            raise InvalidRequest(f"the body is no form: {error}"[:200]) from None

    async def _store_part(
        self, tenant: str, parts: MultipartReader, part: BodyPartReader, fields: dict[str, str]
    ) -> File:
        upload = await self._files.begin(tenant)
        try:
            async for data in _hurried(lambda: part.read_chunk(_PIECE)):
                await upload.write(data)
            if await _fields_until_file(parts, fields) is not None:
                raise InvalidRequest.at("file", "comes twice; one file is taken at a time")
            return await upload.finish(read_header(fields))
        except BaseException:
            await upload.abandon()
            raise

    async def _get(self, request: web.Request, tenant: str) -> web.StreamResponse:
        _refuse_query(request)
        return _json(encode_file(await self._files.get(tenant, request.match_info["file_id"])))

    async def _list(self, request: web.Request, tenant: str) -> web.StreamResponse:
        wanted = read_listing(request.query)
        validate(wanted)
        return _json(encode_list(await self._files.list(tenant, wanted)))

    async def _delete(self, request: web.Request, tenant: str) -> web.StreamResponse:
        _refuse_query(request, "request_id")
        wanted = DeleteFileRequest(
            file_id=request.match_info["file_id"],
            request_id=request.query.get("request_id", "") or request.headers.get("idempotency-key", ""),
        )
        validate(wanted)
        await self._files.delete(tenant, wanted.file_id, wanted.request_id)
        return _json(encode_deletion(wanted.file_id))

    async def _download(self, request: web.Request, tenant: str) -> web.StreamResponse:
        _refuse_query(request)
        file = await self._files.find(tenant, request.match_info["file_id"])
        start, end, status = _span(request, file)
        headers = {
            "content-type": file.mime_type,
            "content-disposition": _disposition(file),
            "content-length": str(end - start),
            "accept-ranges": "bytes",
            "etag": f'"{file.sha256}"',
            "x-content-type-options": "nosniff",
            "cache-control": "private, no-store",
        }
        if status != 200:
            headers["content-range"] = f"bytes {f'{start}-{end - 1}' if status == 206 else '*'}/{file.size}"
        response = web.StreamResponse(status=status, headers=headers)
        async with aclosing(self._files.read(tenant, file, start, end - start)) as pieces:
            # The first piece before the status: a file that can't be read is an error, not a download of nothing.
            first = await anext(pieces, b"")
            await response.prepare(request)
            try:
                await _write(response, first)
                async for piece in pieces:
                    await _write(response, piece)
            except MaestroError as error:
                # The status is sent: only a connection that breaks tells that this is not all.
                log.warning("a download of %s ended early: %s", file.file_id, error)
                if request.transport is not None:
                    request.transport.abort()
                return response
        await response.write_eof()
        return response


async def _write(response: web.StreamResponse, piece: bytes) -> None:
    for at in range(0, len(piece), _PIECE):
        await response.write(piece[at : at + _PIECE])


async def _fields_until_file(parts: MultipartReader, fields: dict[str, str]) -> BodyPartReader | None:
    """Reads fields of a form up to its file; None at its end. Raises `InvalidRequest`."""
    size = 0
    while (part := await _soon(parts.next)) is not None:
        name = part.name or "" if isinstance(part, BodyPartReader) else ""
        if not isinstance(part, BodyPartReader) or (name != "file" and not is_field(name)):
            raise InvalidRequest.at(name[:80] or "body", "is no field of an upload")
        if name == "file":
            return part
        value = b""
        while data := await _soon(lambda part=part: part.read_chunk(_PIECE)):
            value += data
            size += len(data)
            if size > _FIELD:
                raise TooLarge(f"the fields of the form have more than {_FIELD} bytes")
        if name in fields:
            raise InvalidRequest.at(name, "comes twice")
        if len(fields) >= _MOST_FIELDS:
            raise TooLarge(f"the form has more than {_MOST_FIELDS} fields")
        try:
            fields[name] = value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest.at(name, "is no UTF-8") from None
    return None


async def _hurried(read: Callable[[], Awaitable[bytes]]) -> AsyncGenerator[bytes]:
    """What `read` gives until it gives nothing. Raises `Timeout` when it takes too long."""
    while data := await _soon(read):
        yield data


async def _soon(read: Callable[[], Awaitable[Result]]) -> Result:
    try:
        async with asyncio.timeout(SILENCE):
            return await read()
    except TimeoutError:
        raise Timeout(f"nothing came for {SILENCE:.0f} seconds", counts_against_health=False) from None


def _fields_beside(request: web.Request) -> dict[str, str]:
    """What the query and the headers say of an upload."""
    fields: dict[str, str] = {}
    for name, value in request.query.items():
        if name == "access_token":
            continue
        if name in fields:
            raise InvalidRequest.at(name[:80], "comes twice")
        fields[name] = value
    if key := request.headers.get("idempotency-key", ""):
        fields.setdefault("request_id", key)
    return fields


def _refuse_encoding(request: web.Request) -> None:
    # The bytes that come are those that are kept: what is decoded here could end early and look whole.
    if request.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
        raise InvalidRequest.at("content-encoding", "is not taken: send the file as it is")


def _refuse_query(request: web.Request, *known: str) -> None:
    for name in request.query:
        if name not in {*known, "access_token"}:
            raise InvalidRequest.at(name[:80], "is no parameter here")


def _span(request: web.Request, file: FileRecord) -> tuple[int, int, int]:
    """First byte, the one after the last, and the status of an answer. A range that can't be read is no range."""
    found = _RANGE.fullmatch(request.headers.get("range", "").strip())
    valid = request.headers.get("if-range", "") in {"", f'"{file.sha256}"'}
    if found is None or not valid or found.groups() == ("", ""):
        return 0, file.size, 200
    first, last = found.groups()
    if not first:
        start, end = max(0, file.size - int(last)), file.size
    else:
        start, end = int(first), min(file.size, int(last) + 1) if last else file.size
        if last and int(last) < int(first):
            return 0, file.size, 200
    return (start, end, 206) if start < end else (0, 0, 416)


def _disposition(file: FileRecord) -> str:
    shown = "inline" if _INLINE.fullmatch(essence(file.mime_type)) else "attachment"
    return f"{shown}; filename*=UTF-8''{quote(file.filename, safe='')}"


def _json(data: bytes) -> web.Response:
    return web.Response(body=data, content_type="application/json")
