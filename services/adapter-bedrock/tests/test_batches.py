"""Batches from end to end, against a small control plane and bucket: files, states, results, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.batch_pb2 import (
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchItems,
    BatchState,
    CreateBatchRequest,
    GetBatchRequest,
    ListBatchesRequest,
    StreamBatchResultsRequest,
)
from maestro.llm.v1.batch_pb2_grpc import BatchServiceStub
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.provider import Batcher
from maestro_sdk.errors import (
    CapabilityUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    ProviderQuota,
    UnsupportedParameter,
    UpstreamError,
    from_rpc_error,
)
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step
from maestro_sdk.testing.servers import serve

ROLE = "arn:aws:iam::123456789012:role/batches"
JOB = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abcdefgh1234"
MODEL = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"
XML = {"content-type": "application/xml"}


class Cloud:
    """One job of the control plane, and the bucket; both speak AWS's wires."""

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.files: dict[str, bytes] = {}
        self.job: dict[str, Any] = {}
        server.on("POST", "/model-invocation-job", self._create)
        server.on("GET", "/model-invocation-job/*", self._get)
        server.on("POST", "/model-invocation-job/*/stop", self._stop)
        server.on("GET", "/model-invocation-jobs", self._list)
        server.on("PUT", "/bucket/*", self._put)
        server.on("GET", "/bucket*", self._read)

    def end(self, status: str, *records: Any, **counts: int) -> None:
        """Ends the job with these records in its output."""
        self.job |= {"status": status, "endTime": "2026-11-22T12:00:00Z", "totalRecordCount": 3, **counts}
        uri = self.job["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"]
        folder = f"{uri.removeprefix('s3:/')}abcdefgh1234"
        self.files[f"{folder}/manifest.json.out"] = b'{"totalRecordCount":3}'
        self.files[f"{folder}/input.jsonl.out"] = b"\n".join(json.dumps(record).encode() for record in records)

    def _create(self, seen: Seen) -> Sequence[Step]:
        self.job = {
            **seen.json(),
            "jobArn": JOB,
            "status": "Submitted",
            "submitTime": "2026-11-22T10:00:00Z",
            "modelId": f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{seen.json()['modelId']}",
        }
        return (SendJson({"jobArn": JOB}),)

    def _get(self, seen: Seen) -> Sequence[Step]:
        if unquote(seen.path).removeprefix("/model-invocation-job/") != JOB or not self.job:
            head = Headers(404, {"x-amzn-errortype": "ResourceNotFoundException"})
            return (head, SendJson({"message": "Could not find job"}))
        return (SendJson(self.job),)

    def _stop(self, seen: Seen) -> Sequence[Step]:
        self.job["status"] = "Stopping"
        return (SendJson({}),)

    def _list(self, seen: Seen) -> Sequence[Step]:
        return (SendJson({"invocationJobSummaries": [self.job], "nextToken": "more"}),)

    def _put(self, seen: Seen) -> Sequence[Step]:
        self.files[unquote(seen.path)] = seen.body
        return (Headers(200, {"etag": '"x"'}),)

    def _read(self, seen: Seen) -> Sequence[Step]:
        if seen.path in {"/bucket", "/bucket/"}:
            prefix = parse_qs(seen.query)["prefix"][0]
            names = [name.removeprefix("/bucket/") for name in self.files]
            found = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in names if name.startswith(prefix))
            text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            return (Headers(200, XML), Send(text.encode()))
        content = self.files.get(unquote(seen.path))
        if content is None:
            return (Headers(404, XML), Send(b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>"))
        return (Headers(200, {"content-length": str(len(content))}), Send(content))


@pytest.fixture
async def cloud(provider_at: Any) -> Any:
    """The cloud, and a provider that runs batches in it."""
    async with FaultServer() as server:
        batch = {"bucket": "bucket", "prefix": "ours/", "role_arn": ROLE}
        async with provider_at(server.url, control_url=server.url, s3_url=server.url, batch=batch) as provider:
            yield Cloud(server), provider


def item(name: str, ask: Any, **fields: Any) -> BatchItem:
    return BatchItem(item_id=name, chat=ask(f"question {name}", model=f"bedrock/{MODEL}", **fields))


async def each(items: Sequence[BatchItem]) -> AsyncIterator[BatchItem]:
    for one in items:
        yield one


def header(**fields: Any) -> BatchHeader:
    return ParseDict({"model": f"bedrock/{MODEL}", **fields}, BatchHeader())


def said(text: str, **usage: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": [{"text": text}]}
    counts = {"inputTokens": 10, "outputTokens": 5, "totalTokens": 15, **usage}
    return {"output": {"message": message}, "stopReason": "end_turn", "usage": counts}


async def test_from_start_to_results(cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    batcher: Batcher = provider
    async with (
        serve(BatchServicer(batcher, Catalogue(provider))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        batches: Any = BatchServiceStub(channel)

        async def pieces() -> AsyncIterator[CreateBatchRequest]:
            yield CreateBatchRequest(
                header=header(display_name="Nightly run!", completion_window="3600s", metadata={"team": "a"})
            )
            tool = {"name": "time.now"}
            items = [item("a", ask), item("b", ask, seed=5, tools=[tool]), item("c", ask)]
            yield CreateBatchRequest(items=BatchItems(items=items))

        started = await batches.CreateBatch(pieces())
        assert (started.batch_id, started.state) == (JOB, BatchState.BATCH_STATE_VALIDATING)
        assert (started.display_name, started.model, started.raw_state) == ("Nightly-run", MODEL, "Submitted")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [_ async for _ in batches.StreamBatchResults(StreamBatchResultsRequest(batch_id=JOB))]
        assert type(from_rpc_error(caught.value)) is Conflict

        call = {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "time_now", "input": {}}}]}
        aws.end(
            "PartiallyCompleted",
            {"recordId": "b", "modelInput": {}, "modelOutput": {**said(""), "output": {"message": call}}},
            {"recordId": "a", "modelInput": {}, "modelOutput": said("first")},
            {"recordId": "c", "modelInput": {}, "error": {"errorCode": 400, "errorMessage": "Input is too long."}},
            successRecordCount=2,
            errorRecordCount=1,
        )
        found = await batches.GetBatch(GetBatchRequest(batch_id=JOB))
        assert (found.state, found.raw_state) == (BatchState.BATCH_STATE_COMPLETED, "PartiallyCompleted")
        assert (found.counts.total, found.counts.succeeded, found.counts.failed) == (3, 2, 1)
        assert found.end_time.ToJsonString() == "2026-11-22T12:00:00Z"
        messages = [one async for one in batches.StreamBatchResults(StreamBatchResultsRequest(batch_id=JOB))]
    results = {result.item_id: result for message in messages for result in message.results}
    assert sorted(results) == ["a", "b", "c"]
    assert results["a"].chat.parts[0].text.text == "first"
    # Half of 10 tokens at 3 dollars and 5 at 15.
    assert results["a"].cost.usd == "0.0000525"
    # What was asked for is known again: the tool's own name, and what was not done.
    assert results["b"].chat.parts[0].tool_call.name == "time.now"
    assert [warning.field for warning in results["b"].chat.warnings] == ["seed"]
    assert results["c"].error.reason == ErrorReason.ERROR_REASON_CONTEXT_TOO_LONG


async def test_what_aws_is_told(cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    options = {"bedrock": {"vpcConfig": {"subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"]}, "prefix": "x"}}
    given = header(completion_window="360000s", metadata={"team": "a"}, provider_options=options)
    await provider.create_batch(given, each([item("a", ask, max_tokens=9), item("b.2", ask)]))
    job = aws.job
    folder = job["inputDataConfig"]["s3InputDataConfig"]["s3Uri"].removeprefix("s3:/").removesuffix("/input.jsonl")
    assert folder.startswith("/bucket/x/")
    records = [json.loads(line) for line in aws.files[f"{folder}/input.jsonl"].splitlines()]
    turn = {"role": "user", "content": [{"text": "question a"}]}
    assert records[0] == {
        "recordId": "a",
        "modelInput": {"messages": [turn], "inferenceConfig": {"maxTokens": 9}},
    }
    assert [record["recordId"] for record in records] == ["a", "b.2"]
    assert (job["roleArn"], job["modelInvocationType"], job["timeoutDurationInHours"]) == (ROLE, "Converse", 100)
    assert job["tags"] == [{"key": "team", "value": "a"}]
    assert job["vpcConfig"]["subnetIds"] == ["subnet-1"]
    sent = next(seen for seen in aws.server.requests if seen.path == "/model-invocation-job")
    assert sent.json()["modelId"] == MODEL


@pytest.mark.parametrize(
    ("status", "reason", "state"),
    [
        ("Stopped", ErrorReason.ERROR_REASON_CANCELLED, BatchState.BATCH_STATE_CANCELLED),
        ("Expired", ErrorReason.ERROR_REASON_TIMEOUT, BatchState.BATCH_STATE_EXPIRED),
        ("Completed", ErrorReason.ERROR_REASON_UPSTREAM_ERROR, BatchState.BATCH_STATE_COMPLETED),
    ],
)
async def test_items_that_were_never_reached(status: str, reason: Any, state: Any, cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    await provider.create_batch(header(), each([item(name, ask) for name in "abc"]))
    aws.end(status, {"recordId": "b", "modelOutput": said("done")}, successRecordCount=1)
    batch = await provider.get_batch(JOB)
    assert batch.state == state
    counts = batch.counts
    assert counts.succeeded + counts.failed + counts.cancelled + counts.expired == 3
    results: dict[str, BatchItemResult] = {}
    async for some in provider.batch_results(JOB):
        for result in some:
            assert result.item_id not in results
            results[result.item_id] = result
    assert sorted(results) == ["a", "b", "c"]
    assert results["b"].chat.parts[0].text.text == "done"
    assert [results[name].error.reason for name in "ac"] == [reason] * 2


async def test_stopping(cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    await provider.create_batch(header(), each([item("a", ask)]))
    assert (await provider.cancel_batch(JOB)).state == BatchState.BATCH_STATE_CANCELLING
    aws.end("Stopped")
    before = len(aws.server.requests)
    assert (await provider.cancel_batch(JOB)).state == BatchState.BATCH_STATE_CANCELLED
    assert len(aws.server.requests) == before + 1, "what is over is not stopped"
    page = await provider.list_batches(ListBatchesRequest(page_size=7, page_token="t"))
    assert ([batch.batch_id for batch in page.batches], page.next_page_token) == ([JOB], "more")
    query = parse_qs(aws.server.requests[-1].query)
    assert (query["maxResults"], query["nextToken"], query["sortOrder"]) == (["7"], ["t"], ["Descending"])


async def test_a_job_that_failed_says_why(cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    await provider.create_batch(header(), each([item("a", ask)]))
    aws.end("Failed")
    aws.job["message"] = "Batch job contains less records (1) than the required minimum of: 100"
    batch = await provider.get_batch(JOB)
    assert batch.state == BatchState.BATCH_STATE_FAILED
    assert "minimum of: 100" in batch.error.message


async def test_nothing_is_started_for_items_that_are_wrong(cloud: Any, ask: Any) -> None:
    aws, provider = cloud
    other = BatchItem(item_id="b", chat=ask("hi"))
    sound = {"audio": {"data": "AAAA", "mime_type": "audio/wav"}}
    wrong = item("b", ask, messages=[{"role": "ROLE_USER", "parts": [sound]}])

    async def broken() -> AsyncIterator[BatchItem]:
        yield item("a", ask)
        raise InvalidRequest("the caller sent nonsense")

    for items, error, message in (
        (each([item("a", ask), other]), InvalidRequest, r"items\[1\].chat.model"),
        (each([item("a", ask), wrong]), UnsupportedParameter, r"items\[1\]: messages\[0\]"),
        (broken(), InvalidRequest, "nonsense"),
    ):
        with pytest.raises(error, match=message):
            await provider.create_batch(header(), items)
    with pytest.raises(InvalidRequest, match="168 hours"):
        await provider.create_batch(header(completion_window="999999s"), each([item("a", ask)]))
    assert not any(seen.path == "/model-invocation-job" for seen in aws.server.requests)


async def test_errors_of_aws(cloud: Any, ask: Any, provider_at: Any) -> None:
    aws, provider = cloud
    with pytest.raises(NotFound):
        await provider.get_batch(JOB)
    aws.server.reset()
    head = Headers(400, {"x-amzn-errortype": "ServiceQuotaExceededException"})
    aws.server.on("PUT", "*", Headers(200))
    aws.server.on("POST", "*", head, SendJson({"message": "too many jobs"}))
    with pytest.raises(ProviderQuota, match="too many jobs"):
        await provider.create_batch(header(), each([item("a", ask)]))
    async with FaultServer() as gone:
        url = gone.url
    async with provider_at(url, control_url=url, s3_url=url) as lost:
        with pytest.raises(UpstreamError):
            await lost.get_batch(JOB)
        with pytest.raises(CapabilityUnavailable, match="bucket and a role"):
            await lost.create_batch(header(), each([item("a", ask)]))
