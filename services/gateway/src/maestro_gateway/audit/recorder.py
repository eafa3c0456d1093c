"""Records requests and answers of the tenants that chose so, and of nobody else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro_gateway.audit.content import Content, as_document, digest_of
from maestro_gateway.audit.redaction import Redactor, TooSlowError
from maestro_gateway.audit.store import Kept, ensure_store, put
from maestro_gateway.audit.wire import Wire
from maestro_gateway.ledger.scan import FAILURES
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.settings import Config
from maestro_sdk.tracing import Call

log = logging.getLogger(__name__)

_ROOM = 32 * 2**20
"""Bytes of content that wait for NATS; of what is more nothing is recorded."""
_AHEAD = 32 * 1024
"""Bytes of an answer behind its limit that are looked at: a secret that begins before it must not be kept by half."""
_RETRY = 0.5
_TRIES = 20
_LAST_WORDS = 2.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What a tenant chose; `retention` in seconds."""

    redactor: Redactor
    retention: float


class Recorder:
    """Brings content to its stream while `run` runs."""

    def __init__(self, wire: Wire, policies: dict[str, Policy], limit: int) -> None:
        """`limit` is in bytes of one request and its answer."""
        self._wire = wire
        self._policies = policies
        self.limit = limit
        self._waiting: deque[tuple[str, str, Kept]] = deque()
        self._held = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, call: Call, request: ChatRequest) -> Recording | None:
        """The recording of a request; None when its tenant did not choose that, or when it is too large."""
        policy = self._policies.get(call.tenant)
        if policy is None:
            return None
        size = request.ByteSize()
        if size > self.limit:
            log.warning("request %s has %d bytes, so its content is not recorded", call.request_id, size)
            return None
        return Recording(self, policy, call, request, self.limit - size)

    def keep(self, call: Call, content: bytes, retention: float) -> str:
        """Takes content to be stored; its digest, or nothing when too much waits already."""
        if self._held + len(content) > _ROOM:
            log.warning("%d bytes wait for NATS, so the content of %s is not recorded", self._held, call.request_id)
            return ""
        now = time.time_ns()
        kept = Kept(content, digest_of(content), now, now + int(retention * 1e9))
        self._waiting.append((call.tenant, call.request_id, kept))
        self._held += len(content)
        self._idle.clear()
        self._wake.set()
        return kept.digest

    async def run(self) -> None:
        """Stores what waits, the oldest first, until cancelled."""
        ensured, tries = -1, 0
        while True:
            heed_cancellation()
            if not self._waiting:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            client, generation = await self._wire.connected()
            try:
                if generation != ensured:
                    await ensure_store(client)
                    ensured = generation
                tenant, request_id, kept = self._waiting[0]
                await put(client, tenant, request_id, kept)
            except FAILURES as error:
                tries += self._wire.is_current(generation)
                # Somebody may have taken the stream away.
                ensured = -1
                if tries < _TRIES:
                    await asyncio.sleep(_RETRY)
                    continue
                # NATS is there and will not have it: what is behind it must not wait for ever.
                log.warning("the content of %s can't be stored and is dropped: %r", self._waiting[0][1], error)
            _, _, kept = self._waiting.popleft()
            self._held -= len(kept.content)
            tries = 0

    async def flush(self, timeout: float = 5.0) -> bool:
        """Waits until all content is stored; False when that takes longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Recording:
    """One request and its answer, as it comes."""

    __slots__ = ("_call", "_content", "_digest", "_left", "_policy", "_recorder")

    def __init__(self, recorder: Recorder, policy: Policy, call: Call, request: ChatRequest, left: int) -> None:
        self._recorder = recorder
        self._policy = policy
        self._call = call
        self._left = left
        self._digest: str | None = None
        # At once: the dispatcher writes the backend's model into the request.
        self._content = Content(as_document(request))

    def note(self, batch: StreamChatResponse) -> None:
        """Takes a piece of a streamed answer."""
        before = self._left
        self._left -= batch.ByteSize()
        if self._left < 0:
            self._content.truncated = True
            if before <= -_AHEAD:
                return
            self._content.ahead += 1
        self._content.frames.append(as_document(batch))

    def take(self, response: ChatResponse) -> None:
        """Takes a whole answer."""
        self._left -= response.ByteSize()
        if self._left < 0:
            self._content.truncated = True
        else:
            self._content.response = as_document(response)

    def finish(self) -> str:
        """The digest of what is recorded, once the answer is over; empty when nothing is."""
        if self._digest is None:
            try:
                content = self._content.document(self._policy.redactor.begin())
            except TooSlowError:
                log.warning(
                    "redaction by the tenant's own rules takes too long, so the content of %s is not recorded",
                    self._call.request_id,
                )
                self._digest = ""
            else:
                self._digest = self._recorder.keep(self._call, content, self._policy.retention)
        return self._digest


def policies_of(config: Config) -> dict[str, Policy]:
    """The tenants that chose to have content recorded."""
    return {
        name: Policy(Redactor(tenant.audit.redact), tenant.audit.content_retention)
        for name, tenant in config.tenants.items()
        if tenant.audit.content
    }


@asynccontextmanager
async def recording(config: Config, wire: Wire) -> AsyncGenerator[Recorder | None]:
    """The recorder meanwhile; None when no tenant chose to have content recorded."""
    policies = policies_of(config)
    if not policies:
        yield None
        return
    recorder = Recorder(wire, policies, config.audit.content_limit)
    task = asyncio.create_task(recorder.run(), name="record content")
    try:
        yield recorder
    finally:
        await recorder.flush(_LAST_WORDS)
        task.cancel()
        await asyncio.wait((task,))
