"""Serves Bedrock: `python -m maestro_adapter_bedrock`."""

from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run


def main() -> None:
    """Serves until SIGTERM."""
    run("adapter-bedrock", adapter("bedrock", BedrockProvider.from_config))


if __name__ == "__main__":
    main()
