"""Holds requests to the limits of the configuration. What nothing limits costs a look into a table, and no await."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import ROUTE_DEGRADATION_STORE_BACK, ROUTE_DEGRADATION_STORE_LOST, RouteDegraded
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.message_pb2 import Part
from maestro_gateway.limits.gate import ProviderGate
from maestro_gateway.limits.rules import Rules, rules_for
from maestro_gateway.limits.ticket import Ticket
from maestro_sdk.errors import TooLarge, Violation
from maestro_sdk.mesh.needs import needs_of, needs_of_embedding
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.service.settings import Config
from maestro_sdk.service.store import MemoryStore, Store

_MOST_KNOWN = 10_000
"""Callers whose limits are kept at hand."""


class Limiter:
    """The limits in force, and the store that counts."""

    def __init__(self, config: LimitsConfig, store: Store | None = None) -> None:
        """Without a `store` this process counts for itself."""
        self.spare = MemoryStore()
        """Counts while the store is away."""
        self.store: Store = store if store is not None else self.spare
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count()
        self.gate = ProviderGate(self)
        """What stands before each attempt: limits of providers."""
        self.adopt(config)

    @property
    def denies_without_store(self) -> bool:
        """What happens to limited requests while the store is away."""
        return self._config.on_store_failure == "deny"

    @property
    def tells_successes(self) -> bool:
        """Whether the headers of whole answers tell what is left. Refusals and streams always do."""
        return self._config.headers_on_success

    def most_jobs(self, tenant: str) -> int | None:
        """The jobs of a tenant that may be under way at a time; None when that is not limited."""
        return self._config.tenants.get(tenant, self._config.every_tenant).jobs

    def adopt(self, config: LimitsConfig) -> None:
        """Puts other limits in force. What was counted so far counts on."""
        self._config = config
        self._known: dict[tuple[str, str, str], Rules | None] = {}
        self.gate.adopt(config)

    @property
    def usual_output(self) -> int:
        """Tokens of an answer whose length the request does not bound."""
        return self._config.usual_output

    def entry(self) -> str:
        """A name for the store that no other entry has."""
        return f"{self._prefix}{next(self._numbers):x}"

    def ticket(
        self, request: ChatRequest | EmbedRequest, tenant: str, key_id: str, key_name: str, persona: str
    ) -> Ticket | None:
        """What a request has to take before it is admitted; None when nothing is counted. Raises `TooLarge`."""
        persona = persona if persona in self._config.personas else ""
        caller = (tenant, key_id, persona)
        try:
            rules = self._known[caller]
        except KeyError:
            rules = self._look_up(caller, key_name)
        if rules is None:
            return None
        if rules.max_request or rules.max_part:
            _measure(request, rules)
        if not rules.counted:
            return None
        tokens = self._estimate(request) if rules.counts_tokens else 0
        return Ticket(self, self.entry(), rules.counted, tokens)

    def _look_up(self, caller: tuple[str, str, str], key_name: str) -> Rules | None:
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        tenant, key_id, persona = caller
        rules = self._known[caller] = rules_for(self._config, tenant, key_id, key_name, persona)
        return rules

    def _estimate(self, request: ChatRequest | EmbedRequest) -> int:
        """The tokens that a request may use: its own, and the longest answer that it allows."""
        if isinstance(request, EmbedRequest):
            return max(1, needs_of_embedding(request).input_tokens)
        longest = request.max_tokens or self._config.usual_output
        return max(1, needs_of(request).input_tokens + longest)


@asynccontextmanager
async def limiting(config: Config, publish: Callable[[Message], None], name: str) -> AsyncGenerator[Limiter]:
    """The limiter of a gateway called `name`, with the store that is configured. `publish` takes payloads of events."""
    if not config.store.url:
        yield Limiter(config.limits)
        return
    # Imported here: whoever has no such store need not have its driver loaded.
    from maestro_sdk.service.store.shared import SharedStore

    def tell() -> None:
        if store.up and not lost:
            return
        lost[:] = [] if store.up else [True]
        cause = ROUTE_DEGRADATION_STORE_BACK if store.up else ROUTE_DEGRADATION_STORE_LOST
        publish(RouteDegraded(service=name, cause=cause))

    lost: list[bool] = []
    async with (store := SharedStore(config.store, tell)):
        yield Limiter(config.limits, store)


def _measure(request: ChatRequest | EmbedRequest, rules: Rules) -> None:
    if rules.max_request and (size := request.ByteSize()) > rules.max_request:
        raise TooLarge(f"the request has {size} bytes, more than the {rules.max_request} that are allowed here")
    if not rules.max_part:
        return
    if isinstance(request, EmbedRequest):
        for number, given in enumerate(request.inputs):
            _measure_part(given, f"inputs[{number}]", rules.max_part)
        return
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            _measure_part(part, f"messages[{number}].parts[{place}]", rules.max_part)


def _measure_part(part: Part | EmbedInput, path: str, most: int) -> None:
    size = part.ByteSize()
    if size > most:
        message = f"{path}: has {size} bytes, more than the {most} that are allowed here for one part"
        raise TooLarge(message, violations=[Violation(path, message)])
