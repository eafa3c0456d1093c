"""What a client's shape has no place for is kept here, and given back to the conversation when it goes on.

Thinking signatures, thought signatures, encrypted reasoning: a provider refuses a tool loop that comes back without
them, and OpenAI's clients drop them. So an answer that holds such state is kept whole, under the ids of its calls, or,
when it has none, under its words and the conversation before them. An assistant's turn with the same calls gets its
parts back as they were. Tenants never meet: the tenant is part of every key.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from google.protobuf.message import DecodeError

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role
from maestro_gateway.shelf import Shelf
from maestro_sdk.adapter.fold import Fold
from maestro_sdk.service.settings import Config

log = logging.getLogger(__name__)

_ROOM = 64 * 2**20
"""Bytes of kept answers that one process holds; the oldest go first."""
_LARGEST = 4 * 2**20
_ENTRY = 256
"""Bytes that an entry takes beside its answer, about."""
_PATIENCE = 0.5
"""Seconds that a request waits for what other processes kept."""
_MOST_FETCHED = 64
_ABSENT_FOR = 30.0
"""Seconds in which a key that nobody knows is not asked for again."""
_MOST_ABSENT = 50_000


class Others(Protocol):
    """Where processes keep answers for each other, each for so long after it was written."""

    async def put(self, key: str, data: bytes) -> None:
        """Stores; returns after about half a second at the latest, stored or not."""
        ...

    async def offer(self, key: str, data: bytes) -> None:
        """Stores if it can; nobody learns whether it did."""
        ...

    async def find(self, key: str) -> tuple[bytes, float] | None:
        """What is stored, and for how many seconds. Raises `LookupError` when nobody can tell now."""
        ...


@dataclass(slots=True)
class _Entry:
    """An answer: `until` when it is kept here, and when it was `written` for the others."""

    until: float
    written: float
    data: bytes


class Keep:
    """Keeps answers for `lasting` seconds, in at most `room` bytes, and with `others` for other processes, too."""

    def __init__(
        self,
        lasting: float,
        others: Others | None = None,
        *,
        room: int = _ROOM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lasting = lasting
        self._others = others
        self._room = room
        self._clock = clock
        self._held = 0
        # What was not asked for longest comes first.
        self._kept: OrderedDict[str, _Entry] = OrderedDict()
        self._absent: OrderedDict[str, float] = OrderedDict()

    async def recall(self, tenant: str, request: ChatRequest) -> Turn:
        """Gives the assistant's turns of `request` back what was kept of them; the turn that it asks for follows."""
        digest = None
        wanted: list[tuple[Message, str]] = []
        if any(message.role == Role.ROLE_ASSISTANT for message in request.messages):
            digest = _opening(tenant)
            for message in request.messages:
                if message.role == Role.ROLE_ASSISTANT:
                    wanted.append((message, _key(tenant, message.parts, digest)))
                _absorb(digest, message)
        if wanted:
            await self._fetch([key for _, key in wanted])
            for message, key in wanted:
                kept = self._find(key)
                if kept is not None:
                    restore(message, kept)
            await self._renew([key for _, key in wanted])
        return Turn(self, tenant, request, digest)

    async def store(self, key: str, parts: Iterable[Part]) -> None:
        """Keeps an answer."""
        data = Message(role=Role.ROLE_ASSISTANT, parts=[_bare(part) for part in parts]).SerializeToString()
        if len(data) > _LARGEST:
            log.warning("an answer of %d bytes is too large to keep its state", len(data))
            return
        self._absent.pop(key, None)
        self._put(key, data, self._clock())
        if self._others is not None:
            await self._others.put(key, data)

    def note_absent(self, key: str) -> None:
        """There is nothing under a key, and nobody need be asked."""
        self._absent[key] = self._clock() + _ABSENT_FOR
        self._absent.move_to_end(key)
        if len(self._absent) > _MOST_ABSENT:
            self._absent.popitem(last=False)

    def _put(self, key: str, data: bytes, written: float) -> None:
        self._drop(key)
        now = self._clock()
        self._kept[key] = _Entry(now + self._lasting, written, data)
        self._held += len(data) + _ENTRY
        while self._kept:
            oldest, entry = next(iter(self._kept.items()))
            if entry.until > now and self._held <= self._room:
                break
            self._drop(oldest)

    def _drop(self, key: str) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._held -= len(old.data) + _ENTRY

    def _find(self, key: str) -> Message | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry.until <= self._clock():
            self._drop(key)
            return None
        # A conversation that goes on keeps what it needs.
        self._put(key, entry.data, entry.written)
        return Message.FromString(entry.data)

    async def _renew(self, keys: Sequence[str]) -> None:
        """Writes again what the others have for half its life: there nobody knows that it is still asked for."""
        if self._others is None:
            return
        now = self._clock()
        written = now - self._lasting / 2
        due = [(key, entry) for key in keys if (entry := self._kept.get(key)) is not None and entry.written < written]
        if not due:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                for key, entry in due:
                    entry.written = now
                    await self._others.offer(key, entry.data)

    async def _fetch(self, keys: Sequence[str]) -> None:
        """Asks the others for what is not known here; the latest turns matter most."""
        if self._others is None:
            return
        now = self._clock()
        asked = [
            key
            for key in keys
            if ((entry := self._kept.get(key)) is None or entry.until <= now) and self._absent.get(key, 0.0) <= now
        ][-_MOST_FETCHED:]
        if not asked:
            return
        tasks = [asyncio.create_task(self._take(self._others, key)) for key in asked]
        try:
            await asyncio.wait(tasks, timeout=_PATIENCE)
        finally:
            for task in tasks:
                task.cancel()

    async def _take(self, others: Others, key: str) -> None:
        try:
            found = await others.find(key)
        except LookupError:
            return
        if found is None:
            self.note_absent(key)
            return
        data, age = found
        try:
            Message.FromString(data)
        except DecodeError:
            log.warning("what was kept under %s can't be read", key)
            self.note_absent(key)
        else:
            self._put(key, data, self._clock() - age)


class Turn:
    """The turn of the assistant that a request asks for, on its way to be kept."""

    __slots__ = ("_digest", "_fold", "_keep", "_request", "_tenant")

    def __init__(self, keep: Keep, tenant: str, request: ChatRequest, digest: Any) -> None:
        """`digest` of the conversation as the client sent it; None when `request` still is just that."""
        self._keep = keep
        self._tenant = tenant
        self._request = request
        self._digest = digest
        self._fold = Fold()

    def note(self, events: Iterable[ChatEvent]) -> Awaitable[None] | None:
        """Takes the events of a streamed answer; what it returns has to be awaited before its end is sent on."""
        self._fold.feed(events)
        return self.keep(self._fold.response().parts) if self._fold.finished else None

    async def keep(self, parts: Iterable[Part]) -> None:
        """Keeps a whole answer, if it holds anything that the client can't give back."""
        found = list(parts)
        if any(part.HasField("provider_state") or part.HasField("opaque") for part in found):
            await self._keep.store(self._key(found), found)
        elif any(part.HasField("tool_call") for part in found):
            # The loop goes on here most of the time: then nobody is asked in vain.
            self._keep.note_absent(self._key(found))

    def _key(self, parts: Sequence[Part]) -> str:
        digest = self._digest
        if digest is None:
            digest = _opening(self._tenant)
            for message in self._request.messages:
                _absorb(digest, message)
        return _key(self._tenant, parts, digest)


@asynccontextmanager
async def keeping(config: Config) -> AsyncGenerator[Keep | None]:
    """The keep of a gateway while the block runs; None when it is switched off."""
    lasting = config.gateway.keep
    if not lasting:
        yield None
        return
    async with Shelf(config.nats.url, lasting) as shelf:
        yield Keep(lasting, shelf)


def restore(message: Message, kept: Message) -> None:
    """Gives a turn its kept parts, if its calls are the same. Words that the client changed stay as it wants them."""
    if _calls(message.parts) != _calls(kept.parts):
        return
    parts = list(kept.parts)
    if (said := _words(message.parts).strip()) and said != _words(kept.parts).strip():
        own = [part for part in message.parts if _is_words(part)]
        before = next((n for n, part in enumerate(parts) if _is_words(part) or part.HasField("tool_call")), len(parts))
        rest = [part for part in parts[before:] if not _is_words(part)]
        parts = [*parts[:before], *own, *rest]
    # A list of its own first: the parts of a message that is cleared are gone.
    replaced = Message(parts=parts)
    del message.parts[:]
    message.parts.extend(replaced.parts)


def _calls(parts: Iterable[Part]) -> dict[str, tuple[str, Any]]:
    """Names and arguments of calls by their ids: clients write the arguments anew."""
    return {
        part.tool_call.call_id: (part.tool_call.name, _arguments(part.tool_call.arguments_json))
        for part in parts
        if part.HasField("tool_call")
    }


def _arguments(text: str) -> Any:
    try:
        return orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return text


def _is_words(part: Part) -> bool:
    return part.HasField("text") or part.HasField("refusal")


def _words(parts: Iterable[Part]) -> str:
    return "".join(part.text.text if part.HasField("text") else part.refusal.text for part in parts if _is_words(part))


def _bare(part: Part) -> Part:
    """The part without what no provider wants back."""
    bare = Part()
    bare.CopyFrom(part)
    if bare.HasField("text"):
        bare.text.ClearField("logprobs")
        bare.text.ClearField("citations")
    return bare


def _opening(tenant: str) -> Any:
    digest = hashlib.blake2b(digest_size=20)
    _add(digest, tenant.encode())
    return digest


def _add(digest: Any, data: bytes) -> None:
    digest.update(b"%d:" % len(data))
    digest.update(data)


def _absorb(digest: Any, message: Message) -> None:
    """Adds a turn as the client sends it every time: of its own turns clients keep only words and calls."""
    _add(digest, b"%d" % message.role)
    if message.role != Role.ROLE_ASSISTANT:
        _add(digest, message.SerializeToString(deterministic=True))
        return
    _add(digest, _words(message.parts).encode())
    for part in message.parts:
        if part.HasField("tool_call"):
            _add(digest, part.tool_call.call_id.encode())


def _key(tenant: str, parts: Iterable[Part], before: Any) -> str:
    """The key of a turn; `before` is the digest of the conversation before it."""
    turn = list(parts)
    ids = sorted(part.tool_call.call_id for part in turn if part.HasField("tool_call"))
    if ids:
        digest = _opening(tenant)
        for call_id in ids:
            _add(digest, call_id.encode())
        return f"calls-{digest.hexdigest()}"
    digest = before.copy()
    _add(digest, _words(turn).strip().encode())
    return f"words-{digest.hexdigest()}"
