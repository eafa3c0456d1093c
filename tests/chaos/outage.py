"""A mesh whose NATS and store go away under load: two gateways, a provider with a meter, callers at three doors."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self, cast

import aiohttp
import grpc
import nats

from maestro.event.v1.event_pb2 import Event, RequestCompleted, RequestDenied, RequestFailed
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason, Started, TextDelta
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.audit.chain import STREAM as AUDIT
from maestro_gateway.audit.chain import subject_of
from maestro_gateway.ledger.scan import scan
from maestro_gateway.ledger.stream import STREAM as LEDGER
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.store import StoreConfig
from maestro_sdk.service.store.holds import Balance
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.service.store.shared_holds import SharedHolds
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.redis import RedisServer
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model

TENANTS = ("paid", "free", "paid-killed", "free-killed")
"""Those that are "paid" have limits and a budget; the last two are those of the test that kills a gateway."""
TOKEN = 2_500_000
"""What a token of an answer costs, in nano-dollars."""
MOST = 40
LEASE = 2.0
DOORS = ("unary", "events", "grpc")
_PATIENCE = 20.0
_PAUSE = 0.02


class Meter(ScriptedProvider):
    """Charges for each answer; its meter is in nano-dollars, by the text of the request."""

    def __init__(self) -> None:
        model = scripted_model("fake/model")
        model.price.CopyFrom(Price(effective_date="2026-01-01", input="0", output="2500"))
        super().__init__(models=[model])
        self.meter: dict[str, int] = {}

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        text = request.messages[-1].parts[0].text.text
        tokens = random.randint(1, MOST)
        yield (ChatEvent(started=Started(response_id=text, provider="fake", model="model", attempt=1)),)
        yield (ChatEvent(text=TextDelta(text="half ")),)
        await asyncio.sleep(0.03 * random.random())
        self.meter[text] = self.meter.get(text, 0) + tokens * TOKEN
        used = Usage(input_tokens=3, output_tokens=tokens)
        yield (ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, usage=used)),)

    def charged(self, tenant: str) -> int:
        """What all requests of a tenant cost."""
        return sum(cost for text, cost in self.meter.items() if text.startswith(f"{tenant}:"))


@dataclass(slots=True)
class Asked:
    """One request and what its caller saw; times are those of `time.monotonic()`."""

    text: str
    tenant: str
    door: str
    begun: float
    ended: float = 0.0
    failure: str = "no end"
    """Empty when the whole answer came."""


class Load:
    """Callers of some tenants at every door, who ask without end; an async context manager."""

    def __init__(self, mesh: MeshProcess, tenants: Sequence[str], clients: int) -> None:
        self.asked: list[Asked] = []
        self._mesh = mesh
        self._numbers = itertools.count()
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._places = [(tenants[n % len(tenants)], DOORS[n // len(tenants) % len(DOORS)]) for n in range(clients)]

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._ask(*place)) for place in self._places]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, tenant: str, door: str) -> None:
        ask = {"unary": _ask_unary, "events": _ask_events, "grpc": _ask_grpc}[door]
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with (
            aiohttp.ClientSession(self._mesh.url, timeout=timeout) as http,
            open_channel(self._mesh.target) as channel,
        ):
            while not self._over:
                asked = Asked(f"{tenant}:{next(self._numbers)}", tenant, door, time.monotonic())
                self.asked.append(asked)
                try:
                    asked.failure = await ask(http, channel, asked)
                except (aiohttp.ClientError, grpc.aio.AioRpcError, OSError, TimeoutError) as error:
                    asked.failure = f"{type(error).__name__}: {error}"[:300]
                asked.ended = time.monotonic()
                await asyncio.sleep(_PAUSE * (1 if not asked.failure else 5))


def _body(asked: Asked) -> dict[str, Any]:
    message = {"role": "user", "content": asked.text}
    return {"model": "fake/model", "messages": [message], "max_tokens": MOST, "metadata": {"n": asked.text}}


def _headers(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(tenant)}"}


async def _ask_unary(http: aiohttp.ClientSession, _: grpc.aio.Channel, asked: Asked) -> str:
    async with http.post("/v1/chat", json=_body(asked), headers=_headers(asked.tenant)) as answer:
        return "" if answer.status == 200 else (await answer.text())[:300]


async def _ask_events(http: aiohttp.ClientSession, _: grpc.aio.Channel, asked: Asked) -> str:
    async with http.post("/v1/chat", json=_body(asked) | {"stream": True}, headers=_headers(asked.tenant)) as answer:
        text = await answer.text()
    return "" if "event: finish" in text else text[-300:] or "an empty body"


async def _ask_grpc(_: aiohttp.ClientSession, channel: grpc.aio.Channel, asked: Asked) -> str:
    stub: Any = ChatServiceStub(channel)
    request = ChatRequest(
        model="fake/model",
        max_tokens=MOST,
        messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=asked.text))])],
        metadata={"n": asked.text},
    )
    metadata = tuple(_headers(asked.tenant).items())
    kinds = [
        event.WhichOneof("kind")
        async for batch in stub.StreamChat(request, metadata=metadata, timeout=_PATIENCE)
        for event in batch.events
    ]
    return "" if "finish" in kinds else "no finish"


def key_of(tenant: str) -> str:
    """The key of a tenant."""
    return f"mk-{tenant}-0123456789"


def configuration(store: str, adapter: str, on_store_failure: str) -> dict[str, Any]:
    """What the mesh is started with."""
    paid = [tenant for tenant in TENANTS if tenant.startswith("paid")]
    limit = {"requests": 1_000_000, "concurrency": 500}
    return {
        "version": 1,
        "gateway": {
            "replicas": 2,
            "keys": [
                {"tenant": name, "key": {"env": f"KEY_{number}"}, "scopes": ["chat", "admin"]}
                for number, name in enumerate(TENANTS)
            ],
        },
        "adapters": {"fake": {"address": adapter}},
        "routes": {"default": {"targets": ["fake/model"]}},
        "aliases": {},
        "store": {"url": store, "lease": LEASE},
        "limits": {"on_store_failure": on_store_failure, "tenants": dict.fromkeys(paid, limit)},
        "budgets": {"money": {"period": "month", "tenants": paid, "each": ["tenant"], "usd": 9000}},
        "grace": "5s",
    }


def environment() -> dict[str, str]:
    """The keys of all tenants."""
    return {f"KEY_{number}": key_of(name) for number, name in enumerate(TENANTS)}


class Books:
    """What the mesh wrote down, read behind its back."""

    def __init__(self, mesh: MeshProcess, store: RedisServer, client: Any) -> None:
        self._mesh = mesh
        self._store = store
        self._client = client

    @classmethod
    async def open(cls, mesh: MeshProcess, store: RedisServer) -> Books:
        """Reads the NATS of the mesh."""
        address = f"nats://{mesh.address('nats')}"
        return cls(mesh, store, await cast("Any", nats).connect(address, max_reconnect_attempts=-1))

    async def close(self) -> None:
        """Ends the connection."""
        await self._client.close()

    async def ledger(self, tenant: str) -> dict[str, Event]:
        """The entries of a tenant that count, in their order, by identifier: as a reader of the ledger takes them."""
        found = await self.entries(tenant)
        return {name: event for name, event in found.items() if event.request_failed.estimate_of not in found}

    async def entries(self, tenant: str) -> dict[str, Event]:
        """All entries of a tenant in their order, estimates with a true end among them."""
        found: dict[str, Event] = {}
        async with aclosing(scan(self._client, LEDGER, [f"maestro.events.{tenant}.>"])) as batches:
            async for batch in batches:
                for entry in batch:
                    event = Event.FromString(entry.data)
                    found.setdefault(event.id, event)
        return found

    async def audit(self, tenant: str) -> list[AuditRecord]:
        """The chain of a tenant."""
        found: list[AuditRecord] = []
        async with aclosing(scan(self._client, AUDIT, [subject_of(tenant)])) as batches:
            async for batch in batches:
                found += [AuditRecord.FromString(entry.data) for entry in batch]
        return found

    async def balance(self, tenant: str) -> Balance | None:
        """What the store counts of the tenant's budget; None when it knows nothing of it."""
        group = f"money|{time.strftime('%Y-%m', time.gmtime())}"
        async with (
            SharedStore(StoreConfig(url=self._store.url, timeout=5.0)) as store,
            SharedHolds(store, 60.0, lambda charge: None) as holds,
        ):
            found = await holds.balances(group)
            return next((each for each in found if each.counter.startswith(f"{group}|{tenant}|")), None)


def end_of(event: Event) -> RequestCompleted | RequestFailed | RequestDenied:
    """The end that an entry tells."""
    return getattr(event, event.WhichOneof("payload") or "")


def name_of(event: Event) -> str:
    """The text of the request that an entry is about."""
    return end_of(event).metadata["n"]


def cost_of(event: Event) -> int:
    """What a request cost by its attempts, in nano-dollars."""
    end = end_of(event)
    if isinstance(end, RequestDenied):
        return 0
    return sum(int(Decimal(used.cost.usd) * 10**9) for used in end.attempt_usages if used.HasField("cost"))


def share(asked: Sequence[Asked], since: float, until: float) -> tuple[int, int, float, Counter[str]]:
    """Of the requests that began in a span: how many, how many were answered, p99 of these in seconds, and failures."""
    within = [each for each in asked if since <= each.begun < until]
    times = sorted(each.ended - each.begun for each in within if not each.failure)
    slow = times[min(len(times) - 1, int(len(times) * 0.99))] if times else 0.0
    return len(within), len(times), slow, Counter(_reason(each.failure) for each in within if each.failure)


def _reason(failure: str) -> str:
    try:
        return str(json.loads(failure)["error"]["reason"])
    except (ValueError, KeyError, TypeError):
        return failure[:120]
