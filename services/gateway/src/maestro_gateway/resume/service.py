"""`maestro.gateway.v1.StreamService`, and what the doors share that serve resumable streams."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from maestro.gateway.v1.http_pb2 import FollowChatRequest
from maestro.gateway.v1.stream_pb2 import CancelChatRequest, CancelChatResponse, ResumeChatRequest
from maestro.gateway.v1.stream_pb2_grpc import StreamServiceServicer
from maestro.llm.v1.chat_pb2 import StreamChatResponse
from maestro_gateway.mesh import Mesh, calling
from maestro_gateway.resume.reading import Reading
from maestro_gateway.resume.streams import Streams
from maestro_sdk.errors import InvalidRequest, Unimplemented

_LARGEST = 2**31 - 1


class StreamService(StreamServiceServicer):
    """Takes up streams and ends them."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def ResumeChat(self, request: ResumeChatRequest, context: Any) -> None:
        streams = require_streams(self._mesh.streams)
        await send_pieces(streams.resume(calling().tenant, request.stream, request.after), context)

    async def CancelChat(self, request: CancelChatRequest, context: Any) -> CancelChatResponse:
        await require_streams(self._mesh.streams).cancel(calling().tenant, request.stream)
        return CancelChatResponse()


def require_streams(streams: Streams | None) -> Streams:
    """The streams. Raises `Unimplemented` where there are none."""
    if streams is None:
        raise Unimplemented("this gateway keeps no streams")
    return streams


async def send_pieces(reading: Reading, context: Any) -> None:
    """Writes all that a reader gets to its call."""
    async with aclosing(reading.pieces()) as pieces:
        async for piece in pieces:
            await context.write(StreamChatResponse(events=piece.events))


def read_after(request: FollowChatRequest, header: str) -> int:
    """The number of the last event that a reader has, from the query or the header `last-event-id`.

    The header is the browser's own word, and newer than the address. Raises `InvalidRequest`.
    """
    if header:
        if not (header.isascii() and header.isdecimal() and len(header) <= 10) or int(header) > _LARGEST:
            raise InvalidRequest.at("last-event-id", "must be the number of an event of this stream")
        return int(header)
    if request.after < 0:
        raise InvalidRequest.at("after", "must be 0 or the number of an event of this stream")
    return request.after
