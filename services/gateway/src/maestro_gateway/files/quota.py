"""What a tenant's files take, and what its uploads have reserved. Pure: a change gives a new value.

It is one entry of the bucket per tenant, changed only from the revision that was read, so that no two uploads on any
two gateways take the same room. A place that is under way is on the list from before its first byte until it is kept or
gone: whatever a gateway left behind when it died is found there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import orjson

from maestro_sdk.errors import Overloaded, Timeout, TooLarge
from maestro_sdk.service.files import FilesConfig

MOST_OPEN = 64
"""Uploads of one tenant at a time."""


@dataclass(frozen=True, slots=True)
class Quota:
    """`size` in bytes of `files` files; `open` are bytes reserved and the Unix time until which, by place."""

    size: int = 0
    files: int = 0
    open: Mapping[str, tuple[int, float]] = field(default_factory=dict[str, tuple[int, float]])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The value that `encode` wrote. Raises `ValueError`."""
        found: Any = orjson.loads(data)
        try:
            held = {str(place): (int(size), float(until)) for place, (size, until) in found["open"].items()}
            return cls(int(found["size"]), int(found["files"]), held)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"is no quota: {error}") from None

    def encode(self) -> bytes:
        return orjson.dumps({"size": self.size, "files": self.files, "open": self.open})

    def reserve(
        self, place: str, size: int, until: float, limits: FilesConfig, now: float, *, new: bool = True
    ) -> Self:
        """With `size` bytes held for a place that is `new`, or on the list.

        Raises `TooLarge`, `Overloaded`, and `Timeout` when the place was on the list and was given up.
        """
        if not new:
            self._held(place)
        others = {name: held for name, held in self.open.items() if name != place}
        live = [held for held, end in others.values() if held and end > now]
        if len(live) >= MOST_OPEN:
            raise Overloaded(f"{MOST_OPEN} uploads of this tenant are under way", retry_after=1.0)
        if self.files + len(live) >= limits.max_files:
            raise TooLarge(
                f"the tenant has {self.files} files, and {len(live)} are being uploaded; {limits.max_files} are "
                "allowed: delete some first"
            )
        if self.size + sum(live) + size > limits.max_tenant:
            raise TooLarge(
                f"the tenant's files have {self.size} bytes, and {sum(live)} are being uploaded; with {size} more "
                f"they would exceed the {limits.max_tenant} that are allowed: delete some first"
            )
        return replace(self, open={**others, place: (size, until)})

    def renew(self, place: str, until: float) -> Self:
        """With a place held for longer. Raises `Timeout` when it was given up."""
        held = self._held(place)
        return replace(self, open={**self.open, place: (held[0], until)})

    def _held(self, place: str) -> tuple[int, float]:
        held = self.open.get(place)
        if held is None or not held[0]:
            raise Timeout("the upload was silent for too long and was given up", counts_against_health=False)
        return held

    def settle(self, place: str, size: int) -> Self:
        """With a place that is a file of `size` bytes now."""
        if place not in self.open:
            return self  # it was counted by whoever looked through the bucket
        return replace(self.without(place), size=self.size + size, files=self.files + 1)

    def give_up(self, place: str, size: int) -> Self:
        """With a file of `size` bytes that is about to be deleted: its place is free as soon as it is empty."""
        if place in self.open:
            return self
        left, files = max(0, self.size - size), max(0, self.files - 1)
        return replace(self, size=left, files=files, open={**self.open, place: (0, 0.0)})

    def without(self, *places: str) -> Self:
        """Without some places."""
        return replace(self, open={name: held for name, held in self.open.items() if name not in places})

    def corrected(self, size: int, files: int) -> Self:
        """With what the bucket really holds."""
        return replace(self, size=size, files=files)
