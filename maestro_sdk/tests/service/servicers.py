"""Servicers that do what a test says, and a server that has the interceptor before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, file_pb2, file_pb2_grpc, message_pb2, model_pb2, model_pb2_grpc
from maestro_sdk import errors
from maestro_sdk.errors import MaestroError, Unauthenticated, from_rpc_error
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.tracing import Call, current_call

# The generated stubs do not tell their asynchronous kind from the other one.
ChatStub: Any = chat_pb2_grpc.ChatServiceStub
FileStub: Any = file_pb2_grpc.FileServiceStub
ModelStub: Any = model_pb2_grpc.ModelServiceStub

HELLO = message_pb2.Part(text=message_pb2.TextPart(text="hello"))
REQUEST = chat_pb2.ChatRequest(messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[HELLO])])
DELTA = chat_pb2.StreamChatResponse(events=[chat_pb2.ChatEvent(text=chat_pb2.TextDelta(text="x"))])


class Chats(chat_pb2_grpc.ChatServiceServicer):
    """Does what the test says: `unary` and `stream` are called with request and context."""

    def __init__(self) -> None:
        self.calls: list[Call | None] = []
        self.unary: Callable[[Any], Any] = lambda context: None
        self.stream: Callable[[Any], Any] = lambda context: None
        self.ended = asyncio.Event()

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        self.calls.append(current_call())
        result = self.unary(context)
        if asyncio.iscoroutine(result):
            await result
        return chat_pb2.ChatResponse(response_id="r")

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:
        try:
            await self.stream(context)
        finally:
            self.ended.set()

    async def CountTokens(self, request: chat_pb2.CountTokensRequest, context: Any) -> chat_pb2.CountTokensResponse:
        return chat_pb2.CountTokensResponse(input_tokens=len(request.request.messages))


class Files(file_pb2_grpc.FileServiceServicer):
    """Streams in both directions, the download as an asynchronous generator."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def UploadFile(self, request_iterator: Any, context: Any) -> file_pb2.File:
        size = 0
        async for request in request_iterator:
            size += len(request.data)
        return file_pb2.File(size_bytes=size)

    async def DownloadFile(
        self, request: file_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        try:
            yield file_pb2.DownloadFileResponse(data=b"one")
            if request.file_id == "broken":
                raise errors.StreamBroken("cut", metadata={"provider": "p"})
            yield file_pb2.DownloadFileResponse(data=b"two")
            if request.file_id == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()


# What it doesn't implement answers UNIMPLEMENTED, as the generated base does; the stubs call that abstract.
make_files: Any = Files


class Models(model_pb2_grpc.ModelServiceServicer):
    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse()

    async def GetInfo(self, request: model_pb2.GetInfoRequest, context: Any) -> model_pb2.GetInfoResponse:
        call = current_call()
        return model_pb2.GetInfoResponse(name=call.tenant if call else "")


@asynccontextmanager
async def served(*servicers: Any, **options: Any) -> AsyncGenerator[tuple[grpc.aio.Channel, MeshInterceptor]]:
    interceptor = MeshInterceptor(**options)
    server = grpc.aio.server(interceptors=(interceptor,))
    for servicer in servicers:
        for module in (chat_pb2_grpc, file_pb2_grpc, model_pb2_grpc):
            for name in dir(module):
                if name.endswith("Servicer") and isinstance(servicer, getattr(module, name)):
                    getattr(module, f"add_{name}_to_server")(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel, interceptor
    finally:
        await server.stop(None)


async def failure(call: Any) -> MaestroError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def authenticate(metadata: tuple[tuple[str, str | bytes], ...], method: str) -> str:
    for key, value in metadata:
        if key == "authorization" and value == "Bearer good":
            return "acme"
    raise Unauthenticated(f"no key for {method}")
