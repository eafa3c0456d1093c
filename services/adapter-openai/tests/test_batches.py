"""Batches at OpenAI: what goes up, what comes down, and how a batch ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from maestro.llm.v1.batch_pb2 import (
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchState,
    ListBatchesRequest,
)
from maestro.llm.v1.chat_pb2 import FinishReason
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.file_pb2 import FilePurpose
from maestro_adapter_openai.batch_wire import BatchWire, to_line
from maestro_adapter_openai.models import chat_dialects, embedding_dialects, models
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_sdk.errors import Conflict, InvalidRequest, NotFound, StreamBroken, UnsupportedParameter
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.testing.golden import check
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary

from .asking import ask

GOLDEN = Path(__file__).with_name("golden")
NEVER = 1e9


def chat(item_id: str, text: str = "hello", **fields: Any) -> BatchItem:
    return BatchItem(item_id=item_id, chat=ask(text, **fields))


def embed(item_id: str, *texts: str) -> BatchItem:
    inputs = [EmbedInput(text=text) for text in texts]
    return BatchItem(item_id=item_id, embed=EmbedRequest(model="openai/text-embedding-3-small", inputs=inputs))


async def each(*items: BatchItem) -> AsyncIterator[BatchItem]:
    for item in items:
        yield item


def header(**fields: Any) -> BatchHeader:
    given: dict[str, Any] = {"model": "openai/gpt-4.1", **fields}
    return BatchHeader(**given)


async def results(openai: OpenAIProvider, batch_id: str) -> dict[str, BatchItemResult]:
    found = [result async for some in openai.batch_results(batch_id) for result in some]
    named = {result.item_id: result for result in found}
    assert len(named) == len(found)
    return named


async def test_the_whole_life_of_a_batch(server: FaultServer, openai: OpenAIProvider) -> None:
    state = OpenAIAuxiliary(server, takes=NEVER)
    begun = await openai.create_batch(
        header(display_name="night", metadata={"team": "x"}), each(chat("a", "one"), chat("b", "two", temperature=0.5))
    )
    assert (begun.provider, begun.model, begun.display_name) == ("openai", "gpt-4.1", "night")
    assert (begun.state, begun.raw_state) == (BatchState.BATCH_STATE_VALIDATING, "validating")
    assert dict(begun.metadata) == {"team": "x"}
    assert begun.expire_time.seconds - begun.create_time.seconds == 86400
    stored = state.batches[begun.batch_id]
    assert stored.metadata == {"team": "x", "maestro_model": "gpt-4.1", "maestro_name": "night"}
    lines = [json.loads(line) for line in state.files[stored.input_file_id].content.splitlines()]
    assert [(line["custom_id"], line["method"], line["url"]) for line in lines] == [
        ("a", "POST", "/v1/chat/completions"),
        ("b", "POST", "/v1/chat/completions"),
    ]
    assert lines[1]["body"] == {
        "model": "gpt-4.1",
        "messages": [{"role": "user", "content": "two"}],
        "temperature": 0.5,
    }
    with pytest.raises(Conflict, match="is validating"):
        await results(openai, begun.batch_id)

    state.finish(begun.batch_id, "completed")
    ended = await openai.get_batch(begun.batch_id)
    assert ended.state == BatchState.BATCH_STATE_COMPLETED
    assert (ended.counts.total, ended.counts.succeeded, ended.counts.pending) == (2, 2, 0)
    assert ended.HasField("end_time")
    assert not ended.HasField("expire_time")
    found = await results(openai, begun.batch_id)
    assert list(found) == ["a", "b"]
    answer = found["a"].chat
    assert answer.parts[0].text.text == "Mock answer to 1 messages."
    assert (answer.provider, answer.model) == ("openai", "gpt-4.1")
    assert answer.finish_reason == FinishReason.FINISH_REASON_STOP
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (100, 10)
    # One that is over is returned unchanged.
    assert await openai.cancel_batch(begun.batch_id) == ended


async def test_items_that_fail_are_told_with_their_reason(server: FaultServer, openai: OpenAIProvider) -> None:
    def answers(body: Any) -> tuple[int, Any]:
        text = body["messages"][0]["content"]
        if text == "good":
            message = {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            usage = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
            return 200, {"id": "c", "model": "gpt-4.1-2025-04-14", "choices": [choice], "usage": usage}
        if text == "strange":
            return 200, {"id": "c", "choices": []}
        code = {"long": "context_length_exceeded", "slow": "rate_limit_exceeded"}[text]
        return (400 if text == "long" else 429), {"error": {"message": text, "type": "x", "param": None, "code": code}}

    state = OpenAIAuxiliary(server, answers=answers, takes=NEVER)
    begun = await openai.create_batch(
        header(), each(*(chat(text, text) for text in ("good", "long", "slow", "strange")))
    )
    state.finish(begun.batch_id, "completed")
    found = await results(openai, begun.batch_id)
    assert found["good"].chat.parts[0].tool_call.name == "look"
    assert found["good"].chat.usage.cache_read_tokens == 2
    assert found["good"].chat.model == "gpt-4.1"
    assert {name: result.error.reason for name, result in found.items() if result.HasField("error")} == {
        "long": ErrorReason.ERROR_REASON_CONTEXT_TOO_LONG,
        "slow": ErrorReason.ERROR_REASON_RATE_LIMITED,
        "strange": ErrorReason.ERROR_REASON_STREAM_BROKEN,
    }
    assert found["slow"].error.retryable
    assert found["slow"].error.metadata["upstream_code"] == "rate_limit_exceeded"
    counts = (await openai.get_batch(begun.batch_id)).counts
    assert (counts.total, counts.succeeded, counts.failed) == (4, 2, 2)


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("status", "state", "reason", "count"),
    [
        ("cancelled", BatchState.BATCH_STATE_CANCELLED, ErrorReason.ERROR_REASON_CANCELLED, "cancelled"),
        ("expired", BatchState.BATCH_STATE_EXPIRED, ErrorReason.ERROR_REASON_TIMEOUT, "expired"),
    ],
)
@pytest.mark.parametrize("told", [True, False])
async def test_items_that_were_not_reached(
    server: FaultServer,
    openai: OpenAIProvider,
    status: str,
    state: BatchState.ValueType,
    reason: ErrorReason.ValueType,
    count: str,
    told: bool,
) -> None:
    """Whether the provider tells of them in its file of errors or not at all."""
    account = OpenAIAuxiliary(server, takes=NEVER)
    begun = await openai.create_batch(header(), each(chat("a"), chat("b"), chat("c")))
    account.finish(begun.batch_id, status, answered=1)
    if not told:
        account.batches[begun.batch_id].error_file_id = None
    ended = await openai.get_batch(begun.batch_id)
    assert (ended.state, getattr(ended.counts, count), ended.counts.succeeded) == (state, 2, 1)
    found = await results(openai, begun.batch_id)
    assert {name: result.error.reason for name, result in found.items()} == {"a": 0, "b": reason, "c": reason}
    if not told:
        del account.files[account.batches[begun.batch_id].input_file_id]
        with pytest.raises(StreamBroken, match="its input, which names them, is deleted"):
            await results(openai, begun.batch_id)


async def test_a_batch_that_fails_as_a_whole(server: FaultServer, openai: OpenAIProvider) -> None:
    account = OpenAIAuxiliary(server, takes=0)
    begun = await openai.create_batch(header(), each(chat("a"), chat("b")))
    stored = account.batches[begun.batch_id]
    broken = account.files[stored.input_file_id].content.replace(b'"custom_id":"b"', b'"custom_id":"a"')
    account.files[stored.input_file_id].content = broken
    failed = await openai.get_batch(begun.batch_id)
    assert failed.state == BatchState.BATCH_STATE_FAILED
    assert failed.error.reason == ErrorReason.ERROR_REASON_INVALID_REQUEST
    assert "a was used before. (line 2 of its input)" in failed.error.message
    account.files[stored.input_file_id].content = broken.replace(b'"a"', b'"b"', 1)
    found = await results(openai, begun.batch_id)
    assert {result.error.reason for result in found.values()} == {ErrorReason.ERROR_REASON_INVALID_REQUEST}


async def test_embeddings_are_a_batch_of_their_own(server: FaultServer, openai: OpenAIProvider) -> None:
    account = OpenAIAuxiliary(server, takes=NEVER)
    begun = await openai.create_batch(
        header(model="openai/text-embedding-3-small"), each(embed("a", "x", "y"), embed("b", "z"))
    )
    account.finish(begun.batch_id, "completed")
    found = await results(openai, begun.batch_id)
    assert [len(result.embed.embeddings) for result in found.values()] == [2, 1]
    assert (found["a"].embed.model, found["a"].embed.usage.input_tokens) == ("text-embedding-3-small", 2)
    with pytest.raises(UnsupportedParameter, match="one endpoint") as caught:
        await openai.create_batch(header(), each(chat("a"), embed("b", "x")))
    assert caught.value.violations[0].field == "items[1]"


async def test_cancelling(server: FaultServer, openai: OpenAIProvider) -> None:
    account = OpenAIAuxiliary(server, takes=NEVER)
    begun = await openai.create_batch(header(), each(chat("a")))
    assert (await openai.cancel_batch(begun.batch_id)).state == BatchState.BATCH_STATE_CANCELLING
    account.takes = 0
    assert (await openai.cancel_batch(begun.batch_id)).state == BatchState.BATCH_STATE_CANCELLED
    found = await results(openai, begun.batch_id)
    assert found["a"].error.reason == ErrorReason.ERROR_REASON_CANCELLED
    for call in (openai.get_batch("batch_0"), openai.cancel_batch("batch_0"), results(openai, "batch_0")):
        with pytest.raises(NotFound, match="openai has no batch 'batch_0'"):
            await call


async def test_pages(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server, takes=NEVER)
    made = [(await openai.create_batch(header(), each(chat("a")))).batch_id for _ in range(3)]
    first = await openai.list_batches(ListBatchesRequest(page_size=2))
    second = await openai.list_batches(ListBatchesRequest(page_size=2, page_token=first.next_page_token))
    assert [batch.batch_id for batch in (*first.batches, *second.batches)] == made[::-1]
    assert second.next_page_token == ""


async def test_nothing_is_started_when_an_item_is_wrong(server: FaultServer, openai: OpenAIProvider) -> None:
    account = OpenAIAuxiliary(server)

    async def broken() -> AsyncIterator[BatchItem]:
        yield chat("a")
        raise InvalidRequest("the caller went away")

    image = chat("b")
    image.chat.messages[0].parts.add().audio.data = b"x"
    mixed = chat("b", model="openai/gpt-4o")
    strict = chat("b", strict=True, cache={"ttl": "CACHE_TTL_1H"})
    renamed = chat("b", tools=[{"name": "look"}, {"name": "files.read"}])
    for items, path in (
        (broken(), ""),
        (each(), "items"),
        (each(chat("a"), image), "items[1].chat.messages[0].parts[1].audio"),
        (each(chat("a"), mixed), "items[1].chat.model"),
        (each(chat("a"), strict), "items[1].chat.cache"),
        (each(chat("a"), renamed), "items[1].chat.tools[1].name"),
        (each(chat("a", model="openai/gpt-6.2-sol")), "items[0].chat.model"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await openai.create_batch(header(), items)
        assert [violation.field for violation in caught.value.violations] == ([path] if path else [])
    with pytest.raises(UnsupportedParameter, match="24h"):
        await openai.create_batch(header(completion_window=Duration(seconds=60)), each(chat("a")))
    assert not account.files
    assert not account.batches


async def test_a_refused_batch_leaves_no_file_behind(server: FaultServer, openai: OpenAIProvider) -> None:
    server.on("POST", "/v1/batches", openai_chat.error(429, "insufficient_quota"))
    account = OpenAIAuxiliary(server)
    with pytest.raises(Exception, match="credit"):
        await openai.create_batch(header(), each(chat("a")))
    assert not account.files


async def test_what_is_not_done_as_asked_is_told_at_once(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server, takes=NEVER)
    begun = await openai.create_batch(
        header(), each(chat("a"), chat("b", cache={"ttl": "CACHE_TTL_1H"}), chat("c", top_p=0.5))
    )
    told: Any = begun.provider_metadata["openai"]["warnings"]
    assert [(one["item_id"], one["field"]) for one in told] == [("b", "cache")]


async def test_options_of_the_caller(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server, takes=NEVER)
    head = header(completion_window=Duration(seconds=86400))
    head.provider_options["openai"].update({"output_expires_after": {"anchor": "created_at", "seconds": 3600}})
    await openai.create_batch(head, each(chat("a")))
    sent = next(seen for seen in server.requests if seen.path == "/v1/batches").json()
    assert sent["output_expires_after"] == {"anchor": "created_at", "seconds": 3600}
    assert sent["completion_window"] == "24h"


def test_golden_lines() -> None:
    found = models()
    wire = BatchWire("openai", chat_dialects(found), embedding_dialects(found))
    tools = [{"name": "look", "input_schema": '{"type":"object","properties":{"at":{"type":"string"}}}'}]
    items = [
        chat("plain", "hello", system="Be brief.", temperature=0.0, max_tokens=5),
        chat("tools", "look", tools=tools, model="openai/gpt-5.4"),
        chat("schema", "a person", response_format={"json_schema": {"schema": '{"type":"object"}', "strict": True}}),
        embed("vectors", "one", "two"),
    ]
    check(GOLDEN / "batch.lines.json", [to_line(item, f"items[{place}]", wire)[0] for place, item in enumerate(items)])


async def test_unreadable_answers(server: FaultServer, openai: OpenAIProvider) -> None:
    server.on("GET", "/v1/batches/*", SendJson({"object": "batch"}))
    with pytest.raises(StreamBroken, match="can't be read"):
        await openai.get_batch("batch_1")


async def test_emulator() -> None:
    """Another hand's emulator: files and a batch to its end. Its answers are its own, not those of a model."""
    from maestro_adapter_openai.settings import OpenAISettings
    from maestro_sdk.testing.servers import Aimock

    async with Aimock([{"match": {"userMessage": "hello"}, "response": {"content": "Hello!"}}]) as emulator:
        settings = {"api_key": {"env": "ADAPTER_TEST_KEY"}, "base_url": emulator.openai_url}
        provider = OpenAIProvider.from_settings(OpenAISettings.model_validate(settings))
        begun = await provider.create_batch(header(), each(chat("a"), chat("b")))
        async with asyncio.timeout(10):
            while (batch := await provider.get_batch(begun.batch_id)).state != BatchState.BATCH_STATE_COMPLETED:
                await asyncio.sleep(0.05)
        assert (batch.counts.total, batch.counts.succeeded) == (2, 2)
        found = await results(provider, begun.batch_id)
        assert [result.chat.parts[0].text.text != "" for result in found.values()] == [True, True]
        facts: Any = batch.provider_metadata["openai"]
        file = await provider.get_file(facts["input_file_id"])
        assert (file.filename, file.purpose) == ("batch.jsonl", FilePurpose.FILE_PURPOSE_JOB_INPUT)
        await provider.delete_file(file.file_id)
        with pytest.raises(NotFound):
            await provider.get_file(file.file_id)
        await provider.close()


async def ended(server: FaultServer, openai: OpenAIProvider, *names: str) -> tuple[OpenAIAuxiliary, str]:
    """A batch with items of these names that is over, all of them answered."""
    account = OpenAIAuxiliary(server)
    batch = await openai.create_batch(header(), each(*(chat(name) for name in names)))
    account.finish(batch.batch_id, "completed")
    return account, batch.batch_id


async def test_a_line_that_can_not_be_read_costs_no_other_item_its_result(
    server: FaultServer, openai: OpenAIProvider
) -> None:
    account, batch_id = await ended(server, openai, "a", "b", "c", "d", "e")
    file_id = account.batches[batch_id].output_file_id
    assert file_id
    lines = account.files[file_id].content.splitlines()
    lines[0] = lines[0][:-5]
    lines[1] = lines[1].replace(b'"custom_id"', b'"name"')
    lines[2] = lines[2].replace(b'"c"', b"null")
    account.files[file_id].content = b"\n".join([*lines, b"[]", b"7", b"\x00\xff"])
    found = await results(openai, batch_id)
    assert sorted(found) == ["a", "b", "c", "d", "e"]
    for name in "abc":
        assert found[name].error.reason == ErrorReason.ERROR_REASON_STREAM_BROKEN
    assert all(found[name].HasField("chat") for name in "de")


async def test_no_item_has_two_results(server: FaultServer, openai: OpenAIProvider) -> None:
    account, batch_id = await ended(server, openai, "a", "b")
    file_id = account.batches[batch_id].output_file_id
    assert file_id
    account.files[file_id].content *= 2
    assert sorted(await results(openai, batch_id)) == ["a", "b"]


async def test_an_input_that_can_not_be_read_ends_no_stream(server: FaultServer, openai: OpenAIProvider) -> None:
    account, batch_id = await ended(server, openai, "a", "b")
    stored = account.batches[batch_id]
    assert stored.output_file_id
    lines = account.files[stored.output_file_id].content.splitlines()
    account.files[stored.output_file_id].content = lines[0]
    account.files[stored.input_file_id].content = b'{"custom_id":\n[]\n' + account.files[stored.input_file_id].content
    found = await results(openai, batch_id)
    assert found["a"].HasField("chat")
    assert found["b"].error.reason == ErrorReason.ERROR_REASON_UPSTREAM_ERROR
