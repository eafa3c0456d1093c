"""Finding the mesh to talk to, and printing what it says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console as RichConsole
from typer.testing import CliRunner

from maestro.llm.v1 import chat_pb2, usage_pb2
from maestro_sdk.cli import views
from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.app import app
from maestro_sdk.cli.chat import Printer
from maestro_sdk.cli.console import Console
from maestro_sdk.cli.folder import Folder, MeshState, ProcessState
from maestro_sdk.cli.target import NoTarget, Target, find_target
from maestro_sdk.errors import RateLimited


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    found.create()
    found.write_state(MeshState("ready", "http://127.0.0.1:81", "http://127.0.0.1:82", 1, 1.0, ""))
    return found


def test_what_is_said_wins_over_the_environment_and_that_over_the_folder(folder: Folder) -> None:
    environment = {"MAESTRO_URL": "http://far:1", "MAESTRO_KEY": "mk-env"}
    assert find_target("near:2", "mk-said", folder.root, environment) == Target("http://near:2", "mk-said")
    assert find_target(None, None, folder.root, environment) == Target("http://far:1", "mk-env")
    assert folder.lock() is not None
    assert find_target(None, None, folder.root, {"MAESTRO_KEY": "mk-env"}) == Target("http://127.0.0.1:81", "mk-env")
    made = folder.development_key()
    assert find_target(None, None, folder.root, {}) == Target("http://127.0.0.1:81", made)


def test_no_mesh_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoTarget, match=r"no mesh is running .* start one with `maestro up`, or give --url"):
        find_target(None, None, tmp_path, {})
    result = CliRunner().invoke(app, ["models", "--data", str(tmp_path)], env={"MAESTRO_URL": "", "MAESTRO_KEY": ""})
    assert result.exit_code == 1
    assert "no mesh is running" in result.output


def test_help_lists_every_command_with_examples() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for name in ("up", "down", "status", "chat", "models", "explain", "config"):
        assert f" {name} " in text
    assert "maestro up --detach" in text


def test_nobody_there_is_an_error_with_the_address() -> None:
    for url, key, told in (
        ("http://exa mple", None, "http://exa mple is no address"),
        ("http://127.0.0.1:port", None, "http://127.0.0.1:port is no address"),
        ("http://127.0.0.1:1", "mk-1\n", "the key has characters that no key has"),
    ):
        with pytest.raises(ApiError) as caught:
            Api(url, key).get("/v1/models")
        assert str(caught.value).startswith(told)
    with pytest.raises(ApiError, match=r"http://127\.0\.0\.1:1 does not answer: ") as caught:
        Api("http://127.0.0.1:1", None).get("/v1/models")
    assert caught.value.status == 0


def events(*found: chat_pb2.ChatEvent) -> list[chat_pb2.ChatEvent]:
    started = chat_pb2.ChatEvent(started=chat_pb2.Started(provider="local", model="offline"))
    usage = usage_pb2.Usage(input_tokens=3, output_tokens=4)
    finish = chat_pb2.Finish(reason=chat_pb2.FINISH_REASON_STOP, usage=usage)
    return [started, *found, chat_pb2.ChatEvent(finish=finish)]


def text(piece: str) -> chat_pb2.ChatEvent:
    return chat_pb2.ChatEvent(text=chat_pb2.TextDelta(text=piece))


def test_answer_goes_out_and_everything_about_it_aside(capsys: pytest.CaptureFixture[str]) -> None:
    side = io.StringIO()
    printer = Printer(RichConsole(file=side, force_terminal=True, color_system=None))
    warning = chat_pb2.ChatEvent(warning=chat_pb2.Warning(message="seed is ignored"))
    for event in events(text("Hel"), warning, text("lo")):
        printer.show(event)
    printer.end()
    assert capsys.readouterr().out == "Hello\n"
    assert side.getvalue().splitlines() == ["warning: seed is ignored", "local/offline · 3 tokens in, 4 out · stop"]


def test_tool_calls_are_printed_with_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(RichConsole(file=io.StringIO()))
    first = chat_pb2.ToolCallDelta(call_id="1", name="weather", arguments_json='{"city":')
    second = chat_pb2.ToolCallDelta(arguments_json='"Bern"}')
    for event in events(chat_pb2.ChatEvent(tool_call=first), chat_pb2.ChatEvent(tool_call=second)):
        printer.show(event)
    printer.end()
    assert capsys.readouterr().out == '\nweather: {"city":"Bern"}\n'


def test_failure_in_the_middle_leaves_what_was_said(capsys: pytest.CaptureFixture[str]) -> None:
    side = io.StringIO()
    printer = Printer(RichConsole(file=side))
    printer.show(text("Hel"))
    assert printer.fail(RateLimited("slow down")) == 1
    assert capsys.readouterr().out == "Hel\n"
    assert side.getvalue() == "RATE_LIMITED: slow down\n"


def test_status_counts_from_the_last_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    processes = (
        ProcessState("gateway", "ready", 7, "127.0.0.1:1", 2, 990.0),
        ProcessState("router", "failed", None, "127.0.0.1:2", 5, 995.0, "exited with status 1"),
    )
    state = MeshState("ready", "http://127.0.0.1:81", "", 3, 900.0, "", processes)
    data = views.status_data(state, None, "no answer")
    assert data["uptime_seconds"] == 100.0
    assert [(each["state"], each["uptime_seconds"], each["note"]) for each in data["processes"]] == [
        ("ready", 10.0, None),
        ("failed", None, "exited with status 1"),
    ]
    assert data["trouble"] == "no answer"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(7.4, "7 s"), (119, "119 s"), (720, "12 min"), (12600, "3.5 h"), (181440, "2.1 d")]
)
def test_times(seconds: float, shown: str) -> None:
    assert views.span(seconds) == shown


def test_console_without_a_terminal_is_plain_and_survives_a_reader_that_left() -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    out = io.StringIO()
    console = Console(out)
    console.waiting(["gateway"])
    console.up("nats", 0.12)
    console.line("gateway", b"\x1b[31mred\x1b[0m [not markup]")
    assert out.getvalue().splitlines() == ["  ✓ nats                0.1 s", "gateway          │ red [not markup]"]
    gone = Console(Gone())
    gone.say("hello")
    gone.problem("still here")


@pytest.mark.parametrize("command", [(), ("models",), ("jobs", "list"), ("conformance",)])
def test_the_help_warns_of_keys_in_the_list_of_processes(command: tuple[str, ...]) -> None:
    told = " ".join(CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "400"}).output.split())
    assert "MAESTRO_KEY" in told
    assert "everybody on the machine can see" in told
