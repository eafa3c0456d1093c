"""JSON objects that come from callers as text."""

from __future__ import annotations

from typing import Any, cast

import orjson


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, None when it is none."""
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
