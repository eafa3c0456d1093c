"""What a setting may be: durations, sizes, addresses, paths, names, and references to secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from maestro.llm.v1.model_pb2 import Feature

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SURELY_MEANT = 0.8
_SHORTEST, _LONGEST = 0.001, 3650 * 86400.0
_SHORTEST_NAME = 4
"""Letters of a name below which the like are as likely meant as not."""
_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_NOT_IN_URL = re.compile(r"[^!-~]")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_MODEL = re.compile(r"[a-z0-9][a-z0-9_.-]*/\S+")
INLINE = "keys never stand in the file: use {env: NAME} or {file: PATH}"


_revealed: set[str] = set()


def revealed() -> frozenset[str]:
    """The secrets that this process has read; logs leave them out."""
    return frozenset(_revealed)


def nearly(name: str, known: Iterable[str]) -> str:
    """The known name that another one was surely meant to be; "" when it is one of them, or like none."""
    names = set(known)
    found = [] if name in names else get_close_matches(name, sorted(names), n=1, cutoff=_SURELY_MEANT)
    return found[0] if found else ""


def is_slip(one: str, other: str) -> bool:
    """Whether two names differ by two letters in the wrong order, or by one that is missing inside or doubled.

    team-b is no slip of team-a, and acme2 none of acme.
    """
    short, long = sorted((one, other), key=len)
    at = next((n for n, (left, right) in enumerate(zip(short, long, strict=False)) if left != right), len(short))
    if len(short) < _SHORTEST_NAME or not long[at : at + 1].isalpha():
        return False
    if len(short) == len(long):
        return short[at : at + 2] == long[at : at + 2][::-1] and short[at + 2 :] == long[at + 2 :]
    return short[at:] == long[at + 1 :] and (at < len(short) or long[at] == long[at - 1])


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    spans = _SPAN.findall(value)
    if not spans or "".join(number + unit for number, unit in spans) != value:
        raise ValueError(f"{value!r} is not a duration such as 250ms, 10s, 5m, 1h or 7d")
    return sum(float(number) * _UNITS[unit] for number, unit in spans)


def _bounded(value: float) -> float:
    # What is told to others as protobuf has to fit in there; and less than a millisecond would be told as none.
    if value > _LONGEST:
        raise ValueError(f"{value:.12g} s is longer than 3650d")
    if 0 < value < _SHORTEST:
        raise ValueError(f"{value:g} s is shorter than 1ms")
    return value


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", value)
    if match is None or match[2].lower() not in _SIZES:
        raise ValueError(f"{value!r} is not a size such as 3145728, 64MiB or 1GB")
    return int(match[1]) * _SIZES[match[2].lower()]


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{value!r} is not an address such as 127.0.0.1:50051")
    return value


def _base_url(value: str) -> str:
    try:
        url = urlsplit(value)
        plain = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        url, plain = urlsplit(""), False
    if not plain or _NOT_IN_URL.search(value):
        # Without the value: it may hold a key.
        raise ValueError("is not an http or https address such as https://host:8080/path")
    if url.username is not None or url.password is not None:
        raise ValueError("holds a user or a password, which never stand in the file")
    if url.query or url.fragment:
        raise ValueError("has to end with its path: no ? and no #")
    return value.rstrip("/")


def _absolute(value: Path, info: ValidationInfo) -> Path:
    base = cast("Mapping[str, Any]", info.context or {}).get("base", "")
    return Path(base or Path.cwd()) / value.expanduser()


def _feature(value: str) -> str:
    known = [name.removeprefix("FEATURE_") for name in Feature.keys()[1:]]
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value


def is_model(name: str) -> bool:
    """Whether `name` has the form "provider/model"."""
    return _MODEL.fullmatch(name) is not None


def _model_name(value: str) -> str:
    if not is_model(value):
        raise ValueError(f"{value!r} is not a model such as anthropic/claude-sonnet-5-5")
    return value


Duration = Annotated[
    float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False), AfterValidator(_bounded)
]  # fmt: skip
"""Seconds, 0 or from 1 ms to 3650 days; written as "250ms", "10s", "5m", "1h", "7d" or as a number of seconds."""
Size = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
"""Bytes; written as a number or as "64MiB"."""
Address = Annotated[str, AfterValidator(_address)]
"""A TCP address, "host:port"."""
BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""An address over HTTP to which paths are appended; without a slash at its end."""
ConfigPath = Annotated[Path, AfterValidator(_absolute)]
"""A path; a relative one starts at the folder of the configuration file."""
FeatureName = Annotated[str, AfterValidator(_feature)]
"""A feature of the contract without its prefix, such as TOOLS."""
ModelName = Annotated[str, AfterValidator(_model_name)]
"""A model as "provider/model"."""


class Settings(BaseModel):
    """Base of everything that is configured: frozen, and a name that nobody knows is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Secret(Settings):
    """A reference to a key: the variable or the file that holds it. The key itself is read on use and never printed."""

    env: str | None = None
    file: ConfigPath | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_inline(cls, value: Any) -> Any:
        if not isinstance(value, dict | Secret):
            raise ValueError(INLINE)
        return cast("Any", value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env or file")
        return self

    def get(self, env: Mapping[str, str] | None = None) -> str | None:
        """The key; None when the variable is empty or unset, or the file is missing, empty or no text."""
        if self.file is not None:
            try:
                value = self.file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError):
                return None
        else:
            value = (os.environ if env is None else env).get(self.env or "", "").strip()
        if len(value) >= 6:
            _revealed.add(value)
        return value or None
