"""Golden files: reviewed snapshots of what a translation makes.

golden.check(GOLDEN / "text.wire.json", wire)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import orjson
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

WRITE = "MAESTRO_GOLDEN"
"""The variable that, set to "write", lets `check` write the files anew, to be reviewed."""


def check(path: Path, value: Any) -> None:
    """Fails unless `value`, a JSON value that `plain` made or that is one anyway, stands in the file, letter by letter.

    Compared as text, so that the order of keys and 1 against 1.0 count.
    """
    check_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_text(path: Path, text: str) -> None:
    """Fails unless `text` stands in the file, letter by letter."""
    if os.environ.get(WRITE) == "write":
        path.write_text(text, encoding="utf-8")
    expected = path.read_text(encoding="utf-8") if path.exists() else ""
    if text != expected:
        raise AssertionError(f"{path.name} is not what came out ({WRITE}=write writes it anew):\n{text}")


def plain(value: Any) -> Any:
    """A message, a list of them, or the body of a request as JSON values."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in cast("list[Any]", value)]
    if isinstance(value, Message):
        # Maps of protobuf have no order.
        return json.loads(MessageToJson(value, preserving_proto_field_name=True, sort_keys=True))
    return json.loads(orjson.dumps(value))
