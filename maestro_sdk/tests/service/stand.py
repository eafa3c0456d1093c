"""A service for tests of `run`, as a process of its own: `python stand.py COUNT PAUSE` streams so many deltas."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.run import Service, run
from maestro_sdk.service.settings import Config
from maestro_sdk.tracing import outgoing_metadata

_log = logging.getLogger("stand")


class Chats(chat_pb2_grpc.ChatServiceServicer):
    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        if "forward" in request.metadata:
            async with open_channel(request.metadata.pop("forward")) as channel:
                stub = chat_pb2_grpc.ChatServiceStub(channel)
                return await stub.Chat(request, metadata=outgoing_metadata())
        _log.info("answering for %s", os.environ.get("STAND_KEY"))
        return chat_pb2.ChatResponse(response_id="r")

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:
        count, pause = int(sys.argv[1]), float(sys.argv[2])
        for number in range(count):
            event = chat_pb2.ChatEvent(text=chat_pb2.TextDelta(text=str(number)))
            await context.write(chat_pb2.StreamChatResponse(events=[event]))
            await asyncio.sleep(pause)

    async def CountTokens(self, request: chat_pb2.CountTokensRequest, context: Any) -> chat_pb2.CountTokensResponse:
        return chat_pb2.CountTokensResponse()


@asynccontextmanager
async def build(config: Config) -> AsyncGenerator[Service]:
    """Ready while the file `ready` stands in the data folder; leaves the file `closed` when it is closed."""

    async def ready() -> str:
        return "" if (config.data / "ready").exists() else "the file `ready` is missing"

    if (config.data / "slow").exists():
        (config.data / "building").touch()
        await asyncio.sleep(3600)
    try:
        yield Service(config.gateway.address, [Chats()], ready=ready)
    finally:
        (config.data / "closed").touch()


if __name__ == "__main__":
    run("stand", build)
