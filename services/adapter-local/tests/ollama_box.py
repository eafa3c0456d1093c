"""An Ollama server of the tests: what it lists and shows, and the provider for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from maestro_adapter_local.models import Knowledge
from maestro_adapter_local.ollama.provider import OllamaServer
from maestro_adapter_local.settings import ServerSettings

SHOWN = {
    "details": {"family": "qwen3", "families": ["qwen3"]},
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960, "qwen3.block_count": 36},
    "capabilities": ["completion", "tools", "thinking"],
}
TAGS = {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "digest": "d1", "details": {"family": "qwen3"}}]}


@asynccontextmanager
async def ollama(url: str, **settings: Any) -> AsyncGenerator[OllamaServer]:
    """The provider for a server at `url`, closed at the end."""
    read = ServerSettings.model_validate({"name": "box", "base_url": url, "api": "ollama", **settings})
    provider = OllamaServer(read, Knowledge(read), {"authorization": "Bearer sk-local"})
    try:
        yield provider
    finally:
        await provider.close()
