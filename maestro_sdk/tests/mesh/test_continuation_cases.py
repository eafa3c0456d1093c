"""What a continuation asks the next backend, how the answers are joined, and when there is none."""

from __future__ import annotations

import pytest

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    PartState,
    ReasoningDelta,
    ReasoningEffort,
    Started,
    Switched,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import Citation, Message, OpaquePart, Origin, Part, RefusalPart, Role, TextPart
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.conversation import chat_request
from maestro_sdk.errors import StreamBroken
from maestro_sdk.mesh.continuation import INSTRUCTION, Continuation
from maestro_sdk.mesh.seam import Seam
from maestro_sdk.testing.tables import backend, model, table
from maestro_sdk.types import text_of, tool

_TABLE = table(
    [
        backend("one", model("one/prefills", "PREFILL")),
        backend("two", model("two/obeys", window=100)),
        backend("three", model("three/acts", polyfilled=["PREFILL"])),
        backend("four", model("four/calls", "PREFILL", "TOOLS")),
    ],
    {"default": [("one/prefills", 1.0)]},
)
PREFILLS, OBEYS = _TABLE.backends["one:one/prefills"], _TABLE.backends["two:two/obeys"]
ACTS, CALLS = _TABLE.backends["three:three/acts"], _TABLE.backends["four:four/calls"]
SWITCHED = Switched(from_model="zero/broken", to_model="one/prefills", why="STREAM_BROKEN")


def said(text: str, index: int = 0) -> ChatEvent:
    return ChatEvent(text=TextDelta(index=index, text=text))


def thought(text: str, index: int = 0) -> ChatEvent:
    return ChatEvent(reasoning=ReasoningDelta(index=index, text=text))


def used(count: int, output: int) -> ChatEvent:
    return ChatEvent(usage=Usage(input_tokens=count, output_tokens=output))


def answer(*content: ChatEvent, usage: Usage | None = None, cost: Cost | None = None) -> list[ChatEvent]:
    started = Started(response_id="r", provider="scripted", model="model", attempt=1)
    finish = Finish(reason=FinishReason.FINISH_REASON_STOP, usage=usage or Usage(input_tokens=1, output_tokens=1))
    if cost is not None:
        finish.cost.CopyFrom(cost)
    return [ChatEvent(started=started), *content, ChatEvent(finish=finish)]


def test_one_answer_is_seen():
    continuation = Continuation(chat_request("Speak."))
    shown = answer(thought("Hm."), said("Hello ", 1))[:-1]
    continuation.note(shown)
    continuation.follow(PREFILLS)
    warning = ChatEvent()
    warning.warning.code = "w"
    second = answer(warning, thought("Again."), said(" wor", 1), said("ld", 1))
    joined = [event for batch in (second[:2], second[2:]) for event in continuation.join(batch, SWITCHED)]
    kinds = [event.WhichOneof("kind") for event in joined]
    assert kinds == ["switched", "warning", "reasoning", "text", "text", "finish"]
    assert [(e.text.index, e.text.text) for e in joined if e.HasField("text")] == [(1, "wor"), (1, "ld")]
    assert joined[2].reasoning.index == 2
    response = fold([*shown, *joined])
    assert response.switches == [SWITCHED]
    assert [part.WhichOneof("kind") for part in response.parts] == ["reasoning", "text", "reasoning"]
    assert response.parts[1].text.text == "Hello world"


def test_reasoning_alone_begins_anew():
    asked = chat_request("Speak.", max_tokens=10, response_format="json")
    continuation = Continuation(asked)
    shown = answer(thought("A long thought of many more tokens than ten, all for nothing."), said("\n", 1))[:-1]
    continuation.note(shown)
    assert continuation.refusal() == ""
    request = continuation.follow(OBEYS)
    expected = chat_request(asked, model="two/obeys")
    assert request == expected
    response = fold([*shown, *continuation.join(answer(thought("Short."), said("\n{}", 1)), SWITCHED)])
    assert [part.reasoning.text for part in response.parts if part.HasField("reasoning")][1:] == ["Short."]
    assert text_of(response) == "\n{}"


def test_a_signed_text_is_left_as_it_is():
    state = ChatEvent(part_state=PartState(index=0, origin=Origin(provider="p"), provider_state=b"s"))
    continuation = Continuation(chat_request("Speak."))
    shown = answer(said("One"), state)[:-1]
    continuation.note(shown)
    continuation.follow(PREFILLS)
    response = fold([*shown, *continuation.join(answer(said(", two"), state), SWITCHED)])
    assert [(part.text.text, part.provider_state) for part in response.parts] == [("One", b"s"), (", two", b"s")]


def test_the_state_of_half_a_part_is_left_out():
    state = ChatEvent(part_state=PartState(index=0, origin=Origin(provider="p"), provider_state=b"s"))
    continuation = Continuation(chat_request("Speak."))
    shown = answer(said("One"))[:-1]
    continuation.note(shown)
    continuation.follow(PREFILLS)
    response = fold([*shown, *continuation.join(answer(said(", two"), state), SWITCHED)])
    assert [(part.text.text, part.HasField("provider_state")) for part in response.parts] == [("One, two", False)]


def test_calls_of_the_second_backend_come_after_the_text_that_was_held_back():
    continuation = Continuation(chat_request("Speak."))
    shown = answer(said("I look it up in the big book.\n\n"))[:-1]
    continuation.note(shown)
    continuation.follow(ACTS)
    call = ChatEvent(tool_call=ToolCallDelta(index=1, call_id="c", name="look", arguments_json="{}"))
    joined = continuation.join(answer(said("\n"), call), SWITCHED)
    assert [event.WhichOneof("kind") for event in joined] == ["switched", "tool_call", "finish"]
    continuation.follow(ACTS)
    joined = continuation.join(answer(said("in the big"), call), SWITCHED)
    assert [event.WhichOneof("kind") for event in joined] == ["switched", "text", "tool_call", "finish"]
    assert (joined[1].text.text, joined[2].tool_call.index) == ("in the big", 1)
    continuation.note(joined[:-1])
    assert continuation.refusal() == "a tool call has begun"


def test_a_whole_part_goes_on_with_the_text():
    continuation = Continuation(chat_request("Speak."))
    shown = answer(said("One"))[:-1]
    continuation.note(shown)
    continuation.follow(PREFILLS)
    whole = ChatEvent(part=Part(index=0, text=TextPart(text=", two", citations=[Citation(url="https://example.com")])))
    joined = continuation.join(answer(said(", t"), whole), SWITCHED)
    part = fold([*shown, *joined]).parts[0]
    assert (part.text.text, [citation.url for citation in part.text.citations]) == ("One, two", ["https://example.com"])
    continuation.follow(PREFILLS)
    with pytest.raises(StreamBroken, match="contradicts"):
        continuation.join(answer(said("other"), whole), SWITCHED)


def test_an_instruction_asks_where_nothing_is_prefilled():
    asked = chat_request("Speak.", system="Be kind.", stop=["END"], max_tokens=100, reasoning="high")
    asked.reasoning.budget_tokens = 64
    continuation = Continuation(asked)
    continuation.note(answer(used(5, 10), said("x" * 41))[:-1])
    request = continuation.follow(ACTS)
    assert (request.system, list(request.stop), request.max_tokens) == ("Be kind.", ["END"], 100 - 10 - 11)
    assert [message.role for message in request.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_USER]
    assert request.messages[2].parts[0].text.text == INSTRUCTION
    assert request.reasoning.effort == ReasoningEffort.REASONING_EFFORT_HIGH
    assert not request.reasoning.HasField("budget_tokens")
    native = continuation.follow(PREFILLS)
    assert [message.role for message in native.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT]
    assert not native.HasField("reasoning")


def test_what_the_caller_began_and_the_answer_are_one_text():
    asked = chat_request("Speak.")
    asked.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text="Once"))]))
    continuation = Continuation(asked)
    continuation.note(answer(said(" upon a "))[:-1])
    request = continuation.follow(PREFILLS)
    assert [part.text.text for part in request.messages[-1].parts] == ["Once upon a"]
    assert len(request.messages) == 2


def test_costs_are_summed_when_all_are_known():
    for first, expected in ((Cost(usd="0.0000001", price_date="2026-01-01"), "0.0000003"), (None, "")):
        continuation = Continuation(chat_request("Speak."))
        continuation.note(answer(said("a"))[:-1])
        continuation.follow(PREFILLS, first)
        joined = continuation.join(answer(said("b"), cost=Cost(usd="0.0000002")), SWITCHED)
        assert joined[-1].finish.cost.usd == expected
        assert joined[-1].finish.HasField("cost") == bool(expected)


def test_a_usage_that_is_known_better_is_taken():
    continuation = Continuation(chat_request("x" * 40))
    shown = answer(used(5, 1), said("y" * 9))[:-1]
    continuation.note(shown)
    continuation.follow(PREFILLS, usage=Usage(input_tokens=5, output_tokens=3, estimated=True))
    # Nothing of it was shown, so it is none of this answer.
    continuation.follow(PREFILLS, usage=Usage(input_tokens=900))
    usage = Usage(input_tokens=13, output_tokens=1)
    joined = continuation.join(answer(said("z"), ChatEvent(usage=usage), usage=usage), SWITCHED)
    expected = Usage(input_tokens=18, output_tokens=4, estimated=True)
    assert (joined[2].usage, joined[3].finish.usage) == (expected, expected)
    assert fold([*shown, *joined]).usage == expected


def test_an_attempt_that_told_no_usage_is_estimated():
    continuation = Continuation(chat_request("x" * 40))
    continuation.note(answer(said("y" * 9))[:-1])
    assert continuation.spent() == Usage(input_tokens=10, output_tokens=3, estimated=True)
    continuation.follow(PREFILLS)
    # An attempt that showed nothing is none of this answer.
    continuation.follow(PREFILLS)
    joined = continuation.join(answer(said("z"), usage=Usage(input_tokens=13, output_tokens=1)), SWITCHED)
    assert joined[-1].finish.usage == Usage(input_tokens=23, output_tokens=4, estimated=True)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (chat_request("Speak.", response_format="json"), "form of the answer"),
        (chat_request("Speak.", max_tokens=2), "max_tokens is used up"),
        (chat_request("Speak.", max_tokens=3), ""),
        (chat_request("Speak."), ""),
    ],
)
def test_requests_that_can_not_be_continued(asked: ChatRequest, why: str):
    continuation = Continuation(asked)
    continuation.note(answer(said("12345678"))[:-1])
    assert why in continuation.refusal()
    assert bool(why) == bool(continuation.refusal())


def test_log_probabilities_can_not_be_continued():
    asked = chat_request("Speak.")
    asked.logprobs.SetInParent()
    continuation = Continuation(asked)
    assert continuation.refusal() == ""
    continuation.note(answer(said("a"))[:-1])
    assert "log probabilities" in continuation.refusal()


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (Part(refusal=RefusalPart(text="No.")), "refusal"),
        (Part(opaque=OpaquePart(json="{}")), "opaque"),
    ],
)
def test_parts_that_others_can_not_take_along(part: Part, why: str):
    continuation = Continuation(chat_request("Speak."))
    continuation.note(answer(ChatEvent(part=part))[:-1])
    assert continuation.refusal() == f"the answer holds {why}, which no other backend can take along"


def test_a_backend_has_to_fit():
    asked = chat_request("Speak.")
    asked.routing.require_native = True
    continuation = Continuation(asked)
    assert continuation.fits(ACTS)
    continuation.note(answer(said("a"))[:-1])
    assert (continuation.fits(PREFILLS), continuation.fits(ACTS)) == (True, False)
    long = Continuation(chat_request("Speak."))
    long.note(answer(said("x" * 400))[:-1])
    assert (long.fits(ACTS), long.fits(OBEYS)) == (True, False)


def test_text_that_goes_on_like_its_end_is_kept():
    shown = "na na na na na na na na"
    continuation = Continuation(chat_request("Sing."))
    events = answer(said(shown))[:-1]
    continuation.note(events)
    continuation.follow(ACTS)
    joined = continuation.join(answer(said(" na" * 20)), SWITCHED)
    assert text_of(fold([*events, *joined])) == shown + " na" * 20


def test_a_model_without_tools_of_its_own_is_not_prefilled_beside_tools():
    # Where a polyfill writes the calls, it holds the whole answer to a form of its own.
    asked = chat_request("Speak.", tools=[tool("look")])
    continuation = Continuation(asked)
    continuation.note(answer(said("One"))[:-1])
    for found, roles in ((PREFILLS, [Role.ROLE_ASSISTANT, Role.ROLE_USER]), (CALLS, [Role.ROLE_ASSISTANT])):
        assert [message.role for message in continuation.follow(found).messages][1:] == roles


@pytest.mark.parametrize(
    ("shown", "may_repeat", "pieces", "given"),
    [
        ("Hello", True, [" wor", "ld"], [" wor", "ld"]),
        ("Hello ", False, [" ", "world"], ["", "world"]),
        ("Hello ", False, ["world"], ["world"]),
        ("Hello \n", False, [" ", "\n", "\n", "x"], ["", "", "\n", "x"]),
        ("Hello \n", False, ["\n", "x"], ["\n", "x"]),
        (" \n", True, [" ", "\nx"], ["", "x"]),
        ("The cat sat on a mat", True, ["cat sat", " on a mat, purring"], ["", ", purring"]),
        ("The cat sat on a mat", True, ["The cat sat on a mat", ", ", "purring"], ["", ", ", "purring"]),
        ("The cat sat on a mat ", True, ["The cat sat on a mat", " and"], ["", "and"]),
        ("The cat sat on a mat", True, ["The cat ", "slept"], ["", "The cat slept"]),
        ("The cat sat on a mat", True, ["on a mat", " it"], ["on a mat", " it"]),
        ("The cat sat on a mat", False, ["The cat sat on a mat"], ["The cat sat on a mat"]),
    ],
)
def test_seam(shown: str, may_repeat: bool, pieces: list[str], given: list[str]):
    seam = Seam(shown, may_repeat=may_repeat)
    assert [seam.feed(piece) for piece in pieces] == given
    assert (seam.close(), seam.open) == ("", False)
