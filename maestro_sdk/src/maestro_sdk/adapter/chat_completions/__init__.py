"""The chat-completions wire of OpenAI, Azure and every server that calls itself OpenAI-compatible.

One translation for all of them; what differs between servers and models is a value, `Dialect`, never a branch on a
name.
`to_wire`, `Stream`, `answer` and `to_error` are pure; `ChatCompletionsProvider` makes the calls.
"""

from maestro_sdk.adapter.chat_completions.answer import Stream, answer
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.chat_completions.failure import to_error
from maestro_sdk.adapter.chat_completions.provider import ChatCompletionsProvider
from maestro_sdk.adapter.chat_completions.request import WireRequest, to_wire

__all__ = ["ChatCompletionsProvider", "Dialect", "Stream", "WireRequest", "answer", "to_error", "to_wire"]
