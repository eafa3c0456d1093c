"""Jobs on a real mesh: made, run, watched, read, cancelled, and bounded."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal
from typing import Any

import grpc

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1 import file_pb2 as files
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro_sdk import SyncJobsClient
from maestro_sdk import text_of as text_of_answer
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.chaos.provider import Providers, Weather, text_of
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEYS, MODEL, Jobs, chat, questions, status_of
from .drill import told_of


async def test_a_job_is_answered_item_by_item(mesh: MeshProcess, jobs: Jobs, providers: Providers):
    items = questions(12)
    items[3].chat.metadata["team"] = "trains"
    job = await jobs.create(items, display_name="a dozen", metadata={"team": "maps", "run": "7"})
    assert job.state in {pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING}
    streamed = [result async for result in jobs.results(job.job_id)]
    over = await jobs.get(job.job_id)
    listed = await jobs.listed(job.job_id, page_size=5)
    assert streamed == listed
    assert sorted(result.index for result in listed) == list(range(12))
    for result in listed:
        assert result.item.item_id == str(result.index)
        assert result.state == pb.JOB_ITEM_STATE_SUCCEEDED, result
        assert result.item.chat.parts[0].text.text == text_of(f"r{result.index}")
        assert result.runs == 1
    assert over.state == pb.JOB_STATE_COMPLETED
    assert over.progress == pb.JobProgress(total=12, succeeded=12)
    assert Decimal(over.usage.cost_usd) == sum(Decimal(result.item.cost.usd) for result in listed) > 0
    assert over.usage.requests == over.usage.attempts == 12 == len(providers.calls)
    assert over.usage.input_tokens == sum(result.item.usage.input_tokens for result in listed)
    own = [event.request_completed for event in await told_of(mesh, over) if event.kind == _END]
    assert len(own) == 12
    assert {end.metadata["run"] for end in own} == {"7"}
    assert sorted(end.metadata["team"] for end in own) == ["maps"] * 11 + ["trains"]
    assert len({end.key_id for end in own} - {""}) == 1
    assert {end.caller.method for end in own} == {"/maestro.job.v1.JobService/CreateJob"}


_END = "request.completed"


async def test_the_same_request_makes_one_job(jobs: Jobs, providers: Providers):
    made = await asyncio.gather(*(jobs.create(questions(3), request_id="once") for _ in range(4)))
    assert len({job.job_id for job in made}) == 1
    over = await jobs.wait(made[0].job_id)
    assert (await jobs.create(questions(3), request_id="once")) == over
    assert len(providers.calls) == 3
    request = pb.CreateJobRequest(items=questions(4), request_id="once")
    assert (await status_of(jobs.stub.CreateJob(request, metadata=jobs.key)))[0] == "ABORTED"
    # Without a key of its own, every call makes a job.
    bare = pb.CreateJobRequest(items=questions(1))
    first, second = [await jobs.stub.CreateJob(bare, metadata=jobs.key) for _ in range(2)]
    assert first.job_id != second.job_id


async def test_the_newest_is_listed_first(others: Jobs, providers: Providers):
    made = [await others.create(questions(1), display_name=str(number)) for number in range(3)]
    for job in made:
        await others.wait(job.job_id)
    assert [job.display_name for job in await others.list()] == ["2", "1", "0"]
    request, found = pb.ListJobsRequest(page_size=2, states=[pb.JOB_STATE_COMPLETED]), list[str]()
    while True:
        page = await others.stub.ListJobs(request, metadata=others.key)
        found += [job.job_id for job in page.jobs]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == [job.job_id for job in reversed(made)]
    assert not await others.list(pb.JOB_STATE_FAILED)


async def test_another_tenant_finds_nothing(jobs: Jobs, others: Jobs, providers: Providers):
    job = await jobs.create(questions(2))
    await jobs.wait(job.job_id)
    for name, request in (
        ("GetJob", pb.GetJobRequest(job_id=job.job_id)),
        ("CancelJob", pb.CancelJobRequest(job_id=job.job_id)),
        ("ListJobResults", pb.ListJobResultsRequest(job_id=job.job_id)),
    ):
        assert (await status_of(getattr(others.stub, name)(request, metadata=others.key)))[0] == "NOT_FOUND"
    stream = others.stub.StreamJobResults(pb.StreamJobResultsRequest(job_id=job.job_id), metadata=others.key)
    assert (await status_of(stream.read()))[0] == "NOT_FOUND"
    assert job.job_id not in {each.job_id for each in await others.list()}
    for strange in ("job_*", "*", "acme.x", "job_" + "0" * 24, "job_\n"):
        request = pb.GetJobRequest(job_id=strange)
        assert (await status_of(jobs.stub.GetJob(request, metadata=jobs.key)))[0] == "NOT_FOUND", strange
    page = await jobs.stub.ListJobResults(pb.ListJobResultsRequest(job_id=job.job_id, page_size=1), metadata=jobs.key)
    other = await jobs.create(questions(1))
    foreign = pb.ListJobResultsRequest(job_id=other.job_id, page_token=page.next_page_token)
    assert (await status_of(jobs.stub.ListJobResults(foreign, metadata=jobs.key)))[0] == "INVALID_ARGUMENT"


async def test_a_cancelled_job_stops_its_items(mesh: MeshProcess, jobs: Jobs, providers: Providers):
    providers.weather["openai"] = Weather(late=1.0, lateness=60.0)
    job = await jobs.create(questions(20), max_parallel=4)
    await jobs.until(job.job_id, lambda _: len(providers.calls) == 4)
    assert (await jobs.cancel(job.job_id)).state == pb.JOB_STATE_CANCELLING
    over = await jobs.wait(job.job_id, timeout=20)
    assert over.state == pb.JOB_STATE_CANCELLED
    assert over.progress == pb.JobProgress(total=20, cancelled=20)
    results = await jobs.listed(job.job_id)
    assert sorted(result.runs for result in results) == [0] * 16 + [1] * 4
    assert {result.item.error.reason for result in results} == {ErrorReason.ERROR_REASON_CANCELLED}
    for call in providers.calls:
        await asyncio.wait_for(_closed(call.seen), 10)
    assert len(providers.calls) == 4
    assert await jobs.cancel(job.job_id) == over
    kinds = [event.kind for event in await told_of(mesh, over) if event.kind.startswith("job.")]
    assert (kinds[:2], kinds[-1]) == (["job.queued", "job.started"], "job.cancelled")


async def test_items_that_fail_are_run_again(jobs: Jobs, providers: Providers):
    providers.weather["openai"] = Weather(failing=1.0)
    # One item alone opens no breaker.
    job = await jobs.create(questions(1), max_runs=2)
    over = await jobs.wait(job.job_id)
    results = await jobs.listed(job.job_id)
    assert over.state == pb.JOB_STATE_COMPLETED
    assert over.progress == pb.JobProgress(total=1, failed=1)
    assert [result.runs for result in results] == [2]
    assert {result.item.error.reason for result in results} <= {
        ErrorReason.ERROR_REASON_UPSTREAM_ERROR,
        ErrorReason.ERROR_REASON_OVERLOADED,
    }
    assert over.usage.requests == over.usage.failed_requests == 2


async def test_what_is_left_at_the_deadline_fails(jobs: Jobs, providers: Providers):
    providers.weather["openai"] = Weather(late=1.0, lateness=60.0)
    job = await jobs.create(questions(6), max_parallel=2, timeout=1.0)
    over = await jobs.wait(job.job_id)
    results = await jobs.listed(job.job_id)
    assert (over.state, over.progress.failed) == (pb.JOB_STATE_COMPLETED, 6)
    assert {result.item.error.reason for result in results} == {ErrorReason.ERROR_REASON_TIMEOUT}


async def test_a_job_costs_no_more_than_it_may(jobs: Jobs, providers: Providers):
    probe = await jobs.create(questions(1))
    one = Decimal((await jobs.wait(probe.job_id)).usage.cost_usd)
    items = [BatchItem(chat=chat(f"[r{number}] go on", max_tokens=12)) for number in range(40)]
    limit = one * 20
    job = await jobs.create(items, max_cost_usd=str(limit))
    over = await jobs.wait(job.job_id)
    assert 0 < over.progress.succeeded < 40
    assert over.progress.succeeded + over.progress.failed == 40
    assert Decimal(over.usage.cost_usd) <= limit
    failed = [result for result in await jobs.listed(job.job_id) if result.state == pb.JOB_ITEM_STATE_FAILED]
    assert {result.item.error.reason for result in failed} == {ErrorReason.ERROR_REASON_BUDGET_EXHAUSTED}
    assert {result.runs for result in failed} == {0}


async def test_vectors_and_what_is_larger_than_a_message_of_nats(jobs: Jobs, providers: Providers):
    inputs = [EmbedInput(text=f"text {number} " + "x" * 2000) for number in range(600)]
    items = [
        BatchItem(item_id="large", embed=EmbedRequest(model="openai/text-embedding-3-small", inputs=inputs)),
        BatchItem(item_id="small", chat=chat("[r1] go on")),
    ]
    job = await jobs.create(items)
    results = {result.item.item_id: result async for result in jobs.results(job.job_id)}
    assert results["small"].item.chat.parts[0].text.text == text_of("r1")
    large = results["large"]
    assert large.state == pb.JOB_ITEM_STATE_SUCCEEDED, large.item.error
    assert large.ByteSize() > 2**20
    assert [len(one.values) for one in large.item.embed.embeddings] == [1536] * 600


async def test_a_file_in_and_a_file_out(mesh: MeshProcess, jobs: Jobs, providers: Providers):
    lines: list[dict[str, Any]] = [{"item_id": f"q{n}", "chat": _asked(f"[r{n}] go on")} for n in range(3)]
    async with open_channel(mesh.target) as channel:
        stub: Any = FileServiceStub(channel)
        text = "\n".join(map(json.dumps, lines)).encode() + b"\n\n"
        file_id = await _upload(stub, jobs, text)
        job = await jobs.create(input_file_id=file_id)
        over = await jobs.wait(job.job_id)
        assert (over.state, over.input_file_id) == (pb.JOB_STATE_COMPLETED, file_id)
        request = files.DownloadFileRequest(file_id=over.output_file_id)
        data = b"".join([piece.data async for piece in stub.DownloadFile(request, metadata=jobs.key)])
        told = {line["item_id"]: line for line in map(json.loads, data.splitlines())}
        assert {name: line["chat"]["text"] for name, line in told.items()} == {
            f"q{n}": text_of(f"r{n}") for n in range(3)
        }
        lines[1]["chat"]["temperature"] = "warm"
        bad = await _upload(stub, jobs, "\n".join(map(json.dumps, lines)).encode())
        create = jobs.stub.CreateJob(pb.CreateJobRequest(input_file_id=bad), metadata=jobs.key)
        code, text_ = await status_of(create)
        assert code == "INVALID_ARGUMENT"
        assert "line 2" in text_
        missing = jobs.stub.CreateJob(pb.CreateJobRequest(input_file_id="file_none"), metadata=jobs.key)
        assert (await status_of(missing))[0] == "NOT_FOUND"


def _asked(text: str) -> dict[str, object]:
    parts = [{"text": {"text": text}}]
    return {"model": "openai/gpt-6.1-terra", "messages": [{"role": "ROLE_USER", "parts": parts}]}


async def _upload(stub: Any, jobs: Jobs, data: bytes) -> str:
    header = files.FileHeader(filename="in.jsonl", purpose=files.FilePurpose.FILE_PURPOSE_JOB_INPUT)
    call = stub.UploadFile(
        iter([files.UploadFileRequest(header=header), files.UploadFileRequest(data=data)]), metadata=jobs.key
    )
    return (await call).file_id


async def _closed(seen: object) -> None:
    while getattr(seen, "closed_at", None) is None:
        await asyncio.sleep(0.02)


async def test_requests_of_callers_go_first(jobs: Jobs, providers: Providers):
    """However many items wait, a gateway has 16 of them under way, so callers find room."""
    providers.weather["openai"] = Weather(late=1.0, lateness=60.0)
    job = await jobs.create(questions(200))
    try:
        await jobs.until(job.job_id, lambda _: len(providers.calls) >= 16)
        await asyncio.sleep(0.5)
        assert len(providers.calls) == 16  # of one tenant; two gateways would have room for 32
    finally:
        await jobs.cancel(job.job_id)
        await jobs.wait(job.job_id)


async def test_programs_without_await_do_the_same(mesh: MeshProcess, jobs: Jobs, providers: Providers):
    def work() -> tuple[pb.Job, dict[str, str]]:
        with SyncJobsClient(mesh.url, KEYS["acme"]) as client:
            job = client.create(["[r1] go on", chat("[r2] go on")], model=MODEL, priority="high", timeout=60)
            told = {result.item.item_id: text_of_answer(result.item.chat) for result in client.results(job.job_id)}
            assert client.wait(job.job_id, 10) == client.get(job.job_id) == client.cancel(job.job_id)
            return client.list(pb.JOB_STATE_COMPLETED)[0], told

    job, told = await asyncio.to_thread(work)
    assert told == {"0": text_of("r1"), "1": text_of("r2")}
    assert (job.priority, job.progress.succeeded) == (pb.JOB_PRIORITY_HIGH, 2)


async def test_tokens_that_nobody_gave_are_refused(jobs: Jobs, providers: Providers):
    job = await jobs.create(questions(1))
    begun = time.monotonic()
    for token in ("x", "%%%", "am9i", "OjE="):
        request = pb.ListJobResultsRequest(job_id=job.job_id, page_token=token)
        assert (await status_of(jobs.stub.ListJobResults(request, metadata=jobs.key)))[0] == "INVALID_ARGUMENT"
        resumed = jobs.stub.StreamJobResults(
            pb.StreamJobResultsRequest(job_id=job.job_id, resume_token=token), metadata=jobs.key
        )
        assert (await status_of(resumed.read()))[0] == grpc.StatusCode.INVALID_ARGUMENT.name
    assert time.monotonic() - begun < 5
