"""Clients, service kit, adapter kit and routing of the Maestro mesh.

Callers find what they need here; each name is loaded when it is first used, so that importing the package costs next to
nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maestro_sdk.batch import JobsClient
    from maestro_sdk.embeddings import EmbeddingClient, vectors_of
    from maestro_sdk.errors import MaestroError
    from maestro_sdk.event_client import EventClient
    from maestro_sdk.llm_client import ChatStream, LLMClient
    from maestro_sdk.sync import SyncEmbeddingClient, SyncJobsClient, SyncLLMClient, SyncToolBridgeClient
    from maestro_sdk.tool_bridge import ToolBridgeClient, tool_of
    from maestro_sdk.tool_loop import ToolRun, TurnsExhausted
    from maestro_sdk.types import (
        assistant,
        chat_request,
        finish_of,
        image,
        json_of,
        json_schema,
        text_of,
        tool,
        tool_calls_of,
        tool_result,
        tool_results,
        user,
    )

__all__ = [
    "ChatStream",
    "EmbeddingClient",
    "EventClient",
    "JobsClient",
    "LLMClient",
    "MaestroError",
    "SyncEmbeddingClient",
    "SyncJobsClient",
    "SyncLLMClient",
    "SyncToolBridgeClient",
    "ToolBridgeClient",
    "ToolRun",
    "TurnsExhausted",
    "assistant",
    "chat_request",
    "finish_of",
    "image",
    "json_of",
    "json_schema",
    "text_of",
    "tool",
    "tool_calls_of",
    "tool_of",
    "tool_result",
    "tool_results",
    "user",
    "vectors_of",
]

_HOMES = {
    "ChatStream": "llm_client",
    "EmbeddingClient": "embeddings",
    "EventClient": "event_client",
    "JobsClient": "batch",
    "LLMClient": "llm_client",
    "MaestroError": "errors",
    "SyncEmbeddingClient": "sync",
    "SyncJobsClient": "sync",
    "SyncLLMClient": "sync",
    "SyncToolBridgeClient": "sync",
    "ToolBridgeClient": "tool_bridge",
    "ToolRun": "tool_loop",
    "TurnsExhausted": "tool_loop",
    "tool_of": "tool_bridge",
    "vectors_of": "embeddings",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'types')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
