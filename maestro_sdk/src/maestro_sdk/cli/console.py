"""What `maestro up` shows: progress, one line when it is ready, and the services' own lines with their names."""

from __future__ import annotations

import sys
from typing import IO, Any

from rich.console import Console as RichConsole
from rich.status import Status
from rich.text import Text

_COLOURS = ("cyan", "magenta", "green", "blue", "bright_cyan", "bright_magenta", "bright_green", "bright_blue")


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        """Where rich would end the program: the mesh goes on when nobody reads any more."""
        raise BrokenPipeError


class Console:
    """Lines for a person: on a terminal with colours and a spinner. A reader that leaves stops nothing."""

    def __init__(self, file: IO[str] | None = None, *, lines: bool = True) -> None:
        """Without `lines` only what is wrong is told: the rest stands in state and log files."""
        self._rich = _Rich(highlight=False, soft_wrap=True, file=file or sys.stdout)
        self._status: Status | None = None
        self._colours: dict[str, str] = {}
        self._broken = False
        self._lines = lines

    def say(self, text: str | Text, style: str = "") -> None:
        """Prints one line."""
        self._print(text if isinstance(text, Text) else Text(text, style))

    def problem(self, text: str) -> None:
        """Prints one line that tells of something wrong."""
        self._print(Text(text, "bold red"))

    def up(self, name: str, seconds: float) -> None:
        """A program is up, `seconds` after the start."""
        if self._lines:
            self._print(Text.assemble(("  ✓ ", "green"), f"{name:<18}", (f"{seconds:5.1f} s", "dim")))

    def waiting(self, names: list[str]) -> None:
        """What the start is waiting for; an empty list ends the spinner."""
        if not self._rich.is_terminal:
            return
        if self._status is not None and not names:
            self._status.stop()
            self._status = None
        elif names:
            text = "waiting for " + ", ".join(names)
            if self._status is None:
                self._status = self._rich.status(text)
                self._status.start()
            self._status.update(text)

    def line(self, name: str, line: bytes) -> None:
        """One line of a program's output, as it comes."""
        if self._lines:
            self.last(name, line)

    def last(self, name: str, line: bytes) -> None:
        """One of the last lines of a program that failed."""
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        body = Text.from_ansi(line.decode(errors="replace"))
        self._print(Text.assemble((f"{name:<16} │ ", colour), body))

    def _print(self, text: Any) -> None:
        if self._broken:
            return
        try:
            self._rich.print(text)
        except (BrokenPipeError, ValueError):
            self._broken = True
        except OSError:
            return  # a log on a full disk: this line is lost, later ones may not be
