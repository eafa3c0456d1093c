"""Hypothesis strategies for answers that keep the contract: any parts, deltas interleaved, reads of any size.

Needs hypothesis, which the SDK itself does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    Finish,
    FinishReason,
    PartState,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import Origin, Part, RefusalPart, TokenLogprob
from maestro.llm.v1.usage_pb2 import Usage

TEXT = st.text(max_size=12)
COUNT = st.integers(0, 1_000_000)
USAGE = st.builds(
    Usage,
    input_tokens=COUNT,
    cache_read_tokens=COUNT,
    cache_write_5m_tokens=COUNT,
    cache_write_1h_tokens=COUNT,
    output_tokens=COUNT,
    reasoning_tokens=COUNT,
    audio_input_tokens=COUNT,
    audio_output_tokens=COUNT,
    estimated=st.booleans(),
)


@st.composite
def part(draw: st.DrawFn, index: int) -> list[ChatEvent]:
    """The events of one part, in order."""
    origin = Origin(provider="scripted", api="messages")
    state = [ChatEvent(part_state=PartState(index=index, origin=origin, provider_state=draw(st.binary(max_size=8))))]
    tail = state if draw(st.booleans()) else []
    pieces = draw(st.lists(TEXT, min_size=1, max_size=5))
    match draw(st.sampled_from(["text", "reasoning", "call", "whole"])):
        case "text":
            logprobs = [TokenLogprob(logprob=-0.5, utf8=b"t")] if draw(st.booleans()) else []
            deltas = [TextDelta(index=index, text=piece, logprobs=logprobs) for piece in pieces]
            return [*(ChatEvent(text=delta) for delta in deltas), *tail]
        case "reasoning":
            return [*(ChatEvent(reasoning=ReasoningDelta(index=index, text=piece)) for piece in pieces), *tail]
        case "call":
            first = ToolCallDelta(index=index, call_id=f"c{index}", name="tool", arguments_json=pieces[0])
            rest = [ToolCallDelta(index=index, arguments_json=piece) for piece in pieces[1:]]
            return [*(ChatEvent(tool_call=delta) for delta in (first, *rest)), *tail]
        case _:
            return [ChatEvent(part=Part(index=index, refusal=RefusalPart(text=pieces[0]))), *tail]


@st.composite
def interleaved(draw: st.DrawFn, columns: Sequence[Sequence[ChatEvent]]) -> list[ChatEvent]:
    """One order of all events that keeps each column's own order."""
    left = [list(column) for column in columns if column]
    order: list[ChatEvent] = []
    while left:
        column = draw(st.sampled_from(left))
        order.append(column.pop(0))
        left = [rest for rest in left if rest]
    return order


@st.composite
def answers(draw: st.DrawFn) -> list[ChatEvent]:
    """The events of a good answer."""
    parts = [draw(part(index)) for index in range(draw(st.integers(0, 4)))]
    facts = st.one_of(
        USAGE.map(lambda usage: ChatEvent(usage=usage)),
        TEXT.map(lambda text: ChatEvent(warning=chat_pb2.Warning(code="w", message=text))),
        TEXT.map(lambda text: ChatEvent(switched=Switched(to_model=text, why="OVERLOADED"))),
    )
    content = draw(interleaved([*parts, draw(st.lists(facts, max_size=3))]))
    started = Started(response_id="r", provider="scripted", model="model", attempt=1)
    reason = draw(st.sampled_from([FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH]))
    finish = Finish(reason=reason, raw_reason="raw", usage=draw(USAGE))
    return [ChatEvent(started=started), *content, ChatEvent(finish=finish)]


@st.composite
def split(draw: st.DrawFn, events: Sequence[ChatEvent]) -> list[list[ChatEvent]]:
    """The events in reads of any size, empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=6)))
    return [list(events[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(events)], strict=True)]
