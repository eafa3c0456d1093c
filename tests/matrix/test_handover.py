"""A conversation that one provider began goes on at every other one: without its state, with all that was said."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from matrix_streams import answered
from matrix_wires import NAMES, Wire, conversation, wire

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart, ToolResultPart
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing.wire import Answer, ToolCall

THOUGHT = "The owl asks for two things."
STATE = "b3dsIHNpZ25hdHVyZQ=="
TEXT = "Let me look."
CALLS = (ToolCall("call_1", "get_weather", {"city": "Rome"}), ToolCall("call_2", "get_time", {"city": "Oslo"}))
RESULTS = {"get_weather": "sunny as ever", "get_time": "half past nine"}
SIGNED = {"anthropic", "vertex", "bedrock", "nova"}
"""Whose answers carry a state that has to come back."""


def begun(name: str) -> ChatRequest:
    """A conversation in which `name` has thought, spoken and called, and the tools have answered."""
    request = conversation("tools_required")
    request.ClearField("tool_choice")
    answer = Answer(pieces=(TEXT,), calls=CALLS, thoughts=(THOUGHT,), signature=STATE)
    parts = fold(answered(name, wire(name).ask(request), answer)).parts
    request.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=parts))
    results = [
        Part(
            tool_result=ToolResultPart(
                call_id=part.tool_call.call_id, parts=[Part(text=TextPart(text=RESULTS[part.tool_call.name]))]
            )
        )
        for part in parts
        if part.HasField("tool_call")
    ]
    request.messages.append(Message(role=Role.ROLE_TOOL, parts=results))
    return request


def understands(reader: Wire, maker: Wire) -> bool:
    return (reader.provider, reader.api, reader.model.id) == (maker.provider, maker.api, maker.model.id)


def texts(value: Any) -> list[str]:
    """All texts within a body, objects that are written as text included."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in texts(each)]


@pytest.mark.parametrize(("maker", "reader"), list(product(NAMES, NAMES)))
def test_handover(maker: str, reader: str) -> None:
    request = begun(maker)
    sent = wire(reader).ask(request)
    found = texts(sent.body)
    assert TEXT in found
    written = json.dumps(sent.body)
    assert all(word in written for word in ("get_weather", "Rome", "get_time", "Oslo"))
    assert all(result in found for result in RESULTS.values())
    if not understands(wire(reader), wire(maker)):
        assert STATE not in written
        assert THOUGHT not in written
    elif maker in SIGNED:
        assert found.count(STATE) == 1  # byte-identical


@pytest.mark.parametrize(("maker", "reader"), list(product(sorted(SIGNED), NAMES)))
def test_a_part_that_is_only_a_signature(maker: str, reader: str) -> None:
    """Gemini signs an empty text at the end, others a thought that they hide."""
    owner = wire(maker)
    request = conversation("plain")
    answer = Answer(pieces=(TEXT,), signature=STATE)
    parts = fold(answered(maker, owner.ask(request), answer)).parts
    request.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=parts))
    request.messages.append(Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="Go on."))]))
    assert any(part.provider_state for part in parts)
    sent = wire(reader).ask(request)
    turns: list[Any] = sent.body.get("messages", sent.body.get("contents"))
    assert len(turns) == 3
    content = turns[1].get("content", turns[1].get("parts"))
    if understands(wire(reader), owner):
        assert STATE in texts(sent.body)
    else:
        assert STATE not in texts(sent.body)
        # The signed part had no text: what is left is the one text, and nothing empty beside it.
        assert content == TEXT or len(content) == 1
    assert TEXT in texts(turns[1])


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_what_only_another_one_understands_is_dropped_and_told(name: str, strict: bool) -> None:
    """It is no parameter: `strict` does not forbid what the contract demands."""
    request = conversation("foreign_state")
    request.strict = strict
    sent = wire(name).ask(request)
    [warning] = sent.warnings
    assert (warning.code, warning.field) == ("foreign_content_dropped", "messages[1].parts[2].opaque")
    assert "elsewhere" in warning.message


@pytest.mark.parametrize("name", ["anthropic", "openai", "azure"])
def test_calls_of_tools_that_are_offered_no_more(name: str) -> None:
    """Another provider took their names as they are; here they would be refused."""
    request = conversation("odd_names")
    request.ClearField("tools")
    sent = wire(name).ask(request)
    written = json.dumps(sent.body)
    assert "files.read" not in written
    assert "files_read" in written
