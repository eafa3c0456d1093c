"""OpenTelemetry's meters, exporting to OTLP. Imported only when metrics are exported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource

Readings: TypeAlias = Iterable[tuple[float, Mapping[str, str]]]


def meter_provider(name: str, endpoint: str) -> MeterProvider:
    """The process's meters; they are read and sent as often as `OTEL_METRIC_EXPORT_INTERVAL` says, else each minute."""
    exporter = OTLPMetricExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    return MeterProvider(
        metric_readers=[PeriodicExportingMetricReader(exporter)], resource=Resource.create({SERVICE_NAME: name})
    )


def add_meter(
    provider: MeterProvider, name: str, read: Callable[[], Readings], description: str, *, total: bool
) -> None:
    """Makes a counter or a gauge of what `read` gives."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, attributes) for value, attributes in read()]

    meter = provider.get_meter(__name__)
    make = meter.create_observable_counter if total else meter.create_observable_gauge
    make(name, callbacks=[observe], description=description)
