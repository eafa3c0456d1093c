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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro_sdk.conformance.driving import drive
from maestro_sdk.conformance.manners import (
    ANTHROPIC_MESSAGES,
    BEDROCK_CONVERSE,
    GEMINI_CONTENT,
    OLLAMA_CHAT,
    OPENAI_CHAT,
    Manner,
)
from maestro_sdk.conformance.report import Report, matrix, told, totals
from maestro_sdk.conformance.suite import prove
from maestro_sdk.testing import anthropic_messages, bedrock_converse, gemini_content, ollama_chat, openai_chat
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.obliging_anthropic import oblige_anthropic_account
from maestro_sdk.testing.obliging_bedrock_batches import ROLE, oblige_bedrock_account
from maestro_sdk.testing.obliging_gemini_batches import oblige_gemini_account
from maestro_sdk.testing.obliging_ollama import oblige_ollama
from maestro_sdk.testing.obliging_openai import oblige_azure, oblige_openai_account
from maestro_sdk.testing.obliging_vllm import oblige_vllm
from maestro_sdk.testing.servers import free_port
from maestro_sdk.testing.wire import Wire

_FOREIGN = ("MAESTRO", "ANTHROPIC_", "OPENAI_", "AZURE_", "GOOGLE_", "GCLOUD_", "AWS_")
_KEY = "CONFORMANCE_KEY"
_VLLM_STARTED_WITH = [
    *("TOOLS", "PARALLEL_TOOLS", "TOOL_CHOICE", "STREAMED_TOOL_ARGS"),
    *("REASONING", "VISION", "PREFILL"),
]
FORMAT = "maestro.conformance.adapters/1"
"""The format of `--report`."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The wire that an adapter speaks for one of its models; `paths` where the provider has several for chat."""

    model: str
    wire: Wire
    manner: Manner
    paths: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter, the models to prove, the wire behind it, and the settings that lead there, by the wire's URL."""

    name: str
    models: Sequence[str]
    oblige: Callable[[FaultServer], None] | None = None
    settings: Callable[[str], dict[str, Any]] = field(default=lambda url: {})
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    upstreams: Sequence[Upstream] = ()
    """Where the provider's side is driven through all scenarios: once per wire."""
    label: str = ""
    """What it is called here, where its name stands in the table already."""

    @property
    def title(self) -> str:
        """What it is called here."""
        return self.label or self.name


ADAPTERS = (
    Adapter(
        "claude",
        ("anthropic/claude-sonnet-5", "anthropic/claude-opus-5-5", "anthropic/claude-haiku-4-5"),
        oblige_anthropic_account,
        lambda url: {"base_url": url, "api_key": {"env": _KEY}},
        upstreams=(Upstream("anthropic/claude-opus-5-5", anthropic_messages.WIRE, ANTHROPIC_MESSAGES),),
    ),
    Adapter(
        "openai",
        ("openai/gpt-4.1", "openai/gpt-5.1", "openai/text-embedding-3-small"),
        oblige_openai_account,
        lambda url: {"base_url": f"{url}/v1", "api_key": {"env": _KEY}},
        upstreams=(Upstream("openai/gpt-5.1", openai_chat.WIRE, OPENAI_CHAT),),
    ),
    Adapter(
        "openai",
        ("azure/gpt-4.1", "azure/text-embedding-3-large"),
        oblige_azure,
        lambda url: {
            "api_key": {"env": "NO_KEY_OF_OPENAI"},
            "azure": {
                "endpoint": url,
                "api_key": {"env": _KEY},
                "deployments": {"gpt-4.1": "chat", "text-embedding-3-large": "vectors"},
                "batch_deployments": {"gpt-4.1": "chat-batch"},
            },
        },
        upstreams=(
            Upstream("azure/gpt-4.1", openai_chat.WIRE, OPENAI_CHAT, ("/openai/deployments/chat/chat/completions",)),
        ),
        label="azure",
    ),
    Adapter(
        "bedrock",
        (
            "bedrock/amazon.nova-lite-v1:0",
            "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0",
            "bedrock/amazon.titan-embed-text-v2:0",
            "bedrock/cohere.embed-v4:0",
        ),
        oblige_bedrock_account,
        lambda url: {
            "region": "us-east-1",
            "base_url": url,
            "control_url": url,
            "s3_url": url,
            "batch": {"bucket": "conformance", "role_arn": ROLE},
            "access_key_id": {"env": _KEY},
            "secret_access_key": {"env": _KEY},
        },
        {"AWS_EC2_METADATA_DISABLED": "true"},
        upstreams=(
            Upstream("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", bedrock_converse.WIRE, BEDROCK_CONVERSE),
        ),
    ),
    Adapter(
        "vertex",
        ("vertex/gemini-2.5-flash", "vertex/gemini-3.5-flash", "vertex/text-embedding-005"),
        oblige_gemini_account,
        lambda url: {
            "base_url": url,
            "storage_url": url,
            "batch_bucket": "gs://conformance/batches",
            "project": "conformance",
            "access_token": {"env": _KEY},
        },
        upstreams=(Upstream("vertex/gemini-3.5-flash", gemini_content.WIRE, GEMINI_CONTENT),),
    ),
    Adapter("local", ("local/offline", "local/hashing")),
    Adapter(
        "local",
        ("local/able:8b", "local/plain:1b", "local/handed:120b-cloud", "local/embedder:latest"),
        oblige_ollama,
        lambda url: {"servers": [{"name": "ollama", "base_url": url, "api": "ollama"}]},
        upstreams=(Upstream("local/able:8b", ollama_chat.WIRE, OLLAMA_CHAT),),
        label="local-ollama",
    ),
    Adapter(
        "local",
        ("local/obliging/model-8b",),
        oblige_vllm,
        lambda url: {
            "servers": [{"name": "vllm", "base_url": f"{url}/v1", "api": "vllm", "features": _VLLM_STARTED_WITH}]
        },
        upstreams=(Upstream("local/obliging/model-8b", openai_chat.WIRE, OPENAI_CHAT),),
        label="local-vllm",
    ),
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
            reports = {model: await prove(address, model=model, timeout=20) for model in adapter.models}
            for upstream in adapter.upstreams:
                found = await drive(
                    address, provider, upstream.wire, upstream.manner, model=upstream.model, paths=upstream.paths
                )
                reports[upstream.model] = replace(reports[upstream.model], scenarios=found)
            return list(reports.values())


async def prove_all(names: Sequence[str]) -> list[Report]:
    """The reports on all adapters of those names, one adapter after the other, each printed when it is there."""
    reports: list[Report] = []
    for adapter in ADAPTERS:
        if adapter.title in names:
            found = await prove_adapter(adapter)
            show(found)
            reports += found
    return reports


def show(reports: Sequence[Report]) -> None:
    """Prints the table of one adapter, feature by model, and what is wrong."""
    print(matrix(reports), end="\n\n")
    print("\n".join(line for report in reports for line in report.tail()), end="\n\n", flush=True)


def write(reports: Sequence[Report], folder: Path) -> None:
    """Writes a JSON report per model."""
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        file = folder / f"{report.model.replace('/', '_')}.json"
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n")


def main() -> int:
    """Prints a table per adapter and what is wrong, and the totals."""
    every = [adapter.title for adapter in ADAPTERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help=f"{', '.join(every)} (default: all)")
    parser.add_argument("--reports", type=Path, metavar="FOLDER", help="write a JSON report per model")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write one JSON report of everything")
    given = parser.parse_args()
    if strange := set(given.adapters) - set(every):
        parser.error(f"no adapter {', '.join(sorted(strange))}; there are {', '.join(every)}")
    reports = asyncio.run(prove_all(given.adapters or every))
    summed, passed = totals(reports), bool(reports) and all(report.passed for report in reports)
    print(f"{len(reports)} models")
    for name, summary in summed.items():
        print(f"{name:<10} {told(summary)}")
    if given.reports:
        write(reports, given.reports)
    if given.report:
        document = {"format": FORMAT, "passed": passed, "totals": summed}
        documents = [report.as_json() for report in reports]
        given.report.write_text(json.dumps({**document, "reports": documents}, indent=2) + "\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
