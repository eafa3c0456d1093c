"""What the tests of this adapter share: models, requests, golden files, and providers at a test's own server."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToJson, ParseDict
from google.protobuf.message import Message

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude import models
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_adapter_claude.translate import Outgoing, to_wire

GOLDEN = Path(__file__).with_name("golden")
API_KEY = "sk-ant-test-key"

Ask = Callable[..., ChatRequest]
Translate = Callable[..., Outgoing]


@pytest.fixture(scope="session")
def catalogue() -> dict[str, ClaudeModel]:
    """All models by id."""
    return models.load()


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Makes a request from fields in the JSON form; `text` is the only turn unless `messages` are given."""

    def make(text: str = "hi", model: str = "anthropic/claude-sonnet-5", **fields: Any) -> ChatRequest:
        turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
        return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())

    return make


@pytest.fixture(scope="session")
def translate(catalogue: dict[str, ClaudeModel]) -> Translate:
    """Translates a request as the provider would."""

    def run(request: ChatRequest, default_max_tokens: int = 16384) -> Outgoing:
        return to_wire(request, catalogue[request.model], default_max_tokens)

    return run


@pytest.fixture(scope="session")
def golden() -> Callable[[str, Any], None]:
    """Compares with a reviewed file; with MAESTRO_GOLDEN=write the file is written anew, to be reviewed."""

    def compare(name: str, got: Any) -> None:
        path = GOLDEN / name
        text = json.dumps(got, indent=2, ensure_ascii=False) + "\n"
        if os.environ.get("MAESTRO_GOLDEN") == "write":
            path.write_text(text, encoding="utf-8")
        # As text, so that the order of keys and 1 against 1.0 count.
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(scope="session")
def provider_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Opens a provider whose API is at a base URL, as an async context manager."""
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text(API_KEY)

    @asynccontextmanager
    async def opened(url: str, **settings: Any) -> AsyncGenerator[ClaudeProvider]:
        fields = {"api_key": {"file": str(key)}, "base_url": url, **settings}
        provider = ClaudeProvider(ClaudeSettings.model_validate(fields))
        try:
            yield provider
        finally:
            await provider.close()

    return opened


@pytest.fixture(scope="session")
def plain() -> Callable[[Any], Any]:
    """A message, events or a wire body as plain JSON values."""

    def convert(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        if isinstance(value, Message):
            # Maps of protobuf have no order.
            return json.loads(MessageToJson(value, preserving_proto_field_name=True, sort_keys=True))
        return json.loads(orjson.dumps(value))

    return convert
