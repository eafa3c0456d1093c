"""A stream of message events, put together by Anthropic's own client, is the unary answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    PartState,
    Started,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import Citation, Message, Origin, Role
from maestro_gateway.anthropic.answer import encode_message
from maestro_gateway.anthropic.content import fill_assistant
from maestro_gateway.anthropic.request import Asked
from maestro_gateway.anthropic.stream import MessageEvents
from maestro_gateway.json_codec.decoder import Reading
from maestro_sdk.adapter.fold import Fold
from maestro_sdk.testing.strategies import split

from .answering import good_answers, read_frames

STARTED = ChatEvent(started=Started(response_id="r", provider="scripted", model="model", attempt=1))
LAW = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def told(reads: Sequence[Sequence[ChatEvent]]) -> Sequence[Any]:
    """The documents of the events of a stream."""
    frames = MessageEvents(Asked(ChatRequest()))
    return read_frames(b"".join(frames.frames(read) for read in reads))


def accumulated(documents: Sequence[Any]) -> Any:
    """What Anthropic's client makes of them."""
    message: Any = None
    buffers: dict[int, bytes] = {}
    for document in documents:
        # The client takes documents as they come, too.
        if document["type"] != "message_stop":
            message = accumulate_event(event=document, current_snapshot=message, json_bufs=buffers)
    return message.to_dict(mode="json")


def unary(events: Sequence[ChatEvent]) -> Any:
    """The document of the answer."""
    fold = Fold()
    fold.feed(events)
    [document] = read_frames(b"data: " + encode_message(fold.response(), Asked(ChatRequest()), ""))
    return document


def plain(content: Sequence[Any]) -> list[Any]:
    """Blocks without what is nothing: no citations, empty words."""
    found = [{name: value for name, value in block.items() if value is not None} for block in content]
    return [block for block in found if block.get("text") != "" and block.get("thinking", block.get("signature")) != ""]


def call(index: int, text: str, call_id: str = "") -> ChatEvent:
    """A piece of a call."""
    delta = ToolCallDelta(index=index, call_id=call_id, name="tool" if call_id else "", arguments_json=text)
    return ChatEvent(tool_call=delta)


def test_a_state_in_the_middle_of_a_call_follows_it():
    origin = Origin(provider="vertex")
    state = ChatEvent(part_state=PartState(index=0, origin=origin, provider_state=b"s"))
    reads = [[STARTED, call(0, '{"a":', "c0"), state, call(0, "1}")], [ChatEvent(finish=Finish())]]
    content = accumulated(told(reads))["content"]
    assert [block["type"] for block in content] == ["tool_use", "redacted_thinking"]
    assert content[0]["input"] == {"a": 1}


def test_a_call_does_not_wait_for_the_end_when_the_one_before_it_is_whole():
    frames = MessageEvents(Asked(ChatRequest()))
    frames.frames([STARTED, call(0, '{"a":{', "c0"), call(0, '"b":1}')])
    assert b"c1" not in frames.frames([call(1, "{", "c1")])
    assert b"c1" not in frames.frames([call(1, "}")])
    now = frames.frames([call(0, "}")])
    assert now.index(b'"}"') < now.index(b"c1")
    assert b"c2" in frames.frames([call(2, "{}", "c2")])
    assert b"said" in frames.frames([ChatEvent(text=TextDelta(index=3, text="said"))])


@LAW
@given(st.data())
def test_parts_one_after_another_make_the_same_message(data: st.DataObject):
    events = data.draw(good_answers(interleaved=False))
    message, document = accumulated(told(data.draw(split(events)))), unary(events)
    assert plain(message["content"]) == plain(document["content"])
    for name in ("id", "type", "role", "model", "stop_reason", "stop_sequence"):
        assert message[name] == document[name]
    counts = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert [message["usage"][name] for name in counts] == [document["usage"][name] for name in counts]


@LAW
@given(st.data())
def test_blocks_never_overlap_and_interleaved_parts_arrive_whole(data: st.DataObject):
    events = data.draw(good_answers(interleaved=True))
    documents = told(data.draw(split(events)))
    is_open, following = False, 0
    for document in documents:
        match document["type"]:
            case "content_block_start":
                assert not is_open
                assert document["index"] == following
                is_open = True
            case "content_block_delta":
                assert is_open
                assert document["index"] == following
            case "content_block_stop":
                assert is_open
                assert document["index"] == following
                is_open, following = False, following + 1
            case _:
                assert not is_open
    kinds = [document["type"] for document in documents]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    message, document = accumulated(documents), unary(events)
    calls = [[block for block in each["content"] if block["type"] == "tool_use"] for each in (message, document)]
    assert sorted((call["id"], repr(call["input"])) for call in calls[0]) == sorted(
        (call["id"], repr(call["input"])) for call in calls[1]
    )
    for kind, field in (("text", "text"), ("thinking", "thinking")):
        words = [
            sorted("".join(block[field] for block in each["content"] if block["type"] == kind))
            for each in (message, document)
        ]
        assert words[0] == words[1]


@LAW
@given(st.data())
def test_every_state_comes_back_with_what_it_belongs_to(data: st.DataObject):
    events = data.draw(good_answers(interleaved=data.draw(st.booleans())))
    fold = Fold()
    fold.feed(events)
    for content in (accumulated(told([events]))["content"], unary(events)["content"]):
        if not content:
            continue
        back = Message(role=Role.ROLE_ASSISTANT)
        fill_assistant(back, content, None, Reading())
        states = [part.provider_state for part in fold.response().parts if part.HasField("provider_state")]
        assert sorted(part.provider_state for part in back.parts if part.HasField("provider_state")) == sorted(states)
        signed = {
            part.tool_call.call_id: part.provider_state
            for part in fold.response().parts
            if part.HasField("tool_call") and part.HasField("provider_state")
        }
        assert signed == {
            part.tool_call.call_id: part.provider_state
            for part in back.parts
            if part.HasField("tool_call") and part.HasField("provider_state")
        }


def test_sources_and_the_reason_of_a_refusal_are_told_in_both_forms():
    cited = [Citation(title="Weather", url="https://example.com/w"), Citation(title="a.pdf", start=3, end=7)]
    finish = Finish(reason=FinishReason.FINISH_REASON_REFUSAL)
    finish.provider_metadata["anthropic"].update({"stop_details": {"type": "refusal", "category": "bio"}})
    events = [
        STARTED,
        ChatEvent(text=TextDelta(index=0, text="Rain.", citations=cited[:1])),
        ChatEvent(text=TextDelta(index=0, citations=cited[1:])),
        ChatEvent(finish=finish),
    ]
    fold = Fold()
    fold.feed(events)
    whole = json.loads(encode_message(fold.response(), Asked(ChatRequest()), ""))
    documents = told([events])
    deltas = [document["delta"] for document in documents if document["type"] == "content_block_delta"]
    citations = [delta["citation"] for delta in deltas if delta["type"] == "citations_delta"]
    assert citations == whole["content"][0]["citations"]
    assert [each["type"] for each in citations] == ["web_search_result_location", "char_location"]
    assert (citations[1]["start_char_index"], citations[1]["document_title"]) == (3, "a.pdf")
    [end] = [document["delta"] for document in documents if document["type"] == "message_delta"]
    assert end["stop_details"] == whole["stop_details"] == {"type": "refusal", "category": "bio"}


def test_an_idle_stream_pings_once_it_has_begun():
    frames = MessageEvents(Asked(ChatRequest()))
    # Clients want `message_start` before any other event; a comment is none.
    assert frames.idle() == b": ping\n\n"
    frames.frames([STARTED])
    assert frames.idle() == b'event: ping\ndata: {"type":"ping"}\n\n'
