"""A gateway that crashes again and again is given up, and the others go on. The last test of this mesh."""

import asyncio
from contextlib import suppress

from maestro_sdk.testing.callers import Caller, question

from .conftest import KEY, MODEL, Mesh


async def test_a_gateway_that_is_given_up_leaves_the_others_at_work(mesh: Mesh):
    async with asyncio.timeout(40):
        while mesh.process.members()["gateway-2"].state != "failed":
            with suppress(ProcessLookupError):
                mesh.kill("gateway-2")
            await asyncio.sleep(0.05)
    async with Caller(mesh.url, KEY) as caller:
        answers = [await caller.chat(question(model=MODEL)) for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    states = {name: member.state for name, member in mesh.process.members().items()}
    assert states.pop("gateway-2") == "failed"
    assert set(states.values()) == {"ready"}
