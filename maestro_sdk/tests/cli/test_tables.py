"""Tables for people and for programs: nothing in them is cut."""

from __future__ import annotations

import pytest

from maestro_sdk.cli.tables import display, new_table

REQUEST = "req_1795425732852.dad163a1-06c9-4f3e-9eca-bea17ec102e6"
CELLS = ("28", "2026-11-23 09:24:56", "a service of somebody", "192.0.2.2", "chat", "fake/dear", "denied", REQUEST)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    table = new_table(("#", *"abcdefg"), numbers={"#"})
    table.add_row(*CELLS)
    display("above", table)
    return capsys.readouterr().out


def test_a_program_gets_each_row_on_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    above, _, row = shown(capsys).splitlines()
    assert above == "above"
    assert all(cell in row for cell in CELLS)


def test_a_narrow_terminal_shows_all_of_each_cell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    _, titles, *lines = shown(capsys).splitlines()
    assert max(map(len, lines)) <= 60
    # What does not fit goes on below.
    assert "".join(line[titles.index("g") :].strip() for line in lines) == REQUEST
