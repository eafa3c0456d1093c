"""What is asked of a store of spending: counters of what was spent, and holds of what is about to be.

A hold takes a share of each counter that its request falls under, or of none. It ends by being settled to what was
really used; one whose owner died is charged as a whole. Its record, an event, stays until that is safe elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Outcome(IntEnum):
    """What became of a wish to hold."""

    TAKEN = 0
    UNSEEDED = 1
    """The store knows nothing of a counter: it has to be told first what was spent."""
    SPENT = 2
    """There is no room beside what was spent."""
    HELD = 3
    """There is no room beside what others hold; some of it may come back."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a hold takes of one counter, in nano-dollars and tokens, and the most there may be; -1 for no limit.

    A counter is named "budget|period|…"; it may be forgotten at `ends`, Unix time in milliseconds.
    """

    counter: str
    usd: int
    tokens: int
    limit_usd: int
    limit_tokens: int
    ends: int


@dataclass(frozen=True, slots=True)
class Hold:
    """The shares of one request.

    `record` is handed to whoever finds that its owner died; one without a record is given back then, not charged.
    """

    id: str
    shares: tuple[Share, ...]
    record: bytes


@dataclass(frozen=True, slots=True)
class Balance:
    """What a counter knows."""

    counter: str
    usd: int = 0
    tokens: int = 0
    held_usd: int = 0
    held_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a hold; `index` is that of the share which stood in its way, `balance` that of its counter.

    `first` says that it is the first time that this counter refuses for what was spent. For one that is unseeded:
    `generation` has to be told back, and while it is `busy` nobody can know yet what was spent.
    """

    outcome: Outcome
    index: int = 0
    balance: Balance = Balance("")
    first: bool = False
    generation: int = 0
    busy: bool = False


TAKEN = Answer(Outcome.TAKEN)


@dataclass(frozen=True, slots=True)
class Charge:
    """What was spent of a counter before and after it was charged."""

    counter: str
    usd_before: int
    tokens_before: int
    usd: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Orphan:
    """A hold whose owner died before its record was safe. `charged` are the counters that took all of it for used."""

    id: str
    record: bytes
    charged: tuple[str, ...] = ()


class Holds(Protocol):
    """Keeps counters and holds. `on_charge` is told of every counter that a call of this process charges.

    `on_doubt` is told the names of counters which may be wrong: only the ledger knows better.
    """

    on_charge: Callable[[Charge], None]
    on_doubt: Callable[[Sequence[str]], None]

    @property
    def up(self) -> bool:
        """Whether the store answers."""
        ...

    def reserve(self, hold: Hold) -> Answer | Awaitable[Answer]:
        """Takes all shares of a new hold, or none. Raises `StoreAway`, at once or when awaited."""
        ...

    def settle(self, hold: Hold, usd: int, tokens: int, record: bytes) -> None:
        """Ends a hold with what was used, and keeps `record` until `forget`. One that is unknown is charged as well.

        Returns at once and never fails; doing it twice does no harm.
        """
        ...

    def close(self, name: str, usd: int, tokens: int, record: bytes) -> None:
        """Settles what a life before held under this name, if it still does. Returns at once and never fails."""
        ...

    def undo(self, hold: Hold) -> None:
        """Ends a hold that was never to be. Returns at once and never fails."""
        ...

    def leave(self, hold: Hold) -> None:
        """Lets go of a hold that another owner takes over; when none does, it ends as if this one had died."""
        ...

    def forget(self, ids: Sequence[str]) -> None:
        """The records of these settled holds are safe elsewhere. Returns at once and never fails."""
        ...

    async def seed(self, counter: str, generation: int, usd: int, tokens: int, ends: int) -> bool:
        """Tells what was spent; False when something was settled since `generation`: ask again. Raises `StoreAway`."""
        ...

    async def unseed(self, counter: str, *, force: bool = True) -> bool | None:
        """Forgets what was spent: it has to be told anew. False when it was not known. Raises `StoreAway`.

        Without `force` only when all records of its settled holds are safe: else nothing is done, and None tells so.
        """
        ...

    async def orphans(self, most: int) -> Sequence[Orphan]:
        """Charges holds whose owners died, and gives what has to be told. They come again until they are forgotten.

        Raises `StoreAway`.
        """
        ...

    async def balances(self, group: str) -> Sequence[Balance]:
        """All counters under "budget|period" of which was told what was spent. Raises `StoreAway`."""
        ...
