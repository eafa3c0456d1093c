"""Places up to which the prompt is kept: marks on the last content of a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import CachePoint, CacheTtl, ChatRequest, Warning  # noqa: A004 - the contract's name
from maestro_sdk.adapter.chat_completions.content import SYSTEM
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.errors import InvalidRequest

_MARK = "prompt_cache_breakpoint"
_MARKED = frozenset({"text", "image_url", "input_audio", "file"})
"""Kinds of content that take a mark."""


def mark_cache(
    request: ChatRequest, dialect: Dialect, body: dict[str, Any], ends: Mapping[int, int], warnings: list[Warning]
) -> None:
    """Marks in `body` what `request.cache` names; what can't be marked is told.

    Without points the server goes on choosing by itself, which is what the contract means by that too. Raises
    `InvalidRequest` for a message that is not there.
    """

    def tell(path: str, why: str) -> None:
        warnings.append(Warning(code="unsupported_parameter", message=f"{path} was not sent: {why}", field=path))

    cache = request.cache
    if not dialect.cache_points:
        tell("cache", f"{dialect.provider} chooses what to keep in its prompt cache by itself")
        return
    if cache.ttl == CacheTtl.CACHE_TTL_1H:
        tell("cache.ttl", "what is marked is kept for at least 30 minutes; no longer time is asked for here")
    places: dict[int, str] = {}
    for position, point in enumerate(cache.points):
        path = f"cache.points[{position}]"
        place = _place(point, path, request, ends)
        if place is None or not _last(body["messages"][place]):
            tell(path, "there is no content that can be marked; name the place behind it")
        else:
            places[place] = path
    early, latest = sorted(places)[: -dialect.cache_points], sorted(places)[-dialect.cache_points :]
    for place in early:
        tell(places[place], f"the model takes {dialect.cache_points} places, and these are the last ones")
    for place in latest:
        _mark(body["messages"][place])
    if latest:
        # Else the server would add a place of its own, and pay the writing of it.
        body["prompt_cache_options"] = {"mode": "explicit"}


def _place(point: CachePoint, path: str, request: ChatRequest, ends: Mapping[int, int]) -> int | None:
    match point.WhichOneof("after"):
        case "system":
            return ends.get(SYSTEM)
        case "message":
            if point.message >= len(request.messages):
                raise InvalidRequest.at(f"{path}.message", f"there is no messages[{point.message}]")
            return ends.get(point.message)
        case _:
            # Tools stand before all content, and no field of theirs takes a mark.
            return None


def _last(message: Mapping[str, Any]) -> bool:
    """Whether the message ends with something that takes a mark."""
    content: Any = message.get("content")
    if isinstance(content, str):
        return bool(content)
    block: Any = cast("list[Any]", content)[-1] if content else None
    return isinstance(block, dict) and cast("dict[str, Any]", block).get("type") in _MARKED


def _mark(message: dict[str, Any]) -> None:
    content: Any = message["content"]
    if isinstance(content, str):
        content = message["content"] = [{"type": "text", "text": content}]
    content[-1] = {**content[-1], _MARK: {"mode": "explicit"}}
