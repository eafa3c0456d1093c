"""Recorded content is read as something to ask again, and answers are compared without what is chance."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, Finish, Started, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Part, TextPart
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.cli.replay import Comparison, NotReplayable, lines_of_events, lines_of_response, read_content

ASKED = {"model": "fast", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]}]}


def content(**more: Any) -> dict[str, Any]:
    answer = {"response_id": "r1", "provider": "p", "model": "m", "parts": [{"text": {"text": "yes"}}]}
    return {"request": ASKED, "response": answer, **more}


def events(*pieces: str, response_id: str = "r1", tokens: int = 1) -> list[ChatEvent]:
    return [
        ChatEvent(started=Started(response_id=response_id, provider="p", model="m")),
        *(ChatEvent(text=TextDelta(text=piece)) for piece in pieces),
        ChatEvent(tool_call=ToolCallDelta(index=1, call_id=f"call-{response_id}", name="f", arguments_json="{}")),
        ChatEvent(finish=Finish(usage=Usage(output_tokens=tokens))),
    ]


def test_the_backend_that_answered_is_asked() -> None:
    found = read_content(content(), "req-1")
    assert (found.request.model, found.streamed, found.model) == ("p/m", False, "p/m")
    assert found.request.metadata == {"replay_of": "req-1"}
    assert found.remarks == ()
    frames = [{"events": [{"started": {"provider": "p", "model": "m2"}}]}]
    streamed = read_content({"request": ASKED, "frames": frames}, "req-1")
    assert (streamed.request.model, streamed.streamed) == ("p/m2", True)
    unanswered = read_content({"request": ASKED, "frames": []}, "req-1")
    assert (unanswered.request.model, len(unanswered.remarks)) == ("fast", 1)


def test_what_is_not_the_same_question_is_said() -> None:
    found = read_content(content(redactions={"email": 2, "ip": 1}, truncated=True), "req-1")
    assert found.remarks == (
        "it was redacted (email: 2, ip: 1), so neither question nor answer are what they were",
        "its answer was too long to be recorded whole",
    )
    omitted = [{"path": "request.messages[0].parts[1].image.data", "size": 3}]
    with pytest.raises(NotReplayable, match=r"can't be asked again: request.messages\[0\].parts\[1\].image.data"):
        read_content(content(omitted=omitted), "req-1")
    # What the answer held is not needed to ask.
    assert read_content(content(omitted=[{"path": "response.parts[0].provider_state", "size": 3}]), "req-1").model
    with pytest.raises(NotReplayable, match="recorded by another version"):
        read_content({"request": {"no_such_field": 1}, "response": {}}, "req-1")


def test_chance_makes_no_difference() -> None:
    one = lines_of_events(events("I am", " here"))
    assert Comparison(one, lines_of_events(events("I", " am here", response_id="r2", tokens=9))).at == 0
    other = Comparison(one, lines_of_events(events("I was here")))
    assert other.at == 2
    assert [line for line in other.diff() if line[0] in "+-" and line[:3] not in ("+++", "---")] == [
        '-{"text": {"text": "I am here"}}',
        '+{"text": {"text": "I was here"}}',
    ]
    assert Comparison(one, one[:-1]).at == len(one)


def test_whole_answers_are_compared_part_by_part() -> None:
    def told(text: str, **more: Any) -> tuple[str, ...]:
        return lines_of_response(ChatResponse(provider="p", parts=[Part(text=TextPart(text=text))], **more))

    assert Comparison(told("a", response_id="1"), told("a", response_id="2", usage=Usage(output_tokens=3))).at == 0
    assert Comparison(told("a"), told("b")).at == 1
