"""How wires differ, as data: what a provider says where the contract has one word, and what a wire can't carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from maestro.llm.v1.chat_pb2 import FinishReason


class Cause(Enum):
    """Why a provider refuses a call; the value is the reason of the contract."""

    INVALID = "INVALID_REQUEST"
    CONTEXT = "CONTEXT_TOO_LONG"
    KEY = "PROVIDER_AUTH"
    QUOTA = "PROVIDER_QUOTA"
    MODEL = "NOT_FOUND"
    RATE = "RATE_LIMITED"
    FAULT = "UPSTREAM_ERROR"
    LOAD = "OVERLOADED"


@dataclass(frozen=True, slots=True)
class Refused:
    """A refused call: status, and the provider's own code and words; see `Wire.refusal`."""

    status: int
    kind: str = ""
    message: str = "no"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


USUAL: Mapping[Cause, Sequence[Refused]] = {
    Cause.INVALID: (Refused(400),),
    Cause.KEY: (Refused(401), Refused(403)),
    Cause.MODEL: (Refused(404),),
    Cause.RATE: (Refused(429),),
    Cause.FAULT: (Refused(500), Refused(502)),
    Cause.LOAD: (Refused(503),),
}
"""What providers say by the status alone."""


@dataclass(frozen=True, slots=True)
class Manner:
    """One wire's ways. A cause that `refusals` does not name is told as in `USUAL`; with no entry, not at all."""

    refusals: Mapping[Cause, Sequence[Refused]] = field(default_factory=dict[Cause, Sequence[Refused]])
    in_band: str = "UPSTREAM_ERROR"
    """Reason of an error inside a stream, as `Wire.error_event` tells it without a code."""
    in_document: str = "UPSTREAM_ERROR"
    """Reason of an error that comes as a document of status 200, as `Wire.refusal` tells a 500."""
    stops: Mapping[FinishReason.ValueType, Sequence[str]] = field(
        default_factory=dict[FinishReason.ValueType, Sequence[str]]
    )
    """The wire's words for finish reasons; STOP and TOOL_CALLS are told by `Wire` itself."""
    unknown_stop: str = "something_new"
    """A word that the contract does not know: OTHER, with the word. Empty where the wire has no words."""
    counts: frozenset[str] = frozenset({"cache_read", "cache_write_5m", "reasoning"})
    """Fields of `Tokens` that the wire carries beside input and output."""
    signature: str = ""
    """State of an answer with reasoning, which has to come back to the provider; empty where the wire has none."""
    call_ids: bool = True
    """Whether calls have ids on the wire; else the adapter makes them."""
    terminal: bool = True
    """Whether a stream has an event that ends it; else its clean end belongs to the answer."""
    thoughts: bool = True
    """Whether the wire carries reasoning."""

    def refused(self, cause: Cause) -> Sequence[Refused]:
        """The ways in which the provider tells a cause."""
        return self.refusals.get(cause, USUAL.get(cause, ()))


ANTHROPIC_MESSAGES = Manner(
    refusals={
        Cause.CONTEXT: (Refused(400, message="prompt is too long: 210000 tokens > 200000 maximum"),),
        Cause.QUOTA: (
            Refused(402),
            Refused(400, message="Your credit balance is too low to access the Anthropic API."),
        ),
        Cause.LOAD: (Refused(529),),
    },
    in_band="OVERLOADED",
    stops={
        FinishReason.FINISH_REASON_LENGTH: ("max_tokens",),
        FinishReason.FINISH_REASON_STOP_SEQUENCE: ("stop_sequence",),
        FinishReason.FINISH_REASON_REFUSAL: ("refusal",),
        FinishReason.FINISH_REASON_PAUSED: ("pause_turn",),
        FinishReason.FINISH_REASON_CONTEXT_WINDOW: ("model_context_window_exceeded",),
    },
    signature="c2lnbmVk",
)

OPENAI_CHAT = Manner(
    refusals={
        Cause.CONTEXT: (
            Refused(400, "context_length_exceeded", "This model's maximum context length is 128000 tokens."),
        ),
        Cause.QUOTA: (Refused(429, "insufficient_quota", "You exceeded your current quota."),),
    },
    stops={
        FinishReason.FINISH_REASON_LENGTH: ("length",),
        FinishReason.FINISH_REASON_CONTENT_FILTER: ("content_filter",),
    },
)

OLLAMA_CHAT = Manner(
    refusals={
        Cause.CONTEXT: (Refused(400, message="the input length exceeds the context length"),),
        Cause.MODEL: (Refused(404, message='model "x" not found, try pulling it first'),),
        Cause.LOAD: (Refused(503, message="server busy, please try again. maximum pending requests exceeded"),),
    },
    stops={FinishReason.FINISH_REASON_LENGTH: ("length",)},
    counts=frozenset(),
    call_ids=False,
)

GEMINI_CONTENT = Manner(
    refusals={
        Cause.CONTEXT: (
            Refused(
                400, message="The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
            ),
        ),
        Cause.QUOTA: (Refused(429, message="Quota exceeded for quota metric 'Requests per day'."),),
    },
    stops={
        FinishReason.FINISH_REASON_LENGTH: ("MAX_TOKENS",),
        FinishReason.FINISH_REASON_CONTENT_FILTER: ("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "RECITATION"),
    },
    unknown_stop="SOMETHING_NEW",
    terminal=False,
    counts=frozenset({"cache_read", "reasoning"}),
    signature="c2lnbmVk",
)

BEDROCK_CONVERSE = Manner(
    refusals={
        Cause.CONTEXT: (Refused(400, message="Input is too long for requested model."),),
        Cause.KEY: (Refused(403), Refused(403, "UnrecognizedClientException")),
        Cause.QUOTA: (
            Refused(400, "ServiceQuotaExceededException", "Your account has no more of this."),
            Refused(429, "ThrottlingException", "Too many tokens per day, please wait before trying again."),
        ),
        Cause.LOAD: (Refused(503), Refused(429, "ModelNotReadyException")),
    },
    stops={
        FinishReason.FINISH_REASON_LENGTH: ("max_tokens",),
        FinishReason.FINISH_REASON_STOP_SEQUENCE: ("stop_sequence",),
        FinishReason.FINISH_REASON_CONTENT_FILTER: ("content_filtered", "guardrail_intervened"),
        FinishReason.FINISH_REASON_CONTEXT_WINDOW: ("model_context_window_exceeded",),
    },
    counts=frozenset({"cache_read", "cache_write_5m"}),
    signature="c2lnbmVk",
)
