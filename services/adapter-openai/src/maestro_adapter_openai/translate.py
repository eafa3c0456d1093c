"""What is OpenAI's own in the chat-completions wire; the translation itself is shared with all who speak it."""

from __future__ import annotations

from dataclasses import replace

from maestro_sdk.adapter.chat_completions import Dialect, Stream, to_error, to_wire
from maestro_sdk.adapter.openai_embeddings import EmbeddingDialect
from maestro_sdk.adapter.plain_schema import Limits
from maestro_sdk.adapter.strict_subset import OPENAI_STRICT

__all__ = ["AZURE", "AZURE_EMBEDDINGS", "OPENAI", "OPENAI_EMBEDDINGS", "Stream", "to_error", "to_wire"]

OPENAI = Dialect(
    provider="openai",
    max_tokens="max_completion_tokens",
    # Obfuscation pads chunks against those who guess texts from the sizes of packets, at a cost in bytes and time.
    # Who needs it sets `provider_options.openai.stream_options.include_obfuscation`.
    stream_options={"include_usage": True, "include_obfuscation": False},
    tool_name_length=64,
    strict_subset=OPENAI_STRICT,
    schema_limits=Limits(frozenset({"allOf", "anyOf", "const", "enum", "not", "oneOf"}), items=True),
    documents=True,
    audio=True,
    refusals=True,
    metadata_headers={"x-request-id": "request_id"},
)
"""The wire as OpenAI speaks it; each model narrows it by its features."""

OPENAI_EMBEDDINGS = EmbeddingDialect("openai", truncates=False, normalized=True)
"""OpenAI refuses what is too long, and all its vectors have length 1, shortened ones too."""

AZURE = replace(
    OPENAI,
    provider="azure",
    # It has no obfuscation to switch off.
    stream_options={"include_usage": True},
    documents=False,
    # The filters judge the prompt in a chunk of its own, before the answer, and the answer piece by piece.
    metadata_fields=(*OPENAI.metadata_fields, "prompt_filter_results"),
    content_filters=True,
    metadata_headers={"x-request-id": "request_id", "apim-request-id": "apim_request_id", "x-ms-region": "region"},
)
"""The wire as Azure speaks it."""

AZURE_EMBEDDINGS = replace(OPENAI_EMBEDDINGS, provider="azure")
