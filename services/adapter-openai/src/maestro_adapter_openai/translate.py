"""What is OpenAI's own in the chat-completions wire; the translation itself is shared with all who speak it."""

from __future__ import annotations

from maestro_sdk.adapter.chat_completions import Dialect, Stream, to_error, to_wire

__all__ = ["OPENAI", "Stream", "to_error", "to_wire"]

OPENAI = Dialect(
    provider="openai",
    max_tokens="max_completion_tokens",
    # Obfuscation pads chunks against those who guess texts from the sizes of packets, at a cost in bytes and time.
    # Who needs it sets `provider_options.openai.stream_options.include_obfuscation`.
    stream_options={"include_usage": True, "include_obfuscation": False},
    tool_name_pattern="[a-zA-Z0-9_-]{1,64}",
    documents=True,
    audio=True,
    refusals=True,
)
"""The wire as OpenAI speaks it; each model narrows it by its features."""
