"""Announcements of adapters: how they are read, and who of several stands for a name. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from enum import Enum

from google.protobuf.message import DecodeError

from maestro.llm.v1.model_pb2 import FEATURE_CHAT, SUPPORT_NATIVE, SUPPORT_POLYFILLED, Model
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter
from maestro_sdk.adapter.announce import NAME, unreachable

LONGEST = 4096
"""Most bytes of an announcement."""
_MOST_REGIONS = 32
_LONGEST_WORD = 128
_CLAIMED = frozenset({SUPPORT_NATIVE, SUPPORT_POLYFILLED})


class Malformed(ValueError):
    """What came is no announcement that can be used. The message never repeats what came."""


def read(data: bytes) -> pb.AdapterAnnouncement:
    """The announcement in a message. Raises `Malformed`."""
    if len(data) > LONGEST:
        raise Malformed(f"it has {len(data)} bytes, {LONGEST} at most are allowed")
    try:
        found = pb.AdapterAnnouncement.FromString(data)
    except DecodeError:
        raise Malformed("it is no maestro.router.v1.AdapterAnnouncement") from None
    if not NAME.fullmatch(found.name):
        raise Malformed("its name is not one: letters, digits, - _ and ., 63 at most")
    if wrong := unreachable(found.address):
        raise Malformed(f"{found.name} announces an address that {wrong}")
    if not 0 < len(found.instance) <= _LONGEST_WORD:
        raise Malformed(f"{found.name} announces no instance, or one of more than {_LONGEST_WORD} characters")
    if len(found.regions) > _MOST_REGIONS or any(len(region) > _LONGEST_WORD for region in found.regions):
        raise Malformed(f"{found.name} announces more than {_MOST_REGIONS} regions, or one with a long name")
    return found


class Standing(Enum):
    """How far an announced adapter has come."""

    WAITING = "waiting"
    """Not proven yet; it is as soon as it serves."""
    VERIFYING = "verifying"
    ADMITTED = "admitted"
    REFUSED = "refused"


@dataclass(slots=True, eq=False)
class Candidate:
    """A process that announced itself, under its name and address."""

    name: str
    address: str
    instance: str
    view: Adapter
    """What its watch sees."""
    standing: Standing
    note: str = ""
    """Why it is being verified, or was refused."""
    heard: float = 0.0
    """Unix time of its last announcement."""
    back: float = 0.0
    """Unix time at which it was seen to come into service last."""
    missed: int = 0
    """Looks in a row that found no announcement since the last one."""
    retry: float = 0.0
    """Unix time at which a refused one is verified again."""

    @property
    def serves(self) -> bool:
        """Whether it may answer requests now."""
        return self.standing is Standing.ADMITTED and self.view.state == pb.ADAPTER_STATE_SERVING

    def shown(self) -> Adapter:
        """The adapter as the table may have it: without a model before it is admitted."""
        unproven = replace(self.view, models=(), providers=(), since=0.0)
        match self.standing:
            case Standing.ADMITTED:
                return self.view
            case Standing.WAITING:
                return unproven
            case Standing.VERIFYING:
                return replace(unproven, state=pb.ADAPTER_STATE_VERIFYING, reason=self.note)
            case Standing.REFUSED:
                return replace(unproven, state=pb.ADAPTER_STATE_REFUSED, reason=self.note)


def choose(candidates: Sequence[Candidate], current: Candidate | None) -> Candidate | None:
    """Who stands for a name: the one who does, as long as it serves, else the longest known who can take its place."""
    if current in candidates and current is not None and current.serves:
        return current
    serving = next((candidate for candidate in candidates if candidate.serves), None)
    if serving is not None:
        return serving
    if current in candidates:
        return current
    return next(iter(candidates), None)


def digest(adapter: Adapter) -> str:
    """What a verdict holds for: the version and the models that the adapter tells."""
    found = hashlib.sha256(adapter.version.encode())
    for model in sorted(adapter.models, key=lambda model: model.id):
        found.update(b"\0" + model.SerializeToString(deterministic=True))
    return found.hexdigest()


def cheapest(adapter: Adapter) -> str:
    """The id of the model on which an adapter is proven: the cheapest that chats; "" where none does."""
    chatting = [
        model
        for model in adapter.models
        if any(entry.feature == FEATURE_CHAT and entry.support in _CLAIMED for entry in model.features)
    ]
    return min(chatting, key=_cost).id if chatting else ""


def _cost(model: Model) -> Decimal:
    """The price of a million tokens each way; what is unknown or no price at all comes last."""
    try:
        return Decimal(model.price.input) + Decimal(model.price.output)
    except InvalidOperation:
        return Decimal("Infinity")
