"""A mutation happens once per tenant and key."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from maestro_sdk.adapter.once import Once
from maestro_sdk.errors import Overloaded
from maestro_sdk.tracing import Call, enter_call


class Maker:
    """Counts how often it makes something; waits for the gate first."""

    def __init__(self) -> None:
        self.made = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> int:
        self.made += 1
        number = self.made
        await self.gate.wait()
        return number


async def test_a_repeated_key_gets_the_first_result() -> None:
    once, make = Once[int](), Maker()
    assert [await once.do("a", make) for _ in range(3)] == [1, 1, 1]
    assert await once.do("b", make) == 2


async def test_no_key_always_makes() -> None:
    once, make = Once[int](), Maker()
    assert [await once.do("", make) for _ in range(3)] == [1, 2, 3]


async def test_concurrent_calls_share_one_mutation() -> None:
    once, make = Once[int](), Maker()
    make.gate.clear()
    tasks = [asyncio.create_task(once.do("a", make)) for _ in range(5)]
    await asyncio.sleep(0)
    make.gate.set()
    assert await asyncio.gather(*tasks) == [1] * 5
    assert make.made == 1


async def test_a_failure_is_shared_and_then_forgotten() -> None:
    once = Once[int]()
    gate = asyncio.Event()

    async def fail() -> int:
        await gate.wait()
        raise Overloaded("later")

    tasks = [asyncio.create_task(once.do("a", fail)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    assert [type(result) for result in await asyncio.gather(*tasks, return_exceptions=True)] == [Overloaded] * 3
    assert await once.do("a", Maker()) == 1


async def test_when_the_first_caller_leaves_the_next_one_makes_it() -> None:
    once, make = Once[int](), Maker()
    make.gate.clear()
    first = asyncio.create_task(once.do("a", make))
    others = [asyncio.create_task(once.do("a", make)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    make.gate.set()
    assert await asyncio.wait_for(asyncio.gather(*others), 5) == [2, 2]
    assert await once.do("a", make) == 2


async def test_who_waits_and_leaves_does_no_harm() -> None:
    once, make = Once[int](), Maker()
    make.gate.clear()
    first = asyncio.create_task(once.do("a", make))
    await asyncio.sleep(0)
    other = asyncio.create_task(once.do("a", make))
    await asyncio.sleep(0)
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    make.gate.set()
    assert await first == 1


async def test_tenants_have_keys_of_their_own() -> None:
    once, make = Once[int](), Maker()

    async def as_tenant(tenant: str, do: Callable[[], Awaitable[int]]) -> int:
        enter_call(Call("r", tenant, ""))
        return await do()

    results = [await asyncio.create_task(as_tenant(name, lambda: once.do("a", make))) for name in ("x", "y", "x")]
    assert results == [1, 2, 1]


async def test_only_the_last_results_are_kept() -> None:
    once, make = Once[int](limit=2), Maker()
    for key in ("a", "b", "c"):
        await once.do(key, make)
    assert await once.do("c", make) == 3
    assert await once.do("a", make) == 4
