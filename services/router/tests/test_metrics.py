"""The router's metrics as a collector gets them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health, health_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import free_port, serve

BACKEND = "first:scripted/model"


class Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps the last value of every series."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.services: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_metrics:
            facts = {found.key: found.value.string_value for found in resource.resource.attributes}
            self.services.add(facts["service.name"])
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                points = metric.sum.data_points if metric.HasField("sum") else metric.gauge.data_points
                for point in points:
                    series = [f"{found.key}={found.value.string_value}" for found in point.attributes]
                    self.values[metric.name, *sorted(series)] = point.as_int or point.as_double
        return metrics_service_pb2.ExportMetricsServiceResponse()


async def test_a_collector_gets_states_headroom_and_attempts(tmp_path: Path) -> None:
    collector, server = Collector(), grpc.aio.server()
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    provider, serving = ScriptedProvider(), vars(health)["aio"].HealthServicer()
    await serving.set("", health_pb2.HealthCheckResponse.SERVING)
    address = f"127.0.0.1:{free_port()}"
    async with serve(ChatServicer(provider), ModelServicer(provider), serving) as adapter:
        file = tmp_path / "maestro.yaml"
        document = {
            "version": 1,
            "data": str(tmp_path / "data"),
            "router": {"address": address},
            "adapters": {"first": {"address": adapter}},
            "routes": {"default": {"targets": ["scripted/model"]}},
            "aliases": {},
            "nats": {"url": f"nats://127.0.0.1:{free_port()}"},
            "telemetry": {"otlp_endpoint": f"http://127.0.0.1:{port}"},
        }
        file.write_text(yaml.safe_dump(document))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "maestro_router"),
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"MAESTRO_CONFIG": str(file), "OTEL_METRIC_EXPORT_INTERVAL": "100"},
        )
        try:
            async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
                router = RouterServiceStub(channel)
                while not (await router.ListBackends(pb.ListBackendsRequest(), wait_for_ready=True)).backends:
                    await asyncio.sleep(0.02)
                answered = pb.Outcome(backend_id=BACKEND)
                answered.headroom.tokens.remaining = 7
                quota = ErrorReason.ERROR_REASON_PROVIDER_QUOTA
                failed = pb.Outcome(backend_id=BACKEND, reason=quota, counts_against_health=True)
                await router.Report(pb.ReportRequest(reporter="gateway", outcomes=[answered, answered, failed]))
                wanted = ("maestro.backend.state", f"backend={BACKEND}", "reason=PROVIDER_QUOTA", "state=open")
                while wanted not in collector.values:
                    await asyncio.sleep(0.02)
            child.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(child.wait(), 20) == 0
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
            await server.stop(None)
    assert collector.services == {"router"}
    assert collector.values[wanted] == 1
    assert collector.values["maestro.attempts", f"backend={BACKEND}", "reason=OK"] == 2
    assert collector.values["maestro.attempts", f"backend={BACKEND}", "reason=PROVIDER_QUOTA"] == 1
    assert collector.values["maestro.backend.headroom", f"backend={BACKEND}", "limit=tokens"] == 7
