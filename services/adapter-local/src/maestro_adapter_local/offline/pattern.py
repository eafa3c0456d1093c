"""Texts that match a regular expression, for the simple expressions that schemas use.

Known are literals, escapes, classes, groups, alternatives, quantifiers and the anchors at both ends. Look-around, back
references, word boundaries and flags are not: `parse` raises `Unknown` for them, it never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MANY = 1 << 30
_SHORT = 16
_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORD = f"{_LETTERS}{_DIGITS}_"
_SPACE = " \t\n"
# What negated classes and the dot choose from, plain letters first.
_ALPHABET = _LETTERS + _DIGITS + "".join(chr(code) for code in range(32, 127) if not chr(code).isalnum()) + "\t\n"
_CLASSES = {
    "d": _DIGITS,
    "w": _WORD,
    "s": _SPACE,
    "D": "".join(sign for sign in _ALPHABET if sign not in _DIGITS),
    "W": "".join(sign for sign in _ALPHABET if sign not in _WORD),
    "S": "".join(sign for sign in _ALPHABET if sign not in _SPACE),
}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


class Unknown(ValueError):
    """The expression uses something beyond the simple ones."""


@dataclass(frozen=True, slots=True)
class Signs:
    """One sign out of `choices`."""

    choices: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning (`^`) or the end (`$`) of the text."""

    sign: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """`inner`, at least `least` and at most `most` times."""

    inner: Node
    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """All of `items`, one after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of `options`."""

    options: tuple[Node, ...]


Node = Signs | Anchor | Repeat | Sequence | Either


def texts(pattern: str, min_length: int = 0, max_length: int = 1 << 16) -> Iterator[str]:
    """Texts that match `pattern` (anywhere, as JSON Schema asks) within the lengths. Raises `Unknown`."""
    tree = parse(pattern)
    compiled = compile_pattern(pattern)
    if not is_quick(tree):
        # Python's matcher takes exponential time on nested repetitions; on short texts that is still nothing.
        max_length = min(max_length, _SHORT)
    least = _least(tree)
    if max(least, min_length) > max_length:
        if least <= _SHORT < min_length:
            raise Unknown(f"repeats within a repetition, and texts of more than {_SHORT} signs are asked for")
        return
    seen: set[str] = set()
    # `turn` walks through the choices of classes and alternatives, `extra` counts repetitions beyond the least.
    missing, ends = max(0, min_length - least), _ends(tree)
    for turn in range(64):
        for extra in (*range(missing, -1, -1 - missing // 16), *range(missing + 1, missing + 17)):
            text = _Writer(turn, extra).write(tree)
            if turn and not ends:
                text += _LETTERS[turn % len(_LETTERS)]
            if len(text) > max_length:
                continue
            if len(text) < min_length and not ends:
                text += "a" * (min_length - len(text))
            if len(text) >= min_length and text not in seen and compiled.search(text):
                seen.add(text)
                yield text


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled expression. Raises `Unknown` when it is not one."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Unknown(f"can't be compiled: {error}") from error


def is_quick(tree: Node) -> bool:
    """Whether matching takes no more than polynomial time: no repetition within an open repetition."""
    match tree:
        case Repeat(inner, _, most):
            return is_quick(inner) and not (most > 1 and _repeats(inner))
        case Sequence(nodes) | Either(nodes):
            return all(is_quick(node) for node in nodes)
        case _:
            return True


def parse(pattern: str) -> Node:
    """The tree of `pattern`. Raises `Unknown`."""
    reader = _Reader(pattern)
    tree = reader.either(0)
    if reader.place < len(pattern):
        raise Unknown(f"has an unmatched ')' at {reader.place}")
    return tree


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def either(self, depth: int) -> Node:
        if depth > 20:
            raise Unknown("is nested too deep")
        options = [self.sequence(depth)]
        while self.peek() == "|":
            self.place += 1
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else Either(tuple(options))

    def sequence(self, depth: int) -> Node:
        items: list[Node] = []
        while (sign := self.peek()) and sign not in "|)":
            item = self.atom(depth)
            items.append(self.quantified(item))
        return Sequence(tuple(items))

    def atom(self, depth: int) -> Node:
        sign = self.take()
        match sign:
            case "^" | "$":
                return Anchor(sign)
            case ".":
                return Signs(_ALPHABET.replace("\n", ""))
            case "[":
                return Signs(self.signs())
            case "(":
                if self.peek() == "?":
                    self.group_prefix()
                inner = self.either(depth + 1)
                if self.take() != ")":
                    raise Unknown("has an open group")
                return inner
            case "\\":
                return Signs(self.escape())
            case "*" | "+" | "?":
                raise Unknown(f"repeats nothing at {self.place - 1}")
            case _:
                return Signs(sign)

    def group_prefix(self) -> None:
        known = re.compile(r"\?:|\?P?<[A-Za-z_]\w*>").match(self.text, self.place)
        if known is None:
            raise Unknown(f"uses a group that is not simple at {self.place}")
        self.place = known.end()

    def quantified(self, item: Node) -> Node:
        known = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})[?+]?").match(self.text, self.place)
        if known is None:
            return item
        if known[0].endswith("+") and len(known[0]) > 1:
            raise Unknown("uses a possessive quantifier")
        self.place = known.end()
        match known[1]:
            case "*":
                return Repeat(item, 0, _MANY)
            case "+":
                return Repeat(item, 1, _MANY)
            case "?":
                return Repeat(item, 0, 1)
            case _:
                least = int(known[2])
                most = least if known[3] is None else int(known[4]) if known[4] else _MANY
                if least > 4096:
                    raise Unknown(f"repeats more than 4096 times at {known.start()}")
                return Repeat(item, least, most)

    def escape(self) -> str:
        sign = self.take()
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign in _CONTROLS:
            return _CONTROLS[sign]
        if sign in ("x", "u"):
            digits = re.compile("[0-9a-fA-F]{2}" if sign == "x" else "[0-9a-fA-F]{4}").match(self.text, self.place)
            if digits is None:
                raise Unknown(f"has a broken escape at {self.place}")
            self.place = digits.end()
            return chr(int(digits[0], 16))
        if not sign or sign.isalnum():
            raise Unknown(f"uses \\{sign}")
        return sign

    def signs(self) -> str:
        negated = self.peek() == "^"
        self.place += negated
        found: list[str] = []
        first = True
        while (sign := self.take()) != "]" or first:
            first = False
            if not sign:
                raise Unknown("has an open class")
            choices = self.escape() if sign == "\\" else sign
            if self.peek() == "-" and self.text[self.place + 1 : self.place + 2] not in ("]", "") and len(choices) == 1:
                self.place += 1
                end = self.take()
                end = self.escape() if end == "\\" else end
                if len(end) != 1 or end < choices:
                    raise Unknown("has a range that ends before it begins")
                # A range of thousands of signs needs no more than its first few.
                choices = "".join(chr(code) for code in range(ord(choices), min(ord(end), ord(choices) + 255) + 1))
            found.append(choices)
        members = "".join(found)
        if negated:
            members = "".join(sign for sign in _ALPHABET if sign not in members)
        if not members:
            raise Unknown("has a class that matches nothing known")
        return members

    def peek(self) -> str:
        return self.text[self.place : self.place + 1]

    def take(self) -> str:
        sign = self.peek()
        self.place += 1
        return sign


class _Writer:
    def __init__(self, turn: int, extra: int) -> None:
        self._turn = turn
        self._extra = extra

    def write(self, tree: Node) -> str:
        match tree:
            case Signs(choices):
                return choices[self._choose(len(choices))]
            case Anchor():
                return ""
            case Sequence(items):
                return "".join(self.write(item) for item in items)
            case Either(options):
                return self.write(options[self._choose(len(options))])
            case Repeat(inner, least, most):
                more = min(self._extra, most - least)
                self._extra -= more
                return "".join(self.write(inner) for _ in range(least + more))

    def _choose(self, count: int) -> int:
        # A number with mixed bases: each place takes its share of the turn, so that turns differ.
        self._turn, choice = divmod(self._turn, count)
        return choice


def _ends(tree: Node) -> bool:
    """Whether an anchor holds the end, so that nothing may be appended."""
    match tree:
        case Anchor("$"):
            return True
        case Sequence(nodes) | Either(nodes):
            return any(_ends(node) for node in nodes)
        case Repeat(inner, _, _):
            return _ends(inner)
        case _:
            return False


def _least(tree: Node) -> int:
    """Length of the shortest text."""
    match tree:
        case Signs():
            return 1
        case Anchor():
            return 0
        case Sequence(items):
            return sum(_least(item) for item in items)
        case Either(options):
            return min(_least(option) for option in options)
        case Repeat(inner, least, _):
            return least * _least(inner)


def _repeats(tree: Node) -> bool:
    match tree:
        case Repeat(inner, _, most):
            return most > 1 or _repeats(inner)
        case Sequence(nodes) | Either(nodes):
            return any(_repeats(node) for node in nodes)
        case _:
            return False
