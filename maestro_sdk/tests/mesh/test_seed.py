"""A deterministic request brings its own seed, or gets one: the same for the same question, where models have seeds."""

from __future__ import annotations

import pytest

from maestro.llm.v1.chat_pb2 import Routing
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.tables import model

from .dispatching import ask, mesh


def seeded(number: int, *features: str, fault: Fault | None = None) -> ScriptedProvider:
    name = f"p{number}/m"
    return ScriptedProvider(answer("yes", model=name), models=[model(name, *features)], fault=fault)


@pytest.mark.parametrize("streamed", [True, False])
async def test_the_same_question_gets_the_same_seed(streamed: bool) -> None:
    async with mesh(seeded(1, "SEED")) as m:
        for words in ("hello", "hello", "other"):
            request = ask(words, routing=Routing(deterministic=True))
            await (m.stream(request) if streamed else m.complete(request))
        first, again, other = (request.seed for request in m.providers[0].requests)
        assert 0 <= first == again != other < 2**31


async def test_a_seed_of_the_callers_own_stays() -> None:
    async with mesh(seeded(1, "SEED")) as m:
        await m.complete(ask(seed=42, routing=Routing(deterministic=True)))
        assert m.providers[0].requests[0].seed == 42


async def test_nobody_else_gets_one() -> None:
    async with mesh(seeded(1, "SEED", fault=Fault.ERROR_BEFORE_CONTENT), seeded(2)) as m:
        await m.complete(ask())
        assert [p.requests[0].HasField("seed") for p in m.providers] == [False, False]
        # The second model has no seeds, and is not told one after the first.
        await m.complete(ask(routing=Routing(deterministic=True)))
        asked = {p.requests[-1].model: p.requests[-1].HasField("seed") for p in m.providers}
        assert asked == {"p1/m": True, "p2/m": False}
