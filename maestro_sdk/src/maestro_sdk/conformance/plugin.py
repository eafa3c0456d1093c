"""The options of `pytest --pyargs maestro_sdk.conformance`.

Every pytest beside the SDK loads it, so it imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("maestro", "Maestro's conformance suite")
    group.addoption("--maestro-target", metavar="HOST:PORT", help="server to prove")
    group.addoption("--maestro-model", metavar="ID", default="", help="model to ask (default: the richest one)")
    group.addoption("--maestro-report", metavar="FILE.json", help="write the machine-readable report")
    group.addoption("--maestro-timeout", metavar="SECONDS", type=float, default=60.0, help="most per answer")
    group.addoption("--maestro-key", metavar="KEY", default="", help="key for a server that wants one")
    group.addoption("--maestro-token", metavar="TOKEN", help="mesh token (default: $MAESTRO_MESH_TOKEN)")


def pytest_configure(config: pytest.Config) -> None:
    """Knows the marker of pytest-timeout where that is not installed."""
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): longest time of a test, with pytest-timeout")
