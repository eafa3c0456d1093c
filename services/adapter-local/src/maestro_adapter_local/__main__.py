"""The process of the adapter."""

from maestro_adapter_local.provider import LocalProvider
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run


def main() -> None:
    """Serves the models of this machine until SIGTERM."""
    run("adapter-local", adapter("local", LocalProvider.from_config))


if __name__ == "__main__":
    main()
