"""Writing requests and reading answers: constructors make exactly the contract's messages."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    ChatResponse,
    FinishReason,
    JsonFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    ResponseFormat,
    Routing,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import (
    ImageDetail,
    ImagePart,
    Message,
    Origin,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro_sdk.errors import OutputInvalid
from maestro_sdk.types import (
    ToolCall,
    arguments_of,
    assistant,
    audio,
    chat_request,
    document,
    finish_of,
    image,
    json_of,
    json_schema,
    only_tool,
    reasoning_of,
    text,
    text_of,
    tool,
    tool_calls_of,
    tool_result,
    tool_results,
    user,
)

PNG = b"\x89PNG\r\n\x1a\n...."
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def call(call_id: str, name: str, arguments: str) -> Part:
    return Part(tool_call=ToolCallPart(call_id=call_id, name=name, arguments_json=arguments))


def test_turns():
    assert user("Hi", text("there")) == Message(
        role=Role.ROLE_USER, parts=[Part(text=TextPart(text="Hi")), Part(text=TextPart(text="there"))]
    )
    assert assistant("Hello").role == Role.ROLE_ASSISTANT
    assert tool_results(tool_result("c1", "ok")).role == Role.ROLE_TOOL
    with pytest.raises(ValueError, match="needs content"):
        user()


def test_an_answer_goes_back_byte_identical():
    state = b"\x00\xff signature"
    thought = Part(
        reasoning=ReasoningPart(text="hm"), origin=Origin(provider="anthropic", model="m"), provider_state=state
    )
    response = ChatResponse(parts=[thought, call("c1", "add", '{"a": 1}')])
    turn = assistant(response)
    assert [part.SerializeToString() for part in turn.parts] == [part.SerializeToString() for part in response.parts]
    assert turn.parts[0].provider_state == state


def test_every_field_of_a_request_can_be_given():
    request = chat_request(
        "Hi",
        model="claude",
        system="Be brief.",
        tools=[tool("add", "Adds.", SCHEMA, strict=True)],
        tool_choice="required",
        temperature=0.0,
        top_p=0.5,
        max_tokens=7,
        stop="END",
        seed=0,
        response_format="json",
        reasoning="high",
        logprobs=Logprobs(top=2),
        routing=Routing(persona="backend_developer"),
        strict=True,
        metadata={"team": "blue"},
        provider_options={"anthropic": {"service_tier": "auto", "nested": {"list": [1, "two", None]}}},
    )
    assert request.tool_choice == ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)
    assert (request.temperature, request.HasField("temperature"), request.HasField("seed")) == (0.0, True, True)
    assert list(request.stop) == ["END"]
    assert request.response_format == ResponseFormat(json=JsonFormat())
    assert request.reasoning == Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH)
    assert request.routing.persona == "backend_developer"
    assert dict(request.metadata) == {"team": "blue"}
    assert MessageToDict(request.provider_options["anthropic"])["nested"] == {"list": [1, "two", None]}
    assert request.tools[0].strict
    assert json.loads(request.tools[0].input_schema) == SCHEMA


def test_what_is_not_given_or_none_stays_unset():
    request = chat_request("Hi", temperature=None, tools=None, system=None)
    assert request == ChatRequest(messages=[user("Hi")])


def test_fields_replace_those_of_a_given_request():
    base = chat_request([user("Hi")], stop=["a", "b"], tools=[tool("one")], metadata={"a": "1"}, model="m")
    changed = chat_request(base, stop=["c"], tools=[tool("two")], metadata={"b": "2"})
    assert (list(changed.stop), [t.name for t in changed.tools], dict(changed.metadata)) == (["c"], ["two"], {"b": "2"})
    assert (changed.model, changed.messages) == ("m", [user("Hi")])
    assert list(base.stop) == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"reasoning": "immense"}, ValueError, "reasoning: 'immense' is none of off, minimal"),
        ({"tool_choice": "named"}, ValueError, "tool_choice: 'named' is none of auto, none, required"),
        ({"response_format": "yaml"}, ValueError, "json_schema"),
        ({"temprature": 1.0}, TypeError, "no field temprature; it has: cache, logprobs"),
        ({"max_tokens": "many"}, TypeError, "."),
    ],
)
def test_wrong_fields_are_named(fields: Any, error: type[Exception], text: str):
    with pytest.raises(error, match=text):
        chat_request("Hi", **fields)


def test_a_named_tool_and_a_schema():
    assert only_tool("add") == ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=["add"])
    form = json_schema(SCHEMA, name="size", max_repairs=0).json_schema
    assert (form.name, form.max_repairs, form.HasField("max_repairs"), form.HasField("strict")) == (
        "size",
        0,
        True,
        False,
    )
    assert form.schema == '{"type":"object","properties":{"größe":{"type":"integer"}}}'
    # A schema as text is sent as it is.
    assert tool("t", schema='{ "type":"object"}').input_schema == '{ "type":"object"}'
    assert tool("t").input_schema == ""


def test_media_by_bytes_file_and_address(tmp_path: Path):
    photo = tmp_path / "photo.bin"
    photo.write_bytes(PNG)
    notes = tmp_path / "notes.csv"
    notes.write_bytes(b"a,b\n")
    assert image(PNG, detail="low") == Part(
        image=ImagePart(data=PNG, mime_type="image/png", detail=ImageDetail.IMAGE_DETAIL_LOW)
    )
    assert image(photo).image.mime_type == "image/png"
    assert document(notes, title="Notes").document.mime_type == "text/csv"
    assert image("https://example.org/x.png") == Part(image=ImagePart(url="https://example.org/x.png"))
    assert image("data:image/webp;base64,UklGRg==").image == ImagePart(data=b"RIFF", mime_type="image/webp")
    assert document("data:text/plain,a%20b").document.data == b"a b"
    assert audio(b"RIFF....WAVEfmt ").audio.mime_type == "audio/wav"
    assert image(b"????", mime_type="image/heic").image.mime_type == "image/heic"


@pytest.mark.parametrize("source", [b"????", "photo.png", "data:image/png", "data:image/png;base64,?"])
def test_media_that_cannot_be_told_are_refused(source: bytes | str):
    with pytest.raises(ValueError, match=r"."):
        image(source)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, []),
        ("plain", [text("plain")]),
        (text("part"), [text("part")]),
        ([text("one"), image(PNG)], [text("one"), image(PNG)]),
        ({"ok": True, "ä": [1.5, None]}, [text('{"ok": true, "ä": [1.5, null]}')]),
        ([], [text("[]")]),
        (7, [text("7")]),
    ],
)
def test_results_of_tools(content: Any, parts: list[Part]):
    made = tool_result(ToolCall("c1", "add", {}), content)
    assert made == Part(tool_result=ToolResultPart(call_id="c1", parts=parts))


@pytest.mark.parametrize("content", [object(), float("nan"), {"a": b""}])
def test_a_result_that_json_does_not_know_is_refused(content: Any):
    with pytest.raises((TypeError, ValueError)):
        tool_result("c1", content)


def test_reading_an_answer():
    response = ChatResponse(
        parts=[
            Part(reasoning=ReasoningPart(text="hm")),
            text("one "),
            call("c1", "add", '{"a": 1}'),
            text("two"),
            call("c2", "now", ""),
        ],
        finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS,
    )
    assert (text_of(response), reasoning_of(response), finish_of(response)) == ("one two", "hm", "tool_calls")
    assert tool_calls_of(response) == [ToolCall("c1", "add", {"a": 1}), ToolCall("c2", "now", {})]
    assert text_of(assistant(response)) == "one two"


@pytest.mark.parametrize("arguments", ['{"a":', "[1]", '"x"', "null"])
def test_arguments_that_are_no_object(arguments: str):
    part = call("c1", "add", arguments)
    with pytest.raises(OutputInvalid, match="arguments of add are no JSON"):
        arguments_of(part.tool_call)
    with pytest.raises(OutputInvalid):
        tool_calls_of(ChatResponse(parts=[part]))


def test_json_of_an_answer():
    assert json_of(ChatResponse(parts=[text('{"a":'), text("1}")])) == {"a": 1}
    with pytest.raises(OutputInvalid, match="no JSON"):
        json_of(ChatResponse(parts=[text("Sure! {}")]))
