"""What an answer tells beside its content: usage, sources, and the provider's own remarks on the usage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maestro.llm.v1.message_pb2 import Citation
from maestro.llm.v1.usage_pb2 import Usage

Json = Mapping[str, Any]

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
# Facts of `usage` that change the price or say what else was used; told on, where they are not what is always there.
_TOLD = {
    "service_tier": "standard",
    "speed": "standard",
    "inference_geo": "not_available",
    "server_tool_use": None,
}


class Counts:
    """Counts of tokens: they are cumulative, and late reports may lack early ones."""

    __slots__ = ("_counts", "facts")

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        """What else was reported, in the provider's words."""
        self._counts: dict[str, int] = {}

    @property
    def known(self) -> bool:
        """Whether anything was counted."""
        return bool(self._counts)

    def take(self, reported: Json | None) -> bool:
        """Takes a report; False when there is none."""
        if not reported:
            return False
        for name in _COUNTS:
            self._raise(name, reported.get(name))
        for group in ("cache_creation", "output_tokens_details"):
            details: Json = reported.get(group) or {}
            for name, value in details.items():
                self._raise(name, value)
        for name, usual in _TOLD.items():
            if (value := reported.get(name)) is not None and value != usual:
                self.facts[name] = value
        return True

    def usage(self) -> Usage:
        """The counts, inclusive: the wire counts cached tokens apart from `input_tokens`."""
        counts = self._counts
        read = counts.get("cache_read_input_tokens", 0)
        hour = counts.get("ephemeral_1h_input_tokens", 0)
        written = max(counts.get("cache_creation_input_tokens", 0), hour + counts.get("ephemeral_5m_input_tokens", 0))
        return Usage(
            input_tokens=counts.get("input_tokens", 0) + read + written,
            cache_read_tokens=read,
            cache_write_5m_tokens=written - hour,
            cache_write_1h_tokens=hour,
            output_tokens=counts.get("output_tokens", 0),
            reasoning_tokens=counts.get("thinking_tokens", 0),
        )

    def _raise(self, name: str, value: object) -> None:
        if isinstance(value, int) and value >= self._counts.get(name, 0):
            self._counts[name] = value


def to_citation(found: Json) -> Citation:
    """A citation of the wire as one of the contract."""
    citation = Citation(
        title=found.get("document_title") or found.get("title") or "",
        url=found.get("url") or found.get("source") or "",
        cited_text=found.get("cited_text") or "",
    )
    if found.get("start_char_index") is not None:
        citation.start = found["start_char_index"]
    if found.get("end_char_index") is not None:
        citation.end = found["end_char_index"]
    return citation
