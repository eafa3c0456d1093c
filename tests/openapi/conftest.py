"""One mesh on the offline model, with a key that may do everything: whatever fails is not a provider's fault."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from maestro_gateway.reference import document as served
from maestro_sdk.service.gateways import SCOPES
from maestro_sdk.testing.mesh import MeshProcess

sys.path.insert(0, str(Path(__file__).parent))

KEY = "mk-everything-0123456789abcdef"
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {
        "keys": [{"tenant": "alpha", "key": {"env": "EVERYTHING"}, "scopes": [*SCOPES]}],
        "max_body": 262144,
        "ping": "1s",
    },
    "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
    "routes": {
        "default": {"targets": [{"model": "local/offline"}]},
        "cached": {"targets": [{"model": "local/offline"}], "cache": {"ttl": "1m"}},
    },
    "aliases": {"fast": "local/offline"},
    "grace": "1s",
}


@pytest.fixture(scope="package")
def document() -> dict[str, Any]:
    """The document as it is served."""
    return orjson.loads(served())


@pytest.fixture(scope="package")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeshProcess]:
    mesh = MeshProcess(tmp_path_factory.mktemp("openapi"), CONFIG, {"EVERYTHING": KEY})
    asyncio.run(mesh.start())
    yield mesh
    asyncio.run(mesh.stop())


@pytest.fixture(scope="package")
def key() -> str:
    return KEY
