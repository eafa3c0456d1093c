"""Starts the router."""

from __future__ import annotations

from maestro_router.service import router
from maestro_sdk.service.run import run


def main() -> None:
    run("router", router)


if __name__ == "__main__":
    main()
