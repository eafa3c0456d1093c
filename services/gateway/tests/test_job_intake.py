"""The lines of an input file: what is good is taken, and what is wrong is told with its line and field."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from maestro_gateway.jobs.lines import count_lines, read_lines
from maestro_sdk.errors import InvalidRequest, MaestroError, TooLarge

GOOD: dict[str, Any] = {
    "chat": {"model": "p/m", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "é"}}]}]}
}
LINE = json.dumps(GOOD, ensure_ascii=False).encode()


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n\n"])
async def test_lines_are_found_wherever_the_pieces_are_cut(size: int, end: bytes):
    data = b"\n" + LINE + b"\r\n\n" + LINE + end
    items, numbers = await read_lines(in_pieces(data, size), 10)
    assert numbers == [2, 4]
    assert {item.chat.messages[0].parts[0].text.text for item in items} == {"é"}


async def test_the_mark_that_windows_puts_before_a_text_is_passed_over():
    items, numbers = await read_lines(in_pieces(codecs.BOM_UTF8 + LINE + b"\r\n" + LINE, 2), 10)
    assert (len(items), numbers) == (2, [1, 2])
    with pytest.raises(InvalidRequest):
        await read_lines(in_pieces(LINE + b"\n" + codecs.BOM_UTF8 + LINE, 50), 10)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        pytest.param(b"{nonsense", "line 3", id="no JSON"),
        pytest.param(b"[]", "line 3", id="no object"),
        pytest.param(b"null", "line 3", id="null"),
        pytest.param(b'"an item"', "line 3", id="a text"),
        pytest.param(b"[{}]", "line 3", id="a list of items"),
        pytest.param(b'{"chat": 5}', "line 3: chat", id="no request"),
        pytest.param(b'{"chat": NaN}', "line 3", id="no number"),
        pytest.param(b'{"item_id": 5}', "line 3: item_id", id="a name that is no text"),
        pytest.param(b'{"shout": {}}', "line 3: shout", id="a field that is not there"),
        pytest.param(b'{"chat": {"model": "m", "shout": 1}}', "line 3: chat.shout", id="one of a request"),
        pytest.param(b'{"chat": {"model": 5}}', "line 3: chat.model", id="a model that is no text"),
        pytest.param(b'{"chat": {"max_tokens": "many"}}', "line 3: chat.max_tokens", id="a text for a number"),
        pytest.param(b'{"chat": {"messages": "hi"}}', "line 3: chat.messages", id="a text for a list"),
        pytest.param(b'{"chat": {"messages": [5]}}', "line 3: chat.messages[0]", id="a number for a message"),
        pytest.param(
            b'{"chat": {"messages": [{"parts": [{"text": {"text": "a"}}, {"text": {"text": 1}}]}]}}',
            "line 3: chat.messages[0].parts[1].text.text",
            id="deep within",
        ),
        pytest.param(b'{"chat": {"messages": [{"role": "user?"}]}}', "line 3: chat.messages[0].role", id="no role"),
        pytest.param(b'{"chat": {"metadata": {"a": 1}}}', "line 3: chat.metadata.a", id="a label that is no text"),
        pytest.param(
            b'{"embed": {"inputs": [{}, {"text": 4}]}}', "line 3: embed.inputs[1].text", id="no text to embed"
        ),
        pytest.param(b'{"chat": {}, "embed": {}}', "line 3: request", id="two requests"),
        pytest.param(b"\xff\xfe", "line 3", id="no text"),
        pytest.param(b'{"a":' * 5000, "line 3", id="deeper than anybody reads"),
        pytest.param(b"{}", "line 3: request", id="nothing asked"),
        pytest.param(b'{"item_id": "a b", "chat": {}}', "line 3: item_id", id="a name that is none"),
        pytest.param(json.dumps({"chat": {"messages": []}}).encode(), "line 3: chat.messages", id="no message"),
        pytest.param(
            json.dumps({"chat": {**GOOD["chat"], "temperature": 7}}).encode(), "line 3: chat.temperature", id="range"
        ),
    ],
)
async def test_a_wrong_line_is_named(line: bytes, field: str):
    with pytest.raises(InvalidRequest) as caught:
        await read_lines(in_pieces(b"\n".join((LINE, LINE, line, LINE)), 50), 10)
    assert field in [violation.field for violation in caught.value.violations]
    assert caught.value.message.startswith("line 3")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"", InvalidRequest, id="an empty file"),
        pytest.param(b"\n \n\n", InvalidRequest, id="empty lines"),
        pytest.param(b"\n".join([LINE] * 5), TooLarge, id="too many items"),
        pytest.param(b" " * (17 * 2**20), TooLarge, id="a line without end"),
    ],
)
async def test_what_is_no_input_is_refused(data: bytes, kind: type[MaestroError]):
    with pytest.raises(kind):
        await read_lines(in_pieces(data, 2**20), 4)


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_items_are_counted_before_they_are_read(size: int):
    data = b"\n \n" + b"\n".join([b"no item"] * 4) + b"\n\n"
    await count_lines(in_pieces(data, size), 4)
    with pytest.raises(TooLarge):
        await count_lines(in_pieces(data + b"x", size), 4)
