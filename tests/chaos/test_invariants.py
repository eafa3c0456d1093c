"""The watchmen are watched: each violation is found, and a good run has none."""

from collections.abc import Callable

import pytest

from maestro.event.v1.event_pb2 import AttemptUsage, Event, RequestCompleted
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.testing.chaos.invariants import (
    Opening,
    broken_answers,
    calls_while_open,
    lost,
    openings,
    repeated_faults,
    wrong_accounts,
)
from maestro_sdk.testing.chaos.load import Shown
from maestro_sdk.testing.chaos.provider import INPUT_TOKENS, PIECES, Call, text_of
from maestro_sdk.testing.faults import Seen

SEEN = Seen("POST", "/v1/messages", "", {}, b"")


def shown(**changes: object) -> Shown:
    good = Shown("r1", "events", refusable=False, began=0.0, started=1, text=text_of("r1"), terminals=["finish"])
    for name, value in changes.items():
        setattr(good, name, value)
    return good


def test_a_good_answer_breaks_nothing():
    assert list(broken_answers([shown()])) == []
    assert lost([shown()]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"terminals": ["finish", "STREAM_BROKEN"]}, "was told 2 ends"),
        ({"terminals": []}, "was told no end"),
        ({"started": 2}, "saw 2 beginnings"),
        ({"refusable": True}, "was answered although"),
        ({"text": text_of("r1")[:-1]}, "instead of"),
        ({"text": text_of("r1") * 2, "terminals": ["TIMEOUT"]}, "is no beginning of"),
    ],
)
def test_a_wrong_answer_is_found(changes: dict[str, object], words: str):
    [sentence] = broken_answers([shown(**changes)])
    assert words in sentence


def test_a_cut_connection_is_no_silence():
    assert lost([shown(terminals=[], broken="ClientPayloadError: cut")]) == []
    silent = shown(terminals=[])
    assert lost([silent]) == [silent]


def call(fate: str = "answered", at: float = 10.0, tokens: int = PIECES) -> Call:
    return Call("openai", "r1", at, fate, tokens, SEEN)


def test_a_repeated_fault_is_found():
    assert list(repeated_faults([call("refused"), call(), call("failed")])) == []
    twice = [call("refused"), call("refused", at=10.5)]
    [sentence] = repeated_faults(twice)
    assert "tried again after 0.500 s" in sentence
    assert list(repeated_faults(twice, killed=[10.2])) == []
    assert len(list(repeated_faults(twice, killed=[10.7]))) == 1


def happened(at: float, fill: Callable[[Event], None]) -> Event:
    event = Event(id=f"{at}")
    event.time.FromNanoseconds(int(at * 1e9))
    fill(event)
    return event


def test_a_call_while_open_is_found():
    def opened(event: Event) -> None:
        event.backend_opened.backend_id = "openai:x"
        event.backend_opened.until.FromNanoseconds(int(12e9))

    def half_open(event: Event) -> None:
        event.backend_half_open.backend_id = "openai:x"

    times = openings([happened(12.0, half_open), happened(10.0, opened)])
    assert times == [Opening("openai:x", 10.0, 12.0)]
    backends = {"openai": "openai:x"}
    assert list(calls_while_open([call(at=9.9), call(at=10.1), call(at=12.1)], times, backends)) == []
    [sentence] = calls_while_open([call(at=11.0)], times, backends)
    assert "1.000 s after its breaker opened" in sentence


def completed(tokens: int) -> Event:
    usage = Usage(input_tokens=INPUT_TOKENS, output_tokens=tokens)
    return Event(
        request_completed=RequestCompleted(attempt_usages=[AttemptUsage(attempt=1, provider="openai", usage=usage)])
    )


def test_accounts_have_to_agree_with_the_provider():
    assert list(wrong_accounts([shown()], [completed(PIECES)], [call()])) == []
    assert len(list(wrong_accounts([shown()], [completed(PIECES - 1)], [call()]))) == 1
    assert len(list(wrong_accounts([shown()], [], [call()]))) == 3
