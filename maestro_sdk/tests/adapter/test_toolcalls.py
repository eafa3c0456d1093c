"""Tool calls come back exactly, however a wire numbers, names and interleaves their pieces."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.toolcalls import PartIndexes, ToolCalls
from maestro_sdk.testing.scripted import answer


class Call(NamedTuple):
    call_id: str
    name: str
    arguments: str


class Piece(NamedTuple):
    key: int
    call_id: str
    name: str
    arguments: str


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
ARGUMENTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=3).map(json.dumps)


@st.composite
def calls(draw: st.DrawFn, max_size: int = 5) -> list[Call]:
    count = draw(st.integers(1, max_size))
    names = st.sampled_from(["add", "find", "get_weather"])
    return [Call(f"id_{number}", draw(names), draw(ARGUMENTS)) for number in range(count)]


@st.composite
def pieces_of(draw: st.DrawFn, key: int, call: Call) -> list[Piece]:
    """One call as its wire sends it: whole or in fragments, id and name once or on every piece, the name maybe late."""
    cuts = sorted(draw(st.lists(st.integers(0, len(call.arguments)), max_size=4)))
    texts = [call.arguments[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(call.arguments)], strict=True)]
    repeats, late = draw(st.booleans()), draw(st.booleans()) and len(texts) > 1
    pieces: list[Piece] = []
    for number, text in enumerate(texts):
        name = call.name if number == int(late) or (repeats and number > int(late)) else ""
        pieces.append(Piece(key, call.call_id if number == 0 or repeats else "", name, text))
    return pieces


def assemble(pieces: Sequence[Piece]) -> list[Call]:
    assembler = ToolCalls(PartIndexes(), "r1")
    return reassemble([assembler.delta(*piece) for piece in pieces])


def reassemble(deltas: Sequence[ChatEvent]) -> list[Call]:
    """The calls, ordered by index; fails when indexes are shared."""
    begin, *_, finish = answer()
    parts = fold([begin, *deltas, finish]).parts
    assert len({part.index for part in parts}) == len(parts)
    return [Call(part.tool_call.call_id, part.tool_call.name, part.tool_call.arguments_json) for part in parts]


@given(st.data())
def test_interleaved_calls_reassemble(data: st.DataObject):
    source = data.draw(calls())
    columns = [data.draw(pieces_of(key, call)) for key, call in enumerate(source)]
    order: list[Piece] = []
    left = [column for column in columns if column]
    while left:
        column = data.draw(st.sampled_from(left))
        order.append(column.pop(0))
        left = [rest for rest in left if rest]
    assert sorted(assemble(order)) == sorted(source)


@given(st.data())
def test_calls_one_after_the_other_keep_their_order(data: st.DataObject):
    source = data.draw(calls())
    order = [piece for key, call in enumerate(source) for piece in data.draw(pieces_of(key, call))]
    assert assemble(order) == source


@given(st.data())
def test_calls_that_all_have_index_zero_are_told_apart_by_id(data: st.DataObject):
    source = data.draw(calls())
    order = [piece for call in source for piece in data.draw(pieces_of(0, call))]
    assert assemble(order) == source


def test_calls_without_ids_under_one_index_are_told_apart_by_name():
    assert assemble([Piece(0, "", "add", "{}"), Piece(0, "", "find", "{}")]) == [
        Call("call_r1_1", "add", "{}"),
        Call("call_r1_2", "find", "{}"),
    ]


@given(calls())
def test_whole_calls_get_indexes_and_missing_ids(source: list[Call]):
    assembler = ToolCalls(PartIndexes(), "r1")
    deltas = [
        assembler.whole(call.call_id if number % 2 else "", call.name, call.arguments)
        for number, call in enumerate(source)
    ]
    expected = [
        Call(call.call_id if number % 2 else f"call_r1_{number + 1}", call.name, call.arguments)
        for number, call in enumerate(source)
    ]
    assert reassemble(deltas) == expected
    assert assembler.count == len(source)


def test_missing_ids_are_made_once_and_stay():
    assert assemble([Piece(0, "", "add", '{"a"'), Piece(0, "", "", ":1}"), Piece(1, "", "add", "{}")]) == [
        Call("call_r1_1", "add", '{"a":1}'),
        Call("call_r1_2", "add", "{}"),
    ]


def test_an_id_that_comes_late_does_not_rename_a_call():
    assert assemble([Piece(0, "", "add", "{"), Piece(0, "late", "", "}")]) == [Call("call_r1_1", "add", "{}")]


def test_whole_calls_without_arguments_have_an_empty_object():
    assert reassemble([ToolCalls(PartIndexes(), "r").whole("c", "now", "")]) == [Call("c", "now", "{}")]


def test_calls_share_the_part_indexes_of_the_answer():
    indexes = PartIndexes()
    text = indexes.get("text")
    assembler = ToolCalls(indexes, "r")
    first = assembler.delta(0, "c1", "add", "").tool_call.index
    assert [text, first, indexes.get("text"), assembler.delta(1, "c2", "add", "").tool_call.index] == [0, 1, 0, 2]


@pytest.mark.parametrize("key", ["text", 3, ("block", 1)])
def test_part_indexes_are_stable_until_a_part_begins_anew(key: object):
    indexes = PartIndexes()
    assert [indexes.get("first"), indexes.get(key), indexes.get(key)] == [0, 1, 1]
    assert [indexes.begin(key), indexes.get(key), indexes.get("first")] == [2, 2, 0]
