"""Places of the prompt that the server keeps, as marks on the chat-completions wire."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.adapter.chat_completions import Dialect, to_wire
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

from .chat_bodies import body

MARKED = {"prompt_cache_breakpoint": {"mode": "explicit"}}
CACHING = Dialect(provider="local", cache_points=2, images=True)


def conversation(*points: dict[str, Any], **cache: Any) -> ChatRequest:
    call = {"tool_call": {"call_id": "c", "name": "f", "arguments_json": "{}"}}
    result = {"tool_result": {"call_id": "c", "parts": [{"text": {"text": "sunny"}}]}}
    turns = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "look"}}, {"image": {"url": "https://x/y.png"}}]},
        {"role": "ROLE_ASSISTANT", "parts": [call]},
        {"role": "ROLE_TOOL", "parts": [result]},
        {"role": "ROLE_USER", "parts": [{"text": {"text": "and now?"}}]},
    ]
    fields = {"model": "local/m", "system": "Be brief.", "messages": turns, "cache": {"points": points, **cache}}
    return ParseDict(fields, ChatRequest())


def test_places_of_the_prompt_that_are_kept() -> None:
    sent = body(conversation({"system": True}, {"message": 0}), CACHING)
    assert sent["messages"][0]["content"] == [{"type": "text", "text": "Be brief.", **MARKED}]
    assert sent["messages"][1]["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}, **MARKED},
    ]
    assert sent["prompt_cache_options"] == {"mode": "explicit"}
    result = body(conversation({"message": 2}), CACHING)["messages"][3]
    assert result == {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "sunny", **MARKED}]}


def test_without_places_the_server_goes_on_choosing() -> None:
    wire = to_wire(conversation(ttl="CACHE_TTL_5M"), CACHING)
    assert "prompt_cache_options" not in wire.body
    assert not wire.warnings


@pytest.mark.parametrize(
    ("asked", "told", "marked"),
    [
        (conversation({"tools": True}, {"system": True}), ["cache.points[0]"], [0]),
        # A turn that only calls tools has no content.
        (conversation({"message": 1}), ["cache.points[0]"], []),
        (conversation({"message": 3}, {"message": 0}, {"system": True}), ["cache.points[2]"], [1, 4]),
        (conversation({"message": 3}, {"message": 3}, ttl="CACHE_TTL_1H"), ["cache.ttl"], [4]),
    ],
)
def test_places_that_can_not_be_marked_are_told(asked: ChatRequest, told: list[str], marked: list[int]) -> None:
    wire = to_wire(asked, CACHING)
    assert [warning.field for warning in wire.warnings] == told
    places = [place for place, message in enumerate(wire.body["messages"]) if "prompt_cache" in str(message)]
    assert places == marked
    asked.strict = True
    with pytest.raises(UnsupportedParameter):
        to_wire(asked, CACHING)


def test_a_message_that_is_not_there_can_not_be_kept() -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_wire(conversation({"message": 9}), CACHING)
    assert caught.value.violations[0].field == "cache.points[0].message"
