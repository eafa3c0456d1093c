"""The framing: botocore's own decoder as the judge, and bytes that are no frames."""

from __future__ import annotations

from struct import pack
from typing import Any

import pytest
from botocore.eventstream import ChecksumMismatch, EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from maestro_adapter_bedrock.eventstream import Frames
from maestro_sdk.testing.bedrock_converse import event, frame

NAMES = st.text("abc:-", min_size=1, max_size=8)
MESSAGES = st.lists(
    st.tuples(st.dictionaries(NAMES, st.text(max_size=12), max_size=4), st.binary(max_size=60)), max_size=5
)


@given(messages=MESSAGES, data=st.data())
def test_botocore_reads_the_same(messages: list[tuple[dict[str, str], bytes]], data: st.DataObject) -> None:
    raw = b"".join(frame(headers, payload) for headers, payload in messages)
    judge = EventStreamBuffer()
    judge.add_data(raw)
    theirs = [(dict(message.headers), message.payload) for message in judge]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    frames = Frames()
    ours: list[Any] = []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        found, broken = frames.feed(raw[start:stop])
        assert broken is None
        ours += found
    assert [(dict(headers), payload) for headers, payload in ours] == theirs == messages
    assert not frames.partial


def test_headers_of_all_types() -> None:
    """Those that are no text are passed over, as far as their lengths say."""

    def header(name: str, kind: int, value: bytes) -> bytes:
        return bytes([len(name)]) + name.encode() + bytes([kind]) + value

    head = b"".join(
        [
            header("yes", 0, b""),
            header("no", 1, b""),
            header("byte", 2, b"\1"),
            header("short", 3, b"\0\1"),
            header("int", 4, b"\0\0\0\1"),
            header("long", 5, bytes(8)),
            header("bytes", 6, pack(">H", 3) + b"abc"),
            header("text", 7, pack(">H", 2) + b"ok"),
            header("time", 8, bytes(8)),
            header("uuid", 9, bytes(16)),
        ]
    )
    raw = _framed(head, b"{}")
    judge = EventStreamBuffer()
    judge.add_data(raw)
    assert set(next(judge).headers) == {"yes", "no", "byte", "short", "int", "long", "bytes", "text", "time", "uuid"}
    messages, broken = Frames().feed(raw)
    assert (messages, broken) == ([({"text": "ok"}, b"{}")], None)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "prelude"),
        (b"\0" * 16, "prelude"),
        (None, "checksum"),
    ],
)
def test_bytes_that_are_no_frames(raw: bytes | None, message: str) -> None:
    good = event("messageStart", {"role": "assistant"})
    if raw is None:
        broken = bytearray(good)
        broken[-1] ^= 1
        raw = bytes(broken)
    judge = EventStreamBuffer()
    judge.add_data(good + raw)
    with pytest.raises(ChecksumMismatch):
        list(judge)
    messages, failure = Frames().feed(good + raw)
    assert len(messages) == 1
    assert failure is not None
    assert message in failure.message


@pytest.mark.parametrize(
    "head", [b"\5ab", b"\1a\7\0\5ab", b"\1a\x0b", b"\2\xff\xff\7\0\1a", b"\1a\7\0\1\xff", b"\1a\5\0"]
)
def test_headers_that_are_none(head: bytes) -> None:
    messages, failure = Frames().feed(_framed(head, b""))
    assert messages == []
    assert failure is not None


@pytest.mark.parametrize(("total", "length"), [(15, 0), (16, 1), (2**31, 0), (400000, 300000)])
def test_lengths_that_are_impossible(total: int, length: int) -> None:
    from binascii import crc32

    prelude = pack(">II", total, length)
    messages, failure = Frames().feed(prelude + pack(">I", crc32(prelude)) + bytes(64))
    assert messages == []
    assert failure is not None
    assert "lengths" in failure.message


def _framed(head: bytes, payload: bytes) -> bytes:
    from binascii import crc32

    prelude = pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + pack(">I", crc32(prelude)) + head + payload
    return message + pack(">I", crc32(message))
