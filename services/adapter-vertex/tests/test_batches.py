"""Batches: the job and its files, against an emulator of jobs and storage; the provider's SDK judges the job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.batch_pb2 import Batch, BatchHeader, BatchItem, BatchItemResult, BatchState, ListBatchesRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_vertex.batch_wire import read_results, to_batch
from maestro_adapter_vertex.provider import VertexProvider
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.provider import Batcher
from maestro_sdk.errors import CapabilityUnavailable, Conflict, InvalidRequest, MaestroError, NotFound, StreamBroken
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.obliging_gemini_batches import ObligingBatches

MODEL = "vertex/gemini-2.5-flash"
WORDS = {"one": "marigold", "two": "bluebell", "three": "snowdrop"}


async def some(*items: BatchItem) -> AsyncIterator[BatchItem]:
    for item in items:
        yield item


def item(name: str, ask: Any, text: str, **fields: Any) -> BatchItem:
    return BatchItem(item_id=name, chat=ask(text, **fields))


def header(**fields: Any) -> BatchHeader:
    return ParseDict({"model": MODEL, "display_name": "Flowers", "metadata": {"team": "a"}, **fields}, BatchHeader())


async def results_of(provider: VertexProvider, batch_id: str) -> dict[str, BatchItemResult]:
    found = [result async for results in provider.batch_results(batch_id) for result in results]
    assert len({result.item_id for result in found}) == len(found)
    return {result.item_id: result for result in found}


@pytest.fixture
async def account(provider_at: Any) -> AsyncIterator[tuple[FaultServer, ObligingBatches, VertexProvider]]:
    emulator = ObligingBatches()
    async with FaultServer() as server:
        emulator.serve(server)
        settings = {"storage_url": server.url, "batch_bucket": "gs://b1/maestro/"}
        async with provider_at(server.url, **settings) as provider:
            yield server, emulator, provider


async def test_a_batch_from_its_start_to_its_results(account: Any, ask: Any) -> None:
    server, emulator, provider = account
    items = [item(name, ask, f"Reply with the word {word}.") for name, word in WORDS.items()]
    begun: Batch = await provider.create_batch(header(), some(*items))
    assert (begun.batch_id, begun.display_name, begun.provider, begun.model) == (
        "1000",
        "Flowers",
        "vertex",
        "gemini-2.5-flash",
    )
    assert (begun.state, begun.raw_state) == (BatchState.BATCH_STATE_VALIDATING, "JOB_STATE_PENDING")
    assert (begun.counts.total, begun.counts.pending) == (3, 3)
    assert dict(begun.metadata) == {"team": "a"}
    ((bucket, name), content), *_ = emulator.objects.items()
    assert bucket == "b1"
    assert name.startswith("maestro/maestro-")
    assert [json.loads(line)["key"] for line in content.splitlines()] == list(WORDS)
    assert {seen.headers["authorization"] for seen in server.requests} == {"Bearer ya29.test-token"}

    running = await provider.get_batch(begun.batch_id)
    assert running.state == BatchState.BATCH_STATE_RUNNING
    with pytest.raises(Conflict):
        emulator.held = True
        await results_of(provider, begun.batch_id)
    emulator.held = False
    over = await provider.get_batch(begun.batch_id)
    assert over.state == BatchState.BATCH_STATE_COMPLETED
    assert (over.counts.total, over.counts.succeeded, over.counts.pending) == (3, 3, 0)
    assert over.HasField("end_time")
    found = await results_of(provider, begun.batch_id)
    assert {name: result.chat.parts[0].text.text for name, result in found.items()} == WORDS
    assert all(result.chat.usage.input_tokens for result in found.values())
    assert (await provider.cancel_batch(begun.batch_id)) == over


async def test_an_item_that_the_provider_refuses(account: Any, ask: Any) -> None:
    _, _, provider = account
    good = item("good", ask, "Reply with the word marigold.")
    bad = item("bad", ask, "hi", provider_options={"vertex": {"strange": 1}})
    begun = await provider.create_batch(header(), some(bad, good))
    await provider.get_batch(begun.batch_id)
    over = await provider.get_batch(begun.batch_id)
    assert (over.counts.succeeded, over.counts.failed) == (1, 1)
    found = await results_of(provider, begun.batch_id)
    assert found["good"].chat.parts[0].text.text == "marigold"
    assert found["bad"].error.reason == ErrorReason.ERROR_REASON_INVALID_REQUEST
    assert 'Unknown name "strange"' in found["bad"].error.message


async def test_cancelling(account: Any, ask: Any) -> None:
    _, emulator, provider = account
    emulator.held = True
    begun = await provider.create_batch(header(), some(item("a", ask, "hi"), item("b", ask, "ho")))
    cancelled = await provider.cancel_batch(begun.batch_id)
    assert cancelled.state == BatchState.BATCH_STATE_CANCELLED
    assert (cancelled.counts.total, cancelled.counts.cancelled) == (2, 2)
    found = await results_of(provider, begun.batch_id)
    assert {result.error.reason for result in found.values()} == {ErrorReason.ERROR_REASON_CANCELLED}
    assert list(found) == ["a", "b"]


async def test_lists_come_in_pages(account: Any, ask: Any) -> None:
    _, emulator, provider = account
    emulator.held = True
    for _ in range(3):
        await provider.create_batch(header(), some(item("a", ask, "hi")))
    first = await provider.list_batches(ListBatchesRequest(page_size=2))
    rest = await provider.list_batches(ListBatchesRequest(page_size=2, page_token=first.next_page_token))
    assert [batch.batch_id for batch in (*first.batches, *rest.batches)] == ["1002", "1001", "1000"]
    assert not rest.next_page_token


async def test_what_can_not_be_a_batch(account: Any, ask: Any, provider_at: Any) -> None:
    server, emulator, provider = account
    wrong: Sequence[tuple[BatchItem, str]] = (
        (ParseDict({"item_id": "e", "embed": {"inputs": [{"text": "x"}]}}, BatchItem()), "items[1].embed"),
        (item("m", ask, "x", model="vertex/gemini-3.5-flash"), "items[1].chat.model"),
        (item("t", ask, "x", tools=[{"name": "t", "input_schema": "[]"}]), "tools[0].input_schema"),
    )
    for second, path in wrong:
        with pytest.raises(InvalidRequest) as caught:
            await provider.create_batch(header(), some(item("a", ask, "hi"), second))
        assert caught.value.violations[0].field == path
    for name in ("9999", "../x", ""):
        with pytest.raises(NotFound):
            await provider.get_batch(name or "no such")
    assert not emulator.objects, "nothing was stored"
    async with provider_at(server.url) as other:
        with pytest.raises(InvalidRequest, match=r"provider_options\.vertex\.bucket"):
            await other.create_batch(header(), some(item("a", ask, "hi")))
        assert not any(supports(model, Feature.FEATURE_BATCH) for model in await other.models())
    claims = {model.name for model in await provider.models() if supports(model, Feature.FEATURE_BATCH)}
    assert "gemini-2.5-flash" in claims
    assert "text-embedding-005" not in claims
    assert isinstance(provider, Batcher)


async def test_a_place_of_its_own(account: Any, ask: Any) -> None:
    _, emulator, provider = account
    options = {"vertex": {"bucket": "gs://other", "serviceAccount": "a@b"}}
    await provider.create_batch(header(provider_options=options), some(item("a", ask, "hi")))
    assert {bucket for bucket, _ in emulator.objects} == {"other"}
    assert emulator.jobs["1000"]["serviceAccount"] == "a@b"
    assert "bucket" not in emulator.jobs["1000"]


async def test_the_sdk_starts_the_same_job(account: Any, ask: Any) -> None:
    import httpx2
    from google.genai import Client, types
    from google.oauth2.credentials import Credentials

    server, emulator, provider = account
    await provider.create_batch(header(), some(item("a", ask, "hi")))
    ours = server.requests[-1]
    source = emulator.jobs["1000"]["inputConfig"]["gcsSource"]["uris"][0]
    async with httpx2.AsyncClient() as http:
        options = types.HttpOptions(
            base_url=server.url,
            api_version="v1",
            httpx_async_client=http,
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        token: Any = Credentials
        client = Client(
            enterprise=True, project="p1", location="global", credentials=token("ya29"), http_options=options
        )
        config = types.CreateBatchJobConfig(display_name="Flowers", dest=source.rpartition("/")[0])
        job = await client.aio.batches.create(model="gemini-2.5-flash", src=source, config=config)
        await client.aio.aclose()
    theirs = server.requests[-1]
    assert job.state is not None
    assert to_batch(emulator.jobs["1001"]).raw_state == job.state.value
    assert (ours.method, ours.path) == (theirs.method, theirs.path)
    # The labels are ours: they tell how many items there are.
    assert {name: value for name, value in ours.json().items() if name != "labels"} == theirs.json()


@pytest.mark.parametrize(
    ("raw", "state", "counts"),
    [
        ("JOB_STATE_QUEUED", "VALIDATING", {"pending": 5}),
        ("JOB_STATE_RUNNING", "RUNNING", {"pending": 2, "succeeded": 2, "failed": 1}),
        ("JOB_STATE_PAUSED", "RUNNING", {"pending": 2, "succeeded": 2, "failed": 1}),
        ("JOB_STATE_CANCELLING", "CANCELLING", {"pending": 2, "succeeded": 2, "failed": 1}),
        ("JOB_STATE_SUCCEEDED", "COMPLETED", {"succeeded": 2, "failed": 3}),
        ("JOB_STATE_PARTIALLY_SUCCEEDED", "COMPLETED", {"succeeded": 2, "failed": 3}),
        ("JOB_STATE_CANCELLED", "CANCELLED", {"succeeded": 2, "failed": 1, "cancelled": 2}),
        ("JOB_STATE_EXPIRED", "EXPIRED", {"succeeded": 2, "failed": 1, "expired": 2}),
        ("JOB_STATE_FAILED", "FAILED", {"succeeded": 2, "failed": 3}),
    ],
)
def test_states_and_counts(raw: str, state: str, counts: dict[str, int]) -> None:
    stats = {} if raw == "JOB_STATE_QUEUED" else {"successfulCount": "2", "failedCount": "1", "incompleteCount": "-1"}
    batch = to_batch(
        {
            "name": "projects/1/locations/l/batchPredictionJobs/7",
            "model": "publishers/google/models/m",
            "state": raw,
            "labels": {"maestro-items": "5"},
            "completionStats": stats,
            "error": {"message": "no quota"},
        }
    )
    assert BatchState.Name(batch.state) == f"BATCH_STATE_{state}"
    assert batch.counts.total == 5
    told = {name: getattr(batch.counts, name) for name in ("pending", "succeeded", "failed", "cancelled", "expired")}
    assert {name: number for name, number in told.items() if number} == counts
    assert ("no quota" in batch.error.message) is (raw == "JOB_STATE_FAILED")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"code": 8, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}, "RATE_LIMITED"),
        ('Bad Request: {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}', "INVALID_REQUEST"),
        ("Internal error {", "UPSTREAM_ERROR"),
        ("", "UPSTREAM_ERROR"),
    ],
)
def test_errors_of_items(status: Any, reason: str) -> None:
    line = json.dumps({"key": "a", "status": status}).encode()
    (result,) = read_results(line, "m")
    assert ErrorReason.Name(result.error.reason) == f"ERROR_REASON_{reason}"


@pytest.mark.parametrize("line", [b"{", b'{"response": {}}', b"[]"])
def test_results_that_can_not_be_read(line: bytes) -> None:
    with pytest.raises(MaestroError) as caught:
        read_results(line, "m")
    assert type(caught.value) is StreamBroken


async def test_a_result_that_the_files_repeat_is_given_once(account: Any, ask: Any) -> None:
    _, emulator, provider = account
    items = [item(name, ask, f"Reply with the word {word}.") for name, word in WORDS.items()]
    begun = await provider.create_batch(header(), some(*items))
    for _ in range(2):
        await provider.get_batch(begun.batch_id)
    results = [place for place, content in emulator.objects.items() if b'"response"' in content]
    assert results
    for place in results:
        emulator.objects[place] *= 2
    assert set(await results_of(provider, begun.batch_id)) == set(WORDS)


async def test_a_job_of_others_over_a_table_has_no_results_here(account: Any, ask: Any) -> None:
    _, emulator, provider = account
    begun = await provider.create_batch(header(), some(item("a", ask, "hi")))
    for _ in range(2):
        await provider.get_batch(begun.batch_id)
    job = emulator.jobs[begun.batch_id]
    job["inputConfig"] = {"instancesFormat": "bigquery", "bigquerySource": {"inputUri": "bq://a.b.c"}}
    job["labels"] = {"maestro-items": "many"}
    assert (await provider.get_batch(begun.batch_id)).batch_id == begun.batch_id
    with pytest.raises(CapabilityUnavailable, match="Cloud Storage"):
        await results_of(provider, begun.batch_id)
