"""Takes a changed configuration file while the router runs: what routes is applied as a whole, or not at all."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress

from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import ConfigReloaded
from maestro_sdk.service.config_events import digest_of, rejected
from maestro_sdk.service.hot_reload import changed_paths, changes, merge, reread
from maestro_sdk.service.settings import Config, ConfigError

log = logging.getLogger(__name__)


class Reload:
    """Follows one file; `apply` takes each new configuration."""

    def __init__(
        self, config: Config, apply: Callable[[Config], None], publish: Callable[[str, Message], None]
    ) -> None:
        """`publish` takes subject and payload of a lifecycle event."""
        self.config = config
        self._apply = apply
        self._publish = publish
        self._asked = asyncio.Event()

    async def run(self) -> None:
        """Watches until cancelled: the file, and SIGHUP, which reads it at once."""
        loop = asyncio.get_running_loop()
        # Only the main thread of a process may handle signals; elsewhere the file alone is watched.
        with suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        async for _ in changes(self.config.file, self._asked):
            self.read()

    def read(self) -> None:
        """Reads the file and applies what may change; a wrong one changes nothing and says why."""
        try:
            fresh = reread(self.config.file)
            merged = merge(self.config, fresh)
        except ConfigError as error:
            self._reject(error)
            return
        hot, cold = changed_paths(self.config, fresh)
        if cold:
            log.warning("needs a restart to take effect: %s", ", ".join(cold))
        if not hot:
            return
        self.config = merged
        self._apply(merged)
        log.info("configuration reloaded: %s", ", ".join(hot))
        payload = ConfigReloaded(service="router", digest=digest_of(merged), changed_paths=hot)
        self._publish("config/router", payload)

    def _reject(self, error: ConfigError) -> None:
        for problem in error.problems:
            log.error("configuration rejected, the old one stays: %s", problem)
        self._publish("config/router", rejected("router", self.config, error))
