"""The watchmen are watched: each violation is found, and a good run has none."""

from collections.abc import Callable

import pytest

from maestro.event.v1.event_pb2 import AttemptUsage, Event, RequestCompleted
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.testing.chaos.invariants import (
    broken_answers,
    lost,
    repeated_faults,
    wrong_accounts,
)
from maestro_sdk.testing.chaos.load import Shown
from maestro_sdk.testing.chaos.provider import INPUT_TOKENS, PIECES, Call, text_of
from maestro_sdk.testing.chaos.words import Held, Word, broken_words, closings, held
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
    asked = [shown(began=9.9)]
    assert list(repeated_faults(asked, [call("refused"), call(), call("failed")])) == []
    twice = [call("refused"), call("refused", at=10.5)]
    [sentence] = repeated_faults(asked, twice)
    assert "tried again after 0.500 s" in sentence
    # Who asked may be gone when its call arrives.
    for moment in (9.95, 10.2):
        assert list(repeated_faults(asked, twice, killed=[moment])) == []
    for moment in (9.8, 10.7):
        assert len(list(repeated_faults(asked, twice, killed=[moment]))) == 1


def happened(at: float, fill: Callable[[Event], None]) -> Event:
    event = Event(id=f"{at}")
    event.time.FromNanoseconds(int(at * 1e9))
    fill(event)
    return event


BACKENDS = {"openai": "openai:x/m"}


def word(gateway: str, heard: float, until: float) -> Word:
    return Word(gateway, "openai:x/m", heard, until)


@pytest.mark.parametrize(
    ("words", "asked", "until"),
    [
        ([word("one", 9.0, 12.0), word("two", 9.5, 11.5)], 10.0, 11.5),
        # Neither has said it yet, one of them has not, and it is over.
        ([word("one", 10.5, 12.0), word("two", 10.5, 12.0)], 10.0, 0.0),
        ([word("one", 9.0, 12.0), word("two", 9.0, 0.0)], 10.0, 0.0),
        ([word("one", 9.0, 12.0), word("two", 9.0, 9.9)], 10.0, 0.0),
        # What was said binds, whatever is said later.
        ([word("one", 9.0, 12.0), word("two", 9.0, 12.0), word("two", 9.5, 0.0)], 10.0, 12.0),
    ],
)
def test_what_every_gateway_has_said_before_a_question_binds_it(words: list[Word], asked: float, until: float):
    found = held([shown(began=asked)], words, BACKENDS)
    assert [(each.mark, each.provider, each.until) for each in found] == ([("r1", "openai", until)] if until else [])


def test_a_call_against_what_was_said_is_found():
    bound = [Held("r1", "openai", since=9.0, until=12.0)]
    assert list(broken_words([call(at=12.0)], bound, BACKENDS, {})) == []
    [sentence] = broken_words([call(at=11.0)], bound, BACKENDS, {})
    assert "was asked r1 1.000 s before the time" in sentence
    for scope in ("openai", "openai:x", "openai:x/m"):
        assert list(broken_words([call(at=11.0)], bound, BACKENDS, {scope: [10.0]})) == []
    for closed in ({"openai": [8.9, 11.1]}, {"other": [10.0], "openai:y": [10.0]}):
        assert len(list(broken_words([call(at=11.0)], bound, BACKENDS, closed))) == 1


def test_only_a_killed_adapter_that_is_back_closes_its_breakers():
    def joined(event: Event) -> None:
        event.adapter_joined.adapter = "openai"

    def closed(event: Event) -> None:
        event.backend_closed.backend_id = "openai:x/m"

    events = [happened(at, joined) for at in (1.0, 5.0, 6.0)]
    assert closings([*events, happened(7.0, closed)], []) == {"openai:x/m": [7.0]}
    # The second word after it is that of a router which was started anew, or of the other one.
    assert closings(events, [("adapter-openai", 4.0), ("adapter-claude", 4.0)]) == {"openai": [5.0]}


def completed(tokens: int, load: str = "one") -> Event:
    usage = Usage(input_tokens=INPUT_TOKENS, output_tokens=tokens)
    used = AttemptUsage(attempt=1, provider="openai", usage=usage)
    return Event(request_completed=RequestCompleted(attempt_usages=[used], metadata={"load": load}))


def test_accounts_have_to_agree_with_the_provider():
    assert list(wrong_accounts("one", [shown()], [completed(PIECES), completed(PIECES, "other")], [call()])) == []
    assert len(list(wrong_accounts("one", [shown()], [completed(PIECES - 1)], [call()]))) == 1
    assert len(list(wrong_accounts("one", [shown()], [], [call()]))) == 3
