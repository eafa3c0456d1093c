"""The section of a configuration that says how jobs run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maestro_sdk.service.values import Duration, Settings


class JobsConfig(Settings):
    """How jobs run. Requests of callers go first, so `parallel` bounds the items that one gateway has under way.

    `per_tenant` bounds those of one tenant in a gateway, and those of one job in the mesh. `most` jobs of a tenant may
    be unfinished at a time, in the mesh. Items of a gateway that died go to another one after `lease`. `keep_results`
    holds for jobs that do not say how long their results are kept.
    """

    parallel: Annotated[int, Field(ge=1, le=1024)] = 16
    per_tenant: Annotated[int, Field(ge=1, le=1024)] = 16
    most: Annotated[int, Field(ge=1, le=10_000)] = 100
    most_items: Annotated[int, Field(ge=1, le=1_000_000)] = 50_000
    lease: Annotated[Duration, Field(ge=1, le=25)] = (
        15.0  # below the time for which adapters keep a call without a caller
    )
    keep_results: Annotated[Duration, Field(ge=60, le=365 * 86400)] = 7 * 86400.0
