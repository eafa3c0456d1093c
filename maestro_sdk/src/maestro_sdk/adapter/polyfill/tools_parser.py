"""Reads calls out of text that is still being written: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

A marker begins a call where it stands at the beginning of a line, or anywhere if an object follows it; never in a
Markdown code block or between backticks. The object ends where its braces close, so markers within its strings mean
nothing. `</tool_call>` ends the call; so do the next marker and the end of the text, once the object is whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from maestro_sdk.adapter.polyfill import json_text
from maestro_sdk.adapter.polyfill.json_text import NotJson

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_SPACE = " \t\r\n"
_MOST_SPACE = 256
"""Space that is held back in case that a call follows it."""
_MOST_WAIT = 2048
"""Space that is waited through for the object of a call, or for what ends it. Some models write space without end."""
_STRUCTURE = re.compile(r'[{}\[\]"]')
# JSON forbids control characters in strings: one of them tells early that a quote is missing.
_STRING = re.compile(r'["\\\x00-\x1f]')
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_LINE = 1000
"""Characters at the beginning of a line that are looked at for a fence."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text that belongs to no call."""

    raw: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Space between a call and what stands before or behind it; no content."""

    raw: str


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call: `arguments` is the JSON text of an object, as it was written."""

    raw: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A call that can't be read, and why; the error is for the model that wrote it."""

    raw: str
    error: str


Piece: TypeAlias = Text | Gap | Call | Broken


class Parser:
    """Takes text as it comes and gives out what is certain; never raises.

    The pieces' `raw` in order are the text that was fed, to the character. Held back is only what could be a marker,
    the space before it, and a call that is not closed.
    """

    __slots__ = ("_after_call", "_body", "_code", "_held")

    def __init__(self) -> None:
        self._code = _Code()
        self._held = ""
        self._after_call = False
        self._body: _Body | None = None

    @property
    def pending(self) -> str:
        """What was fed and not given out."""
        return ("" if self._body is None else self._body.text()) + self._held

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        self._held += text
        return self._read(last=False)

    def end(self) -> list[Piece]:
        """The pieces that are left when no more text comes."""
        return self._read(last=True)

    def _read(self, *, last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        going = True
        while going and (self._held or (last and self._body is not None)):
            if self._body is None:
                going = self._read_text(pieces, last=last)
            else:
                going = self._read_call(self._body, pieces, last=last)
        return pieces

    def _read_text(self, pieces: list[Piece], *, last: bool) -> bool:
        """Gives out text up to the next marker; whether there is more to read now."""
        held = self._held
        if self._after_call:
            content = held.lstrip(_SPACE)
            if len(content) < len(held):
                self._give(pieces, Gap(held[: len(held) - len(content)]))
            self._after_call = not content
            self._held = held = content
        at = held.find(OPEN)
        if at < 0:
            content = held if last else held[: len(held) - _held_back(held)]
            if content:
                self._give(pieces, Text(content))
            return False
        # Space stays behind until it is known whether it stands before a call.
        before = at - _space_behind(held[:at])
        if before:
            self._give(pieces, Text(held[:before]))
            return True
        behind = held[at + len(OPEN) :]
        follows = behind.lstrip(_SPACE)
        is_near = len(behind) - len(follows) <= _MOST_WAIT
        if not follows and not last and is_near:
            return False
        if self._code.takes(held[:at], call=is_near and follows.startswith("{")):
            if at:
                self._give(pieces, Gap(held[:at]))
            self._held = self._held[len(OPEN) :]
            self._body = _Body()
        else:
            self._give(pieces, Text(held[: at + len(OPEN)]))
        return True

    def _give(self, pieces: list[Piece], piece: Text | Gap) -> None:
        self._held = self._held[len(piece.raw) :]
        self._code.pass_by(piece.raw)
        pieces.append(piece)

    def _read_call(self, body: _Body, pieces: list[Piece], *, last: bool) -> bool:
        """Reads on in a call; whether there is more to read now."""
        if not body.whole and not body.bad:
            self._held = body.scan(self._held)
        if body.whole and not body.bad:
            size = _closing(self._held, last=last)
            if size is None:
                return False
            if size >= 0:
                self._close(body, size, pieces)
                return True
            body.bad = f"only {CLOSE} may follow the object of a call"
        if last and not body.bad:
            body.bad = f"the call is not closed by {CLOSE}"
        if not body.bad:
            return False
        if not body.searched:
            # Where the object is broken its quotes can't be trusted: the first closing marker ends it.
            self._held = body.take() + self._held
            body.searched = True
        at = self._held.find(CLOSE)
        if at < 0 and not last:
            size = max(0, len(self._held) - len(CLOSE) + 1)
            body.keep(self._held[:size])
            self._held = self._held[size:]
            return False
        self._close(body, len(self._held) if at < 0 else at + len(CLOSE), pieces)
        return True

    def _close(self, body: _Body, size: int, pieces: list[Piece]) -> None:
        """Ends the call after `size` characters of what is held."""
        text = body.text()
        raw = OPEN + text + self._held[:size]
        self._held = self._held[size:]
        self._body = None
        self._after_call = True
        self._code.begin_line()
        pieces.append(Broken(raw, body.bad) if body.bad else read_call(text, raw))


def read_call(text: str, raw: str) -> Call | Broken:
    """The call that a JSON text describes; `raw` is what it was written as."""
    try:
        value: Any = json_text.parse(text)
    except NotJson as error:
        return Broken(raw, f"the call is not JSON: {error}")
    if not isinstance(value, dict):
        return Broken(raw, "a call is a JSON object")
    called = cast("dict[str, Any]", value)
    name, arguments = called.get("name"), called.get("arguments", {})
    if not isinstance(name, str) or not name:
        return Broken(raw, 'the call has no "name" of a tool')
    if not isinstance(arguments, dict):
        return Broken(raw, 'the "arguments" of a call are a JSON object')
    return Call(raw, name, json_text.members(text).get("arguments", "{}"))


def _held_back(text: str) -> int:
    """How many characters at the end of `text` could begin a marker, or be the space before one."""
    size = next((size for size in range(min(len(OPEN) - 1, len(text)), 0, -1) if text.endswith(OPEN[:size])), 0)
    return size + _space_behind(text[: len(text) - size])


def _space_behind(text: str) -> int:
    """How many characters of space at the end of `text` go with a call that follows."""
    return min(len(text) - len(text.rstrip(_SPACE)), _MOST_SPACE)


def _closing(text: str, *, last: bool) -> int | None:
    """How much of what follows an object closes its call: None when that can't be told yet, -1 when nothing does."""
    rest = text.lstrip(_SPACE)
    if len(text) - len(rest) > _MOST_WAIT:
        return -1
    if rest.startswith(CLOSE):
        return len(text) - len(rest) + len(CLOSE)
    if rest.startswith(OPEN):
        return 0
    if CLOSE.startswith(rest) or (OPEN.startswith(rest) and not last):
        return len(text) if last else None
    return -1


class _Body:
    """The object of a call as far as it was written: only its braces and strings are followed."""

    __slots__ = ("_depth", "_pieces", "_quoted", "_skip", "bad", "searched", "whole")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._depth = 0
        self._quoted = False
        self._skip = False
        self.whole = False
        self.bad = ""
        """Why it is no object."""
        self.searched = False
        """Whether the closing marker is looked for without regard to the object."""

    def text(self) -> str:
        """What was scanned."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def take(self) -> str:
        """What was scanned; it is forgotten here."""
        text = self.text()
        self._pieces = []
        return text

    def keep(self, text: str) -> None:
        """Adds text without a look at it."""
        self._pieces.append(text)

    def scan(self, text: str) -> str:
        """Goes on to the end of the object; gives what stands behind it."""
        place = 0
        if not self._depth:
            place = len(text) - len(text.lstrip(_SPACE))
            if place < len(text) and text[place] != "{":
                self.bad = "a call is a JSON object"
                return text
        if self._skip and place < len(text):
            place, self._skip = place + 1, False
        while True:
            found = (_STRING if self._quoted else _STRUCTURE).search(text, place)
            if found is None:
                self._pieces.append(text)
                return ""
            place = found.end()
            match found[0]:
                case '"':
                    self._quoted = not self._quoted
                case "\\":
                    self._skip = place == len(text)
                    place += 1
                case "{" | "[":
                    self._depth += 1
                case "}" | "]":
                    self._depth -= 1
                case _:
                    self.bad = "a string holds a line break or another control character; escape it"
                    return self._rest(text, place)
            if not self._depth:
                self.whole = True
                return self._rest(text, place)

    def _rest(self, text: str, place: int) -> str:
        self._pieces.append(text[:place])
        return text[place:]


class _Code:
    """Whether a text ends within code, as far as markers go: in a fenced block, or behind a single backtick."""

    __slots__ = ("_fence", "_line", "_ticks")

    def __init__(self) -> None:
        self._fence = ""
        self._line = ""
        self._ticks = 0

    def begin_line(self) -> None:
        """A call ended: what follows it stands on its own."""
        self._line, self._ticks = "", 0

    def pass_by(self, text: str) -> None:
        """Goes on behind `text`."""
        *lines, last = text.split("\n")
        for line in lines:
            self._add(line)
            self._end_line()
        self._add(last)

    def takes(self, space: str, *, call: bool) -> bool:
        """Whether a marker behind `space` begins a call; `call` tells that an object follows the marker."""
        fresh = "\n" in space or not self._line.strip()
        if "\n" in space:
            self._end_line()
            self._line = ""
        return not self._fence and self._ticks % 2 == 0 and (fresh or call)

    def _add(self, text: str) -> None:
        if len(self._line) < _LINE:
            self._line += text[: _LINE - len(self._line)]
        self._ticks += text.count("`")

    def _end_line(self) -> None:
        found = _FENCE.fullmatch(self._line)
        if found is not None and not self._fence:
            # Backticks behind backticks are code within a line.
            self._fence = "" if found[1][0] == "`" and "`" in found[2] else found[1]
        elif found is not None and found[1].startswith(self._fence) and not found[2].strip():
            self._fence = ""
        self._line, self._ticks = "", 0
