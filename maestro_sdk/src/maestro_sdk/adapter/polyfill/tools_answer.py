"""Reads an answer of structured output while it is written: `{"reply": …}` or `{"calls": [{name, arguments}, …]}`.

The text of a reply is given out as its JSON string grows, the arguments of a call as the fragments that were written.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from maestro_sdk.adapter.polyfill.tools_parser import Broken, Text

_SPACE = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_PLAIN = re.compile(r'[^"\\]+')
_STRUCTURE = re.compile(r'[{}\[\]"]')
_STRING_END = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[,}\] \t\r\n]")
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins."""

    name: str


@dataclass(frozen=True, slots=True)
class CallMore:
    """A fragment of the arguments' JSON text."""

    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is whole; `arguments` is what its fragments make."""

    name: str
    arguments: str


AnswerPiece: TypeAlias = Text | CallBegin | CallMore | CallEnd | Broken


class AnswerParser:
    """Takes an answer as it comes; never raises. What is broken gives one `Broken`, and nothing after it."""

    def __init__(self, *, json_reply: bool = False) -> None:
        """`json_reply`: the reply is any JSON, given out as it is written; else it is a string, given out decoded."""
        self._json_reply = json_reply
        self._state: Callable[[str, int], int] = self._start
        self._pieces: list[AnswerPiece] = []
        self._string = _String()
        self._raw = _Raw()
        self._letters: list[str] = []
        self._in_call = False
        self._key = ""
        self._name = ""
        self._fragments: list[str] = []
        self._given = False
        self._over = False

    def feed(self, text: str) -> list[AnswerPiece]:
        """The pieces that `text` completes."""
        place = 0
        while place < len(text) and not self._over:
            place = self._state(text, place)
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> list[AnswerPiece]:
        """The last pieces: `Broken` when the answer is not whole."""
        if not self._over and self._state != self._behind:
            self._break("the answer ends before its JSON does")
        elif not self._over and not self._given:
            self._break('the answer has neither "reply" nor "calls"')
        pieces, self._pieces = self._pieces, []
        return pieces

    def _break(self, error: str) -> int:
        self._pieces.append(Broken("", error))
        self._over = True
        return 0

    # States take text from a place and give the place up to which they read.

    def _start(self, text: str, place: int) -> int:
        place = _past(_SPACE, text, place)
        if place == len(text):
            return place
        if text[place] != "{":
            return self._break("the answer is not a JSON object")
        self._state = self._member
        return place + 1

    def _member(self, text: str, place: int) -> int:
        """In front of a name, or of the end of an object."""
        place = _past(_BETWEEN, text, place)
        if place == len(text):
            return place
        match text[place]:
            case '"':
                self._state = self._member_name
            case "}" if self._in_call:
                self._end_call()
                self._state = self._element
            case "}":
                self._state = self._behind
            case other:
                return self._break(f"{other!r} stands where the name of a member should")
        return place + 1

    def _member_name(self, text: str, place: int) -> int:
        letters, place, ended = self._string.read(text, place)
        self._letters.append(letters)
        if ended:
            self._key = self._take()
            self._state = self._colon
        return place

    def _colon(self, text: str, place: int) -> int:
        place = _past(_SPACE, text, place)
        if place == len(text):
            return place
        if text[place] != ":":
            return self._break(f"no colon stands behind {self._key!r}")
        self._state = self._value
        return place + 1

    def _value(self, text: str, place: int) -> int:
        place = _past(_SPACE, text, place)
        if place == len(text):
            return place
        letter = text[place]
        match (self._in_call, self._key):
            case (False, "reply") if not self._json_reply:
                if letter != '"':
                    return self._break('"reply" is not a string')
                self._given, self._state = True, self._reply
                return place + 1
            case (False, "reply"):
                self._given = True
            case (False, "calls"):
                if letter != "[":
                    return self._break('"calls" is not a list')
                self._state = self._element
                return place + 1
            case (True, "name"):
                if letter != '"' or self._name:
                    return self._break('"name" is not the name of a tool')
                self._state = self._call_name
                return place + 1
            case (True, "arguments"):
                if letter != "{" or self._fragments:
                    return self._break('"arguments" is not one JSON object')
            case _:
                pass  # Members that were not asked for mean nothing.
        self._raw.begin()
        self._state = self._any
        return place

    def _reply(self, text: str, place: int) -> int:
        letters, place, ended = self._string.read(text, place)
        if letters:
            self._pieces.append(Text(letters))
        if ended:
            self._state = self._member
        return place

    def _call_name(self, text: str, place: int) -> int:
        letters, place, ended = self._string.read(text, place)
        self._letters.append(letters)
        if ended:
            self._name = self._take()
            if not self._name:
                return self._break('"name" is empty')
            self._given, self._state = True, self._member
            self._pieces.append(CallBegin(self._name))
            # Arguments may stand before the name.
            self._pieces += [CallMore(fragment) for fragment in self._fragments]
        return place

    def _any(self, text: str, place: int) -> int:
        """Within a value that is passed on, or over, as it is written."""
        end, ended = self._raw.read(text, place)
        fragment = text[place:end]
        match (self._in_call, self._key):
            case (False, "reply") if fragment:
                self._pieces.append(Text(fragment))
            case (True, "arguments") if fragment:
                self._fragments.append(fragment)
                if self._name:
                    self._pieces.append(CallMore(fragment))
            case _:
                pass
        if ended:
            self._state = self._member
        return end

    def _element(self, text: str, place: int) -> int:
        """In front of a call, or of the end of the list."""
        place = _past(_BETWEEN, text, place)
        if place == len(text):
            return place
        match text[place]:
            case "{":
                self._in_call, self._state = True, self._member
                self._name, self._fragments = "", []
            case "]":
                self._state = self._member
            case other:
                return self._break(f"{other!r} stands where a call should")
        return place + 1

    def _behind(self, text: str, place: int) -> int:
        place = _past(_SPACE, text, place)
        return place if place == len(text) else self._break("something stands behind the JSON object")

    def _end_call(self) -> None:
        self._in_call = False
        if not self._name:
            self._break('a call has no "name"')
            return
        if not self._fragments:
            self._fragments = ["{}"]
            self._pieces.append(CallMore("{}"))
        self._pieces.append(CallEnd(self._name, "".join(self._fragments)))

    def _take(self) -> str:
        text = "".join(self._letters)
        self._letters = []
        return text


class _String:
    """A JSON string behind its opening quote, decoded as it comes; escapes may be cut anywhere."""

    __slots__ = ("_escape", "_high")

    def __init__(self) -> None:
        self._escape = ""
        self._high = 0

    def read(self, text: str, place: int) -> tuple[str, int, bool]:
        """The letters up to the end of the string or of `text`, the place behind them, and whether the string ended."""
        letters: list[str] = []
        while place < len(text):
            if self._escape:
                self._escape += text[place]
                place += 1
                self._unescape(letters)
                continue
            found = _PLAIN.match(text, place)
            if found is not None:
                self._flush(letters)
                letters.append(found[0])
                place = found.end()
                continue
            place += 1
            if text[place - 1] == '"':
                self._flush(letters)
                return "".join(letters), place, True
            self._escape = "\\"
        return "".join(letters), place, False

    def _unescape(self, letters: list[str]) -> None:
        escape = self._escape
        if escape[1] != "u":
            self._flush(letters)
            letters.append(_ESCAPES.get(escape[1], escape[1]))
            self._escape = ""
        elif len(escape) == 6:
            self._escape = ""
            digits = escape.removeprefix("\\u")
            known = all(digit in string.hexdigits for digit in digits)
            self._character(int(digits, 16) if known else ord(_REPLACEMENT), letters)

    def _character(self, code: int, letters: list[str]) -> None:
        if 0xDC00 <= code < 0xE000 and self._high:
            letters.append(chr(0x10000 + ((self._high - 0xD800) << 10) + code - 0xDC00))
            self._high = 0
            return
        self._flush(letters)
        if 0xD800 <= code < 0xDC00:
            self._high = code
        else:
            letters.append(_REPLACEMENT if 0xDC00 <= code < 0xE000 else chr(code))

    def _flush(self, letters: list[str]) -> None:
        """Half of a character whose other half did not come can't be sent."""
        if self._high:
            letters.append(_REPLACEMENT)
            self._high = 0


class _Raw:
    """A JSON value of any kind, followed to its end and no further."""

    __slots__ = ("_begun", "_depth", "_quoted", "_skip")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new value."""
        self._begun = self._quoted = self._skip = False
        self._depth = 0

    def read(self, text: str, place: int) -> tuple[int, bool]:
        """The end of the value within `text`, and whether the value ended there."""
        if not self._begun:
            self._begun = True
            if text[place] not in '{["':
                self._depth = -1
        if self._depth < 0:
            found = _SCALAR_END.search(text, place)
            return (len(text), False) if found is None else (found.start(), True)
        if self._skip:
            place, self._skip = place + 1, False
        while True:
            found = (_STRING_END if self._quoted else _STRUCTURE).search(text, place)
            if found is None:
                return len(text), False
            place = found.end()
            match found[0]:
                case '"':
                    self._quoted = not self._quoted
                case "\\":
                    self._skip = place == len(text)
                    place += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
            if self._depth <= 0 and not self._quoted:
                return place, True


def _past(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return place if found is None else found.end()
