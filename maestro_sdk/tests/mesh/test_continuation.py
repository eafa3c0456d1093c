"""Laws of the continuation: whatever the break and whoever goes on, the caller gets one answer with the text whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    Finish,
    FinishReason,
    PartState,
    ReasoningDelta,
    Started,
    Switched,
    TextDelta,
)
from maestro.llm.v1.message_pb2 import Origin, Role
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.conversation import chat_request
from maestro_sdk.mesh.continuation import INSTRUCTION, Continuation
from maestro_sdk.mesh.seam import SHORTEST_REPEAT
from maestro_sdk.mesh.table import Backend
from maestro_sdk.testing.strategies import answers
from maestro_sdk.testing.tables import backend, model, table

_TABLE = table(
    [
        backend("one", model("one/prefills", "PREFILL")),
        backend("two", model("two/obeys", window=100)),
        backend("three", model("three/acts", polyfilled=["PREFILL"])),
    ],
    {"default": [("one/prefills", 1.0), ("two/obeys", 1.0)]},
)
PREFILLS = _TABLE.backends["one:one/prefills"]
OBEYS = _TABLE.backends["two:two/obeys"]
ACTS = _TABLE.backends["three:three/acts"]
SWITCHED = Switched(from_model="zero/broken", to_model="one/prefills", why="STREAM_BROKEN")

_PIECE = st.text(alphabet=" \n\u00a0aé漢🙂.", max_size=7)
_PIECES = st.lists(_PIECE, min_size=1, max_size=8)
_PROSE = st.lists(
    st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "and", "it", "purred"]), min_size=12, max_size=40
)

LAW = settings(max_examples=200, deadline=None, derandomize=True, database=None)

Model = Callable[[str, str], str]
"""What a model says: from the text that it was told, and the whole text that it means to say."""


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


def text_of(response: ChatResponse) -> str:
    return "".join(part.text.text for part in response.parts if part.HasField("text"))


def told(request: ChatRequest) -> str:
    """The answer so far as the request tells it."""
    messages = list(request.messages)
    if len(messages) > 1 and messages[-1].parts[0].text.text == INSTRUCTION:
        messages.pop()
    return messages[-1].parts[0].text.text if messages[-1].role == Role.ROLE_ASSISTANT else ""


def ideal(known: str, whole: str) -> str:
    """Goes on after exactly what it was told."""
    return whole[len(known) :]


@st.composite
def contents(draw: st.DrawFn, text: str) -> list[ChatEvent]:
    """The events of an answer that says `text`: maybe reasoning first, signed parts, several text parts."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    events: list[ChatEvent] = []
    index = 0
    if draw(st.booleans()):
        events += [thought("Let me think.", index), thought(" So.", index)]
        index += 1
    for piece in pieces:
        events.append(said(piece, index))
        match draw(st.sampled_from(["on", "on", "on", "next", "signed", "reasoning", "usage"])):
            case "next":
                index += 1
            case "signed":
                state = PartState(index=index, origin=Origin(provider="scripted"), provider_state=b"signature")
                events.append(ChatEvent(part_state=state))
                index += 1
            case "reasoning":
                events.append(thought("Hm.", index + 1))
                index += 2
            case "usage":
                events.append(used(7, len(events)))
            case _:
                pass
    return events


def hand_over(
    data: st.DataObject,
    whole: str,
    backends: Sequence[Backend],
    say: Model = ideal,
    request: ChatRequest | None = None,
) -> list[ChatEvent]:
    """What the caller sees: a model that means `whole` breaks anywhere, and so does each that goes on but the last."""
    asked = request or chat_request("Speak.")
    kept = asked.SerializeToString(deterministic=True)
    continuation = Continuation(asked)
    first = answer(*data.draw(contents(whole)))
    shown = first[: data.draw(st.integers(1, len(first) - 1))]
    continuation.note(shown)
    for number, found in enumerate(backends, 1):
        assert not continuation.refusal()
        assert continuation.fits(found)
        known = told(continuation.follow(found))
        events = answer(*data.draw(contents(say(known, whole))))
        if number < len(backends):
            events = events[: data.draw(st.integers(0, len(events) - 1))]
        size = data.draw(st.integers(1, 3))
        for place in range(0, len(events), size):
            joined = continuation.join(events[place : place + size], SWITCHED)
            continuation.note(joined)
            shown += joined
    assert asked.SerializeToString(deterministic=True) == kept
    return shown


@LAW
@given(st.data(), _PIECES, st.lists(st.just(PREFILLS), min_size=1, max_size=4))
def test_a_model_that_takes_a_prefill_makes_the_text_whole(
    data: st.DataObject, pieces: list[str], backends: list[Backend]
):
    whole = "".join(pieces)
    assert text_of(fold(hand_over(data, whole, backends))) == whole


@LAW
@given(st.data(), _PIECES, st.lists(st.sampled_from([PREFILLS, ACTS]), min_size=1, max_size=4))
def test_a_model_that_obeys_the_instruction_makes_the_text_whole(
    data: st.DataObject, pieces: list[str], backends: list[Backend]
):
    whole = "".join(pieces)

    def say(known: str, whole: str) -> str:
        text = ideal(known, whole)
        assume(not repeats(known, text))
        return text

    assert text_of(fold(hand_over(data, whole, backends, say))) == whole


@LAW
@given(st.data(), _PROSE, st.lists(st.just(ACTS), min_size=1, max_size=3))
def test_a_model_that_repeats_the_end_makes_the_text_whole(
    data: st.DataObject, words: list[str], backends: list[Backend]
):
    whole = " ".join(words)

    def say(known: str, whole: str) -> str:
        if len(known) < SHORTEST_REPEAT:
            return ideal(known, whole)
        repeated = known[-data.draw(st.integers(SHORTEST_REPEAT, len(known))) :]
        text = repeated + ideal(known, whole)
        assume(repeats(known, text) == [len(repeated)] and not is_periodic(repeated))
        return text

    assert text_of(fold(hand_over(data, whole, backends, say))) == whole


@LAW
@given(st.data(), _PROSE)
def test_a_model_that_begins_again_makes_the_text_whole(data: st.DataObject, words: list[str]):
    whole = " ".join(words)

    def say(known: str, whole: str) -> str:
        if len(known) < SHORTEST_REPEAT:
            return ideal(known, whole)
        assume(not is_periodic(known))
        return whole

    assert text_of(fold(hand_over(data, whole, [ACTS], say))) == whole


@LAW
@given(st.data(), _PROSE, st.sampled_from([PREFILLS, ACTS]))
def test_white_space_is_neither_lost_nor_doubled(data: st.DataObject, words: list[str], found: Backend):
    whole = "\n".join(words)
    breaks = data.draw(st.integers(1, len(words) - 1))
    shown = "\n".join(words[:breaks]) + "\n"
    for rest in ("\n" + whole[len(shown) :], whole[len(shown) :]):
        assume(not repeats(shown.rstrip(), rest))
        continuation = Continuation(chat_request("Speak."))
        events = answer(said(shown))[:-1]
        continuation.note(events)
        assert told(continuation.follow(found)) == shown.rstrip()
        joined = continuation.join(answer(said(rest[:1]), said(rest[1:])), SWITCHED)
        assert text_of(fold([*events, *joined])) == whole


@LAW
@given(st.lists(st.tuples(*[st.integers(0, 9_000)] * 4), min_size=2, max_size=5))
def test_usage_is_the_sum_of_all_attempts(counts: list[tuple[int, int, int, int]]):
    usages = [Usage(input_tokens=a, output_tokens=b, cache_read_tokens=c, reasoning_tokens=d) for a, b, c, d in counts]
    continuation = Continuation(chat_request("Speak."))
    shown = answer(said("a"), ChatEvent(usage=usages[0]))[:-1]
    continuation.note(shown)
    for usage in usages[1:]:
        continuation.follow(PREFILLS)
        # In a stream usage is cumulative: an early report counts the input only.
        early = Usage(input_tokens=usage.input_tokens)
        events = answer(ChatEvent(usage=early), said("b"), ChatEvent(usage=usage), usage=usage)
        joined = continuation.join(events if usage is usages[-1] else events[:-1], SWITCHED)
        continuation.note(joined)
        shown += joined
    total = fold(shown).usage
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens"):
        assert getattr(total, name) == sum(getattr(usage, name) for usage in usages)
    assert not total.estimated
    assert shown[-1].finish.usage == total


@LAW
@given(answers(), st.data())
def test_what_others_can_not_take_along_is_refused(events: list[ChatEvent], data: st.DataObject):
    cut = data.draw(st.integers(1, len(events)))
    continuation = Continuation(chat_request("Speak."))
    continuation.note(events[:cut])
    kinds = {event.WhichOneof("kind") for event in events[:cut]}
    refused = bool(continuation.refusal())
    assert refused >= bool(kinds & {"tool_call", "part", "finish"})
    assert refused >= any(event.text.logprobs for event in events[:cut])
    order = [event.text.index for event in events[:cut] if event.HasField("text")]
    runs = [index for place, index in enumerate(order) if place == 0 or order[place - 1] != index]
    assert refused >= (len(runs) > len(set(runs)))
    if not refused:
        assert kinds <= {"started", "text", "reasoning", "part_state", "usage", "warning", "switched"}


def repeats(known: str, text: str) -> list[int]:
    """How long the ends of `known` are with which `text` begins, as far as they count as repetitions."""
    return [length for length in range(SHORTEST_REPEAT, len(known) + 1) if text.startswith(known[-length:])]


def is_periodic(text: str) -> bool:
    """Whether the text is a piece of at most half its length again and again, the last one maybe cut."""
    return any(
        all(text[place] == text[place - period] for place in range(period, len(text)))
        for period in range(1, len(text) // 2 + 1)
    )
