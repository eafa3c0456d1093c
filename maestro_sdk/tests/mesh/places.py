"""A gate with places that tests look at."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import MaestroError, RateLimited
from maestro_sdk.mesh.gate import Refusal
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import Backend


def mesh_wide(wait: float | None = 30.0) -> MaestroError:
    return RateLimited("no room", retry_after=wait, retryable=None if wait is not None else False)


@dataclass
class Places:
    """Places at each backend; `refuse` makes the error of whoever finds none.

    Asking takes `pause` seconds, and waits until it `opens` where that is set.
    """

    limits: dict[str, int]
    refuse: Callable[[], MaestroError] = mesh_wide
    pause: float = 0.0
    opens: asyncio.Event | None = None
    exact: bool = True
    taken: Counter[str] = field(default_factory=Counter[str])
    most: Counter[str] = field(default_factory=Counter[str])
    settled: list[tuple[str, int | None]] = field(default_factory=list[tuple[str, int | None]])
    """Who gave a place back, and the tokens that were used."""
    undone: list[str] = field(default_factory=list[str])
    """Who gave a place back since nothing was asked."""
    asked: list[str] = field(default_factory=list[str])
    left: list[str] = field(default_factory=list[str])
    """Where somebody left while it stood at the gate."""

    def find(self, backend: Backend, needs: Needs) -> Place | None:
        return Place(self, backend.provider) if backend.provider in self.limits else None

    def idle(self) -> bool:
        return not self.taken.total()

    def open_up(self) -> None:
        assert self.opens is not None
        self.opens.set()


class Place:
    def __init__(self, places: Places, name: str) -> None:
        self.places, self.name = places, name

    async def take(self) -> Refusal | None:
        places, name = self.places, self.name
        places.asked.append(name)
        try:
            if places.pause:
                await asyncio.sleep(places.pause)
            if places.opens is not None:
                await places.opens.wait()
        except asyncio.CancelledError:
            places.left.append(name)
            raise
        if places.taken[name] >= places.limits[name]:
            return Refusal(places.refuse(), exact=places.exact)
        places.taken[name] += 1
        places.most[name] = max(places.most[name], places.taken[name])
        return None

    def settle(self, usage: Usage | None) -> None:
        self.places.taken[self.name] -= 1
        self.places.settled.append((self.name, None if usage is None else usage.input_tokens + usage.output_tokens))

    def undo(self) -> None:
        self.places.taken[self.name] -= 1
        self.places.undone.append(self.name)
