"""The `maestro` command beside a running mesh."""

import json

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import PIECES


async def test_chat_prints_the_answer(mesh: MeshProcess, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    code, out, err = await mesh.run("chat", "--data", str(mesh.data), "-m", "openai/gpt-6.1-terra", "hello", "there")
    assert (code, out.rstrip("\n")) == (0, "".join(PIECES)), err
    sent = provider.requests[0].json()
    assert sent["stream"] is True
    assert "hello there" in json.dumps(sent["messages"])


async def test_chat_reads_standard_input(mesh: MeshProcess):
    code, out, err = await mesh.run("chat", "--data", str(mesh.data), stdin="hello")
    assert code == 0, err
    assert out.strip()


async def test_chat_that_fails_says_why_and_exits_with_1(mesh: MeshProcess, provider: FaultServer):
    code, out, err = await mesh.run("chat", "--data", str(mesh.data), "-m", "no-such-model", "hello")
    assert (code, out) == (1, "")
    assert "no-such-model" in err
    provider.on("POST", openai_chat.PATH, openai_chat.cut_after(2))
    code, out, err = await mesh.run("chat", "--data", str(mesh.data), "-m", "openai/gpt-6.1-terra", "hello")
    assert code == 1
    assert out.startswith("".join(PIECES[:2]))
    assert err.strip()


async def test_status_tells_every_process(mesh: MeshProcess):
    code, out, err = await mesh.run("status", "--json", "--data", str(mesh.data))
    assert code == 0, err
    status = json.loads(out)
    assert (status["state"], status["url"]) == ("ready", mesh.url)
    states = {process["name"]: process["state"] for process in status["processes"]}
    adapters = {f"adapter-{name}" for name in ("claude", "openai", "vertex", "bedrock", "local")}
    assert set(states) == {"nats", "envoy", "gateway", "router", *adapters}
    assert set(states.values()) == {"ready"}


async def test_models_and_explain(mesh: MeshProcess):
    code, out, err = await mesh.run("models", "--json", "--data", str(mesh.data))
    assert code == 0, err
    assert "local/offline" in [model["id"] for model in json.loads(out)["data"]]
    code, out, err = await mesh.run("explain", "--json", "--data", str(mesh.data), "-m", "openai-first", "hello")
    assert code == 0, err
    assert [candidate["model"] for candidate in json.loads(out)["candidates"] if candidate["kept"]] == [
        "openai/gpt-6.1-terra",
        "anthropic/claude-sonnet-5-5",
    ]


async def test_explain_tells_how_a_request_was_decided_and_what_happened(
    mesh: MeshProcess, provider: FaultServer, alpha: Caller, beta: Caller
):
    provider.on("POST", openai_chat.PATH, openai_chat.rate_limited(2))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text())
    reply = await alpha.chat(question(model="openai-first"))
    assert reply.status == 200
    name = reply.headers["x-request-id"]
    code, out, err = await mesh.run("explain", "--json", "--data", str(mesh.data), "--request", name)
    assert code == 0, err
    told = json.loads(out)
    assert (told["request_id"], told["request"]["outcome"]) == (name, "completed")
    assert [(each["backend_id"], each["fate"]) for each in told["attempts"]] == [
        ("openai:openai/gpt-6.1-terra", "failed"),
        ("claude:anthropic/claude-sonnet-5-5", "answered"),
    ]
    assert told["attempts"][0]["error"]["reason"] == "RATE_LIMITED"
    assert (told["route"], [each["kept"] for each in told["candidates"]]) == ("openai-first", [True, True])
    code, out, err = await mesh.run("explain", "--data", str(mesh.data), "--request", name)
    assert code == 0, err
    assert name in out
    for words in ("completed after", "route openai-first", "RATE_LIMITED", "answered"):
        assert words in " ".join(out.split())
    code, out, err = await mesh.run("explain", "--data", str(mesh.data), "-r", name, "--key", str(beta.key))
    assert (code, out) == (1, "")
    assert "NOT_FOUND" in err
    code, out, err = await mesh.run("explain", "--data", str(mesh.data), "--request", name, "-m", "fast")
    assert code == 2
    assert "has its text and model" in " ".join(err.split())


async def test_a_second_up_says_that_it_runs_already(mesh: MeshProcess, alpha: Caller):
    code, out, err = await mesh.run("up", "--detach", "--data", str(mesh.data))
    assert code == 0, err
    assert mesh.url in out + err
    assert (await alpha.get("/v1/models")).status == 200


async def test_wrong_configuration_lists_every_problem_and_starts_nothing(mesh: MeshProcess):
    file = mesh.data.parent / "wrong.yaml"
    file.write_text(
        "version: 1\n"
        "gateway:\n"
        "  keys: [{tenant: a, key: mk-inline}]\n"
        "  max_body: lots\n"
        "routes:\n"
        "  default: {strategy: foo, targets: [local/offline]}\n"
        "colour: blue\n"
    )
    code, out, err = await mesh.run("up", "--detach", "--config", str(file), "--data", str(mesh.data.parent / "other"))
    told = out + err
    assert code == 1
    for line, path in ((3, "gateway.keys"), (4, "gateway.max_body"), (6, "routes.default.strategy"), (7, "colour")):
        assert f"wrong.yaml:{line}: {path}" in told, told
    assert not (mesh.data.parent / "other" / "run" / "state.json").exists()
    code, out, err = await mesh.run("config", "check", str(file))
    assert code == 1
    assert "4 problems" in out + err
