"""What an answer tells beside its content: usage, probabilities, sources, and the provider's own remarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maestro.llm.v1.message_pb2 import Citation, TokenLogprob, TopLogprob
from maestro.llm.v1.usage_pb2 import Usage

Json = Mapping[str, Any]

_COUNTS = (
    *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"),
    *("cachedContentTokenCount", "toolUsePromptTokenCount"),
)
# Facts of a candidate that are told on, in the provider's words; the others are in the contract itself.
_TOLD = (
    *("safetyRatings", "groundingMetadata", "urlContextMetadata", "finishMessage", "avgLogprobs"),
    *("continuationToken", "promptFeedback"),
)


class Counts:
    """Counts of tokens: they are cumulative, and late reports may lack early ones."""

    __slots__ = ("_counts", "known", "traffic")

    def __init__(self) -> None:
        self.known = False
        self.traffic = ""
        """How the request was served, where not on demand: it may change the price."""
        self._counts: dict[str, int] = {}

    def take(self, reported: Json | None) -> None:
        """Takes a report."""
        if not reported:
            return
        for name in _COUNTS:
            self._raise(name, reported.get(name))
        for name, sound in (("promptTokensDetails", "soundIn"), ("candidatesTokensDetails", "soundOut")):
            for detail in reported.get(name) or ():
                if detail.get("modality") == "AUDIO":
                    self._raise(sound, detail.get("tokenCount"))
        traffic = reported.get("trafficType")
        if traffic and traffic != "ON_DEMAND":
            self.traffic = str(traffic)
        self.known = self.known or bool(self._counts)

    def usage(self) -> Usage:
        """The counts, inclusive: the wire counts thoughts apart from the candidates."""
        counts = self._counts
        thoughts = counts.get("thoughtsTokenCount", 0)
        return Usage(
            input_tokens=counts.get("promptTokenCount", 0) + counts.get("toolUsePromptTokenCount", 0),
            cache_read_tokens=counts.get("cachedContentTokenCount", 0),
            output_tokens=counts.get("candidatesTokenCount", 0) + thoughts,
            reasoning_tokens=thoughts,
            audio_input_tokens=counts.get("soundIn", 0),
            audio_output_tokens=counts.get("soundOut", 0),
        )

    def _raise(self, name: str, value: object) -> None:
        if isinstance(value, int) and value >= self._counts.get(name, 0):
            self._counts[name] = value


def provider_facts(found: Json, counts: Counts, model: str) -> dict[str, Any]:
    """The `provider_metadata` of an answer."""
    facts = {name: found[name] for name in _TOLD if found.get(name)}
    version = found.get("modelVersion")
    if version and version != model:
        facts["modelVersion"] = version
    if counts.traffic:
        facts["trafficType"] = counts.traffic
    return facts


def to_logprobs(result: Json | None) -> list[TokenLogprob]:
    """The probabilities of the tokens that a piece of the answer has."""
    if not result:
        return []
    tops: Sequence[Json] = result.get("topCandidates") or ()
    found: list[TokenLogprob] = []
    for number, chosen in enumerate(result.get("chosenCandidates") or ()):
        token = TokenLogprob(token=chosen.get("token", ""), logprob=chosen.get("logProbability", 0.0))
        beside: Sequence[Json] = tops[number].get("candidates") or () if number < len(tops) else ()
        token.top.extend(
            TopLogprob(token=one.get("token", ""), logprob=one.get("logProbability", 0.0)) for one in beside
        )
        found.append(token)
    return found


def citations(candidate: Json) -> Iterator[Citation]:
    """The sources of an answer. Their places are those in the answer, which the contract does not tell."""
    metadata: Json = candidate.get("citationMetadata") or {}
    for cited in metadata.get("citations") or ():
        if cited.get("uri") or cited.get("title"):
            yield Citation(title=cited.get("title") or "", url=cited.get("uri") or "")
    grounding: Json = candidate.get("groundingMetadata") or {}
    for chunk in grounding.get("groundingChunks") or ():
        source: Json = chunk.get("web") or chunk.get("retrievedContext") or chunk.get("maps") or {}
        if source.get("uri") or source.get("title"):
            yield Citation(
                title=source.get("title") or "", url=source.get("uri") or "", cited_text=source.get("text") or ""
            )
