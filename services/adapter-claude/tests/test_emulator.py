"""A third party's emulator of the provider: what it understands of our requests, and we of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from maestro_sdk.testing.emulated import Emulated, script
from maestro_sdk.testing.servers import Aimock

# One emulator for all tests: starting it takes longer than they do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSALS = {
    "limit": (429, "rate_limit_error"),
    "busy": (529, "overloaded_error"),
    "broken": (500, "api_error"),
    "key": (401, "authentication_error"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[str]:
    async with Aimock(script(REFUSALS, call_ids="toolu_"), chunk=5) as mock:
        yield mock.url


class TestEmulator(Emulated):
    """Claude's wire."""
