"""Laws of the parser of calls in text: nothing is lost, and where the text was cut does not matter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_sdk.adapter.polyfill.tools_parser import CLOSE, OPEN, Broken, Call, Gap, Parser, Piece, Text
from maestro_sdk.adapter.polyfill.tools_prompt import write_call

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NASTY = st.sampled_from([CLOSE, OPEN, f'{OPEN}{{"name":"x"}}', '"}', "\\", "```", "\n", "{", "é", "\U0001f600"])
ARGUMENTS = st.dictionaries(st.text(max_size=6), JSON | NASTY, max_size=4)
NAMES = st.from_regex(r"[a-zA-Z0-9_.-]{1,12}", fullmatch=True)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="`~"), min_size=1, max_size=12).map(
    lambda text: f"a{text}z".replace(OPEN, "")
)
FRAGMENTS = st.sampled_from(
    [
        *(OPEN, CLOSE, "<", "<tool", "_call>", "</", "{", "}", "[", "]", '"', "\\", "\\u00", "`", "```", "~~~", "\n"),
        *(" ", "\t", "\r", "name", ":", ",", "a", "é", "\x00", "1e999", "NaN"),
        *('{"name":"x","arguments":{}}', f'{OPEN}{{"name":"x","arguments":{{"a":"\\"{CLOSE}"}}}}{CLOSE}'),
    ]
)


def read(chunks: list[str]) -> list[Piece]:
    parser = Parser()
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    pieces += parser.end()
    assert parser.pending == ""
    return pieces


def joined(pieces: list[Piece]) -> list[Piece]:
    """Text comes in as many pieces as there were reads; what it says is what counts."""
    whole: list[Piece] = []
    for piece in pieces:
        match piece, whole[-1:]:
            case Text(raw), [Text(before)]:
                whole[-1] = Text(before + raw)
            case Gap(raw), [Gap(before)]:
                whole[-1] = Gap(before + raw)
            case _:
                whole.append(piece)
    return whole


def content(pieces: list[Piece]) -> list[tuple[str, Any]]:
    """What the pieces say: texts, and calls with their arguments as values."""
    found: list[tuple[str, Any]] = []
    for piece in joined(pieces):
        match piece:
            case Text(raw):
                found.append(("text", raw))
            case Call(_, name, arguments):
                found.append((name, json.loads(arguments)))
            case Gap():
                pass
            case Broken(_, error):
                raise AssertionError(error)
    return found


TURNS = st.lists(st.one_of(WORDS, st.tuples(NAMES, ARGUMENTS)), max_size=5)


def write(turns: list[str | tuple[str, Any]], between: str) -> tuple[str, list[tuple[str, Any]]]:
    """The text of an answer, and what it says: words that follow each other are one text."""
    written: list[str] = []
    meant: list[tuple[str, Any]] = []
    for turn in turns:
        if isinstance(turn, str):
            if meant and meant[-1][0] == "text":
                meant[-1] = ("text", meant[-1][1] + between + turn)
            else:
                meant.append(("text", turn))
            written.append(turn)
        else:
            written.append(write_call(turn[0], json.dumps(turn[1])))
            meant.append(turn)
    return between.join(written), meant


@given(TURNS, st.sampled_from(["\n", " ", "", "\n\n", "\r\n"]))
def test_texts_and_calls_come_back_wherever_the_text_is_cut(turns: list[Any], between: str) -> None:
    text, meant = write(turns, between)
    # Directly behind a text of one line a marker is still a marker, as an object follows it.
    assert content(read([text])) == meant
    assert content(read(list(text))) == meant
    whole = joined(read([text]))
    for cut in range(len(text) + 1):
        assert joined(read([text[:cut], text[cut:]])) == whole


@given(st.lists(FRAGMENTS, max_size=16).map("".join), st.data())
def test_any_text_is_read_without_a_loss(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    chunks = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    pieces = read(chunks)
    assert "".join(piece.raw for piece in pieces) == text
    assert joined(pieces) == joined(read([text])) == joined(read(list(text)))
    for piece in pieces:
        if isinstance(piece, Call):
            assert isinstance(json.loads(piece.arguments), dict)
            assert piece.name


@given(st.text(max_size=60))
def test_text_without_a_marker_streams_through(text: str) -> None:
    parser = Parser()
    said = ""
    for letter in text.replace("<", "("):
        said += "".join(piece.raw for piece in parser.feed(letter))
        # Only space is held, in case that a call follows.
        assert parser.pending.strip(" \t\r\n") == ""
    assert said + "".join(piece.raw for piece in parser.end()) == text.replace("<", "(")


def test_no_more_is_held_back_than_could_be_a_marker() -> None:
    parser = Parser()
    held = [
        (parser.feed(chunk), parser.pending)[1] for chunk in ("a <", "b", " <tool", "s", "_", " <tool_call", ">", " x")
    ]
    assert held == [" <", "", " <tool", "", "", " <tool_call", " <tool_call>", ""]


def test_a_call_is_given_out_as_soon_as_it_is_closed() -> None:
    parser = Parser()
    text = f'{OPEN}{{"name": "find", "arguments": {{"a": 1.50}}}}{CLOSE}'
    assert [piece for letter in text[:-1] for piece in parser.feed(letter)] == []
    assert parser.feed(text[-1]) == [Call(text, "find", '{"a": 1.50}')]


CALL = '{"name":"x","arguments":{}}'


@pytest.mark.parametrize(
    "text",
    [
        f"Write `{OPEN}{CALL}{CLOSE}` to call.",
        f"```\n{OPEN}{CALL}{CLOSE}\n```\n",
        f"~~~json\nfirst\n{OPEN}{CALL}{CLOSE}\n~~~",
        f"````\n```\n{OPEN}{CALL}{CLOSE}\n````",
        f"The marker {OPEN} begins a call.",
        f"The markers are {OPEN} and {CLOSE}",
        CLOSE,
        "<tool_call",
        "a < b",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    for chunks in ([text], list(text)):
        assert joined(read(chunks)) == [Text(text)]


@pytest.mark.parametrize(
    "text",
    [
        f"{OPEN}{CALL}{CLOSE}",
        f"  {OPEN}\n{CALL}\n{CLOSE}\n",
        f"```python\nx = 1\n```\n{OPEN}{CALL}{CLOSE}",
        f"``x`` and {OPEN}{CALL}{CLOSE}",
        f"{OPEN}{CALL}",
        f"{OPEN}{CALL}</tool_",
        f'{OPEN}{{"name":"x"}}{CLOSE}',
        f'{OPEN}{{"id":7,"arguments":{{}},"name":"x"}}{CLOSE}',
    ],
)
def test_what_is_a_call_is_one(text: str) -> None:
    for chunks in ([text], list(text)):
        [call] = [piece for piece in read(chunks) if isinstance(piece, Call)]
        assert (call.name, call.arguments) == ("x", "{}")


def test_a_call_that_is_followed_by_another_needs_no_closing_marker() -> None:
    pieces = read([f"{OPEN}{CALL}\n{OPEN}{CALL}{CLOSE}"])
    assert [type(piece) for piece in pieces] == [Call, Gap, Call]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f'{OPEN}{{"name":"x","arguments":{{}}', "not closed"),
        (f"{OPEN}{CALL} and then{CLOSE}", "only </tool_call> may follow"),
        (f"{OPEN}{{name: 1}}{CLOSE}", "not JSON"),
        (f'{OPEN}{{"name":"x","arguments":{{"a":NaN}}}}{CLOSE}', "not JSON"),
        (f'{OPEN}{{"name":"x","arguments":{{"a":"\\ud800"}}}}{CLOSE}', "surrogate"),
        (f'{OPEN}{{"name":"x","arguments":{{"a":"one\ntwo"}}}}{CLOSE}', "control character"),
        (f'{OPEN}{{"name":"x","arguments":"{{}}"}}{CLOSE}', "JSON object"),
        (f'{OPEN}{{"arguments":{{}}}}{CLOSE}', '"name"'),
        (f"{OPEN}find(Paris){CLOSE}", "JSON object"),
        (f"{OPEN}[{CALL}]{CLOSE}", "JSON object"),
        (OPEN, "not closed"),
    ],
)
def test_a_broken_call_says_what_is_wrong(text: str, error: str) -> None:
    for chunks in ([text], list(text)):
        [broken] = read(chunks)
        assert isinstance(broken, Broken)
        assert broken.raw == text
        assert error in broken.error


def test_a_marker_behind_a_call_begins_another() -> None:
    pieces = read([f"a {OPEN}{CALL}{CLOSE}{OPEN}nonsense{CLOSE}"])
    assert [type(piece) for piece in pieces] == [Text, Gap, Call, Broken]


def test_text_behind_a_broken_call_is_text_again() -> None:
    text = f'{OPEN}{{"name: "x"}}{CLOSE} and more'
    for chunks in ([text], list(text)):
        kinds = [type(piece) for piece in joined(read(chunks))]
        assert kinds == [Broken, Gap, Text]


def test_long_answers_are_read_in_linear_time() -> None:
    words = "word " * 20_000
    text = f"{words}{OPEN}{json.dumps({'name': 'x', 'arguments': {'a': words}})}{CLOSE}"
    pieces = read(list(text))
    assert isinstance(pieces[-1], Call)
    broken = read(list(f"{OPEN}{{'{words}"))
    assert [type(piece) for piece in broken] == [Broken]
