"""What a message request asks for, and the place of what is wrong in it."""

import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from maestro_gateway.anthropic.request import Asked, decode_message
from maestro_sdk.errors import InvalidRequest

SAID: Any = {"role": "user", "content": "hello"}
TOOL: Any = {"name": "weather", "input_schema": {"type": "object"}}
USE: Any = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
CALLED: Any = {"role": "assistant", "content": [USE]}
RESULT: Any = {"type": "tool_result", "tool_use_id": "t1", "content": "21"}


def decode(betas: str = "", **fields: Any) -> Asked:
    body = {"model": "m", "max_tokens": 9, "messages": [SAID], **fields}
    return decode_message(json.dumps(body).encode(), betas=betas)


def user(*blocks: Any) -> Any:
    return {"role": "user", "content": list(blocks)}


@pytest.mark.parametrize(
    ("fields", "place", "words"),
    [
        ({"tools": [TOOL, TOOL]}, "tools[1].name", "stands twice"),
        ({"messages": [SAID, user(RESULT)]}, "messages[1].content[0].tool_use_id", "answers no call"),
        ({"messages": [SAID, CALLED, user(RESULT, RESULT)]}, "messages[2].content[1].tool_use_id", "second time"),
        ({"messages": [SAID, CALLED, SAID, user(RESULT)]}, "messages[3].content[0].tool_use_id", "answers no call"),
        (
            {"messages": [SAID, {"role": "assistant", "content": [USE, USE]}]},
            "messages[1].content[1].id",
            "stands twice",
        ),
        ({"messages": [user()]}, "messages[0].content", "at least one block"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "more than what the system says"),
        ({"betas": "a b"}, "anthropic-beta", "must be names of betas"),
        ({"betas": ",".join(f"b{n}" for n in range(40))}, "anthropic-beta", "32 at most"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "must be a whole number"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(fields: dict[str, Any], place: str, words: str):
    with pytest.raises(InvalidRequest) as raised:
        decode(**fields)
    assert [each.field for each in raised.value.violations] == [place]
    assert words in raised.value.message


def test_betas_reach_anthropic_and_nobody_is_warned_of_them():
    asked = decode("one-2025-01-01, two-2025-01-01,one-2025-01-01", top_k=5)
    options = MessageToDict(asked.request.provider_options["anthropic"])
    assert options["betas"] == ["one-2025-01-01", "two-2025-01-01"]
    assert asked.passed == ("top_k",)
    assert asked.unknown == ()


def test_pictures_and_documents_arrive_as_bytes():
    data = {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}
    blocks = (
        {"type": "image", "source": data},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "document", "source": {**data, "media_type": "application/pdf"}, "title": "a"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
    )
    parts = decode(messages=[user(*blocks)]).request.messages[0].parts
    assert (parts[0].image.data, parts[0].image.mime_type) == (b"hello", "image/png")
    assert parts[1].image.url == "https://example.com/a.png"
    assert (parts[2].document.data, parts[2].document.mime_type, parts[2].document.title) == (
        b"hello",
        "application/pdf",
        "a",
    )
    assert (parts[3].document.data, parts[3].document.mime_type) == (b"words", "text/plain")


def test_results_stand_before_what_is_said_with_them():
    asked = decode(messages=[SAID, CALLED, user(RESULT, {"type": "text", "text": "And?"})])
    kinds = [[part.WhichOneof("kind") for part in message.parts] for message in asked.request.messages]
    assert kinds == [["text"], ["tool_call"], ["tool_result"], ["text"]]
