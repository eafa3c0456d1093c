"""Content on the chat-completions wire: what dialects take, what goes back to its maker, what is dropped."""

from __future__ import annotations

from dataclasses import replace

from maestro_sdk.adapter.chat_completions import to_wire

from .chat_bodies import LOCAL, body, request


def test_foreign_content_is_dropped_under_strict_too() -> None:
    foreign = {"opaque": {"json": "{}"}, "origin": {"provider": "elsewhere"}}
    wire = to_wire(request({"text": {"text": "a"}}, foreign, strict=True), LOCAL)
    assert [warning.code for warning in wire.warnings] == ["foreign_content_dropped"]


def test_content_that_dialects_may_take() -> None:
    dialect = replace(LOCAL, audio=True, documents=True)
    content = body(
        request(
            {"audio": {"data": "AAAA", "mime_type": "audio/mpeg"}},
            {"document": {"data": "AAAA", "mime_type": "application/pdf"}},
        ),
        dialect,
    )["messages"][0]["content"]
    assert content == [
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
    ]


def test_opaque_content_goes_back_to_its_maker_byte_by_byte() -> None:
    own = {"opaque": {"json": '{"type": "x",  "n": 1.0}'}, "origin": {"provider": "local", "api": "chat_completions"}}
    assert (
        b'[{"type":"text","text":"a"},{"type": "x",  "n": 1.0}]'
        in to_wire(request({"text": {"text": "a"}}, own), LOCAL).encode()
    )
    foreign = {**own, "origin": {"provider": "anthropic"}}
    wire = to_wire(request({"text": {"text": "a"}}, foreign), LOCAL)
    assert wire.body["messages"] == [{"role": "user", "content": "a"}]
    assert [(warning.code, warning.field) for warning in wire.warnings] == [
        ("foreign_content_dropped", "messages[0].parts[1].opaque")
    ]


def test_reasoning_goes_back_only_to_its_maker_and_only_where_wanted() -> None:
    own = {"reasoning": {"text": "hm"}, "origin": {"provider": "local"}}
    foreign = {"reasoning": {"text": "aha"}, "origin": {"provider": "anthropic"}, "provider_state": "AAAA"}
    asked = request(own, foreign, {"text": {"text": "a"}}, role="ROLE_ASSISTANT")
    assert body(asked)["messages"] == [{"role": "assistant", "content": "a"}]
    assert body(asked, replace(LOCAL, reasoning_echo="reasoning_content"))["messages"] == [
        {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    ]
    assert body(request(foreign, role="ROLE_ASSISTANT"))["messages"] == []


def test_refusal_as_text_where_the_wire_has_no_refusals() -> None:
    asked = request({"refusal": {"text": "no"}}, role="ROLE_ASSISTANT")
    assert body(asked)["messages"] == [{"role": "assistant", "content": "no"}]
