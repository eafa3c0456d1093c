"""The ways in which `flawed_servicer` breaks the contract, and what they do to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason, TextDelta
from maestro.llm.v1.message_pb2 import Role
from maestro_sdk.testing.obliging import EMBEDDER, Obliged, ObligingModel, question_of


class Flaw(Enum):
    """A way to break the contract: its number, the case of the suite that must fail, the model that shows it."""

    def __init__(self, number: int, case: str, model: str = "") -> None:
        self.case = case
        self.model = model

    NOT_SERVING = 1, "health"
    NOT_REFLECTED = 2, "reflection"
    OTHER_CONTRACT = 3, "info"
    FEATURE_TWICE = 4, "models"
    WRONG_ID = 5, "models"
    MALFORMED_PRICE = 6, "models"
    ERROR_BEFORE_CONTENT = 7, "answers"
    ERROR_AFTER_CONTENT = 8, "answers"
    STALL = 9, "answers"
    NO_STARTED = 10, "started_first"
    TWO_STARTED = 11, "started_first"
    NO_FINISH = 12, "finish_last"
    TWO_FINISHES = 13, "finish_last"
    EVENTS_AFTER_FINISH = 14, "finish_last"
    UNSPECIFIED_REASON = 15, "finish_reason"
    STOP_WITH_CALLS = 16, "finish_reason"
    SHARED_INDEX = 17, "indexes"
    MIXED_KINDS = 18, "indexes"
    NAMELESS_CALL = 19, "indexes"
    SHUFFLED = 20, "order"
    NO_USAGE = 21, "usage"
    EXCLUSIVE_USAGE = 22, "usage"
    FREE_OF_CHARGE = 23, "cost"
    OTHER_WHEN_WHOLE = 24, "unary_is_fold"
    NO_LIMIT = 25, "max_tokens"
    FORGETS = 26, "conversation"
    CUTS_PROMPT = 27, "large_prompt"
    ANY_MODEL = 28, "unknown_model"
    NO_VALIDATION = 29, "invalid_request"
    NO_PATHS = 30, "invalid_request"
    DROPS_PARTS = 31, "unsupported_part"
    NO_ERROR_INFO = 32, "error_details"
    NO_VERDICTS = 33, "error_details"
    FOREIGN_DOMAIN = 34, "error_details"
    SILENT_PARAMETERS = 35, "undeclared_parameters"
    LENIENT_STRICT = 36, "undeclared_parameters"
    HURRY_IS_INTERNAL = 37, "deadline"
    STUCK_AFTER_CANCEL = 38, "cancellation"
    MIXED_STREAMS = 39, "concurrency"
    ONE_MESSAGE = 40, "streaming"
    NO_SYSTEM = 41, "system_prompt"
    RESULT_UNREAD = 42, "tools"
    ONE_CALL = 43, "parallel_tools"
    CHOICE_IGNORED = 44, "tool_choice"
    WHOLE_ARGUMENTS = 45, "streamed_tool_args"
    OTHER_JSON = 46, "json_schema"
    BLIND = 47, "vision"
    UNREAD = 48, "documents"
    THOUGHTLESS = 49, "reasoning"
    IMPROBABLE = 50, "logprobs"
    UNSTOPPABLE = 51, "stop_sequences"
    UNSEEDED = 52, "seed"
    TEMPERATURE_UNTRUE = 53, "temperature"
    CACHELESS = 54, "prompt_caching"
    WRONG_COUNT = 55, "token_counting"
    UNMARKED_CALLS = 56, "tools"
    UNMARKED_JSON = 57, "json_schema"
    CHATS_ANYWAY = 58, "undeclared_services", EMBEDDER
    LOST_VECTOR = 59, "embeddings"
    MIXED_LENGTHS = 60, "embeddings"
    SWAPPED_VECTORS = 61, "embeddings"
    DRIFTING_VECTORS = 62, "embeddings"
    SHUFFLED_PIECES = 63, "many_inputs"
    LENGTH_IGNORED = 64, "dimensions"
    LENGTH_LENIENT = 65, "dimensions"
    FREE_VECTORS = 66, "embedding_usage"
    EMPTY_EMBEDDED = 67, "embedding_refusals"
    LOST_BYTES = 68, "files"
    FILE_STAYS = 69, "files"
    RANGES_IGNORED = 70, "file_ranges"
    CHECKSUM_IGNORED = 71, "file_checks"
    SIZE_IGNORED = 72, "file_checks"
    KEPT_THOUGH_DAMAGED = 73, "file_checks"
    HEADERLESS = 74, "file_checks"
    UPLOADED_TWICE = 75, "file_repetition"
    DELETED_ONCE = 76, "file_repetition"
    UNKNOWN_DELETED = 77, "file_refusals"
    COUNTS_OFF = 78, "batch"
    NO_RESULTS_YET = 79, "batch"
    ITEM_TWICE = 80, "batch"
    ITEM_RENAMED = 81, "batch"
    FULL_PRICE = 82, "batch"
    BATCH_UNLISTED = 83, "batch"
    BATCH_GOES_ON = 84, "batch_cancel"
    STARTED_TWICE = 85, "batch_repetition"
    NAMED_TWICE = 86, "batch_refusals"
    BATCH_INVENTED = 87, "batch_refusals"
    BEGINS_AGAIN = 88, "prefill"


def spoil(flaw: Flaw | None, events: list[ChatEvent]) -> list[ChatEvent]:
    """The events of a good answer with the flaw in them."""
    finish = events[-1].finish
    calls = [event for event in events if event.HasField("tool_call")]
    texts = [event for event in events if event.HasField("text")]
    match flaw:
        case Flaw.NO_STARTED:
            return events[1:]
        case Flaw.TWO_STARTED:
            return [events[0], *events]
        case Flaw.NO_FINISH:
            return events[:-1]
        case Flaw.TWO_FINISHES:
            return [*events, events[-1]]
        case Flaw.EVENTS_AFTER_FINISH:
            return [*events, ChatEvent(text=TextDelta(index=99, text="more"))]
        case Flaw.UNSPECIFIED_REASON:
            finish.reason = FinishReason.FINISH_REASON_UNSPECIFIED
        case Flaw.STOP_WITH_CALLS if calls:
            finish.reason = FinishReason.FINISH_REASON_STOP
        case Flaw.SHARED_INDEX:
            for event in calls:
                event.tool_call.index = 0
        case Flaw.MIXED_KINDS:
            for event in texts:
                event.text.index = 0
        case Flaw.NAMELESS_CALL if calls:
            calls[0].tool_call.name = ""
        case Flaw.SHUFFLED if len(texts) > 20:
            texts[3].text.text, texts[4].text.text = texts[4].text.text, texts[3].text.text
        case Flaw.NO_USAGE:
            finish.ClearField("usage")
        case Flaw.EXCLUSIVE_USAGE if finish.usage.reasoning_tokens:
            # As if output did not contain reasoning.
            finish.usage.reasoning_tokens = finish.usage.output_tokens + 1
        case Flaw.FREE_OF_CHARGE:
            finish.cost.usd = "0"
        case Flaw.IMPROBABLE:
            for event in texts:
                del event.text.logprobs[:]
        case Flaw.WHOLE_ARGUMENTS if calls:
            return _joined(events)
        case _:
            pass
    return events


def _joined(events: Sequence[ChatEvent]) -> list[ChatEvent]:
    """The events with each call in one piece."""
    kept: dict[int, ChatEvent] = {}
    joined: list[ChatEvent] = []
    for event in events:
        if event.HasField("tool_call") and event.tool_call.index in kept:
            kept[event.tool_call.index].tool_call.arguments_json += event.tool_call.arguments_json
            continue
        if event.HasField("tool_call"):
            kept[event.tool_call.index] = event
        joined.append(event)
    return joined


class FlawedModel(ObligingModel):
    """Misunderstands its request, or what it should answer."""

    def __init__(self, flaw: Flaw | None) -> None:
        super().__init__()
        self._flaw = flaw
        self._asked = 0

    def answer(self, request: ChatRequest) -> Obliged:
        self._asked += 1
        obliged = super().answer(self._heard(request))
        match self._flaw:
            case Flaw.ONE_CALL:
                return _changed(obliged, calls=obliged.answer.calls[:1])
            case Flaw.OTHER_JSON if request.response_format.HasField("json_schema"):
                return _changed(obliged, pieces=['{"name":', ' "Paris"}'])
            case Flaw.BLIND | Flaw.UNREAD if _has_media(request, self._flaw):
                return _changed(obliged, pieces=["Something."])
            case Flaw.RESULT_UNREAD if request.messages[-1].role == Role.ROLE_TOOL:
                return _changed(obliged, pieces=["Fine."])
            case Flaw.UNSEEDED if request.HasField("seed") and "sea" in question_of(request):
                return _changed(obliged, pieces=[f"Answer {self._asked}."])
            case _:
                return obliged

    def _heard(self, request: ChatRequest) -> ChatRequest:
        """The request as far as the model takes notice of it."""
        heard = ChatRequest()
        heard.CopyFrom(request)
        match self._flaw:
            case Flaw.NO_LIMIT:
                heard.ClearField("max_tokens")
            case Flaw.FORGETS if any(message.role == Role.ROLE_ASSISTANT for message in heard.messages):
                if heard.messages[-1].role == Role.ROLE_USER:
                    del heard.messages[1:]
            case Flaw.BEGINS_AGAIN if heard.messages[-1].role == Role.ROLE_ASSISTANT:
                del heard.messages[-1]
            case Flaw.CUTS_PROMPT:
                for message in heard.messages:
                    for part in message.parts:
                        if part.HasField("text"):
                            part.text.text = part.text.text[-2000:]
            case Flaw.NO_SYSTEM if len(heard.system) < 1000:
                heard.system = ""
            case Flaw.CHOICE_IGNORED:
                heard.ClearField("tool_choice")
            case Flaw.THOUGHTLESS:
                heard.ClearField("reasoning")
            case Flaw.UNSTOPPABLE:
                del heard.stop[:]
            case Flaw.CACHELESS:
                self._kept.clear()
            case _:
                pass
        return heard


def _has_media(request: ChatRequest, flaw: Flaw | None) -> bool:
    kind = "image" if flaw is Flaw.BLIND else "document"
    return any(part.HasField(kind) for part in request.messages[-1].parts)


def _changed(obliged: Obliged, **fields: Any) -> Obliged:
    return replace(obliged, answer=replace(obliged.answer, **fields))
