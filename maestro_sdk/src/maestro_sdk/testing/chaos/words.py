"""What gateways say of their breakers, again and again: who has said that it is open must not call after that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import orjson

from maestro.event.v1.event_pb2 import Event
from maestro.gateway.v1.http_pb2 import ListBackendsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.chaos.load import Shown
from maestro_sdk.testing.chaos.provider import Call
from maestro_sdk.testing.mesh import MeshProcess

_PAUSE = 0.05
_PATIENCE = 2.0
_ROUNDED = 0.001
"""Seconds to which a gateway rounds what it tells."""


@dataclass(frozen=True, slots=True)
class Word:
    """What one gateway said of one backend. `until` is the Unix time before which it asks nothing of it; 0 for none."""

    gateway: str
    backend_id: str
    heard: float
    """Unix time at which the answer was there."""
    until: float


class Words:
    """Asks each of `gateways` again and again, until it is left; an async context manager."""

    def __init__(self, mesh: MeshProcess, key: str, gateways: Sequence[str], backends: Iterable[str]) -> None:
        self.said: list[Word] = []
        """In the order in which it was heard. Who is killed says nothing until it is back."""
        self._addresses = {gateway: mesh.address(gateway) for gateway in gateways}
        self._metadata = (("authorization", f"Bearer {key}"),)
        self._backends = frozenset(backends)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            tasks = [
                asyncio.create_task(self._listen(gateway, await stack.enter_async_context(open_channel(address))))
                for gateway, address in self._addresses.items()
            ]
            stack.push_async_callback(_cancel, tasks)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _listen(self, gateway: str, channel: grpc.aio.Channel) -> None:
        stub = HttpServiceStub(channel)
        while True:
            asked = time.time()
            with suppress(grpc.aio.AioRpcError):
                answer = await stub.ListBackends(ListBackendsRequest(), metadata=self._metadata, timeout=_PATIENCE)
                self._note(gateway, orjson.loads(answer.data), asked, time.time())
            await asyncio.sleep(_PAUSE)

    def _note(self, gateway: str, told: Any, asked: float, heard: float) -> None:
        for backend in told["backends"]:
            if backend["id"] in self._backends:
                here = backend["here"]
                left = max(here["seconds_left"] or 0.0, here["account"]["seconds_left"] or 0.0)
                # It looked at its clock after it was asked.
                self.said.append(Word(gateway, backend["id"], heard, asked + left - _ROUNDED if left else 0.0))


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def closings(events: Iterable[Event], killed: Sequence[tuple[str, float]]) -> dict[str, list[float]]:
    """When breakers were closed early, by the scope that an adapter, an account or a backend is.

    Routers tell it of a backend and of an account. Of an adapter that was killed, by name and Unix time in `killed`,
    the next word that it serves is enough: a router that dies then has told the gateways, and maybe nobody else.
    """
    found: dict[str, list[float]] = {}
    waiting = sorted(killed, key=lambda kill: kill[1])
    for event in sorted(events, key=lambda event: event.time.ToNanoseconds()):
        at = event.time.ToNanoseconds() / 1e9
        match event.WhichOneof("payload"):
            case "backend_closed":
                found.setdefault(event.backend_closed.backend_id, []).append(at)
            case "adapter_joined":
                adapter = event.adapter_joined.adapter
                over = [kill for kill in waiting if kill[0] == f"adapter-{adapter}" and kill[1] < at]
                if over:
                    waiting = [kill for kill in waiting if kill not in over]
                    found.setdefault(adapter, []).append(at)
            case _:
                pass
    return found


@dataclass(frozen=True, slots=True)
class Held:
    """A question that was asked after every gateway had said that it calls a provider for nobody before `until`.

    The first of them said so at `since`; Unix times.
    """

    mark: str
    provider: str
    since: float
    until: float


def held(shown: Iterable[Shown], words: Sequence[Word], backends: Mapping[str, str]) -> list[Held]:
    """The questions that no gateway could ask of a provider, by what all gateways had said before they were asked.

    `backends` gives the backend of a provider. Nothing is allowed for the time that news or calls take:
    who has said it knows it, and it binds until the time that was said, whatever is said later.
    """
    gateways = {word.gateway for word in words}
    asked = sorted(shown, key=lambda each: each.began)
    found: list[Held] = []
    for provider, backend_id in backends.items():
        said = [word for word in words if word.backend_id == backend_id]
        bound: dict[str, Word] = {}
        heard = 0
        for each in asked:
            while heard < len(said) and said[heard].heard <= each.began:
                word, heard = said[heard], heard + 1
                if word.gateway not in bound or word.until > bound[word.gateway].until:
                    bound[word.gateway] = word
            until = min((word.until for word in bound.values()), default=0.0)
            if bound.keys() == gateways and until > each.began:
                found.append(Held(each.mark, provider, min(word.heard for word in bound.values()), until))
    return found


def broken_words(
    calls: Iterable[Call],
    questions: Iterable[Held],
    backends: Mapping[str, str],
    closed: Mapping[str, Sequence[float]],
) -> Iterator[str]:
    """A provider is not asked what no gateway would ask of it, unless its breaker was `closed` in the meantime."""
    bound = {(each.provider, each.mark): each for each in questions}
    for call in calls:
        each = bound.get((call.provider, call.mark))
        if each is None or call.at >= each.until:
            continue
        backend_id = backends[call.provider]
        adapter, _, model = backend_id.partition(":")
        scopes = (backend_id, f"{adapter}:{model.partition('/')[0]}", adapter)
        if not any(each.since <= at <= call.at for scope in scopes for at in closed.get(scope, ())):
            yield (
                f"{call.provider} was asked {call.mark} {each.until - call.at:.3f} s before the time until which every "
                "gateway had said that it asks nothing of it"
            )
