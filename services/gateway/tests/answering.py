"""Answers whose calls hold JSON objects, for the tests of both dialects; see `maestro_sdk.testing.strategies`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro.llm.v1.message_pb2 import Origin, Part, ReasoningPart, TextPart, ToolCallPart
from maestro_sdk.testing.strategies import TEXT, answers

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXT, _VALUES, max_size=3).map(json.dumps)
_ORIGIN = Origin(provider="scripted", api="messages")
_STATE = st.none() | st.binary(max_size=8)


@st.composite
def whole_parts(draw: st.DrawFn, index: int) -> Part:
    """A part that comes whole."""
    part = Part(index=index)
    match draw(st.sampled_from(["text", "call", "reasoning", "hidden"])):
        case "text":
            part.text.CopyFrom(TextPart(text=draw(TEXT)))
        case "call":
            part.tool_call.CopyFrom(ToolCallPart(call_id=f"w{index}", name="tool", arguments_json=draw(ARGUMENTS)))
        case "reasoning":
            part.reasoning.CopyFrom(ReasoningPart(text=draw(TEXT)))
        case _:
            part.reasoning.CopyFrom(ReasoningPart(redacted=True))
            part.provider_state = b"hidden"
    state = draw(_STATE)
    if state is not None:
        part.provider_state = state
    if part.HasField("provider_state"):
        part.origin.CopyFrom(_ORIGIN)
    return part


@st.composite
def good_answers(draw: st.DrawFn, *, interleaved: bool) -> list[ChatEvent]:
    """The events of an answer; each call's fragments make up one JSON object or nothing."""
    events = draw(answers())
    if not interleaved:
        content = [event for event in events if _index_of(event) is not None]
        facts = [event for event in events[1:-1] if _index_of(event) is None]
        # Stable: each part keeps its own order.
        events = [events[0], *facts, *sorted(content, key=lambda event: _index_of(event) or 0), events[-1]]
    fragments = {
        event.tool_call.index: [
            each for each in events if each.tool_call.index == event.tool_call.index and _is_call(each)
        ]
        for event in events
        if _is_call(event)
    }
    for calls in fragments.values():
        text = draw(ARGUMENTS | st.just(""))
        size = max(1, -(-len(text) // len(calls)))
        for number, event in enumerate(calls):
            event.tool_call.arguments_json = text[number * size : (number + 1) * size]
    wholes = [ChatEvent(part=draw(whole_parts(100 + number))) for number in range(draw(st.integers(0, 2)))]
    return [*events[:-1], *wholes, events[-1]]


def _is_call(event: ChatEvent) -> bool:
    return event.WhichOneof("kind") == "tool_call"


def _index_of(event: ChatEvent) -> int | None:
    match event.WhichOneof("kind"):
        case "text" | "reasoning" | "tool_call" | "part" | "part_state" as kind:
            return getattr(event, kind).index
        case _:
            return None


def read_frames(data: bytes) -> Sequence[Any]:
    """The documents of server-sent events."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
