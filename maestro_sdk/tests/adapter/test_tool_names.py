"""Names of tools on wires that take fewer: always fitting, never two alike, and found again."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from maestro_sdk.adapter.tool_names import ToolNames, wire_name

NAMES = st.lists(
    st.one_of(
        st.text(alphabet="ab_.", min_size=1, max_size=4),
        st.text(alphabet="ab_-.9", min_size=60, max_size=128),
        st.builds("{}{}".format, st.just("a" * 70), st.text(alphabet="b.", max_size=3)),
    ),
    unique=True,
    max_size=12,
)


@given(NAMES, NAMES, st.sampled_from([16, 64, 128]))
@example(["a.b", "a_b"], ["a..", "a._"], 64)
@example([], ["a.b", "a_b"], 64)
def test_names_fit_and_stay_apart_and_come_back(tools: list[str], past: list[str], most: int) -> None:
    names = ToolNames(tools, most)
    every = list(dict.fromkeys([*tools, *past]))
    wires = [names[name] for name in every]
    assert all(re.fullmatch(rf"[a-zA-Z0-9_-]{{1,{most}}}", wire) for wire in wires)
    assert len(set(wires)) == len(wires)
    assert [names.renamed.get(wire, wire) for wire in wires] == every
    again = ToolNames(tools, most)
    assert [again[name] for name in every] == wires
    # A tool whose name fits is never renamed for another one's sake.
    assert all(names[name] == name for name in tools if len(name) <= most and "." not in name)


def test_names_are_readable() -> None:
    names = ToolNames(["files.read", "files_read", "list"], 64)
    assert names["list"] == "list"
    assert names["files_read"] == "files_read"
    assert re.fullmatch(r"files_read_[0-9a-f]{8}", names["files.read"])
    assert ToolNames(["files.read"], 64) == {"files.read": "files_read"}


def test_a_long_name_keeps_its_beginning() -> None:
    assert wire_name("a" * 64, 64) == "a" * 64
    assert re.fullmatch(r"a{55}_[0-9a-f]{8}", wire_name("a" * 65, 64))


def test_a_checksum_that_is_taken_is_not_taken_twice() -> None:
    taken = wire_name("x" * 65, 64)
    names = ToolNames([taken, "x" * 65], 64)
    assert names[taken] == taken
    assert names["x" * 65] != taken
    assert len(names["x" * 65]) == 64
