"""One request and the cache: whether its route gives answers again, the earlier one, and what is kept of a new one."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

from google.protobuf.message import DecodeError

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Cost
from maestro_gateway.cache.key import key_of
from maestro_gateway.identity import current_caller
from maestro_sdk.adapter.fold import Fold
from maestro_sdk.errors import MaestroError, StreamBroken
from maestro_sdk.mesh.plan import choose_route, variant_of

if TYPE_CHECKING:
    from maestro_gateway.cache.flight import Flight
    from maestro_gateway.cache.store import AnswerStore
    from maestro_sdk.mesh.needs import Needs
    from maestro_sdk.mesh.table import AnswerCache, Route, Table

State = Literal["", "hit", "miss"]

_WHOLE = frozenset(
    {
        FinishReason.FINISH_REASON_STOP,
        FinishReason.FINISH_REASON_STOP_SEQUENCE,
        FinishReason.FINISH_REASON_TOOL_CALLS,
    }
)
"""Ends of answers that are as the model meant them."""
_state: ContextVar[State] = ContextVar("maestro_cache", default="")


def cache_state() -> State:
    """Whether the request of this context found an answer; empty where its route keeps none."""
    return _state.get()


class Lookup:
    """A request on a route with a cache. `found` is the earlier answer; else `note` or `keep` take the new one."""

    __slots__ = (
        "_anew",
        "_cache",
        "_collected",
        "_flight",
        "_fold",
        "_key",
        "_store",
        "_stores",
        "found",
        "found_vectors",
        "route",
    )

    def __init__(
        self, store: AnswerStore, route: Route, cache: AnswerCache, key: str, *, stores: bool, anew: bool
    ) -> None:
        """`stores` whether the new answer is kept, `anew` whether it takes the place of an earlier one."""
        self._store, self._cache, self._key, self._stores, self._anew = store, cache, key, stores, anew
        self._fold: Fold | None = Fold() if stores else None
        self._collected = 0
        # What others wait for, while this request is the one that asks.
        self._flight: Flight | None = None
        self.route = route
        self.found: ChatResponse | None = None
        self.found_vectors: EmbedResponse | None = None

    async def look(self, deadline: float | None, *, waits: bool, vectors: bool) -> None:
        """Looks for an answer; `waits` for that of the same request, where one is under way, up to `deadline`.

        Where none is, others wait for this one: then `leave` has to follow, whatever becomes of it.
        """
        data = self._store.held(self._key)
        if data is None and waits:
            joined = await self._store.flights.join(self._key, deadline)
            if isinstance(joined, bytes):
                data = joined
            else:
                self._flight = joined
        if data is None:
            data = await self._store.find(self._key)
        if data is not None:
            self._take(data, vectors=vectors)

    def discard(self) -> None:
        """The answer that was found must not be given again: the request goes on as if there were none."""
        self.found = None
        self._store.drop(self._key)
        _state.set("miss")

    def leave(self) -> None:
        """The request is over: whoever still waits for its answer has to ask."""
        if self._flight is not None:
            self._flight.fail()

    def _take(self, data: bytes, *, vectors: bool) -> None:
        """Takes an earlier answer."""
        try:
            answer = EmbedResponse.FromString(data) if vectors else ChatResponse.FromString(data)
        except DecodeError:
            # Of another version of the mesh, or damaged: a miss.
            self._store.drop(self._key)
            return
        self._land(data)
        answer.cached = True
        if answer.HasField("cost"):
            answer.cost.CopyFrom(Cost(usd="0", price_date=answer.cost.price_date))
        else:
            answer.cost.usd = "0"
        if isinstance(answer, ChatResponse):
            # A stream that folds always has it.
            answer.usage.SetInParent()
            self.found = answer
        else:
            self.found_vectors = answer
        _state.set("hit")

    async def note(self, events: Iterable[ChatEvent], size: int) -> None:
        """Takes events of a new answer, of `size` bytes, and keeps the answer once it is whole."""
        fold = self._fold
        if fold is None:
            return
        self._collected += size
        if self._collected > 4 * self._cache.max_bytes:
            # Deltas are larger than what they make, but seldom by that much.
            self._fold = None
            return
        try:
            fold.feed(events)
            response = fold.response() if fold.finished else None
        except StreamBroken:
            self._fold = None
            return
        if response is not None:
            self._fold = None
            await self.keep(response)

    async def keep(self, response: ChatResponse) -> None:
        """Keeps a new answer, if it is one that may be given again."""
        # One that two backends made together is not what either of them says.
        # One that says nothing is more often a provider's trouble than its answer.
        if response.finish_reason in _WHOLE and response.parts and not response.switches:
            await self._put(response)
        else:
            self._land(None)

    async def keep_vectors(self, response: EmbedResponse) -> None:
        """Keeps vectors."""
        await self._put(response)

    async def _put(self, response: ChatResponse | EmbedResponse) -> None:
        if not self._stores:
            return
        data = response.SerializeToString()
        if len(data) > self._cache.max_bytes:
            self._land(None)
            return
        self._land(data)
        await self._store.put(self._key, data, self._cache.ttl, anew=self._anew)

    def _land(self, data: bytes | None) -> None:
        if self._flight is not None:
            self._flight.land(data)


async def look_up(
    store: AnswerStore | None,
    request: ChatRequest | EmbedRequest,
    needs: Needs,
    table: Table,
    tenant: str,
    deadline: float | None = None,
    *,
    streamed: bool = False,
) -> Lookup | None:
    """What the cache has to do with a request; None when nothing. `Lookup.leave` has to follow.

    While the same request is under way its answer is waited for, up to `deadline` of the monotonic clock: then it
    raises `Timeout`. Not for a stream, nor by one: it would begin when it ends. A stream that can be taken up later has
    a life of its own, and is never cached.
    """
    if store is None or not table.caches or (isinstance(request, ChatRequest) and request.resumable):
        return None
    try:
        route = choose_route(needs, table)
    except MaestroError:
        # The dispatcher finds out too, and tells it.
        return None
    if route.cache is None:
        return None
    # As between a browser and a proxy: `no-cache`, as `max-age=0`, wants a new answer, `no-store` wants none kept.
    wishes = {wish.strip() for wish in current_caller().header("cache-control").lower().split(",")}
    looks = wishes.isdisjoint(("no-cache", "no-store", "max-age=0"))
    key = key_of(tenant, request, route.cache.seal, variant_of(needs, route, table))
    lookup = Lookup(store, route, route.cache, key, stores="no-store" not in wishes, anew=not looks)
    _state.set("miss")
    if looks:
        try:
            await lookup.look(deadline, waits=not streamed, vectors=isinstance(request, EmbedRequest))
        except BaseException:
            lookup.leave()
            raise
    return lookup
