"""Logs to standard error; traces and metrics by OpenTelemetry when an endpoint is configured, else not imported."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import orjson

from maestro_sdk.service.channel import intercept_channels
from maestro_sdk.service.settings import TelemetryConfig, revealed
from maestro_sdk.tracing import current_call

# What looks like a key, for those that this process never read itself: a caller's, one in a provider's error text.
_KEYS = re.compile(r"\b(?:sk|pk|mk|rk|xai|gsk|AIza)[-_A-Za-z0-9]{12,}|(?i:\bbearer\s+)[^\s\"',;]{6,}")
_HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a server and its channels add for tracing, and its metrics. Not `enabled`: nothing."""

    enabled: bool = False
    _provider: Any = field(default=None, repr=False)
    _name: str = ""
    _endpoint: str = ""
    # The provider of meters, made for the first of them: without one no thread runs.
    _meters: list[Any] = field(default_factory=list[Any], repr=False)

    def server_interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        """Interceptors for a server, to stand before its own."""
        if not self.enabled:
            return ()
        from maestro_sdk.service.spans import server_interceptor

        return (server_interceptor(self._provider),)

    def observe(self, name: str, read: Callable[[], Iterable[tuple[float, Mapping[str, str]]]], **facts: Any) -> None:
        """Exports a metric; see `observe`."""
        if not self.enabled:
            return
        from maestro_sdk.service.meters import add_meter, meter_provider

        if not self._meters:
            self._meters.append(meter_provider(self._name, self._endpoint))
        add_meter(self._meters[0], name, read, **facts)

    def shut_down(self) -> None:
        """Sends what is left and ends; takes 5 seconds at most for traces, and as long for metrics."""
        if self.enabled:
            self._provider.force_flush(5000)
            self._provider.shutdown()
        for meters in self._meters:
            meters.shutdown(timeout_millis=5000)


def set_up_telemetry(name: str, config: TelemetryConfig) -> Telemetry:
    """Tracing of this process under the service name `name`; call it once, before servers and channels are made."""
    if not config.otlp_endpoint:
        return Telemetry()
    from maestro_sdk.service.spans import client_interceptors, tracer_provider

    intercept_channels(client_interceptors)
    endpoint = config.otlp_endpoint
    telemetry = Telemetry(enabled=True, _provider=tracer_provider(name, endpoint), _name=name, _endpoint=endpoint)
    _enabled[:] = [telemetry]
    return telemetry


def is_exporting() -> bool:
    """Whether traces and metrics of this process go anywhere."""
    return bool(_enabled)


def observe(
    name: str, read: Callable[[], Iterable[tuple[float, Mapping[str, str]]]], description: str, *, total: bool = False
) -> None:
    """Exports a metric of this process: what `read` gives as value and attributes whenever metrics are sent.

    `read` is called in another thread. `total` says that the values only grow. Without an endpoint nothing happens.
    """
    for telemetry in _enabled:
        telemetry.observe(name, read, description=description, total=total)


_enabled: list[Telemetry] = []
"""The telemetry that was set up, if it exports."""


def set_up_logging(name: str, config: TelemetryConfig) -> None:
    """Sends all logs of this process to standard error: text, or one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(name) if config.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.log_level.upper())
    # Below warnings these tell about every connection, which nobody asked for.
    for noisy in ("nats", "grpc", "asyncio", "opentelemetry", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def redacted(text: str) -> str:
    """The text without any key: those that this process read, and whatever looks like one."""
    for secret in revealed():
        text = text.replace(secret, _HIDDEN)
    return _KEYS.sub(_HIDDEN, text)


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value…`"""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        line += "".join(f" {key}={value}" for key, value in _identity().items())
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return redacted(line)


class JsonFormatter(logging.Formatter):
    """One JSON object per line; `service` names the process."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **_identity(),
        }
        if record.exc_info:
            entry["exception"] = redacted(self.formatException(record.exc_info))
        return orjson.dumps(entry).decode()


def _identity() -> dict[str, str]:
    """The request that is being served, if any."""
    call = current_call()
    if call is None:
        return {}
    facts = {"request_id": call.request_id, "tenant": call.tenant, "trace_id": call.trace_id}
    return {key: value for key, value in facts.items() if value}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
