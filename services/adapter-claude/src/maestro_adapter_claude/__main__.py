"""Serves Claude: `python -m maestro_adapter_claude`."""

from maestro_adapter_claude.provider import ClaudeProvider
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run


def main() -> None:
    """Serves until SIGTERM."""
    run("adapter-claude", adapter("claude", ClaudeProvider.from_config))


if __name__ == "__main__":
    main()
