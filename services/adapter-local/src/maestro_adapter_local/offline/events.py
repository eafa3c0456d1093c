"""An answer as events of the contract: limits applied, whole or token by token. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_local.offline import tokens
from maestro_adapter_local.offline.answer import Answer, Call

PROVIDER = "local"


@dataclass(frozen=True, slots=True)
class Limited:
    """What remains of an answer under the limits of a request, and why it ends."""

    reasoning: str
    text: str
    calls: tuple[Call, ...]
    reason: FinishReason.ValueType
    stop_sequence: str
    reasoning_tokens: int
    output_tokens: int


def limit(answer: Answer, request: ChatRequest, max_output: int) -> Limited:
    """Applies `stop` to the text and `max_tokens` to everything: reasoning, then text, then calls.

    A stop text ends the text before it, and its own tokens don't count. A call that doesn't fit is left out whole:
    arguments that are delivered always meet their schema.
    """
    wanted, stop = cut_at_stop(answer.text, request.stop)
    calls = () if stop else answer.calls
    room = min(request.max_tokens, max_output) if request.HasField("max_tokens") else max_output
    reasoning, thought = _fit(answer.reasoning, room)
    text, said = _fit(wanted, room - thought) if reasoning == answer.reasoning else ("", 0)
    used = thought + said
    # The text without the stop text must have fitted, else the limit came first.
    cut = reasoning != answer.reasoning or text != wanted
    kept: list[Call] = []
    for call in () if cut else calls:
        size = tokens.count(call.name) + tokens.count(call.arguments)
        if used + size > room:
            cut = True
            break
        used += size
        kept.append(call)
    if cut:
        reason = FinishReason.FINISH_REASON_LENGTH
    elif stop:
        reason = FinishReason.FINISH_REASON_STOP_SEQUENCE
    elif answer.reason:
        reason = answer.reason
    elif kept:
        reason = FinishReason.FINISH_REASON_TOOL_CALLS
    else:
        reason = FinishReason.FINISH_REASON_STOP
    return Limited(reasoning, text, tuple(kept), reason, "" if cut else stop, thought, used)


def cut_at_stop(text: str, stops: Iterable[str]) -> tuple[str, str]:
    """The text before the first stop text, and that stop text; of several at one place the shortest is met first."""
    first = min(((place, len(stop), stop) for stop in stops if (place := text.find(stop)) >= 0), default=None)
    return (text, "") if first is None else (text[: first[0]], first[2])


def usage_of(limited: Limited, answer: Answer, input_tokens: int) -> Usage:
    """The tokens of an answer; a script may say otherwise."""
    usage = Usage(
        input_tokens=input_tokens,
        output_tokens=limited.output_tokens,
        reasoning_tokens=limited.reasoning_tokens,
    )
    for name, count in answer.usage.items():
        setattr(usage, name, count)
    return usage


@dataclass(frozen=True, slots=True)
class Rendering:
    """An answer that is ready to be sent: `begin`, then the content, then `end`."""

    name: str
    """Name of the model, without the provider."""
    digest: bytes
    answer: Answer
    limited: Limited
    usage: Usage

    def begin(self) -> list[ChatEvent]:
        """`started` and the warnings."""
        started = Started(
            response_id=f"offline_{self.digest.hex()[:24]}", provider=PROVIDER, model=self.name, attempt=1
        )
        return [ChatEvent(started=started), *(ChatEvent(warning=warning) for warning in self.answer.warnings)]

    def whole(self) -> list[ChatEvent]:
        """The content with one event per part."""
        return self._content(pieces=_one)

    def piecemeal(self) -> list[ChatEvent]:
        """The content with one event per token."""
        return self._content(pieces=tokens.split)

    def end(self) -> ChatEvent:
        """`finish`."""
        limited = self.limited
        return ChatEvent(finish=Finish(reason=limited.reason, stop_sequence=limited.stop_sequence, usage=self.usage))

    def _content(self, pieces: Callable[[str], list[str]]) -> list[ChatEvent]:
        limited = self.limited
        events: list[ChatEvent] = []
        index = 0
        if limited.reasoning:
            events += [
                ChatEvent(reasoning=ReasoningDelta(index=index, text=piece)) for piece in pieces(limited.reasoning)
            ]
            index += 1
        if limited.text:
            events += [ChatEvent(text=TextDelta(index=index, text=piece)) for piece in pieces(limited.text)]
            index += 1
        for number, call in enumerate(limited.calls, 1):
            call_id = f"call_{self.digest.hex()[:20]}_{number}"
            first, *rest = pieces(call.arguments) or [""]
            events.append(
                ChatEvent(tool_call=ToolCallDelta(index=index, call_id=call_id, name=call.name, arguments_json=first))
            )
            events += [ChatEvent(tool_call=ToolCallDelta(index=index, arguments_json=piece)) for piece in rest]
            index += 1
        return events


def _fit(text: str, room: int) -> tuple[str, int]:
    """The beginning of `text` that fits into `room` tokens, and how many it has."""
    if not text or room <= 0:
        return "", 0
    found = tokens.split(text)
    return (text, len(found)) if len(found) <= room else ("".join(found[:room]), room)


def _one(text: str) -> list[str]:
    return [text] if text else []
