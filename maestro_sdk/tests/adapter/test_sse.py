"""The SSE parser gives the same events whatever the boundaries of the reads and the ends of the lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_sdk.adapter.sse import SseEvent, SseParser

ENDS = [b"\n", b"\r\n", b"\r"]
LINES = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20)
EXAMPLE = (
    b": a comment\n"
    b"event: message_start\n"
    b'data: {"a": 1}\n'
    b"\n"
    b"id: 7\n"
    b"retry: 100\n"
    b"data:no space\n"
    b"data:  two spaces\n"
    b"data:\n"
    b"data: \xc3\xa9\n"
    b"\n"
    b"event: nothing follows\n"
    b"\n"
    b": ping\n"
    b"\n"
    b"data: [DONE]\n"
    b"\n"
)
EXPECTED = [
    SseEvent(b"message_start", b'{"a": 1}'),
    SseEvent(b"", b"no space\n two spaces\n\n\xc3\xa9"),
    SseEvent(b"", b"[DONE]"),
]


def parse(*chunks: bytes) -> list[SseEvent]:
    parser = SseParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    assert not parser.pending
    return events


@pytest.mark.parametrize("end", ENDS)
def test_every_split_into_two_reads_gives_the_whole(end: bytes):
    stream = EXAMPLE.replace(b"\n", end)
    assert parse(stream) == EXPECTED
    for place in range(len(stream) + 1):
        assert parse(stream[:place], stream[place:]) == EXPECTED, stream[:place]


@pytest.mark.parametrize("end", ENDS)
def test_one_byte_per_read_gives_the_whole(end: bytes):
    stream = EXAMPLE.replace(b"\n", end)
    assert parse(*(stream[place : place + 1] for place in range(len(stream)))) == EXPECTED


@pytest.mark.parametrize("end", ENDS)
def test_an_event_is_given_as_soon_as_its_blank_line_ends(end: bytes):
    parser = SseParser()
    assert parser.feed(b"data: x" + end + end[:1]) == [SseEvent(b"", b"x")]
    assert parser.feed(end[1:]) == []


PIECES = st.sampled_from(
    [b"data: x", b"data:", b"event: e", b": c", b"id", b"\n", b"\r", b"\r\n", b"\n\n", b"\xc3\xa9"]
)


@given(st.lists(PIECES, max_size=12), st.lists(st.integers(0, 60), max_size=8))
def test_any_reads_of_any_stream_give_the_whole(pieces: list[bytes], places: list[int]):
    stream = b"".join(pieces)
    cuts = sorted(place for place in places if place < len(stream))
    chunks = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, split = SseParser(), SseParser()
    expected = whole.feed(stream)
    assert [event for chunk in chunks for event in split.feed(chunk)] == expected
    assert split.pending == whole.pending


@given(st.lists(st.tuples(st.sampled_from([b"", b"delta"]), st.lists(LINES, min_size=1, max_size=3)), max_size=4))
def test_what_was_written_is_read(written: list[tuple[bytes, list[str]]]):
    stream = b""
    for name, lines in written:
        stream += b"event: %b\n" % name if name else b""
        stream += b"".join(b"data: %b\n" % line.encode() for line in lines) + b"\n"
    assert parse(stream) == [SseEvent(name, "\n".join(lines).encode()) for name, lines in written]


@pytest.mark.parametrize("begun", [b"data: x", b"data: x\n", b"event: x\n", b": comm", b"event: x\r\ndata: y\r\n"])
def test_an_incomplete_event_is_pending(begun: bytes):
    parser = SseParser()
    assert parser.feed(begun) == []
    assert parser.pending


def test_reads_of_nothing_change_nothing():
    assert parse(b"data: x\r", b"", b"\n\r", b"", b"\n") == [SseEvent(b"", b"x")]


def test_a_name_belongs_to_one_event_only():
    assert parse(b"event: a\ndata: 1\n\ndata: 2\n\n") == [SseEvent(b"a", b"1"), SseEvent(b"", b"2")]
