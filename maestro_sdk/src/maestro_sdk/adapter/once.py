"""Mutations that happen once per `request_id`, however often they are asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Once(Generic[Result]):
    """Remembers the last `limit` results by their key, in this process.

    Concurrent calls with one key share one mutation; a mutation that failed is forgotten, so that it may be repeated.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._limit = limit
        self._results: OrderedDict[str, asyncio.Future[Result]] = OrderedDict()

    async def do(self, key: str, make: Callable[[], Awaitable[Result]]) -> Result:
        """What `make` returns, or returned the first time. An empty key always makes."""
        if not key:
            return await make()
        known = self._results.get(key)
        if known is not None:
            # Whoever leaves while it waits must not cancel the call of the first.
            return await asyncio.shield(known)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._results[key] = future
        while len(self._results) > self._limit:
            self._results.popitem(last=False)
        try:
            result = await make()
        except BaseException as error:
            self._results.pop(key, None)
            if isinstance(error, Exception):
                future.set_exception(error)
                future.exception()  # Nobody may be waiting; then it is not "never retrieved".
            else:
                future.cancel()
            raise
        future.set_result(result)
        return result
