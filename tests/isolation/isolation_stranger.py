"""Somebody of another tenant, who tries doors and keeps every byte that comes back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import aiohttp
import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from yarl import URL

from maestro_sdk.service.channel import open_channel

from .isolation_doors import Door, Rest, Rpc, Socket
from .isolation_mesh import KEYS

QUIET = 0.4
"""Seconds without a word after which nothing more is expected of a stream that never ends."""
_FIRST = 20.0
_MOST = 1 << 20
_PASSING = re.compile(rb"req_[0-9a-f.-]+|0x[0-9a-f]+")
_UNLIKE = {"date", "x-request-id", "content-length", "grpc-message", "request-id"}


def _pool() -> Any:
    """What Envoy knows of the contract."""
    pool: Any = descriptor_pool.DescriptorPool()
    data = (Path(__file__).resolve().parents[2] / "envoy/maestro.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool


_POOL = _pool()


class Stranger:
    """One key of the other tenant, on connections of its own."""

    def __init__(self, http: aiohttp.ClientSession, url: str, name: str) -> None:
        self.name = name
        self._http, self._url = http, url
        self._key = {"authorization": f"Bearer {KEYS[name][1]}"}
        self._channel: Any = open_channel(url.removeprefix("http://"))

    async def close(self) -> None:
        """Ends its connections."""
        await self._channel.close()

    async def attempt(self, door: Door, ids: Mapping[str, str]) -> tuple[str, bytes]:
        """Code of the answer, and every byte of it: headers, body, trailers."""
        async with asyncio.timeout(30):
            match door:
                case Rest():
                    return await self._rest(door, ids)
                case Rpc():
                    return await self._rpc(door, ids)
                case Socket():
                    return await self._socket(door, ids)

    async def _rest(self, door: Rest, ids: Mapping[str, str]) -> tuple[str, bytes]:
        query = filled(dict(door.query), ids)
        body = filled(door.body, ids)
        address = f"{self._url}{filled(door.path, ids)}?{urlencode(query)}"
        headers = {**filled(dict(door.headers), ids), **self._key}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        async with self._http.request(door.verb, URL(address, encoded=True), data=data, headers=headers) as response:
            kept = bytearray(told(response.headers))
            patience = _FIRST
            try:
                while len(kept) < _MOST:
                    async with asyncio.timeout(patience):
                        if not (data := await response.content.readany()):
                            break
                    kept += data
                    patience = QUIET if response.content_type == "text/event-stream" else _FIRST
            except TimeoutError:
                response.close()
            return str(response.status), bytes(kept)

    async def _rpc(self, door: Rpc, ids: Mapping[str, str]) -> tuple[str, bytes]:
        bodies = cast("list[Any]", door.body if isinstance(door.body, list) else [door.body])
        requests = [message_of(door.method, filled(body, ids)) for body in bodies]

        async def several() -> Any:
            for request in requests:
                yield request

        metadata = tuple((filled(dict(door.metadata), ids) | self._key).items())
        if isinstance(door.body, list):
            call = self._channel.stream_stream(door.method)(several(), metadata=metadata)
        else:
            call = self._channel.unary_stream(door.method)(requests[0], metadata=metadata)
        kept = bytearray()
        patience = _FIRST
        try:
            while True:
                async with asyncio.timeout(patience):
                    if (data := await call.read()) is grpc.aio.EOF:
                        break
                kept += data
                patience = QUIET if door.method.endswith("Subscribe") else _FIRST
            code = "OK"
        except TimeoutError:
            call.cancel()
            return "TIMEOUT", bytes(kept)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            kept += b"\n" + (error.details() or "").encode()
        for name, value in (*(await call.initial_metadata()), *(await call.trailing_metadata())):
            if name == "grpc-status-details-bin":
                kept += b"\n" + _ordered(value)
            elif name not in _UNLIKE:
                kept += b"\n%b: %b" % (name.encode(), value if isinstance(value, bytes) else value.encode())
        return code, bytes(kept)

    async def _socket(self, door: Socket, ids: Mapping[str, str]) -> tuple[str, bytes]:
        kept = bytearray()
        query = filled(dict(door.query), ids)
        try:
            async with self._http.ws_connect(self._url + door.path, params=query, headers=self._key) as socket:
                for frame in door.frames:
                    await socket.send_json(filled(frame, ids))
                patience = _FIRST
                try:
                    while True:
                        async with asyncio.timeout(patience):
                            message = await socket.receive()
                        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                            return str(socket.close_code), bytes(kept)
                        kept += message.data.encode() if isinstance(message.data, str) else message.data
                        patience = QUIET
                except TimeoutError:
                    return "101", bytes(kept)
        except aiohttp.WSServerHandshakeError as error:
            return str(error.status), told(error.headers or {})


def _ordered(details: bytes) -> bytes:
    """The details of a status with their facts in order: maps have none."""
    status = Status.FromString(details)
    for each in status.details:
        if each.type_url.endswith("google.rpc.ErrorInfo"):
            each.value = ErrorInfo.FromString(each.value).SerializeToString(deterministic=True)
    return status.SerializeToString(deterministic=True)


def told(headers: Mapping[str, str]) -> bytes:
    """Headers as bytes, but those that are never alike."""
    return b"".join(b"%b: %b\n" % (k.encode(), v.encode()) for k, v in headers.items() if k.lower() not in _UNLIKE)


def filled(value: Any, ids: Mapping[str, str]) -> Any:
    """The value with identifiers in their places."""
    match value:
        case str():
            for name, known in ids.items():
                value = value.replace(f"{{{name}}}", known)
            return value
        case dict():
            entries = cast("dict[str, Any]", value)
            return {name: filled(each, ids) for name, each in entries.items()}
        case list():
            return [filled(each, ids) for each in cast("list[Any]", value)]
        case _:
            return value


def message_of(method: str, body: Any) -> bytes:
    """The request of a method, from JSON."""
    service, _, name = method[1:].partition("/")
    found = _POOL.FindServiceByName(service).methods_by_name[name].input_type
    kind: Any = message_factory.GetMessageClass(found)
    return json_format.ParseDict(body, kind()).SerializeToString()


def bare(answer: tuple[str, bytes], ids: Mapping[str, str]) -> tuple[str, bytes]:
    """An answer without what was said to get it, and without what is another one each time."""
    code, data = answer[0], _PASSING.sub(b"<>", answer[1])
    for name, value in ids.items():
        data = data.replace(value.encode(), f"<{name}>".encode())
    return code, data
