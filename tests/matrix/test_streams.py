"""One answer, streamed by each provider in its own way, is the same answer in the mesh."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matrix_streams import answered, read, spoken
from matrix_wires import NAMES, conversation, wire

from maestro.llm.v1.chat_pb2 import FinishReason
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing import golden
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

GOLDEN = Path(__file__).parent / "golden"
CALLS = (
    ToolCall("call_1", "get_weather", {"city": "Rome", "unit": "C"}),
    ToolCall("call_2", "get_time", {"city": "Rome"}),
)
ANSWER = Answer(
    pieces=("Let me", " look."),
    calls=CALLS,
    thoughts=("Two", " calls."),
    signature="c2lnbmF0dXJl",
    interleaved=True,
    fragment=9,
    tokens=Tokens(input=120, output=60, cache_read=40, cache_write_5m=20, reasoning=15),
)


@pytest.mark.parametrize("name", NAMES)
def test_events(name: str) -> None:
    sent = wire(name).ask(conversation("tools_required"))
    events = answered(name, sent, ANSWER)
    golden.check(GOLDEN / f"stream.{name}.json", golden.plain(events))


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_the_same_everywhere(name: str) -> None:
    sent = wire(name).ask(conversation("tools_required"))
    answer = fold(answered(name, sent, ANSWER))
    assert "".join(part.text.text for part in answer.parts) == "Let me look."
    calls = [
        (part.tool_call.name, json.loads(part.tool_call.arguments_json))
        for part in answer.parts
        if part.HasField("tool_call")
    ]
    assert calls == [(call.name, json.loads(call.text)) for call in CALLS]
    assert answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert answer.raw_reason
    assert len({part.index for part in answer.parts}) == len(answer.parts)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (120, 60)
    assert not answer.usage.estimated


@pytest.mark.parametrize("name", NAMES)
def test_tools_are_called_by_the_names_that_were_given(name: str) -> None:
    """Whatever a provider has to call them: names with dots, long ones, and such that another one would become."""
    given = ["files.read", "files_read", f"{'a' * 63}.b"]
    request = conversation("plain")
    for each in given:
        request.tools.add(name=each, input_schema='{"type":"object","properties":{}}')
    sent = wire(name).ask(request)
    sent_names = re.findall(r'"name": "([^"]+)"', json.dumps(sent.body))
    assert len(set(sent_names)) == len(given)
    answer = fold(answered(name, sent, Answer(calls=tuple(ToolCall(f"c_{each}", each, {}) for each in sent_names))))
    assert [part.tool_call.name for part in answer.parts if part.HasField("tool_call")] == given


@pytest.mark.parametrize("name", NAMES)
def test_how_it_is_cut_does_not_matter(name: str) -> None:
    sent = wire(name).ask(conversation("tools_required"))
    raw = spoken(name, sent, ANSWER)
    whole = fold(read(sent, [raw]))
    for size in (1, 7, 50, 1000):
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        assert fold(read(sent, pieces)) == whole
