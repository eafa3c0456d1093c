"""The conformance suite on models that have nothing but text, through the polyfills."""

from __future__ import annotations

from typing import Any, cast

import pytest
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro_sdk.adapter.polyfill import Polyfilled
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.conformance.outcome import Verdict
from maestro_sdk.conformance.suite import prove
from maestro_sdk.testing.plain_models import PromptedProvider
from maestro_sdk.testing.servers import serve

SERVICES = ("maestro.llm.v1.ChatService", "maestro.llm.v1.ModelService")
TOOLS = ["tools", "parallel_tools", "tool_choice"]


@pytest.mark.parametrize("constrained", [False, True], ids=["prompt", "structured_output"])
async def test_what_is_polyfilled_is_proven(constrained: bool) -> None:
    inner = PromptedProvider(constrained=constrained, pace=0.0005)
    provider = Polyfilled(inner, constrained)
    statuses: Any = cast("Any", health).aio.HealthServicer()
    for name in ("", *SERVICES):
        await statuses.set(name, health_pb2.HealthCheckResponse.SERVING)
    extras = (statuses, cast("Any", reflection).aio.ReflectionServicer(SERVICES))
    async with serve(ChatServicer(provider), ModelServicer(provider), *extras) as address:
        report = await prove(address, timeout=10)
    wrong = [outcome for outcome in report.outcomes if outcome.verdict in {Verdict.FAILED, Verdict.BLOCKED}]
    assert [(outcome.name, outcome.seen) for outcome in wrong] == []
    assert report.passed
    made = [*TOOLS, "streamed_tool_args"] if constrained else [*TOOLS, "json_schema"]
    proven = {outcome.name for outcome in report.outcomes if outcome.verdict is Verdict.PROVEN}
    assert proven >= {*made, "json_schema", "unary_is_fold", "cancellation", "usage"}
    [model] = await provider.models()
    claimed = {entry.feature: entry.support for entry in model.features}
    for name in made:
        assert claimed[Feature.Value(f"FEATURE_{name.upper()}")] == Support.SUPPORT_POLYFILLED
    # Nothing reached the model that it does not know.
    assert inner.refused == []
