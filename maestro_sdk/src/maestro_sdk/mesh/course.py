"""The order of one attempt's events: what is held back until content comes, and where the contract is broken."""

from __future__ import annotations

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, Finish, StreamChatResponse
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.usage_pb2 import Headroom
from maestro_sdk.errors import StreamBroken
from maestro_sdk.mesh.trail import Attempt

NO_FINISH = "no finish"
NO_REASON = "no finish reason"
NOT_STARTED = "first event is not started"
STARTED_TWICE = "started twice"
NO_KIND = "an event without a kind"
AFTER_FINISH = "events after finish"
TWO_FINISHES = "two finishes"
ERROR_AFTER_FINISH = "error after finish"
NO_END = "no end after finish"

_MEANINGS = {
    NO_FINISH: "the adapter's stream ended without a finish event",
    NO_REASON: "the adapter's answer does not say why it ended",
    NOT_STARTED: "the adapter's first event is not `started`",
    STARTED_TWICE: "the adapter began its answer twice",
    NO_KIND: "the adapter sent an event that has no kind; does it speak a newer contract?",
}


def broken(breach: str) -> StreamBroken:
    """The error for an adapter that broke the contract before its answer was whole."""
    return StreamBroken(_MEANINGS[breach], metadata={"breach": breach})


class Course:
    """One attempt's stream as it goes.

    Success is decided by the first `finish`: what follows it is cut off and noted as `Attempt.breach`.
    """

    __slots__ = ("_attempt", "_began", "_held", "finish")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._held: list[ChatEvent] = []
        self._began = False
        self.finish: Finish | None = None
        """The end of the answer, once it came."""

    def begin(self, message: StreamChatResponse, now: float) -> StreamChatResponse | None:
        """What to hand on once content came: all events so far; None as long as nothing but the preface came.

        Raises `StreamBroken` with a breach when the adapter breaks the order of events.
        """
        if not self._attempt.first_event:
            self._attempt.first_event = now
        if not self.look(message):
            self._held.extend(message.events)
            return None
        self._attempt.first_content = now
        if self._held:
            message = StreamChatResponse(events=[*self._held, *message.events])
            self._held.clear()
            if self.finish is not None:
                self.finish = message.events[-1].finish
        return message

    def end(self) -> StreamBroken:
        """The error of a stream that ended before `finish`."""
        return broken(NO_FINISH)

    def look(self, message: StreamChatResponse) -> bool:
        """Whether content is among the events, once some came. Raises `StreamBroken` as `begin` does."""
        attempt, content = self._attempt, False
        for event in message.events:
            # Nearly all events are text, and reading it is as quick as asking what they are.
            if text := event.text.text:
                attempt.characters += len(text)
                if not self._began:
                    raise broken(NOT_STARTED)
                content = True
                continue
            kind = event.WhichOneof("kind")
            if (kind == "started") is self._began:
                raise broken(STARTED_TWICE if self._began else NOT_STARTED)
            match kind:
                case "started":
                    self._began = True
                    event.started.attempt = attempt.number
                case "usage":
                    attempt.told = (*attempt.told[:1], event.usage)
                case "warning":
                    pass
                case "tool_call":
                    attempt.characters += len(event.tool_call.arguments_json)
                    content = True
                case "reasoning":
                    attempt.characters += len(event.reasoning.text)
                    content = True
                case "part":
                    attempt.characters += _length(event.part)
                    content = True
                case "finish":
                    self._close(message)
                    return True
                case "text" | "part_state" | "switched":
                    content = True
                case None:
                    raise broken(NO_KIND)
        return content

    def _close(self, message: StreamChatResponse) -> None:
        """Takes the first `finish`, and out what stands behind it."""
        events = message.events
        kinds = [event.WhichOneof("kind") for event in events]
        end = kinds.index("finish") + 1
        if not events[end - 1].finish.reason:
            raise broken(NO_REASON)
        if end < len(kinds):
            self._attempt.breach = TWO_FINISHES if "finish" in kinds[end:] else AFTER_FINISH
            del events[end:]
        self.finish = events[-1].finish


def take_headroom(answer: Finish | ChatResponse, attempt: Attempt) -> None:
    """Moves what the provider's rate limits leave from the answer, whose caller has no use for it, to the attempt."""
    if answer.HasField("headroom"):
        attempt.headroom = Headroom()
        attempt.headroom.CopyFrom(answer.headroom)
        answer.ClearField("headroom")


def _length(part: Part) -> int:
    match part.WhichOneof("kind"):
        case "text":
            return len(part.text.text)
        case "reasoning":
            return len(part.reasoning.text)
        case "tool_call":
            return len(part.tool_call.arguments_json)
        case _:
            return 0
