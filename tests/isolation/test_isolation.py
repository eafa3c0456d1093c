"""Two tenants: whatever the one tries at whichever door, nothing of the other comes out, and nothing of it changes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from maestro_gateway.reference import document
from maestro_sdk.service.channel import open_channel

from .conftest import Stage
from .isolation_doors import Door, Rest, Rpc, rest, rpcs, sockets
from .isolation_mesh import KEYS, SAID, STATE, TOOLS, item, state_of, turn
from .isolation_stranger import Stranger, bare, filled

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
ROOT = Path(__file__).resolve().parents[2]
STRANGERS = ("plain", "admin", "operator")
_AT_ONCE = 48
_FACADES = ("HttpService", "OpenAIService", "AnthropicService")
"""Envoy transcodes them for REST, and routes no gRPC to them."""
_STATES = (
    *("/v1/files", "/v1/jobs", "/v1/keys", "/v1/budgets?budget=canary-budget", "/v1/webhooks", "/v1/usage"),
    *("/v1/audit?page_size=1000", "/v1/requests/{request_id}/content", "/v1/files/{file_id}/content"),
    *("/v1/jobs/{job_id}", "/v1/jobs/{job_id}/results", "/v1/webhooks/{webhook}/dead-letters"),
    *("/v1/chat/{stream}/events",),
)


async def test_every_operation_is_tried() -> None:
    told = json.loads(document())["paths"]
    assert {door.covers for door in rest()} | {("get", door.path) for door in sockets()} == {
        (verb, path) for path, verbs in told.items() for verb in verbs
    }


async def test_every_method_that_is_served_is_tried(stage: Stage) -> None:
    channel: Any = open_channel(stage.process.target)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def asked() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    served: set[str] = set()
    async for answer in stub.ServerReflectionInfo(asked()):
        served = {each.name for each in answer.list_services_response.service}
    tried = {door.method for door in rpcs()}
    known = [*_methods()]
    assert tried == {
        method
        for method in known
        if (service := method[1:].partition("/")[0]) in served and service.rpartition(".")[2] not in _FACADES
    }
    stranger = Stranger(stage.http, stage.process.url, "operator")
    for method in {*known} - tried:
        code, _ = await stranger.attempt(Rpc(method), stage.owned.ids)
        assert code in {"UNIMPLEMENTED", "NOT_FOUND"}, method
    await stranger.close()
    await channel.close()


def _methods() -> list[str]:
    found = FileDescriptorSet.FromString((ROOT / "envoy/maestro.binpb").read_bytes())
    return [
        f"/{file.package}.{service.name}/{method.name}"
        for file in found.file
        for service in file.service
        for method in service.method
    ]


async def test_nothing_comes_out_of_any_door(stage: Stage, figures: list[str]) -> None:
    owner, owned = stage.client("owner"), stage.owned
    await _live(stage)
    before = await _state(stage)
    doors: list[Door] = [*rest(), *rpcs(), *sockets()]
    # Lists first: what a stranger says itself, its own lists tell it afterwards.
    doors.sort(key=lambda door: filled(_asked(door), owned.ids) != _asked(door))
    leaks: list[str] = []
    codes: Counter[str] = Counter()
    turns = asyncio.Semaphore(_AT_ONCE)

    async def attempt(stranger: Stranger, door: Door) -> None:
        if stranger.name == "operator" and door.open:
            return
        ids, twins = owned.ids, owned.twins
        async with turns:
            answer = await stranger.attempt(door, ids)
        codes[answer[0]] += 1
        secret = {*owned.words, *(value for name, value in ids.items() if name not in _NUMBERS)}
        asked = json.dumps(filled(_asked(door), ids))
        said = [word for word in secret if word not in asked and word.encode() in answer[1]]
        # What a stranger named before, its own records tell it again.
        if said and (asked == json.dumps(_asked(door)) or not {*said} <= {*ids.values()}):
            leaks.append(f"{stranger.name} {door}: {said} in {answer[1][:2000]!r}")
        if not door.twin or asked == json.dumps(_asked(door)):
            return
        async with turns:
            other = await stranger.attempt(door, twins)
        codes[other[0]] += 1
        names = [name for name in ids if f"{{{name}}}" in json.dumps(_asked(door)) and name not in _NUMBERS]
        found, none = (
            bare(each, {name: known[name] for name in names}) for each, known in ((answer, ids), (other, twins))
        )
        if found != none:
            leaks.append(f"{stranger.name} {door}: told apart\n{found}\n{none}")

    async with AsyncExitStack() as stack:
        strangers = [Stranger(stage.http, stage.process.url, name) for name in STRANGERS]
        for stranger in strangers:
            stack.push_async_callback(stranger.close)
        plain = [door for door in doors if filled(_asked(door), owned.ids) == _asked(door)]
        for group in (plain, [door for door in doors if door not in plain]):
            async with asyncio.TaskGroup() as tasks:
                for stranger in strangers:
                    for door in group:
                        tasks.create_task(attempt(stranger, door))
    figures.append(f"attempts at {len(doors)} doors: {codes.total()}, leaks: {len(leaks)}; answers {dict(codes)}")
    assert not leaks, f"{len(leaks)} leaks\n" + "\n\n".join(leaks[:40])
    assert not [code for code in codes if code in {"INTERNAL", "UNKNOWN", "500", "502"}], codes
    assert await _state(stage) == before
    stage.provider.may_end.set()
    live = await owner.ask("GET", f"/v1/chat/{owned.ids['live']}/events")
    assert "CANCELLED" not in live
    assert "[DONE]" in live
    # The books are written after the answer, and belong to the state that the next test begins with.
    await owner.until(
        "/v1/audit", lambda found: any(each["request_id"] == owned.ids["live"] for each in found["records"])
    )
    await _lettered(stage, "request.completed")


_NUMBERS = {"after", "number", "call_id", "session"}
"""What is too short to be anybody's, or is the caller's own word."""


def _asked(door: Door) -> Any:
    match door:
        case Rest():
            return [door.path, dict(door.query), "" if isinstance(door.body, bytes) else door.body, dict(door.headers)]
        case Rpc():
            return [door.method, door.body, dict(door.metadata)]
        case _:
            return [door.path, [*door.frames], dict(door.query)]


async def _live(stage: Stage) -> None:
    """A stream that runs while others try to take it or end it, until the provider may end it."""
    body = {**turn(f"{SAID} [slow] " + "word " * 40), "stream": True, "resumable": True}
    key = {"authorization": f"Bearer {KEYS['owner'][1]}", "x-request-id": stage.owned.ids["live"]}
    async with stage.http.post(f"{stage.process.url}/v1/chat", json=body, headers=key) as response:
        assert response.status == 200
        await response.content.readuntil(b"\n\n")
    await _lettered(stage, "request.started")


async def _lettered(stage: Stage, kind: str) -> None:
    """Returns when an event of the stream has become a letter, which comes a moment later and belongs to the state."""
    path, ids = "/v1/webhooks/{webhook}/dead-letters", stage.owned.ids
    told = {"kind": kind, "subject": f"request/{ids['live']}"}
    letters = filled(path, ids)
    await stage.client("owner").until(
        letters, lambda found: any(told.items() <= each["event"].items() for each in found["letters"])
    )


async def _state(stage: Stage) -> Any:
    owner, ids = stage.client("owner"), stage.owned.ids
    return state_of({path: await owner.ask("GET", filled(path, ids)) for path in _STATES if "usage" not in path})


async def test_the_owner_finds_it_behind_the_same_doors(stage: Stage, figures: list[str]) -> None:
    owner, ids = Stranger(stage.http, stage.process.url, "owner"), stage.owned.ids
    doors = [door for door in (*rest(), *rpcs(), *sockets()) if _only_reads(door)]

    async def finds(door: Door) -> bool:
        _, data = await owner.attempt(door, ids)
        return any(word.encode() in data for word in (*stage.owned.words, ids["job_id"], ids["file_id"]))

    found = await asyncio.gather(*(finds(door) for door in doors))
    await owner.close()
    figures.append(f"doors behind which the owner finds what others do not: {sum(found)} of {len(doors)}")
    assert sum(found) > 60


def _only_reads(door: Door) -> bool:
    match door:
        case Rest():
            return door.verb == "GET" and "{" in json.dumps(_asked(door))
        case Rpc():
            return door.method.rpartition("/")[2].startswith(("Get", "List", "Download", "Subscribe", "Resume"))
        case _:
            return not any(frame.get("type") in ("cancel", "chat") for frame in door.frames)


async def test_the_same_names_are_no_collision(stage: Stage) -> None:
    ids, owner, other = stage.owned.ids, stage.client("owner"), stage.client("admin")
    before = await _state(stage)
    lines = json.dumps(item("own words")).encode()
    upload = "/v1/files?purpose=content&filename=own.txt"
    file = await other.ask("POST", upload, b"own words", idempotency_key=ids["upload"])
    again = await other.ask("POST", upload, b"own words", idempotency_key=ids["upload"])
    given = await other.ask("POST", "/v1/files?purpose=job_input&filename=own.jsonl", lines)
    job = await other.ask("POST", "/v1/jobs", {"input_file_id": given["file_id"], "request_id": ids["order"]})
    key = await other.ask("POST", "/v1/keys", {"request_id": ids["making"]})
    assert file["file_id"] == again["file_id"] != ids["file_id"]
    assert job["job_id"] != ids["job_id"]
    assert key["key"]["key_id"] != ids["key_id"]
    assert await other.ask("GET", f"/v1/files/{file['file_id']}/content") == "own words"
    # The same request id: a stream, a record and content of its own.
    own = {**turn("own words"), "stream": True, "resumable": True}
    answers = await other.ask("POST", "/v1/chat", own, x_request_id=ids["stream"])
    assert "own" in answers
    assert SAID not in answers
    await other.ask("POST", "/v1/chat", turn("own words"), x_request_id=ids["request_id"])
    for name in ("stream", "request_id"):
        content = await other.until_content(ids[name])
        assert "own words" in content
        assert SAID not in content
        assert SAID in await owner.until_content(ids[name])
    resumed = await other.ask("GET", f"/v1/chat/{ids['stream']}/events")
    assert SAID not in resumed
    assert SAID in await owner.ask("GET", f"/v1/chat/{ids['stream']}/events")
    await other.ask("DELETE", f"/v1/chat/{ids['stream']}")
    await other.ask("DELETE", f"/v1/files/{file['file_id']}", idempotency_key=ids["upload"])
    assert await _state(stage) == before


async def test_no_answer_is_kept_for_others(stage: Stage) -> None:
    other, provider = stage.client("plain"), stage.provider
    asked = f"{SAID} in the cache"
    cached: tuple[tuple[str, Any, Callable[[], int]], ...] = (
        ("/v1/chat", {**turn(asked), "model": "cached"}, lambda: provider.asked(asked)),
        ("/v1/embeddings", {"model": "embed", "input": [f"{SAID} 4711"]}, lambda: len(stage.embedder.asked)),
    )
    for path, body, calls in cached:
        await _until_hit(stage, "owner", path, body)
        known = calls()
        assert await _cache_of(stage, "plain", path, body) == "miss"
        assert calls() == known + 1
        for name in ("plain", "owner"):
            await _until_hit(stage, name, path, body)
    # A call of the owner's in a conversation of the other one: its state stays where it is.
    call = {"id": stage.owned.ids["call_id"], "type": "function", "function": {"name": "find", "arguments": "{}"}}
    loop = [
        {"role": "user", "content": f"{SAID} [tool]"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "found"},
    ]
    body = {"model": "fake/model", "messages": loop, "tools": TOOLS}
    for client, kept in ((stage.client("owner"), True), (other, False)):
        await client.ask("POST", "/v1/chat/completions", body)
        assert (STATE in provider.requests[-1].SerializeToString()) is kept


async def _cache_of(stage: Stage, name: str, path: str, body: Any) -> str:
    """Whether an answer was found: "hit" or "miss"."""
    headers = {"authorization": f"Bearer {KEYS[name][1]}"}
    async with stage.http.post(stage.process.url + path, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        return response.headers["x-maestro-cache"]


async def _until_hit(stage: Stage, name: str, path: str, body: Any) -> None:
    """Asks until the answer is found: a gateway that has to wait for what the other one kept asks the provider."""
    async with asyncio.timeout(20):
        while await _cache_of(stage, name, path, body) != "hit":
            await asyncio.sleep(0.05)


async def test_logs_hold_no_content_and_no_key(stage: Stage) -> None:
    logs = b"".join(file.read_bytes() for file in (stage.process.data / "log").glob("*.log"))
    assert b"listening on" in logs
    secret = [SAID, STATE.decode(), "CANARY-THOUGHT", "CANARY-FILE", *(key for _, key, _ in KEYS.values())]
    assert [word for word in secret if word.encode() in logs] == []
