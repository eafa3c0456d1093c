"""A real NATS server for the tests of the router."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from maestro_sdk.testing.nats import NatsServer


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncGenerator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.kill()
