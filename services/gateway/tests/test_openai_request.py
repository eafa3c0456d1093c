"""What a chat completion asks for, and the place of what is wrong in it."""

import json
from typing import Any

import pytest

from maestro_gateway.openai.request import Asked, decode_completion
from maestro_sdk.errors import InvalidRequest

SAID: Any = {"role": "user", "content": "hello"}
TOOL: Any = {"type": "function", "function": {"name": "weather"}}
CALL: Any = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALLED: Any = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: Any = {"role": "tool", "tool_call_id": "c1", "content": "21"}


def decode(**fields: Any) -> Asked:
    return decode_completion(json.dumps({"model": "m", "messages": [SAID], **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens", "one of them"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "stands twice"),
        ({"messages": [SAID, RESULT]}, "messages[1].tool_call_id", "answers no call"),
        ({"messages": [RESULT]}, "messages[0].tool_call_id", "answers no call"),
        ({"messages": [SAID, CALLED, RESULT, RESULT]}, "messages[3].tool_call_id", "for the second time"),
        ({"messages": [SAID, CALLED, SAID, RESULT]}, "messages[3].tool_call_id", "answers no call"),
        ({"messages": [SAID, {**CALLED, "tool_calls": [CALL, CALL]}]}, "messages[1].tool_calls[1].id", "stands twice"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least one part"),
        ({"messages": [SAID, {"role": "assistant", "content": ""}]}, "messages[1].content", "is required"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages", "more than what the system says"),
        ({"n": 2}, "n", "one answer per request"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "true or false"),
        ({"tool_choice": "all"}, "tool_choice", "must be one of"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(fields: dict[str, Any], place: str, words: str):
    with pytest.raises(InvalidRequest) as raised:
        decode(**fields)
    assert [each.field for each in raised.value.violations] == [place]
    assert words in raised.value.message


def test_results_of_one_turn_are_one_message():
    second = {**CALL, "id": "c2"}
    other = {**RESULT, "tool_call_id": "c2"}
    asked = decode(messages=[SAID, {**CALLED, "tool_calls": [CALL, second]}, other, RESULT, SAID])
    assert [len(message.parts) for message in asked.request.messages] == [1, 2, 2, 1]
    assert [part.tool_result.call_id for part in asked.request.messages[2].parts] == ["c2", "c1"]


def test_pictures_sound_and_files_arrive_as_bytes():
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": "aGVsbG8=", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGVsbG8=", "filename": "a.pdf"}},
    ]
    parts = decode(messages=[{"role": "user", "content": content}]).request.messages[0].parts
    assert (parts[0].image.data, parts[0].image.mime_type) == (b"hello", "image/png")
    assert parts[1].image.url == "https://example.com/a.png"
    assert (parts[2].audio.data, parts[2].audio.mime_type) == (b"hello", "audio/mpeg")
    assert (parts[3].document.data, parts[3].document.title) == (b"hello", "a.pdf")
