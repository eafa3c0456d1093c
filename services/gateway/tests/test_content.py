"""Content is recorded for the tenants that chose so and for nobody else: redacted, whole, and for a time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.usage.v1.usage_pb2 import GetRequestContentRequest, GetRequestContentResponse
from maestro_gateway.audit.desk import AuditDesk
from maestro_gateway.audit.record import record_of
from maestro_gateway.audit.recorder import Policy, Recorder
from maestro_gateway.audit.redaction import Redactor
from maestro_gateway.audit.store import STREAM
from maestro_gateway.audit.wire import Wire
from maestro_gateway.identity.principal import Principal, enter
from maestro_sdk.errors import NotFound
from maestro_sdk.service.audits import EVERY_RULE
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, OTHER_KEY, Start, metadata
from .sealing import Book, a_book


@dataclass
class Archive:
    """A recorder for tenant acme, and what answers those who ask for what it recorded."""

    recorder: Recorder
    desk: AuditDesk

    async def is_gone(self, request_id: str) -> bool:
        """Whether no content of a request is kept any more."""
        try:
            await self.content(request_id)
        except NotFound:
            return True
        return False

    async def content(self, request_id: str, tenant: str = "acme") -> GetRequestContentResponse:
        enter(Principal(tenant, "key_9", frozenset({"admin"}), "key"))
        assert await self.recorder.flush()
        return await self.desk.content(GetRequestContentRequest(request_id=request_id))


@asynccontextmanager
async def an_archive(url: str, limit: int = 2**20, retention: float = 3600.0) -> AsyncGenerator[Archive]:
    wire = Wire(url)
    recorder = Recorder(wire, {"acme": Policy(Redactor(EVERY_RULE), retention)}, limit)
    tasks = [asyncio.create_task(recorder.run()), asyncio.create_task(wire.keep())]
    try:
        yield Archive(recorder, AuditDesk(wire))
    finally:
        for task in tasks:
            task.cancel()
            await asyncio.wait((task,))


def question(text: str = "mail ada@example.com") -> ChatRequest:
    return ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])])


async def recorded(archive: Archive, event: Event) -> Any:
    """The content that an event names, once it is proven to be that."""
    told = event.request_completed if event.HasField("request_completed") else event.request_failed
    found = await archive.content(told.request_id)
    record = record_of(event)
    assert record is not None
    digest = hashlib.sha256(found.content_json.encode()).hexdigest()
    assert found.content_digest == told.content_digest == record.content_digest == digest
    return orjson.loads(found.content_json)


@pytest.mark.parametrize("streamed", [True, False])
async def test_request_and_answer_are_recorded_redacted(start: Start, tmp_path: Path, streamed: bool) -> None:
    pieces = ("I wrote to a", "da@exam", "ple.com")
    async with a_book(tmp_path) as book, an_archive(book.server.url) as archive:
        gateway = await start(ScriptedProvider(answer(*pieces)), recorder=archive.recorder)
        if streamed:
            batches = [batch async for batch in gateway.chats.StreamChat(question(), metadata=metadata(KEY))]
            shown = "".join(event.text.text for batch in batches for event in batch.events)
        else:
            response: ChatResponse = await gateway.chats.Chat(question(), metadata=metadata(KEY))
            shown = response.parts[0].text.text
        # The caller has its answer as it was; only what is kept is redacted.
        assert shown == "".join(pieces)
        found = await recorded(archive, await gateway.event("request.completed"))
        assert found["request"]["messages"][0]["parts"][0]["text"]["text"] == "mail [email]"
        if streamed:
            events = [event for frame in found["frames"] for event in frame["events"]]
            assert "".join(event.get("text", {}).get("text", "") for event in events) == "I wrote to [email]"
            assert next(iter(events[0])) == "started"
            assert events[-1]["finish"]["reason"] == "FINISH_REASON_STOP"
        else:
            assert found["response"]["parts"][0]["text"]["text"] == "I wrote to [email]"
        assert found["redactions"] == {"email": 2}
        await no_text_in(book)


async def no_text_in(book: Book) -> None:
    """What was redacted was written nowhere."""
    state = (await book.js.stream_info(STREAM)).state
    assert state.messages == 1
    stored = b"".join(path.read_bytes() for path in book.server.folder.rglob("*") if path.is_file())
    assert b"ada@example" not in stored


async def test_nobody_else_is_recorded_or_sees_it(start: Start, tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, an_archive(book.server.url) as archive:
        gateway = await start(ScriptedProvider(answer("a")), recorder=archive.recorder)
        await gateway.chats.Chat(question(), metadata=metadata(OTHER_KEY, "req-globex"))
        assert (await gateway.event("request.completed")).request_completed.content_digest == ""
        for tenant in ("globex", "acme"):
            with pytest.raises(NotFound, match="no content of request req-globex is kept"):
                await archive.content("req-globex", tenant)
        await gateway.chats.Chat(question(), metadata=metadata(KEY, "req.acme:1"))
        assert (await archive.content("req.acme:1")).request_id == "req.acme:1"
        with pytest.raises(NotFound):
            await archive.content("req.acme:1", "globex")


async def test_an_answer_that_failed_is_recorded_as_far_as_it_came(start: Start, tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, an_archive(book.server.url) as archive:
        provider = ScriptedProvider(answer("one ", "two "), fault=Fault.ERROR_AFTER_CONTENT)
        gateway = await start(provider, recorder=archive.recorder)
        with pytest.raises(grpc.aio.AioRpcError):
            [batch async for batch in gateway.chats.StreamChat(question(), metadata=metadata(KEY))]
        found = await recorded(archive, await gateway.event("request.failed"))
        assert found["frames"][0]["events"][0]["started"]["model"] == "model"
        assert not any("finish" in event for frame in found["frames"] for event in frame["events"])


async def test_what_is_too_long_is_cut_or_left_out(start: Start, tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, an_archive(book.server.url, limit=4096) as archive:
        provider = ScriptedProvider(answer(*["word " * 100] * 20))
        gateway = await start(provider, recorder=archive.recorder)
        [batch async for batch in gateway.chats.StreamChat(question(), metadata=metadata(KEY))]
        found = await recorded(archive, await gateway.event("request.completed"))
        assert found["truncated"] is True
        assert 1 < len(found["frames"]) < 10
        gateway.events.clear()
        await gateway.chats.Chat(question("x" * 5000), metadata=metadata(KEY))
        assert (await gateway.event("request.completed")).request_completed.content_digest == ""


async def test_large_content_and_its_end(start: Start, tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, an_archive(book.server.url, 4 * 2**20, retention=1.0) as archive:
        gateway = await start(ScriptedProvider(answer("a")), recorder=archive.recorder)
        # Nothing that a compressor makes small, and nothing that a rule finds.
        letters = str.maketrans("0123456789", "ghijklmnop")
        text = "".join(hashlib.sha256(b"%d" % n).hexdigest() for n in range(25_000)).translate(letters)
        await gateway.chats.Chat(question(text), metadata=metadata(KEY))
        found = await recorded(archive, await gateway.event("request.completed"))
        assert found["request"]["messages"][0]["parts"][0]["text"]["text"] == text
        assert (await book.js.stream_info(STREAM)).state.messages > 1
        async with asyncio.timeout(10):
            while not await archive.is_gone("req-of-the-test"):
                await asyncio.sleep(0.05)


async def test_a_stream_that_is_deleted_is_made_anew(start: Start, tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, an_archive(book.server.url) as archive:
        gateway = await start(ScriptedProvider(answer("a")), recorder=archive.recorder)
        await gateway.chats.Chat(question(), metadata=metadata(KEY))
        await recorded(archive, await gateway.event("request.completed"))
        await book.js.delete_stream(STREAM)
        assert await archive.is_gone("req-of-the-test")
        await gateway.chats.Chat(question("again"), metadata=metadata(KEY))
        found = await archive.content("req-of-the-test")
        assert orjson.loads(found.content_json)["request"]["messages"][0]["parts"][0]["text"]["text"] == "again"


async def test_nats_is_away_meanwhile(start: Start, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    async with an_archive(server.url) as archive:
        gateway = await start(ScriptedProvider(answer("a")), recorder=archive.recorder)
        await gateway.chats.Chat(question(), metadata=metadata(KEY))
        await server.start()
        try:
            found = await recorded(archive, await gateway.event("request.completed"))
            assert found["response"]["parts"][0]["text"]["text"] == "a"
        finally:
            await server.kill()
