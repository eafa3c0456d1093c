"""Mutations that happen once per tenant and `request_id`, however often they are asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from maestro_sdk.tracing import current_call

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Remembers the last `limit` results by tenant and key, in this process.

    Concurrent calls with one key share one mutation; a mutation that failed is forgotten, so that it may be repeated.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._results: OrderedDict[tuple[str, str], asyncio.Future[Result]] = OrderedDict()

    async def do(self, key: str, make: Callable[[], Awaitable[Result]]) -> Result:
        """What `make` returns, or returned the first time. An empty key always makes."""
        if not key:
            return await make()
        call = current_call()
        # Keys are the callers' own: those of different tenants have nothing to do with each other.
        scoped = (call.tenant if call is not None else "", key)
        while (known := self._results.get(scoped)) is not None:
            # Whoever leaves while it waits must not cancel the call of the first; and where the first one leaves, the
            # next one in line makes it.
            await asyncio.wait([known])
            if not known.cancelled():
                return known.result()
        return await self._make(scoped, make)

    async def _make(self, key: tuple[str, str], make: Callable[[], Awaitable[Result]]) -> Result:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[key] = future
        while len(self._results) > self._limit:
            self._results.popitem(last=False)
        try:
            result = await make()
        except BaseException as error:
            if self._results.get(key) is future:
                del self._results[key]
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # Nobody may be waiting; then it is not "never retrieved".
            else:
                future.cancel()
            raise
        future.set_result(result)
        return result
