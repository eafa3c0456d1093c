"""Recorded content is read as something to ask again, and answers are compared without what is chance."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, Finish, Started, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Part, TextPart
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.cli.app import app
from maestro_sdk.cli.replay import Comparison, NotReplayable, lines_of_events, lines_of_response, read_content

ASKED = {"model": "fast", "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]}]}


def content(**more: Any) -> dict[str, Any]:
    answer = {"response_id": "r1", "provider": "p", "model": "m", "parts": [{"text": {"text": "yes"}}]}
    return {"request": ASKED, "response": answer, **more}


def events(*pieces: str, response_id: str = "r1", tokens: int = 1) -> list[ChatEvent]:
    return [
        ChatEvent(started=Started(response_id=response_id, provider="p", model="m", stream=f"stream-{response_id}")),
        *(ChatEvent(text=TextDelta(text=piece)) for piece in pieces),
        ChatEvent(tool_call=ToolCallDelta(index=1, call_id=f"call-{response_id}", name="f", arguments_json="{}")),
        ChatEvent(finish=Finish(usage=Usage(output_tokens=tokens))),
    ]


def test_the_backend_that_answered_is_asked() -> None:
    found = read_content(content(), "req-1")
    assert (found.request.model, found.streamed, found.model) == ("p/m", False, "p/m")
    assert found.request.metadata == {"replay_of": "req-1"}
    assert found.remarks == ()
    frames = [{"events": [{"started": {"provider": "p", "model": "m2"}}]}]
    streamed = read_content({"request": ASKED, "frames": frames}, "req-1")
    assert (streamed.request.model, streamed.streamed) == ("p/m2", True)
    assert streamed.remarks == ("its answer broke off then, or its caller left",)
    unanswered = read_content({"request": ASKED, "frames": []}, "req-1")
    assert (unanswered.request.model, len(unanswered.remarks)) == ("fast", 1)
    # Another connection reads the new answer.
    assert not read_content(content(request={**ASKED, "resumable": True}), "req-1").request.resumable


def test_what_is_not_the_same_question_is_said() -> None:
    found = read_content(content(redactions={"email": 2, "ip": 1}, truncated=True), "req-1")
    assert found.remarks == (
        "it was redacted (email: 2, ip: 1), so neither question nor answer are what they were",
        "its answer was too long to be recorded whole",
    )
    omitted = [{"path": "request.messages[0].parts[1].image.data", "size": 3}]
    with pytest.raises(NotReplayable, match=r"can't be asked again: request.messages\[0\].parts\[1\].image.data"):
        read_content(content(omitted=omitted), "req-1")
    # What the answer held is not needed to ask.
    assert read_content(content(omitted=[{"path": "response.parts[0].provider_state", "size": 3}]), "req-1").model
    with pytest.raises(NotReplayable, match="recorded by another version"):
        read_content({"request": {"no_such_field": 1}, "response": {}}, "req-1")


def test_chance_makes_no_difference() -> None:
    one = lines_of_events(events("I am", " here"))
    assert Comparison(one, lines_of_events(events("I", " am here", response_id="r2", tokens=9))).at == 0
    other = Comparison(one, lines_of_events(events("I was here")))
    assert other.at == 2
    assert [line for line in other.diff() if line[0] in "+-" and line[:3] not in ("+++", "---")] == [
        '-{"text": {"text": "I am here"}}',
        '+{"text": {"text": "I was here"}}',
    ]
    assert Comparison(one, one[:-1]).at == len(one)


def test_whole_answers_are_compared_part_by_part() -> None:
    def told(text: str, **more: Any) -> tuple[str, ...]:
        return lines_of_response(ChatResponse(provider="p", parts=[Part(text=TextPart(text=text))], **more))

    assert Comparison(told("a", response_id="1"), told("a", response_id="2", usage=Usage(output_tokens=3))).at == 0
    assert Comparison(told("a"), told("b")).at == 1


def test_a_word_in_a_long_text_is_found() -> None:
    def told(number: int) -> tuple[str, ...]:
        words = [f"Sentence {n if n != 900 else number} of a long answer.\n" for n in range(1000)]
        return lines_of_events(events("".join(words)))

    found = Comparison(told(900), told(-1))
    changed = [line for line in found.diff() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == ["-Sentence 900 of a long answer.\\n", "+Sentence -1 of a long answer.\\n"]
    # Without sentences, too, lines stay short.
    assert max(map(len, Comparison(lines_of_events(events("word " * 9999)), ()).diff())) < 210
    assert Comparison((), told(1)).frames == 4


def test_an_answer_gives_no_orders_to_a_terminal() -> None:
    (_, line, *_) = lines_of_events(events("\x1b[31m \x9b31m \u202egnp.exe é 😀"))
    assert line == '{"text": {"text": "\\u001b[31m \\u009b31m \\u202egnp.exe é 😀"}}'


@pytest.mark.parametrize(("said", "told"), [(b"<html>", "no JSON: is it a mesh?"), (b"[1]", "is no recorded content")])
def test_what_is_no_mesh_is_said(said: bytes, told: str) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        found = CliRunner().invoke(app, ["replay", "req-1", "--url", f"127.0.0.1:{server.server_port}", "--key", "k"])
        thread.join()
    assert (found.exit_code, found.stdout) == (2, "")
    assert told in found.stderr
