"""Takes changed limits while the gateway runs. The router tells of the change, and of a file that is wrong."""

from __future__ import annotations

import asyncio
import logging

from maestro_gateway.limits.limiter import Limiter
from maestro_sdk.service.hot_reload import changes, merge
from maestro_sdk.service.settings import Config, ConfigError, load

log = logging.getLogger(__name__)


async def follow_limits(config: Config, limiter: Limiter) -> None:
    """Follows the file of `config` until cancelled. A wrong one changes nothing."""
    async for _ in changes(config.file, asyncio.Event()):
        try:
            merged = merge(config, load(config.file))
        except ConfigError as error:
            log.error("limits stay as they are: %s", error.problems[0])
            continue
        if merged.limits != config.limits:
            limiter.adopt(merged.limits)
            log.info("limits reloaded")
        config = merged
