"""The audit of a mesh with two gateways: complete, provable, for its own tenant, and with content only where wanted."""

import asyncio
import itertools
import json
import os
import re
import time
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from maestro.usage.v1.usage_pb2 import AUDIT_OUTCOME_DENIED, AUDIT_OUTCOME_SUCCEEDED
from maestro_gateway.audit.chain import STREAM, subject_of
from maestro_sdk.audit import prove

from .conftest import KEY, TENANT, Mesh

ROUNDS = int(os.environ.get("AUDIT_ROUNDS", "1"))
"""How often both gateways are killed under load."""
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_call_is_told_with_who_what_and_from_where(mesh: Mesh) -> None:
    assert await mesh.chat("req-told", metadata={"team": "blue"}, claims="6.6.6.6") == 200
    await mesh.until(lambda found: any(record.request_id == "req-told" for record in found))
    status, page = await mesh.rest("GET", "/v1/audit?request_id=req-told")
    assert status == 200
    (record,) = page["records"]
    assert (record["operation"], record["outcome"]) == ("chat", "AUDIT_OUTCOME_SUCCEEDED")
    assert record["tenant"] == TENANT
    # The address of the connection, not what the caller says of itself.
    assert ip_address(record["client_address"]) != ip_address("6.6.6.6")
    assert record["key_id"].startswith("config_")
    assert record["user_agent"].startswith("Python/")
    assert record["method"] == "/maestro.gateway.v1.HttpService/Chat"
    assert (record["route"], record["metadata"]) == ("default", {"team": "blue"})
    (attempt,) = record["attempts"]
    assert (attempt["provider"], attempt["model"], attempt["reason"]) == (
        "local",
        "offline",
        "ERROR_REASON_UNSPECIFIED",
    )
    assert record["usage"]["output_tokens"] > 0


async def test_refusals_and_acts_stand_in_the_audit(mesh: Mesh) -> None:
    for _ in range(60):
        assert await mesh.chat("req-unknown", key="mk-nobody-0123456789") == 401
    status, made = await mesh.rest("POST", "/v1/keys", body={"display_name": "narrow", "scopes": ["files"]})
    assert status == 200
    key_id = made["key"]["key_id"]
    # The other gateway hears of the key a moment later: until then it is one of nobody.
    async with asyncio.timeout(10):
        while await mesh.chat("req-forbidden", key=made["secret"]) != 403:
            await asyncio.sleep(0.01)
    assert (await mesh.rest("POST", f"/v1/keys/{key_id}:revoke", body={}))[0] == 200
    # Each of these may have been told by another gateway, and so come in any order.
    told = {f"create key/{key_id}", f"revoke key/{key_id}"}
    records = await mesh.until(
        lambda found: told <= {record.target for record in found} and any(record.key_id == key_id for record in found)
    )
    assert {record.target for record in records if record.operation == "admin"} == told
    (denied,) = [record for record in records if record.key_id == key_id]
    assert (denied.outcome, denied.principal, denied.request_id) == (AUDIT_OUTCOME_DENIED, "narrow", "req-forbidden")
    # Each of the two gateways tells the first ten of a minute one by one, and of the others how many there were.
    with pytest.raises(aiohttp.WSServerHandshakeError):
        await mesh.http.ws_connect(mesh.process.url + "/v1/chat/stream?access_token=mk-nobody-0123456789")
    nobody = await mesh.until(lambda found: any(record.method == "/v1/chat/stream" for record in found), "_mesh")
    assert not any(b"mk-nobody" in record.SerializeToString() for record in nobody)
    # A minute may end in between.
    assert 10 <= len([record for record in nobody if record.request_id == "req-unknown"]) <= 2 * (10 + 1 + 10)
    assert all(secret not in record.SerializeToString() for record in records for secret in (made["secret"].encode(),))


async def test_gateways_are_killed_while_they_seal(mesh: Mesh) -> None:
    number, over = itertools.count(), asyncio.Event()

    async def load() -> None:
        while not over.is_set():
            try:
                await mesh.chat(f"req-load-{next(number)}")
            except OSError:
                # The gateway that answered was killed.
                await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(load())
        for name in ("gateway", "gateway-2") * ROUNDS:
            begin = len(await mesh.records())
            await mesh.until(lambda found, begin=begin: len(found) > begin + 20)
            await mesh.process.wait_restarted(mesh.process.kill(name))
        over.set()
    end = time.monotonic() + 30
    while True:
        records, ledger = await mesh.records(), await mesh.ledger()
        # Entries may still come from what a killed gateway has left: each is sealed a moment later.
        if [record.record_id for record in records] == ledger or time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    # Each entry of the ledger has one record, in its order, and the chain holds.
    assert [record.record_id for record in records] == ledger
    assert prove(records).broken is None
    assert sum(record.outcome == AUDIT_OUTCOME_SUCCEEDED for record in records) > 50
    proof = await mesh.cli("audit", "verify")
    assert (proof.exit_code, proof.stderr) == (0, "")
    told = re.fullmatch(r"fine: (\d+) records, 1 to \1\nhead \1:(\S+)\n", proof.stdout)
    assert told is not None, proof.stdout
    count = int(told[1])
    assert count >= len(records)
    assert (await mesh.records())[count - 1].hash == told[2]


async def test_other_tenants_see_nothing(mesh: Mesh) -> None:
    assert await mesh.chat("req-secret", "write to ada@example.com") == 200
    await mesh.until(lambda found: any(record.request_id == "req-secret" for record in found))
    body = {"display_name": "them", "tenant": "globex", "scopes": ["chat", "admin"]}
    _, made = await mesh.rest("POST", "/v1/keys", body=body)
    theirs = made["secret"]
    async with asyncio.timeout(10):
        for _ in range(5):
            while (found := await mesh.rest("GET", "/v1/audit?request_id=req-secret", theirs))[0] != 200:
                await asyncio.sleep(0.01)
            assert found[1]["records"] == []
    for path, status, reason in (
        ("/v1/requests/req-secret/content", 404, "NOT_FOUND"),
        (f"/v1/audit?tenant={TENANT}", 403, "PERMISSION_DENIED"),
        ("/v1/audit?tenant=_mesh", 403, "PERMISSION_DENIED"),
        ("/v1/audit?tenant=nobody", 403, "PERMISSION_DENIED"),
        ("/v1/audit?page_token=x", 400, "INVALID_REQUEST"),
        ("/v1/audit?page_size=5000", 400, "INVALID_REQUEST"),
    ):
        found = await mesh.rest("GET", path, theirs)
        assert (path, found[0], found[1]["error"]["reason"]) == (path, status, reason)
    # What they do stands in their own audit, the making of their key included, and their content nowhere.
    assert await mesh.chat("req-theirs", key=theirs) == 200
    records = await mesh.until(
        lambda found: (
            {"admin", "chat"} <= {each.operation for each in found if each.outcome == AUDIT_OUTCOME_SUCCEEDED}
        ),
        "globex",
    )
    (chat,) = [record for record in records if record.request_id == "req-theirs"]
    (admin,) = [record for record in records if record.outcome == AUDIT_OUTCOME_SUCCEEDED and record != chat]
    assert (admin.operation, chat.content_digest) == ("admin", "")
    assert (await mesh.rest("GET", "/v1/requests/req-theirs/content", theirs))[0] == 404
    status, page = await mesh.rest("GET", "/v1/audit?tenant=globex&operation=chat", KEY)
    assert (status, [record["request_id"] for record in page["records"]]) == (200, ["req-theirs"])


async def test_content_is_kept_redacted_and_asked_again(mesh: Mesh) -> None:
    asked: dict[str, Any] = {"stream": True, "routing": {"deterministic": True}}
    assert await mesh.chat("req-stream", "name three rivers", **asked) == 200
    await mesh.until(lambda found: any(record.request_id == "req-stream" for record in found))
    code, out, err = await mesh.replay("req-stream")
    assert (code, err) == (0, "")
    assert out.startswith("equal: ")
    assert out.endswith("frames of local/offline\n")
    _, found = await mesh.rest("GET", "/v1/requests/req-secret/content")
    content = json.loads(found["content_json"])
    assert content["request"]["messages"][0]["parts"][0]["text"]["text"] == "write to [email]"
    assert content["redactions"]["email"] >= 1
    _, page = await mesh.rest("GET", "/v1/audit?request_id=req-secret")
    assert page["records"][0]["content_digest"] == found["content_digest"]
    # Redacted, it is another question now, and the answer tells so.
    _, _, err = await mesh.replay("req-secret")
    assert "it was redacted (email: " in err


async def test_a_changed_record_is_found_by_its_sequence(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    exported = await mesh.cli("audit", "export", "--out", str(file))
    assert exported.exit_code == 0
    proving = ("audit", "verify", "--file", str(file), "--expect", exported.stderr.rpartition(" ")[2].strip())
    assert (await mesh.cli(*proving, here=False)).exit_code == 0
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join(lines[:-1]), encoding="utf-8")
    proof = await mesh.cli(*proving, here=False)
    assert (proof.exit_code, proof.stdout.partition(":")[0]) == (1, f"record {len(lines)} is missing")
    # Somebody with the keys of NATS makes one call look like another's.
    records = await mesh.records("globex")
    records[1].principal = "eve"
    js = mesh.nats.jetstream()
    await js.purge_stream(STREAM, subject=subject_of("globex"))
    for record in records:
        await js.publish(subject_of("globex"), record.SerializeToString())
    proof = await mesh.cli("audit", "verify", "--tenant", "globex", "--json")
    assert (proof.exit_code, json.loads(proof.stdout)["broken"]["sequence"]) == (1, 2)
    assert (await mesh.cli("audit", "verify")).exit_code == 0
