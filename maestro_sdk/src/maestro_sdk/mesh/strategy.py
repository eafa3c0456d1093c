"""The order in which the backends of one tier are tried. Pure: dice, paces and counters come in as arguments."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

from maestro.llm.v1.usage_pb2 import Headroom
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.table import Backend

STRATEGIES = ("fallback", "weighted", "round_robin", "cost", "performance")
"""Names of the strategies that order the targets of a route."""
USUAL_OUTPUT = 512
"""Tokens of an answer whose length the request does not bound."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend that may be tried, with its weight, and its estimated cost in US dollars; None where it is unknown."""

    backend: Backend
    weight: float
    cost: float | None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A backend in its place, and why; `score` is what it was ordered by, less is better."""

    choice: Choice
    reason: str
    score: float | None = None


@dataclass(slots=True)
class Load:
    """What strategies look at beside the table; fed by the process that decides."""

    in_flight: MutableMapping[str, int] = field(default_factory=dict[str, int])
    paces: MutableMapping[str, Pace] = field(default_factory=dict[str, Pace])
    headrooms: MutableMapping[str, tuple[Headroom, float]] = field(default_factory=dict[str, tuple[Headroom, float]])
    """By backend: what the provider's rate limits left, and when it was told in Unix time."""
    turns: MutableMapping[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """By route and tier: how often it was asked, for round robin."""


def estimate(backend: Backend, needs: Needs) -> float | None:
    """The cost of a call in US dollars by rule of thumb; None when the price is unknown."""
    if backend.price is None:
        return None
    output = needs.max_tokens or min(USUAL_OUTPUT, backend.output_limit or USUAL_OUTPUT)
    return max(backend.price.minimum, needs.input_tokens * backend.price.input + output * backend.price.output)


def rank(
    strategy: str, tier: Sequence[Choice], key: str, place: tuple[str, int], load: Load, dice: Callable[[], float]
) -> list[Ranked]:
    """The backends of a tier in the order in which to try them; `place` is the route and the number of the tier.

    `key` sticks: while the same backends may be tried, the same key tries the same one first, whatever the strategy
    but "fallback", whose order is its point; there it chooses among backends with the same model.
    """
    if strategy == "fallback":
        return _fallback(tier, key, load)
    if key:
        return _sticky(tier, key, weighted=strategy == "weighted")
    match strategy:
        case "weighted":
            return _weighted(tier, dice)
        case "round_robin":
            return _round_robin(tier, place, load)
        case "cost":
            return _cost(tier)
        case "performance":
            return _performance(tier, load, dice)
        case _:
            raise ValueError(f"unknown strategy {strategy!r}")


def _fallback(tier: Sequence[Choice], key: str, load: Load) -> list[Ranked]:
    ranked = [Ranked(choice, f"target {n + 1}") for n, choice in enumerate(tier)]
    if len({choice.backend.model for choice in tier}) == len(ranked):
        return ranked
    # Several adapters serve one model: the key's own one first, else the idlest; targets keep their order.
    first: dict[str, int] = {}
    for n, choice in enumerate(tier):
        first.setdefault(choice.backend.model, n)
    if key:
        return sorted(
            ranked, key=lambda found: (first[found.choice.backend.model], _distance(key, found.choice.backend, 1.0))
        )
    idle = load.in_flight
    return sorted(ranked, key=lambda found: (first[found.choice.backend.model], idle.get(found.choice.backend.id, 0)))


def _sticky(tier: Sequence[Choice], key: str, *, weighted: bool) -> list[Ranked]:
    scored = sorted(
        (_distance(key, choice.backend, choice.weight if weighted else 1.0), n) for n, choice in enumerate(tier)
    )
    return [Ranked(tier[n], "nearest to the request's key" if not place else "next to it", score)
            for place, (score, n) in enumerate(scored)]  # fmt: skip


def _weighted(tier: Sequence[Choice], dice: Callable[[], float]) -> list[Ranked]:
    # Sampling without replacement by exponentials with the weights as rates (Efraimidis and Spirakis).
    total = sum(choice.weight for choice in tier)
    drawn = sorted(((-math.log(1.0 - dice()) / choice.weight, n) for n, choice in enumerate(tier)))
    return [Ranked(tier[n], f"weight {tier[n].weight:g} of {total:g}") for _, n in drawn]


def _round_robin(tier: Sequence[Choice], place: tuple[str, int], load: Load) -> list[Ranked]:
    turn = load.turns.get(place, 0)
    load.turns[place] = turn + 1
    start = turn % len(tier)
    return [Ranked(choice, f"turn {turn + 1}") for choice in (*tier[start:], *tier[:start])]


def _cost(tier: Sequence[Choice]) -> list[Ranked]:
    ordered = sorted(tier, key=lambda choice: math.inf if choice.cost is None else choice.cost)
    return [
        Ranked(choice, "its price is unknown" if choice.cost is None else f"about ${choice.cost:.6f}", choice.cost)
        for choice in ordered
    ]


def _performance(tier: Sequence[Choice], load: Load, dice: Callable[[], float]) -> list[Ranked]:
    """The better one of two drawn at random first, so that not everybody runs to the same one; then all by score."""
    waits = {choice.backend.id: pace.expect() for choice in tier if (pace := load.paces.get(choice.backend.id))}
    # Who was never asked counts as the quickest known: it is tried, and then it is known.
    best = min(waits.values(), default=0.0)
    scored = sorted(
        ((waits.get(choice.backend.id, best) * (load.in_flight.get(choice.backend.id, 0) + 1), n)
         for n, choice in enumerate(tier)),
    )  # fmt: skip
    if len(scored) > 2:
        one = int(dice() * len(scored))
        other = int(dice() * (len(scored) - 1))
        drawn = scored[min(one, other + (other >= one))]
        scored = [drawn, *(entry for entry in scored if entry is not drawn)]
    return [Ranked(tier[n], _say_pace(load.paces.get(tier[n].backend.id)), score) for score, n in scored]


def _say_pace(pace: Pace | None) -> str:
    if pace is None:
        return "not asked yet"
    return f"first event after {pace.first * 1000:.0f} ms, {pace.rate:.0f} tokens/s"


def _distance(key: str, backend: Backend, weight: float) -> float:
    """Rendezvous hashing: when a backend goes, only its own keys move."""
    digest = hashlib.blake2b(f"{key}\0{backend.id}".encode(), digest_size=8).digest()
    share = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -math.log(share) / weight


def draw_variant(experiment: str, subject: str, shares: Sequence[tuple[str, float]]) -> str:
    """The variant of a subject, by a hash that every process computes alike; empty for what the shares leave over."""
    digest = hashlib.blake2b(f"{experiment}\0{subject}".encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64 * 100.0
    for name, share in shares:
        if point < share:
            return name
        point -= share
    return ""
