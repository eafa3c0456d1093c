"""Parts of a conversation on their way to a wire of blocks: where they stand, and what is wrong there."""

from __future__ import annotations

from typing import Any, cast

import orjson

from maestro.llm.v1.message_pb2 import Part
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

Place = tuple[int, ...]
"""Positions: of the message and of the part within it; of a part within a tool result, too."""


def path_of(place: Place) -> str:
    """The path of a part: `messages[0].parts[1]`, `messages[0].parts[1].tool_result.parts[2]`."""
    path = f"messages[{place[0]}].parts[{place[1]}]"
    return path if len(place) == 2 else f"{path}.tool_result.parts[{place[2]}]"


def unsupported(place: Place, what: str | None, message: str) -> InvalidRequest:
    """The error for a part that can't be sent; `what` is its kind or one of its fields."""
    return UnsupportedParameter.at(f"{path_of(place)}.{what or 'kind'}", message)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, None when it is none."""
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def to_text(data: bytes, path: str) -> str:
    """The text that `data` is. Raises `InvalidRequest` at `path`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest.at(path, "is not UTF-8 text") from error


def to_arguments(text: str, place: Place) -> Any:
    """The arguments of a call for `orjson.dumps`; empty text is an empty object. Raises `InvalidRequest`."""
    if not text.strip():
        return {}
    if json_object(text) is None:
        raise InvalidRequest.at(f"{path_of(place)}.tool_call.arguments_json", "is not a JSON object")
    # As the model wrote them: parsing and printing again would change large numbers.
    return orjson.Fragment(text)


def to_own_block(part: Part, place: Place, provider: str, notes: Notes, *, ours: bool) -> orjson.Fragment | None:
    """An opaque part as the block that it was; None, and told, when it is not `ours`. Raises `InvalidRequest`."""
    if not part.HasField("origin"):
        raise InvalidRequest.at(f"{path_of(place)}.origin", "is required: it says who understands the part")
    if not ours:
        notes.foreign(f"{path_of(place)}.opaque", part.origin, provider)
        return None
    if json_object(part.opaque.json) is None:
        raise InvalidRequest.at(f"{path_of(place)}.opaque.json", "is not a JSON object")
    return orjson.Fragment(part.opaque.json)
