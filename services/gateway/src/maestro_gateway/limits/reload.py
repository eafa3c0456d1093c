"""Takes changed limits and budgets while the gateway runs. The router tells of changes, and of a file that is wrong."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from maestro_gateway.limits.limiter import Limiter
from maestro_sdk.service.hot_reload import changes, merge
from maestro_sdk.service.settings import Config, ConfigError, load

if TYPE_CHECKING:
    from maestro_gateway.budgets import Budgets

log = logging.getLogger(__name__)


async def follow_limits(config: Config, limiter: Limiter, budgets: Budgets | None = None) -> None:
    """Follows the file of `config` until cancelled. A wrong one changes nothing."""
    async for _ in changes(config.file, asyncio.Event()):
        try:
            merged = merge(config, load(config.file))
        except ConfigError as error:
            log.error("limits and budgets stay as they are: %s", error.problems[0])
            continue
        if merged.limits != config.limits:
            limiter.adopt(merged.limits)
            log.info("limits reloaded")
        if budgets is not None and merged.budgets != config.budgets:
            budgets.adopt(merged.budgets)
            log.info("budgets reloaded")
        config = merged
