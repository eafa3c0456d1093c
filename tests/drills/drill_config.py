"""The configuration of the meshes that are drilled: providers of our own, and models that exist only here."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from drill_table import BREAKER_CASES, CASES

KEY = "mk-drill-0123456789"
HOME_KEY = "mk-home-0123456789"
ENVIRONMENT = {
    "MAESTRO_KEY": KEY,
    "MAESTRO_HOME_KEY": HOME_KEY,
    "ANTHROPIC_API_KEY": "sk-ant-test",
    "OPENAI_API_KEY": "sk-test",
    "AZURE_OPENAI_API_KEY": "az-test",
    "VERTEX_TOKEN": "ya29.test",
}
VLLM_PATH = "/vllm/v1/chat/completions"
"""Where the third provider listens; it speaks OpenAI's wire."""
_FEATURES = [
    *("CHAT", "STREAMING", "SYSTEM_PROMPT", "TOOLS", "PARALLEL_TOOLS", "TOOL_CHOICE", "STREAMED_TOOL_ARGS"),
    *("STOP_SEQUENCES", "REASONING"),
]
PRICE = {"input": "1", "output": "10"}
"""US dollars per million tokens, of every model of our own."""


_TAKEN: list[socket.socket] = []


def closed_port() -> int:
    """A port of loopback at which nobody listens, and nobody else can as long as the tests run."""
    plain = socket.socket()
    plain.bind(("127.0.0.1", 0))
    _TAKEN.append(plain)
    return int(plain.getsockname()[1])


def own_models(names: Iterable[str], wire: str, **fields: Any) -> list[dict[str, Any]]:
    """Entries for models of an adapter of chat completions or messages."""
    prices = [{"from": "2026-01-01", **PRICE}]
    common = {"wire": wire, "native": _FEATURES, "context_window": 100_000, "prices": prices, **fields}
    return [{"name": name, **common} for name in sorted(names)]


def mesh_config(
    routes: Mapping[str, Any], models: Mapping[str, Iterable[str]], nowhere: int, **router: Any
) -> dict[str, Any]:
    """A mesh whose providers are all at `${PROVIDERS}`, but for Azure and Vertex at the port `nowhere`.

    `models` are names by provider, beside those that the adapters know; `router` are its settings.
    """
    address = f"http://127.0.0.1:{nowhere}"
    return {
        "version": 1,
        "gateway": {
            "keys": [
                {"tenant": "anywhere", "key": {"env": "MAESTRO_KEY"}},
                {"tenant": "home", "key": {"env": "MAESTRO_HOME_KEY"}},
            ]
        },
        # Calls are counted at the providers: nobody may ask for models meanwhile.
        "router": {"refresh": "1h", **router},
        "adapters": {
            "claude": {
                "module": "maestro_adapter_claude",
                "address": "127.0.0.1:50061",
                "regions": ["eu"],
                "settings": {
                    "api_key": {"env": "ANTHROPIC_API_KEY"},
                    "base_url": "${PROVIDERS}",
                    "models": own_models(models.get("anthropic", ()), "both"),
                },
            },
            "openai": {
                "module": "maestro_adapter_openai",
                "address": "127.0.0.1:50062",
                "regions": ["us"],
                "settings": {
                    "api_key": {"env": "OPENAI_API_KEY"},
                    "base_url": "${PROVIDERS}/v1",
                    "models": own_models(models.get("openai", ()), "plain"),
                    "azure": {
                        "endpoint": address,
                        "api_key": {"env": "AZURE_OPENAI_API_KEY"},
                        "deployments": {"gpt-5.2": "gpt-5.2"},
                    },
                },
            },
            "vertex": {
                "module": "maestro_adapter_vertex",
                "address": "127.0.0.1:50063",
                "regions": ["us"],
                "settings": {"project": "test", "access_token": {"env": "VERTEX_TOKEN"}, "base_url": address},
            },
            "local": {
                "module": "maestro_adapter_local",
                "address": "127.0.0.1:50065",
                "regions": ["eu"],
                "settings": {"servers": [{"name": "vllm", "api": "vllm", "base_url": "${PROVIDERS}/vllm/v1"}]},
            },
        },
        "routes": {"default": {"targets": ["local/offline"]}, **routes},
    }


def calm_config(nowhere: int) -> dict[str, Any]:
    """The mesh of tables: no breaker opens by itself, so that no case depends on another one."""
    pair = ["openai/relay", "anthropic/relay"]
    models: dict[str, set[str]] = {"openai": {"relay"}, "anthropic": {"relay"}}
    routes: dict[str, Any] = {
        "to-prefill": {"targets": pair, "resume": "continue"},
        "to-instruction": {"targets": pair[::-1], "resume": "continue"},
        "race": {"targets": pair, "max_attempts": 2, "hedge": RACE},
        "race-and-relay": {"targets": [*pair, "local/third"], "hedge": RACE, "resume": "continue"},
        "to-two": {"targets": [*pair, "local/third"], "resume": "continue"},
    }
    for case in CASES.values():
        routes[case.target] = case.settings()
        provider, _, name = case.first.partition("/")
        if provider in models:
            models[provider].add(name)
    return mesh_config(routes, models, nowhere, breaker={"consecutive_failures": 1_000_000, "minimum_calls": 1_000_000})


RACE = {"after": "300ms", "max_extra": 1.0}
"""A second attempt for every request whose first one is late."""
HEDGE_SHARE = 0.1
"""Most that second attempts may add to what the hedged route spends."""
STRICT_BREAKER = {
    "consecutive_failures": 5,
    "minimum_calls": 20,
    "failure_ratio": 0.25,
    "window": "10s",
    "open_time": "2s",
    "quota_open_time": "2s",
    "half_open_calls": 1,
}


def strict_config(nowhere: int) -> dict[str, Any]:
    """The mesh of all other drills: breakers open soon, and close soon."""
    plain = {"targets": ["openai/hedged", "anthropic/hedged"], "max_attempts": 2}
    routes: dict[str, Any] = {
        "third": {"strategy": "round_robin", "targets": ["openai/third", "anthropic/third", "local/third"]},
        "unhedged": plain,
        "hedged": {**plain, "hedge": {"after": "500ms", "max_extra": HEDGE_SHARE}},
        "capped": {**plain, "hedge": {"after": "500ms", "max_extra": HEDGE_SHARE}},
        "flood": {"targets": ["openai/flood"], "idle_timeout": "1s", "max_attempts": 1},
        "blind": {"targets": ["openai/blind", "anthropic/blind"]},
        "blind-alone": {"targets": ["openai/blind"], "max_attempts": 1},
        "mixed": {"targets": ["openai/third", "anthropic/third"]},
        "abroad": {"targets": ["openai/third"]},
        **{case.target: {"targets": [case.model], "max_attempts": 1} for case in BREAKER_CASES.values()},
    }
    names = {"third", "hedged", "flood", "blind", "mixed"}
    models = {
        provider: names | {case.model.partition("/")[2] for case in BREAKER_CASES.values() if case.wire == provider}
        for provider in ("openai", "anthropic")
    }
    config = mesh_config(routes, models, nowhere, breaker=STRICT_BREAKER, pins={"american": "openai"})
    config["aliases"] = {"yankee": "openai/third", "voyage": "abroad"}
    config["tenants"] = {"home": {"regions": ["eu"]}}
    return config
