"""Times as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

_SPAN = re.compile(r"(\d{1,5})(h|d)")
_MONTH = re.compile(r"\d{4}-\d{2}")
FORMS = "2026-03-01, 2026-03, 7d or 12h ago, or a time of RFC 3339"
"""For people: what `read_time` takes."""


def read_time(text: str, now: datetime, hint: str) -> str:
    """What a person wrote as a time of RFC 3339; empty when nothing was written. `hint` names the option."""
    if not text:
        return ""
    if (span := _SPAN.fullmatch(text)) is not None:
        found = now - timedelta(**{"hours" if span[2] == "h" else "days": int(span[1])})
    else:
        try:
            found = datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text)
        except ValueError:
            message = f"{text!r} is neither a day such as {now:%Y-%m-%d}, nor a time with its zone, nor 7d or 12h"
            raise typer.BadParameter(message, param_hint=hint) from None
        found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return found.astimezone(UTC).isoformat().replace("+00:00", "Z")
