"""Values that a prompt names literally: what a tool call or a structured answer uses where the type fits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

_QUOTED = re.compile(r"\"([^\"\n]{1,200})\"|“([^”\n]{1,200})”|`([^`\n]{1,200})`|(?<!\w)'([^'\n]{1,200})'(?!\w)")
_NUMBER = re.compile(r"(?<![\w.+-])[+-]?\d{1,30}(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?(?![\w-]|\.\d)")
# Words with a capital inside a sentence: likely names.
_PROPER = re.compile(r"(?<=[\w,;:)] )[A-Z][\w'\u2019-]*[\w](?: (?:[A-Z][\w'\u2019-]*[\w]))*")
_FORMATS = {
    "email": re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"),
    "uri": re.compile(r"https?://[^\s\"'<>)\]]*[^\s\"'<>)\].,;:!?]"),
    "date-time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)"),
    "date": re.compile(r"(?<!\d)\d{4}-\d\d-\d\d(?![\dT])"),
    "uuid": re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"),
    "ipv4": re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"),
}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
# Properties that mean "what was asked": the prompt itself is their value when nothing better is quoted.
_ASKS = frozenset(
    {"query", "q", "question", "prompt", "input", "text", "message", "content", "search_query", "expression"}
)
_LONGEST = 10_000


class Literals:
    """The literal values of one prompt. A value that was taken is not offered again."""

    def __init__(self, text: str, without: Iterable[str] = ()) -> None:
        """`without` are words that are no values, such as the names of tools."""
        self.text = text[:_LONGEST]
        hidden = {word.casefold() for word in without}
        quoted = ["".join(found.groups(default="")) for found in _QUOTED.finditer(self.text)]
        self._quoted = [word for word in quoted if word.casefold() not in hidden]
        self._proper = [
            word for word in _PROPER.findall(self.text) if word.casefold() not in hidden and word not in self._quoted
        ]
        self._numbers = [_number(found) for found in _NUMBER.findall(self.text)]
        self._object = _first_object(self.text)
        self._taken: set[str] = set()

    def reserve(self, names: Iterable[str]) -> None:
        """Keeps values that the prompt gives to one of `names` from being offered to other properties."""
        for name in names:
            self._taken.update(_key(value) for value in self.given(name))

    def take(self, value: Any) -> None:
        """Marks a value as used."""
        self._taken.add(_key(value))

    def given(self, name: str) -> list[Any]:
        """What the prompt gives to the property `name`: `name=…`, `name: …`, `name is …`, `name "…"`, or in JSON."""
        if not name or not self.text:
            return []
        if name in self._object:
            return [self._object[name]]
        words = re.escape(re.sub(r"(?<=[a-z])(?=[A-Z])|[_\s-]+", " ", name)).replace(r"\ ", r"[\s_-]?")
        found = re.search(
            rf"(?<![\w]){words}[\"'`]?(?:\s*(?:=|:)\s*|\s+(?:is|of|as|named|called)\s+|\s+(?=[\"“'`\d-]))"
            r"(?:\"([^\"\n]*)\"|“([^”\n]*)”|'([^'\n]*)'|`([^`\n]*)`|([^\s,;]+))",
            self.text,
            re.IGNORECASE,
        )
        if found is None:
            # "for 3 days" gives `days` a number.
            amount = re.search(rf"(?<![\w.+-])(\d{{1,30}}(?:\.\d{{1,30}})?) {words}(?!\w)", self.text, re.IGNORECASE)
            return [_number(amount[1])] if amount else []
        if found[5] is None:
            return [next(text for text in found.groups() if text is not None)]
        word = found[5].rstrip(".!?)]}")
        values: list[Any] = [word] if word else []
        if _NUMBER.fullmatch(word):
            values.insert(0, _number(word))
        if word.casefold() in _TRUTH:
            values.insert(0, _TRUTH[word.casefold()])
        return values

    def has(self, value: Any) -> bool:
        """Whether the prompt holds `value` as a word of its own."""
        if not isinstance(value, str) or not value.strip():
            return False
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", self.text, re.IGNORECASE) is not None

    def strings(self, name: str, formats: Iterable[str]) -> Iterator[str]:
        """Texts for the property `name`, the likely one first."""
        for value in self.given(name):
            yield value if isinstance(value, str) else json.dumps(value)
        patterns = [pattern for kind in formats if (pattern := _FORMATS.get(kind))]
        for pattern in patterns:
            yield from (found for found in pattern.findall(self.text) if _key(found) not in self._taken)
        yield from (word for word in (*self._quoted, *self._proper) if _key(word) not in self._taken)
        if name.casefold() in _ASKS and len(self.text) <= 500:
            yield self.text

    def numbers(self, name: str) -> Iterator[int | float]:
        """Numbers for the property `name`, the likely one first."""
        for value in self.given(name):
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield value
        yield from (number for number in self._numbers if _key(number) not in self._taken)

    def booleans(self, name: str) -> Iterator[bool]:
        """Truth values that the prompt gives to the property `name`."""
        yield from (value for value in self.given(name) if isinstance(value, bool))

    def subjects(self) -> int:
        """How many distinct texts the prompt offers: as many calls it can fill."""
        return len(dict.fromkeys((*self._quoted, *self._proper)))


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _first_object(text: str) -> dict[str, Any]:
    """The first JSON object within the text; empty when there is none."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    for place in [found.start() for found in re.finditer(r"\{", text)][:8]:
        try:
            value, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return cast("dict[str, Any]", value)
    return {}
