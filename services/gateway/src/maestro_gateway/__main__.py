"""Starts the gateway."""

from __future__ import annotations

from maestro_gateway.service import gateway
from maestro_sdk.service.run import run


def main() -> None:
    run("gateway", gateway)


if __name__ == "__main__":
    main()
