"""The order in which the backends of one tier are tried. Pure: dice, paces and counters come in as arguments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from maestro.llm.v1.usage_pb2 import Headroom
from maestro_sdk.mesh.headroom import Allowance, allowance_of
from maestro_sdk.mesh.needs import Needs, feature_names
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.table import Backend, Choice, point_of

USUAL_OUTPUT = 512
"""Tokens of an answer whose length the request does not bound."""
_WORD, _WORDS = 2**64 - 1, 2**64


class Ranked(NamedTuple):
    """A backend in its place, and why; `score` is what it was ordered by, less is better."""

    choice: Choice
    why: str
    score: float | None = None
    values: tuple[str | float, ...] = ()

    @property
    def reason(self) -> str:
        """Why it stands there. Put together on demand: most decisions are never shown."""
        return self.why.format(*self.values) if self.values else self.why


@dataclass(slots=True)
class Load:
    """What strategies look at beside the table; fed by the process that decides."""

    in_flight: MutableMapping[str, int] = field(default_factory=dict[str, int])
    paces: MutableMapping[str, Pace] = field(default_factory=dict[str, Pace])
    headrooms: MutableMapping[str, tuple[Headroom, float]] = field(default_factory=dict[str, tuple[Headroom, float]])
    """By backend: what the provider's rate limits left, and when it was told in Unix time."""
    turns: MutableMapping[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """By route and tier: how often it was asked, for round robin."""
    _read: MutableMapping[str, tuple[Headroom, Allowance | None]] = field(
        default_factory=dict[str, tuple[Headroom, Allowance | None]], repr=False
    )

    def allowance(self, backend: Backend) -> Allowance | None:
        """What is left to a backend, from what was told last, here or to the router; None when nothing was."""
        noted = self.headrooms.get(backend.id)
        if noted is None:
            return backend.allowance
        headroom, told = noted
        known = self._read.get(backend.id)
        # A message is read once: its fields cost more than the arithmetic.
        if known is None or known[0] is not headroom:
            known = self._read[backend.id] = (headroom, allowance_of(headroom, told))
        own, shared = known[1], backend.allowance
        return shared if own is None or (shared is not None and shared.told > own.told) else own


class Asked(NamedTuple):
    """What strategies look at of a request at the Unix time `now`; `tokens` and `output` are estimates."""

    key: str
    required: int
    tokens: int
    output: int
    now: float


def asked_of(needs: Needs, now: float) -> Asked:
    """What strategies look at of a request."""
    return Asked(needs.key, needs.required, needs.input_tokens, needs.max_tokens or USUAL_OUTPUT, now)


def estimate(backend: Backend, needs: Needs) -> float | None:
    """The cost of a call in US dollars by rule of thumb; None when the price is unknown."""
    price = backend.price
    if price is None:
        return None
    output = needs.max_tokens or min(USUAL_OUTPUT, backend.output_limit or USUAL_OUTPUT)
    return max(price.minimum, needs.input_tokens * price.input + output * price.output)


def rank(
    strategy: str, tier: Sequence[Choice], asked: Asked, place: tuple[str, int], load: Load, dice: Callable[[], float]
) -> list[Ranked]:
    """The backends of a tier in the order in which to try them; `place` is the route and the number of the tier.

    The request's key sticks: while the same backends may be tried, the same key tries the same one first, whatever the
    strategy. But "fallback" and "capability" keep their order, which is their point; there the key chooses among
    backends that are equal. Whom the provider would refuse, since its rate limit is used up, comes last in any case.
    """
    spent: dict[str, str] = {}
    tokens = asked.tokens
    allowances = [load.allowance(choice.backend) for choice in tier]
    for choice, allowance in zip(tier, allowances, strict=True):
        # What was told is the least that is left now.
        if allowance is None or (allowance.least_requests >= 1 and allowance.least_tokens >= tokens):
            continue
        if lack := allowance.lack(tokens, asked.now):
            spent[choice.backend.id] = lack
    if not spent:
        return _rank(strategy, tier, allowances, asked, place, load, dice)
    ranked: list[Ranked] = []
    for late in (False, True):
        some = [n for n, choice in enumerate(tier) if (choice.backend.id in spent) is late]
        if some:
            part = [tier[n] for n in some]
            ranked += _rank(strategy, part, [allowances[n] for n in some], asked, place, load, dice)
    return [
        Ranked(found.choice, lack, found.score) if (lack := spent.get(found.choice.backend.id)) else found
        for found in ranked
    ]


def _rank(
    strategy: str,
    tier: Sequence[Choice],
    allowances: Sequence[Allowance | None],
    asked: Asked,
    place: tuple[str, int],
    load: Load,
    dice: Callable[[], float],
) -> list[Ranked]:
    if strategy == "fallback":
        return _fallback(tier, asked.key, load)
    if strategy == "capability":
        return _capability(tier, asked)
    if asked.key:
        return _sticky(tier, asked.key, weighted=strategy == "weighted")
    match strategy:
        case "weighted":
            return _weighted(tier, dice)
        case "round_robin":
            return _round_robin(tier, place, load)
        case "cost":
            return _cost(tier)
        case "performance":
            return _performance(tier, load, dice)
        case "headroom":
            return _headroom(tier, allowances, asked, load)
        case _:
            raise ValueError(f"unknown strategy {strategy!r}")


def _fallback(tier: Sequence[Choice], key: str, load: Load) -> list[Ranked]:
    ranked = [
        Ranked(choice, "target {}", None, (choice.number,))
        if choice.number
        else Ranked(choice, "what the pinned adapter has")
        for choice in tier
    ]
    if len({choice.backend.model for choice in tier}) == len(ranked):
        return ranked
    # Several adapters serve one model: the key's own one first, else the idlest; targets keep their order.
    first: dict[str, int] = {}
    for n, choice in enumerate(tier):
        first.setdefault(choice.backend.model, n)
    if key:
        point = point_of(key)
        return sorted(
            ranked,
            key=lambda found: (first[found.choice.backend.model], _nearness(point, found.choice.backend.point)),
        )
    idle = load.in_flight
    return sorted(ranked, key=lambda found: (first[found.choice.backend.model], idle.get(found.choice.backend.id, 0)))


def _sticky(tier: Sequence[Choice], key: str, *, weighted: bool) -> list[Ranked]:
    point, nearness = point_of(key), _nearness
    if weighted:
        scored = [
            (-math.log(nearness(point, choice.backend.point)) / choice.weight, n) for n, choice in enumerate(tier)
        ]
    else:
        scored = [(1.0 - nearness(point, choice.backend.point), n) for n, choice in enumerate(tier)]
    scored.sort()
    ranked = [Ranked(tier[n], "next to it", score) for score, n in scored]
    ranked[0] = ranked[0]._replace(why="nearest to the request's key")
    return ranked


def _weighted(tier: Sequence[Choice], dice: Callable[[], float]) -> list[Ranked]:
    # Sampling without replacement by exponentials with the weights as rates (Efraimidis and Spirakis).
    log = math.log
    total = sum([choice.weight for choice in tier])
    drawn = [(-log(1.0 - dice()) / choice.weight, n) for n, choice in enumerate(tier)]
    drawn.sort()
    return [
        Ranked(choice, "weight {:g} of {:g}", None, (choice.weight, total)) for choice in [tier[n] for _, n in drawn]
    ]


def _round_robin(tier: Sequence[Choice], place: tuple[str, int], load: Load) -> list[Ranked]:
    turn = load.turns.get(place, 0)
    load.turns[place] = turn + 1
    start, why = turn % len(tier), f"turn {turn + 1}"
    return [Ranked(choice, why) for choice in (*tier[start:], *tier[:start])]


def _cost(tier: Sequence[Choice]) -> list[Ranked]:
    ordered = sorted(tier, key=lambda choice: math.inf if choice.cost is None else choice.cost)
    return [
        Ranked(choice, "its price is unknown")
        if choice.cost is None
        else Ranked(choice, "about ${:.6f}", choice.cost, (choice.cost,))
        for choice in ordered
    ]


def _performance(tier: Sequence[Choice], load: Load, dice: Callable[[], float]) -> list[Ranked]:
    """The better one of two drawn at random first, so that not everybody runs to the same one; then all by score."""
    paces, calls = load.paces, load.in_flight
    known = [paces.get(choice.backend.id) for choice in tier]
    waits = [None if pace is None else pace.expect() for pace in known]
    # Who was never asked counts as the quickest known: it is tried, and then it is known.
    best = min([wait for wait in waits if wait is not None], default=0.0)
    scored = [
        ((best if wait is None else wait) * (calls.get(tier[n].backend.id, 0) + 1), n) for n, wait in enumerate(waits)
    ]
    scored.sort()
    if len(scored) > 2:
        one = int(dice() * len(scored))
        other = int(dice() * (len(scored) - 1))
        scored.insert(0, scored.pop(min(one, other + (other >= one))))
    ranked: list[Ranked] = []
    for score, n in scored:
        pace = known[n]
        if pace is None:
            ranked.append(Ranked(tier[n], "not asked yet", score))
        else:
            values = (pace.first * 1000, pace.rate)
            ranked.append(Ranked(tier[n], "first event after {:.0f} ms, {:.0f} tokens/s", score, values))
    return ranked


def _headroom(tier: Sequence[Choice], allowances: Sequence[Allowance | None], asked: Asked, load: Load) -> list[Ranked]:
    """By the share that is used; calls under way count, and decide among equals."""
    scored: list[tuple[float, int, int, str]] = []
    each, now, in_flight = asked.tokens + asked.output, asked.now, load.in_flight
    for n, allowance in enumerate(allowances):
        calls = in_flight.get(tier[n].backend.id, 0)
        share, word = (1.0, "") if allowance is None else allowance.share(calls, each, now)
        scored.append((1.0 - share, calls, n, word))
    scored.sort()
    return [
        Ranked(tier[n], "{:.0%} of its {} left", used, (1.0 - used, word))
        if word
        else Ranked(tier[n], "its rate limits are not known", used)
        for used, _, n, word in scored
    ]


def _capability(tier: Sequence[Choice], asked: Asked) -> list[Ranked]:
    point = point_of(asked.key) if asked.key else 0
    scored = [
        (
            (asked.required & ~choice.backend.native).bit_count(),
            1.0 - _nearness(point, choice.backend.point) if point else 0.0,
            n,
        )
        for n, choice in enumerate(tier)
    ]
    scored.sort()
    return [
        Ranked(tier[n], f"polyfills {feature_names(asked.required & ~tier[n].backend.native)}", float(count))
        if count
        else Ranked(tier[n], "has all that is needed natively", 0.0)
        for count, _, n in scored
    ]


def _nearness(key: int, backend: int) -> float:
    """Rendezvous hashing: a number in (0, 1] of a key and a backend. When a backend goes, only its own keys move."""
    # The finish of SplitMix64: a hash of each pair would cost several times as much.
    mixed = key ^ backend
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
    return ((mixed ^ mixed >> 31) + 1) / _WORDS


def draw_variant(experiment: str, subject: str, shares: Sequence[tuple[str, float]]) -> str:
    """The variant of a subject, by a hash that every process computes alike; empty for what the shares leave over."""
    digest = hashlib.blake2b(f"{experiment}\0{subject}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * 100.0
    for name, share in shares:
        if point < share:
            return name
        point -= share
    return ""
