"""The section of a configuration that says how long the ledger is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maestro_sdk.service.values import Duration, Settings


class LedgerConfig(Settings):
    """The ledger: time for which it keeps what requests used and cost, and how those ended that were refused."""

    retention: Annotated[Duration, Field(ge=86400.0)] = 400 * 86400.0
