"""`maestro webhooks` and its REST paths through Envoy: what was not taken is listed, and delivered again."""

import asyncio
import json
from typing import Any

from event_mesh import OTHER_KEY, STRICT_KEY
from typer.testing import CliRunner

from maestro.event.v1.event_pb2 import RequestStarted
from maestro_sdk.cli.webhooks import webhooks_app
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.receiver import Received, Receiver, Say


async def run(mesh: MeshProcess, *arguments: str) -> tuple[int, Any]:
    given = [*arguments, "--json", "--url", mesh.url, "--key", STRICT_KEY]
    result = await asyncio.to_thread(CliRunner().invoke, webhooks_app, given)
    assert result.stdout, result.output
    return result.exit_code, json.loads(result.stdout)


async def test_dead_letters_by_command_and_rest(
    mesh: MeshProcess, publisher: EventPublisher, receiver: Receiver
) -> None:
    def refuse(message: Received) -> Say:
        return Say(503 if message.data["tenant"] == "strict" else 200)

    receiver.answer = refuse
    async with Caller(mesh.url, STRICT_KEY) as caller, Caller(mesh.url, OTHER_KEY) as stranger:
        publisher.publish(new_event(RequestStarted(request_id="a"), "request/a", tenant="strict"))
        async with asyncio.timeout(20):
            while (await caller.get("/v1/webhooks")).json()["webhooks"][0]["dead"] != "1":
                await asyncio.sleep(0.05)
        code, tried = await run(mesh, "test", "orders")
        _, listed = await run(mesh, "list")
        _, dead = await run(mesh, "dead", "orders")
        assert (code, tried["delivered"], tried["status"]) == (1, False, 503)
        (webhook,) = listed["webhooks"]
        assert (webhook["name"], webhook["state"], webhook["waiting"]) == ("orders", "WEBHOOK_STATE_ACTIVE", "0")
        (letter,) = dead["letters"]
        assert (letter["event"]["kind"], letter["last_status"], letter["attempts"]) == ("request.started", 503, 1)
        shown = await asyncio.to_thread(
            CliRunner().invoke, webhooks_app, ["dead", "orders", "--url", mesh.url, "--key", STRICT_KEY]
        )
        assert "request.started" in shown.stdout
        assert "it answered 503" in shown.stdout
        receiver.answer = lambda _: Say()
        code, answer = await run(mesh, "replay", "orders", letter["number"])
        assert (code, answer) == (0, {"delivered": 1, "left": 0, "reason": ""})
        assert receiver.taken[-1].data["request_started"]["request_id"] == "a"
        assert receiver.faults == []
        refused = [await caller.get("/v1/webhooks?tenant=hooked"), await caller.get("/v1/webhooks/none/dead-letters")]
        assert [(each.status, each.error["reason"]) for each in refused] == [
            (403, "PERMISSION_DENIED"),
            (404, "NOT_FOUND"),
        ]
        # A key without the scope.
        assert (await stranger.get("/v1/webhooks")).status == 403
