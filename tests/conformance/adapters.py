"""Proves the adapters of this repository against the contract: `make conformance`, or this file.

Each adapter runs as its own process, as in a mesh. Behind those of paid providers stands a fault server that speaks the
provider's wire and does what it is asked; so their translation is proven, not the provider's model. Exit code 0 means
that all conform.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro_sdk.conformance.report import Report, matrix
from maestro_sdk.conformance.suite import prove
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.obliging_wires import oblige_anthropic, oblige_openai
from maestro_sdk.testing.servers import free_port

_FOREIGN = ("MAESTRO", "ANTHROPIC_", "OPENAI_", "AZURE_", "GOOGLE_", "GCLOUD_", "AWS_")
_KEY = "CONFORMANCE_KEY"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, the models to prove, the wire behind it, and the settings that lead there, by the wire's URL."""

    name: str
    models: Sequence[str]
    oblige: Callable[[FaultServer], None] | None = None
    settings: Callable[[str], dict[str, Any]] = field(default=lambda url: {})
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


ADAPTERS = (
    Adapter(
        "claude",
        ("anthropic/claude-sonnet-5", "anthropic/claude-opus-5-5"),
        oblige_anthropic,
        lambda url: {"base_url": url, "api_key": {"env": _KEY}},
    ),
    Adapter(
        "openai",
        ("openai/gpt-4.1", "openai/gpt-5.1"),
        oblige_openai,
        lambda url: {"base_url": f"{url}/v1", "api_key": {"env": _KEY}},
    ),
    Adapter("local", ("local/offline",)),
)
"""Models that differ in what they take: forced tools or not at Claude, sampling or reasoning at OpenAI."""


@asynccontextmanager
async def process(adapter: Adapter, settings: dict[str, Any]) -> AsyncGenerator[str]:
    """Runs an adapter on a free port; gives its address."""
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "maestro.yaml"
        file.write_text(yaml.safe_dump({"adapters": {adapter.name: {"address": address, "settings": settings}}}))
        plain = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            f"maestro_adapter_{adapter.name}",
            cwd=folder,
            env={**plain, **adapter.environment, "MAESTRO_CONFIG": str(file), _KEY: "sk-conformance"},
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            await _wait_ready(address, running)
            yield address
        finally:
            if running.returncode is None:
                running.terminate()
            await running.wait()


async def _wait_ready(address: str, running: asyncio.subprocess.Process) -> None:
    """Returns once health says SERVING. Raises `RuntimeError` when the process ended, `TimeoutError` after 30 s."""
    async with asyncio.timeout(30), grpc.aio.insecure_channel(address) as channel:
        ask: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            if running.returncode is not None:
                raise RuntimeError(f"the adapter ended with exit code {running.returncode}")
            with suppress(grpc.aio.AioRpcError):
                answer = await ask.Check(health_pb2.HealthCheckRequest(), timeout=5)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.05)


async def prove_adapter(adapter: Adapter) -> list[Report]:
    """The reports on its models."""
    async with FaultServer() as provider:
        if adapter.oblige is not None:
            adapter.oblige(provider)
        async with process(adapter, adapter.settings(provider.url)) as address:
            return [await prove(address, model=model, timeout=20) for model in adapter.models]


async def prove_all(names: Sequence[str]) -> list[Report]:
    """The reports on all adapters of those names, one adapter after the other."""
    return [report for adapter in ADAPTERS if adapter.name in names for report in await prove_adapter(adapter)]


def main() -> int:
    """Prints what is wrong and the table feature by model."""
    every = [adapter.name for adapter in ADAPTERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=f"{', '.join(every)} (default: all)")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="write a JSON report per model")
    given = parser.parse_args()
    if strange := set(given.adapters) - set(every):
        parser.error(f"no adapter {', '.join(sorted(strange))}; there are {', '.join(every)}")
    reports = asyncio.run(prove_all(given.adapters or every))
    print(matrix(reports))
    print()
    for report in reports:
        print("\n".join(report.tail()))
        if given.reports:
            given.reports.mkdir(parents=True, exist_ok=True)
            file = given.reports / f"{report.model.replace('/', '_')}.json"
            file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 0 if reports and all(report.passed for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
