"""What the tests of this adapter ask, and both ways to ask."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro_sdk.testing.asking import Complete


def ask(text: str = "hello", model: str = "openai/gpt-4.1", **fields: Any) -> ChatRequest:
    message = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
    return ParseDict({"model": model, "messages": [message], **fields}, ChatRequest())


def ask_azure(model: str = "azure/gpt-4.1") -> ChatRequest:
    return ask(model=model)


async def call(provider: Complete, request: ChatRequest, mode: str = "stream") -> list[ChatEvent]:
    if mode == "complete":
        return list(await provider.complete(request))
    return [event async for batch in provider.stream(request) for event in batch]


both = pytest.mark.parametrize("mode", ["stream", "complete"])
