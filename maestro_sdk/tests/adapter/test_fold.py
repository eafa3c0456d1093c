"""Laws of the fold: an answer does not depend on how its events were batched, and a broken order is no answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, Finish, Started, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Citation, Part, TextPart
from maestro.llm.v1.usage_pb2 import Cost, Headroom, RateLimit, Usage
from maestro_sdk.adapter.fold import Fold, fold, merge_usage
from maestro_sdk.errors import StreamBroken
from maestro_sdk.testing.scripted import answer
from maestro_sdk.testing.strategies import USAGE, answers, split


@given(st.data())
def test_batches_fold_like_the_flat_stream(data: st.DataObject):
    events = data.draw(answers())
    batched = Fold()
    for batch in data.draw(split(events)):
        batched.feed(batch)
    assert batched.response().SerializeToString(deterministic=True) == fold(events).SerializeToString(
        deterministic=True
    )


@given(answers())
def test_parts_hold_exactly_what_their_deltas_said(events: list[ChatEvent]):
    response = fold(events)
    began: list[int] = []
    texts: dict[int, str] = {}
    for event in events:
        kind = event.WhichOneof("kind")
        if kind in ("text", "reasoning", "tool_call", "part"):
            content: Any = getattr(event, kind)
            piece = content.refusal.text if kind == "part" else _piece(kind, content)
            if content.index not in texts:
                began.append(content.index)
            texts[content.index] = texts.get(content.index, "") + piece
        elif kind == "part_state" and event.part_state.index not in texts:
            raise AssertionError("the strategy puts no state before content")
    assert [part.index for part in response.parts] == began
    assert {part.index: _text(part) for part in response.parts} == texts


def test_what_the_limits_leave_is_kept():
    left = Headroom(requests=RateLimit(remaining=0))
    events = answer("a")
    events[-1].finish.headroom.CopyFrom(left)
    assert fold(events).headroom == left
    assert not fold(answer("a")).HasField("headroom")


@given(answers())
def test_every_prefix_is_broken(events: list[ChatEvent]):
    for length in range(len(events)):
        with pytest.raises(StreamBroken):
            fold(events[:length])


@given(answers(), st.data())
def test_nothing_may_follow_the_finish(events: list[ChatEvent], data: st.DataObject):
    with pytest.raises(StreamBroken, match="after its finish"):
        fold([*events, data.draw(st.sampled_from(events))])


@given(answers())
def test_an_answer_begins_with_started_and_only_once(events: list[ChatEvent]):
    with pytest.raises(StreamBroken, match="first event"):
        fold(events[1:])
    with pytest.raises(StreamBroken, match="began twice"):
        fold([events[0], *events])


@given(st.lists(USAGE, max_size=5))
def test_usage_is_the_maximum_per_field_in_any_order(reports: list[Usage]):
    forward, backward = Usage(), Usage()
    for report in reports:
        merge_usage(forward, report)
    for report in reversed(reports):
        merge_usage(backward, report)
    assert forward == backward
    for name in ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens"):
        assert getattr(forward, name) == max((getattr(report, name) for report in reports), default=0)


@given(USAGE, USAGE)
def test_a_late_report_may_lack_early_fields(early: Usage, late: Usage):
    events = answer("Hi", usage=late)
    events.insert(1, ChatEvent(usage=early))
    merged = fold(events).usage
    assert merged.input_tokens == max(early.input_tokens, late.input_tokens)
    assert merged.output_tokens == max(early.output_tokens, late.output_tokens)


def test_usage_is_present_even_when_zero():
    events = [ChatEvent(started=Started(response_id="r")), ChatEvent(finish=Finish())]
    assert fold(events).HasField("usage")


def test_all_fields_of_start_and_finish_arrive():
    events = answer("Hi", calls=[("c1", "add", '{"a":1}')])
    finish = events[-1].finish
    finish.stop_sequence = "END"
    finish.cost.CopyFrom(Cost(usd="0.000001", price_date="2026-01-01"))
    finish.provider_metadata["scripted"].update({"region": "here"})
    response = fold(events)
    assert (response.response_id, response.provider, response.model, response.attempt) == (
        "scripted-1",
        "scripted",
        "model",
        1,
    )
    assert (response.stop_sequence, response.cost.usd) == ("END", "0.000001")
    assert response.provider_metadata["scripted"]["region"] == "here"
    assert response.parts[1].tool_call.arguments_json == '{"a":1}'


def test_unknown_cost_stays_absent():
    assert not fold(answer("Hi")).HasField("cost")


def test_two_kinds_under_one_index_are_broken():
    events = answer("Hi")
    events.insert(2, ChatEvent(tool_call=ToolCallDelta(index=0, call_id="c1", name="add", arguments_json="{}")))
    with pytest.raises(StreamBroken, match="part 0 is text and tool_call"):
        fold(events)


def test_a_state_without_content_is_broken():
    events = answer()
    state = ChatEvent()
    state.part_state.index = 3
    events.insert(1, state)
    with pytest.raises(StreamBroken, match="part 3 has a provider state and no content"):
        fold(events)


def test_an_empty_text_with_a_state_is_legal():
    events = answer("")
    state = ChatEvent()
    state.part_state.provider_state = b"signature"
    state.part_state.origin.provider = "scripted"
    events.insert(2, state)
    part = fold(events).parts[0]
    assert (part.WhichOneof("kind"), part.text.text, part.provider_state) == ("text", "", b"signature")


def test_a_whole_part_replaces_its_deltas():
    events = answer("He", "llo")
    whole = Part(index=0, text=TextPart(text="Hello", citations=[Citation(url="https://example.com")]))
    events.insert(-1, ChatEvent(part=whole))
    assert fold(events).parts == [whole]


def test_deltas_go_on_after_a_whole_part():
    events = answer()
    events[1:1] = [ChatEvent(part=Part(text=TextPart(text="Hel"))), ChatEvent(text=TextDelta(text="lo"))]
    assert fold(events).parts[0].text.text == "Hello"


def test_an_event_of_a_newer_contract_is_named():
    with pytest.raises(StreamBroken, match="newer contract"):
        fold([answer()[0], ChatEvent()])


def test_asking_before_the_end_is_an_error():
    folding = Fold()
    folding.feed(answer("Hi")[:-1])
    assert not folding.finished
    with pytest.raises(StreamBroken, match="without a finish"):
        folding.response()


def test_no_events_are_no_answer():
    with pytest.raises(StreamBroken):
        fold([])
    assert fold(answer()) != ChatResponse()


def _piece(kind: str, delta: Any) -> str:
    return delta.arguments_json if kind == "tool_call" else delta.text


def _text(part: Part) -> str:
    match part.WhichOneof("kind"):
        case "text":
            return part.text.text
        case "reasoning":
            return part.reasoning.text
        case "tool_call":
            return part.tool_call.arguments_json
        case other:
            assert other == "refusal"
            return part.refusal.text
