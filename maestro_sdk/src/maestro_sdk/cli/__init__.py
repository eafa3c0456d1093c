"""The `maestro` command: starts, watches and stops a whole mesh on one machine, and talks to it."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `maestro` command."""
    from maestro_sdk.cli.app import app

    app(prog_name="maestro")
