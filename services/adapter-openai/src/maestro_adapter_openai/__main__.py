"""Serves OpenAI's models, at OpenAI and at Azure: `python -m maestro_adapter_openai`."""

from maestro_adapter_openai.provider import from_config
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run


def main() -> None:
    """The whole program."""
    run("adapter-openai", adapter("openai", from_config))


if __name__ == "__main__":
    main()
