"""Every process of a mesh is stopped in peace, one after another, while callers at every door go on asking.

`RESTART_ROUNDS=20` stops each of them so often.
"""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from maestro_sdk.testing.chaos.load import Load
from maestro_sdk.testing.chaos.provider import Providers, describe, text_of
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY, until_whole

ROUNDS = int(os.environ.get("RESTART_ROUNDS", "1"))
CLIENTS = int(os.environ.get("RESTART_CLIENTS", "16"))
SERVICES = ("gateway", "gateway-2", "adapter-openai", "adapter-claude", "router", "router-2")
MODELS = ("openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5")
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2},
    "router": {"replicas": 2},
    "adapters": {
        "claude": {
            "module": "maestro_adapter_claude",
            "address": "127.0.0.1:50061",
            "settings": {"api_key": {"env": "ANTHROPIC_API_KEY"}, "base_url": "${PROVIDERS}"},
        },
        "openai": {
            "module": "maestro_adapter_openai",
            "address": "127.0.0.1:50062",
            "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": "${PROVIDERS}/v1"},
        },
    },
    # Both providers give the same answer to a question.
    "routes": {"default": {"targets": list(MODELS)}},
    "aliases": {},
    "grace": "5s",
}


@pytest.mark.timeout(120 + 240 * ROUNDS)
async def test_nobody_is_turned_away_and_nothing_is_asked_twice(tmp_path: Path, figures: list[str]) -> None:
    async with FaultServer() as server:
        providers = Providers(server, seed=7)
        variables = {
            "MAESTRO_KEY": KEY,
            "PROVIDERS": server.url,
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "OPENAI_API_KEY": "sk-test",
        }
        async with MeshProcess(tmp_path, CONFIG, variables) as mesh:
            stopped = 0
            async with Load(mesh.url, KEY, "default", CLIENTS, pause=0.001) as load:
                for _ in range(ROUNDS):
                    for name in SERVICES:
                        await until_whole(mesh, KEY, MODELS)
                        await load.answers(20)
                        await mesh.wait_restarted(mesh.kill(name, signal.SIGTERM))
                        stopped += 1
                await load.answers(20)
    asked = [shown for shown in load.shown if not shown.refusable]
    failed = [shown for shown in asked if not shown.answered or shown.text != text_of(shown.mark)]
    figures.append(
        f"{stopped} processes stopped under {CLIENTS} clients: {len(load.shown)} calls, {len(failed)} turned away or "
        f"cut, {len(providers.calls)} calls of providers"
    )
    assert failed == []
    # Those that the provider refuses are told so by it, and by nobody else.
    assert {shown.failure for shown in load.shown if shown.refusable} <= {"INVALID_REQUEST"}
    assert Counter(call.mark for call in providers.calls) == Counter(shown.mark for shown in load.shown), describe(
        [call for call in providers.calls if len(providers.of(call.mark)) > 1]
    )
