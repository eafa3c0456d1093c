"""JSON text as models write it: read strictly, members with their own text, and written so that it can be embedded."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

_SPACE = " \t\n\r"
_TAG = re.compile("<(?=/?tool_)")


class NotJson(ValueError):
    """Text that is no JSON; the message is for the model that wrote it."""


def parse(text: str) -> Any:
    """The value of JSON text. Raises `NotJson`; what only Python takes for JSON (NaN, lone surrogates) is none."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(f"{error.msg} at character {error.pos + 1}") from error
    except ValueError as error:
        raise NotJson(str(error)) from error
    except RecursionError as error:
        raise NotJson("it is nested too deeply") from error
    if "\\u" in text or "\\U" in text:
        _refuse_surrogates(value)
    return value


def members(text: str) -> dict[str, str]:
    """The text of each member of a JSON object, as it was written; of equal names the last one counts.

    `text` is one JSON object, as `parse` read it.
    """
    found: dict[str, str] = {}
    place = _skip(text, text.index("{") + 1)
    while text[place] != "}":
        name, place = _DECODER.raw_decode(text, place)
        start = _skip(text, _skip(text, place) + 1)
        _, end = _DECODER.raw_decode(text, start)
        found[name] = text[start:end]
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)
    return found


def write(value: Any) -> str:
    """`value` as compact JSON text in which none of the tags around calls and results can stand."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _skip(text: str, place: int) -> int:
    while text[place] in _SPACE:
        place += 1
    return place


def _refuse(name: str) -> NoReturn:
    raise NotJson(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotJson(f"{text[:20]} is too large a number")
    return value


def _refuse_surrogates(value: Any) -> None:
    """Half a character can be escaped, but not sent."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise NotJson("it escapes half of a surrogate pair") from error


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
