"""A third party's emulator of the provider: what it understands of our requests, and we of its answers.

Where it differs from the provider (aimock 1.43): it ends an answer with calls by FUNCTION_CALL, where the provider says
STOP; it gives no thought signatures, no usage but zeros and no response id; and it has neither `:countTokens` nor
`:predict`. So it proves the exchange and the errors; the strict emulator of this repository proves the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from maestro_sdk.testing.emulated import Emulated, script
from maestro_sdk.testing.servers import Aimock

# One emulator for all tests: starting it takes longer than they do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSALS = {
    "limit": (429, "RESOURCE_EXHAUSTED"),
    "busy": (503, "UNAVAILABLE"),
    "broken": (500, "INTERNAL"),
    "key": (401, "UNAUTHENTICATED"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[str]:
    async with Aimock(script(REFUSALS), chunk=5) as mock:
        yield mock.url


class TestEmulator(Emulated):
    """Gemini's wire."""

    calls_end = "FUNCTION_CALL"
