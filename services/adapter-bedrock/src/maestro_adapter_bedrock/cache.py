"""Where the prompt is kept: `Cache` as Bedrock's `cachePoint` blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict

from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock.models import BedrockModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest

MAX_POINTS = 4

_TTL: Mapping[CacheTtl.ValueType, Literal["5m", "1h"]] = {CacheTtl.CACHE_TTL_5M: "5m", CacheTtl.CACHE_TTL_1H: "1h"}
_TOOLS, _SYSTEM = -2, -1


class _Point(TypedDict):
    type: Literal["default"]
    ttl: NotRequired[Literal["5m", "1h"]]


class CachePoint(TypedDict):
    """The block."""

    cachePoint: _Point


class CachePlan:
    """Up to where the prompt is kept: after the tools, the system text, and after the messages with these positions."""

    __slots__ = ("messages", "point", "system", "tools")

    def __init__(self, request: ChatRequest, model: BedrockModel, notes: Notes) -> None:
        self.tools = self.system = False
        self.messages: frozenset[int] = frozenset()
        self.point: CachePoint = {"cachePoint": {"type": "default"}}
        if not request.HasField("cache"):
            return
        places = _places(request)
        if not model.has(Feature.FEATURE_PROMPT_CACHING):
            notes.unsupported("cache", f"{model.name} keeps no prompts")
            return
        if request.cache.points:
            for place, name in ((_TOOLS, "tools"), (_SYSTEM, "system")):
                if place in places and name not in model.wire.cache:
                    notes.unsupported("cache.points", f"{model.name} can't keep a prompt up to its {name}")
                    places.remove(place)
        else:
            # The provider has no way to choose by itself: what stands before all turns is kept, and the last turn.
            places = {len(request.messages) - 1}
            if request.system:
                places.add(_SYSTEM)
            elif request.tools and "tools" in model.wire.cache:
                places.add(_TOOLS)
        # The last ones hold the most, so they stay.
        kept = sorted(places)[-MAX_POINTS:]
        if len(kept) < len(places):
            notes.unsupported("cache.points", f"at most {MAX_POINTS} places are kept; the last ones are")
        self.tools, self.system = _TOOLS in kept, _SYSTEM in kept
        self.messages = frozenset(place for place in kept if place >= 0)
        if ttl := _TTL.get(request.cache.ttl):
            if ttl in model.wire.ttls:
                self.point["cachePoint"]["ttl"] = ttl
            elif ttl != "5m":
                notes.unsupported("cache.ttl", f"{model.name} keeps prompts for five minutes")


def _places(request: ChatRequest) -> set[int]:
    """Positions in the prompt: tools stand before the system text, that before all messages."""
    places: set[int] = set()
    for number, point in enumerate(request.cache.points):
        match point.WhichOneof("after"):
            case "tools" if request.tools:
                places.add(_TOOLS)
            case "system" if request.system:
                places.add(_SYSTEM)
            case "message":
                if point.message >= len(request.messages):
                    raise InvalidRequest.at(f"cache.points[{number}].message", "there is no such message")
                places.add(point.message)
            case _:
                continue
    return places
