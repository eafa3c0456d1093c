"""Proofs of announced adapters: what they cost, what they tell, and for what they hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.usage_pb2 import Price
from maestro_router.announced import digest
from maestro_router.compile import Adapter
from maestro_router.verdicts import Verdicts, prove_core, summary
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.conformance.outcome import Outcome, Verdict
from maestro_sdk.testing.obliging import ObligingProvider, obliging_model
from maestro_sdk.testing.scripted import scripted_model
from maestro_sdk.testing.servers import free_port, serve


class Counting(ObligingProvider):
    """Counts what a provider would charge for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        self.calls.append(sum(len(part.text.text) for message in request.messages for part in message.parts))
        async for events in super().stream(request):
            yield events


async def test_a_proof_costs_no_more_than_the_guide_says():
    provider = Counting()
    statuses: Any = vars(health)["aio"].HealthServicer()
    names = ("maestro.llm.v1.ChatService", "maestro.llm.v1.ModelService")
    for name in ("", *names):
        await statuses.set(name, health_pb2.HealthCheckResponse.SERVING)
    listed: Any = vars(reflection)["aio"].ReflectionServicer(names)
    async with serve(ChatServicer(provider), ModelServicer(provider), statuses, listed) as address:
        view = Adapter("echo", address, models=[obliging_model()])
        assert await prove_core(view) == ""
    assert 20 < len(provider.calls) <= 40
    assert [size > 1000 for size in provider.calls].count(True) == 1
    assert max(provider.calls) < 61_000


async def test_what_does_not_answer_is_not_proven():
    address = f"127.0.0.1:{free_port()}"
    assert await prove_core(Adapter("echo", address), 0.2) == f"it could not be proven: nothing answers at {address}"


def test_a_verdict_holds_for_version_models_and_address_and_outlives_the_router(tmp_path: Path):
    adapter = Adapter("echo", "h:1", version="1.0", models=[scripted_model("s/a"), scripted_model("s/b")])
    verdicts = Verdicts(tmp_path / "router" / "verdicts.json")
    assert verdicts.instance(adapter) is None
    verdicts.keep(adapter, "one")
    again = Verdicts(tmp_path / "router" / "verdicts.json")
    assert again.instance(replace(adapter, models=list(reversed(adapter.models)), since=9.0)) == "one"
    assert again.instance(replace(adapter, version="1.1")) is None
    assert again.instance(replace(adapter, address="h:2")) is None
    assert again.instance(replace(adapter, models=[scripted_model("s/a")])) is None
    dear = scripted_model("s/a")
    dear.price.CopyFrom(Price(input="1", output="1", effective_date="2026-01-01"))
    assert digest(replace(adapter, models=[scripted_model("s/a")])) != digest(replace(adapter, models=[dear]))
    again.drop(adapter)
    assert Verdicts(tmp_path / "router" / "verdicts.json").instance(adapter) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"echo h:1": 5}', '{"echo h:1": ["a"]}', "\udcff"])
def test_a_spoiled_file_of_verdicts_means_none(tmp_path: Path, content: str):
    file = tmp_path / "verdicts.json"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert Verdicts(file).instance(Adapter("echo", "h:1")) is None


def test_what_fails_is_told_in_one_bounded_line():
    def outcome(name: str, verdict: Verdict, seen: str) -> Outcome:
        return Outcome(name, "", "", "", verdict, seen, "", "", 0.0)

    failed = [outcome(f"case_{number}", Verdict.FAILED, "evil\n\x1b[31m" + "x" * 5000) for number in range(6)]
    blocked = outcome("later", Verdict.BLOCKED, "waits for case_0")
    said = summary([*failed, blocked, outcome("good", Verdict.PROVEN, "")])
    assert said.startswith("fails 6 of 8 core cases: case_0 (evil [31mxxx")
    assert said.endswith("case_4, case_5, and 1 more wait for these")
    assert said.isprintable()
    assert len(said) < 800
    assert summary([outcome("good", Verdict.PROVEN, "")]) == ""
    assert summary([outcome("all", Verdict.BLOCKED, "nothing answers at h:1")]) == (
        "it could not be proven: nothing answers at h:1"
    )
