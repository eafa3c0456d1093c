"""What all tests of this folder agree on: keys, sizes of runs, and the configuration of their mesh."""

import base64
import os
from typing import Any

KEY, OTHER_KEY, STRICT_KEY = "mk-acme-0123456789", "mk-globex-0123456789", "mk-strict-0123456789"
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
TTFT = float(os.environ.get("EVENTS_TTFT", "3.6"))
"""Seconds until the first token behind a hop that cuts what is idle for two thirds of that: 90 for the real figure."""
READERS = int(os.environ.get("EVENTS_READERS", "90"))
"""Slow readers: 1000 for the real figure."""
PING = "15s" if TTFT > 60 or READERS > 500 else "1s"


def config(receiver: str) -> dict[str, Any]:
    """The mesh's configuration, with webhooks of two tenants to the receiver."""
    hook = {"url": receiver, "secret": {"env": "HOOK_SECRET"}, "timeout": "1s"}
    return {
        "version": 1,
        "gateway": {
            "replicas": 2,
            "keys": [
                {"tenant": "acme", "key": {"env": "MAESTRO_KEY"}, "scopes": ["chat", "admin"]},
                {"tenant": "globex", "key": {"env": "MAESTRO_OTHER_KEY"}},
                {"tenant": "strict", "key": {"env": "MAESTRO_STRICT_KEY"}, "scopes": ["admin"]},
            ],
            "ping": PING,
        },
        "tenants": {
            "hooked": {"webhooks": {"orders": {**hook, "back_off": "100ms"}}},
            "strict": {"webhooks": {"orders": {**hook, "attempts": 1}}},
        },
        "router": {"refresh": "1h"},
        "adapters": {
            "openai": {
                "module": "maestro_adapter_openai",
                "address": "127.0.0.1:50062",
                "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": "${PROVIDERS}/v1"},
            },
        },
        "routes": {"default": {"targets": ["openai/gpt-6.1-terra"], "total_timeout": "30m"}},
        "aliases": {},
        "grace": "500ms",
    }
