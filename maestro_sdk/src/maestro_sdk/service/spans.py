"""OpenTelemetry, set up for gRPC on asyncio. Imported only when traces are exported."""

from __future__ import annotations

from typing import Any, cast

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation import grpc as instrumentation
from opentelemetry.instrumentation.grpc import filters
from opentelemetry.instrumentation.grpc._aio_server import (
    OpenTelemetryAioServerInterceptor,
    _OpenTelemetryAioServicerContext,  # pyright: ignore[reportPrivateUsage]
)
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


class _ServerInterceptor(OpenTelemetryAioServerInterceptor):
    """The instrumentation takes every stream for a generator; the mesh's handlers write to the context instead."""

    def _intercept_aio_server_stream(self, behavior: Any, handler_call_details: Any) -> Any:
        own: Any = self  # what it inherits has no types

        async def behave(request: Any, context: Any) -> None:
            with (
                own._set_remote_context(context),
                own._start_span(handler_call_details, context, set_status_on_exception=False) as span,
            ):
                await behavior(request, _OpenTelemetryAioServicerContext(context, span))

        return behave


def tracer_provider(name: str, endpoint: str) -> TracerProvider:
    """The process's tracer provider, exporting to an OTLP/gRPC endpoint such as "http://127.0.0.1:4317"."""
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def server_interceptor(provider: TracerProvider) -> grpc.aio.ServerInterceptor:
    """Makes a span of every call but health checks."""
    tracer = trace.get_tracer(__name__, tracer_provider=provider)
    return _ServerInterceptor(tracer, filter_=filters.negate(filters.health_check()))


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """Make a span of every call that a channel sends."""
    return cast("Any", instrumentation).aio_client_interceptors(tracer_provider=trace.get_tracer_provider())
