"""Adapters without credentials: they run, say what is missing, and nobody is sent there."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.mesh import MeshProcess

KEY = "mk-alpha-0123456789"
MISSING = {
    "claude": ("anthropic/claude-sonnet-5-5", "ANTHROPIC_API_KEY"),
    "openai": ("openai/gpt-5.1", "OPENAI_API_KEY"),
    "vertex": ("vertex/gemini-2.5-flash", "GOOGLE_CLOUD_PROJECT"),
    "bedrock": ("bedrock/amazon.nova-pro-v1:0", "AWS_"),
}
PORTS = {name: f"127.0.0.1:{50061 + number}" for number, name in enumerate((*MISSING, "local"))}
CONFIG: dict[str, Any] = {
    "gateway": {"keys": [{"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}}]},
    "adapters": {name: {"module": f"maestro_adapter_{name}", "address": address} for name, address in PORTS.items()},
    "routes": {"default": {"targets": ["local/offline"]}},
    "aliases": {},
}


BUDGET = 100.0
"""MB of memory that a service takes at most while it has nothing to do."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshProcess]:
    """A mesh without a key of any provider."""
    folder = tmp_path_factory.mktemp("unconfigured")
    # No folder of the user's own, whose files the clouds' SDKs would find.
    environment = {
        "MAESTRO_KEY": KEY,
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_GCE_CHECK": "true",
    }
    async with MeshProcess(folder, CONFIG, environment) as running:
        yield running


async def test_what_is_missing_is_told_and_nothing_else_suffers(mesh: MeshProcess):
    async with Caller(mesh.url, KEY) as caller:
        assert (await caller.chat(question("hello"))).json()["provider"] == "local"
        adapters = {found["name"]: found for found in (await caller.get("/v1/router/backends")).json()["adapters"]}
        for name, (model, variable) in MISSING.items():
            assert adapters[name]["state"] == "unconfigured"
            assert variable in adapters[name]["reason"]
            answer = await caller.chat(question("hello", model=model))
            error = answer.json()["error"]
            assert (answer.status, error["reason"]) == (503, "NO_BACKEND")
            assert variable in error["message"]
        assert adapters["local"]["state"] == "serving"


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is read from /proc")
async def test_every_service_keeps_its_budget_of_memory(mesh: MeshProcess):
    async with Caller(mesh.url, KEY) as caller:
        assert (await caller.chat(question("hello"))).status == 200
    sizes = {name: resident(member.pid) for name, member in mesh.members().items() if name not in ("envoy", "nats")}
    assert len(sizes) == len(PORTS) + 2
    assert {name: size for name, size in sizes.items() if size > BUDGET} == {}


def resident(pid: int | None) -> float:
    """Memory of a process in MB, with what it shares."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000
