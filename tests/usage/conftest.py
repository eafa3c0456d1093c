"""One mesh with two gateways, and two providers that count for themselves what they charge."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason, Started, TextDelta
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import Overloaded, StreamBroken
from maestro_sdk.prices import nano_usd
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.scripted import scripted_model
from maestro_sdk.testing.servers import serve

GATEWAYS = ("gateway", "gateway-2")
TENANTS = ("acme", "globex", "storm")
OPERATOR = "mk-operator-0123456789abcdef"
INPUT = 10
PIECE = "word"
SETTLE = 0.05
"""Seconds in which what was sent is read."""
_health: Any = grpc_health  # the asyncio half has no types


class MeteredProvider:
    """Tells what it used with every piece, and adds up what it charges for each call, however that one ends."""

    def __init__(self, name: str, price: Price, begun: defaultdict[str, asyncio.Event]) -> None:
        """`begun` tells all providers which questions any of them has begun to answer."""
        self.name = f"adapter-{name}"
        self.providers: Sequence[str] = (name,)
        self.nano = 0
        self.tokens = 0
        self._own = name
        self._price = price
        self._begun = begun
        model = scripted_model(f"{name}/model")
        model.features.add(feature=Feature.FEATURE_PREFILL, support=Support.SUPPORT_NATIVE)
        model.price.CopyFrom(price)
        self._model = model

    async def models(self) -> Sequence[Model]:
        return [self._model]

    async def check(self) -> str:
        return ""

    async def close(self) -> None:
        """Holds nothing."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        text = request.messages[0].parts[0].text.text
        play = json.loads(text).get(self._own, [0, "fail"])
        pieces, end = int(play[0]), str(play[1])
        if end == "fail":
            raise Overloaded("it fails at once, and charges nothing")
        if end == "follow":
            # The other one has told by then what it charges.
            await self._begun[text].wait()
            await asyncio.sleep(SETTLE)
        used = Usage(input_tokens=INPUT)
        try:
            yield (ChatEvent(started=Started(response_id="r", provider=self._own, model="model")), told(used))
            self._begun[text].set()
            for _ in range(pieces):
                used.output_tokens += 1
                yield (ChatEvent(text=TextDelta(text=PIECE)), told(used))
            if end == "hold":
                await asyncio.Event().wait()
            if end == "break":
                # What was sent is read before the end: in one read with it, it might be dropped.
                await asyncio.sleep(SETTLE)
                raise StreamBroken("it breaks off, and charges what it sent")
            yield (ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, raw_reason="stop", usage=used)),)
        finally:
            self.nano += nano_usd(used, self._price)
            self.tokens += used.input_tokens + used.output_tokens


def told(used: Usage) -> ChatEvent:
    """The usage so far."""
    event = ChatEvent()
    event.usage.CopyFrom(used)
    return event


class Mesh:
    """The running mesh."""

    def __init__(self, process: MeshProcess, http: aiohttp.ClientSession, providers: Sequence[MeteredProvider]) -> None:
        self.process = process
        self.http = http
        self.providers = providers
        self._channels = [open_channel(process.address(name)) for name in GATEWAYS]
        self._stubs: list[Any] = [ChatServiceStub(channel) for channel in self._channels]

    @property
    def metered(self) -> tuple[int, int]:
        """Nano-dollars and tokens that the providers charged."""
        return sum(each.nano for each in self.providers), sum(each.tokens for each in self.providers)

    async def ask(
        self, tenant: str, number: int = 0, streamed: bool = False, leave_after: int = -1, **plays: Any
    ) -> str:
        """One chat with the gateway of a number: its text, or what it failed with.

        With `leave_after` the caller leaves after so many pieces. `plays` are what the providers do, "route" which
        route is asked, and "labels" the labels.
        """
        route, labels = plays.pop("route", "plain"), plays.pop("labels", {})
        message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=json.dumps(plays)))])
        request = ChatRequest(model=route, messages=[message], metadata=labels)
        metadata = (("authorization", f"Bearer {key_of(tenant)}"),)
        stub, seen = self._stubs[number % len(self._stubs)], 0
        try:
            if not streamed:
                answer = await stub.Chat(request, metadata=metadata, timeout=30)
                return "".join(part.text.text for part in answer.parts)
            text = ""
            call = stub.StreamChat(request, metadata=metadata, timeout=30)
            async for chunk in call:
                for event in chunk.events:
                    if event.HasField("text"):
                        text += event.text.text
                        seen += event.text.text.count(PIECE)
                if 0 <= leave_after <= seen:
                    call.cancel()
                    return text
            return text
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def rest(self, path: str, key: str, **query: Any) -> tuple[int, Any]:
        """Status and JSON of a GET."""
        status, _, body = await self.get(path, key, **query)
        return status, json.loads(body)

    async def get(self, path: str, key: str, **query: Any) -> tuple[int, Any, str]:
        """Status, headers and text of a GET; lists in `query` are repeated."""
        asked = [
            (name, each) for name, value in query.items() for each in (value if isinstance(value, list) else [value])
        ]
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.http.get(self.process.url + path, params=asked, headers=headers) as response:
            return response.status, response.headers, await response.text()

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


def key_of(tenant: str) -> str:
    """The key of a tenant."""
    return f"mk-{tenant}-0123456789abcdef"


def configuration(one: str, two: str) -> dict[str, Any]:
    """What the mesh is started with."""
    keys: list[dict[str, Any]] = [
        {"tenant": name, "key": {"env": f"KEY_{name.upper()}"}, "scopes": ["chat", "admin"]} for name in TENANTS
    ]
    keys.append({"tenant": "operations", "key": {"env": "KEY_OPERATOR"}, "scopes": ["chat", "operator"]})
    both = ["one/model", "two/model"]
    return {
        "version": 1,
        "gateway": {"replicas": 2, "keys": keys},
        "router": {"breaker": {"consecutive_failures": 10_000, "minimum_calls": 10_000}},
        "adapters": {"one": {"address": one}, "two": {"address": two}},
        "routes": {
            "default": {"targets": both},
            "plain": {"targets": both},
            "hedged": {"targets": both, "hedge": {"after": "50ms", "max_extra": 1.0}},
            "resumed": {"targets": both, "resume": "continue"},
        },
        "aliases": {},
        "grace": "5s",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    environment = {f"KEY_{name.upper()}": key_of(name) for name in TENANTS} | {"KEY_OPERATOR": OPERATOR}
    begun = defaultdict[str, asyncio.Event](asyncio.Event)
    one = MeteredProvider("one", Price(effective_date="2026-01-01", input="3.07", output="15.003"), begun)
    two = MeteredProvider("two", Price(effective_date="2026-02-01", input="0.101", output="0.4"), begun)
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with (
        serve(ChatServicer(one), ModelServicer(one), statuses) as first,
        serve(ChatServicer(two), ModelServicer(two), statuses) as second,
        MeshProcess(tmp_path_factory.mktemp("usage"), configuration(first, second), environment) as process,
        aiohttp.ClientSession() as http,
    ):
        mesh = Mesh(process, http, (one, two))
        await _answers(mesh)
        try:
            yield mesh
        finally:
            await mesh.close()


async def _answers(mesh: Mesh) -> None:
    """Waits until each gateway knows both models."""
    end = time.monotonic() + 20
    for number in range(len(GATEWAYS)):
        for provider in ("one", "two"):
            plays: dict[str, Any] = {provider: [1, "answer"]}
            while await mesh.ask("globex", number, **plays) != PIECE:
                assert time.monotonic() < end, "the gateways do not know the models"
                await asyncio.sleep(0.05)
