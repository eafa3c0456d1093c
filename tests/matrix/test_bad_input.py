"""What is wrong, or can't be done, is told with its place by every adapter, before anything is sent."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from matrix_wires import NAMES, conversation, wire

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.adapter.models import supports
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

TURN = {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]}
GOOD = {"name": "good", "input_schema": '{"type":"object","properties":{}}'}


def ask(**fields: Any) -> ChatRequest:
    return ParseDict({"model": "any", "messages": [TURN], **fields}, ChatRequest())


@pytest.mark.parametrize("name", NAMES)
def test_sound_for_a_model_that_hears_none(name: str) -> None:
    target = wire(name)
    if supports(target.model, Feature.FEATURE_AUDIO):
        assert "audio/wav" in json.dumps(target.ask(conversation("audio")).body)
        return
    with pytest.raises(UnsupportedParameter) as caught:
        target.ask(conversation("audio"))
    assert [each.field for each in caught.value.violations] == ["messages[0].parts[1].audio"]


# What is no schema, and the pointer of its flaw.
FLAWS: list[tuple[str, str]] = [
    ("{", ""),
    ("[]", ""),
    ("null", ""),
    ('{"type":"array"}', "#/type"),
    ('{"type":"object","properties":{"x":{"type":"int"}}}', "#/properties/x/type"),
    ('{"type":"object","properties":{"a/b":{"type":["string","nil"]}}}', "#/properties/a~1b/type/1"),
    ('{"type":"object","properties":{"x":{"$ref":"#/$defs/Gone"}}}', "#/properties/x/$ref"),
    ('{"type":"object","properties":{"x":{"anyOf":[]}}}', "#/properties/x/anyOf"),
    ('{"type":"object","required":"x"}', "#/required"),
    ('{"type":"object","properties":{"x":{"minimum":"0"}}}', "#/properties/x/minimum"),
    ('{"type":"object","properties":{"x":{"enum":"a"}}}', "#/properties/x/enum"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("schema", "pointer"), FLAWS)
def test_a_tool_s_schema_that_is_none(schema: str, pointer: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire(name).ask(ask(tools=[GOOD, {"name": "bad", "input_schema": schema}]))
    assert type(caught.value) is InvalidRequest
    assert caught.value.violations[0].field == f"tools[1].input_schema{pointer}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("schema", "pointer"), [flaw for flaw in FLAWS if flaw[1] != "#/type"])
def test_an_answer_s_schema_that_is_none(schema: str, pointer: str, name: str) -> None:
    form = {"json_schema": {"schema": schema + " "}}
    with pytest.raises(InvalidRequest) as caught:
        wire(name).ask(ask(response_format=form))
    assert caught.value.violations[0].field == f"response_format.json_schema.schema{pointer}"


PARAMETERS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": "1",
    "logprobs": {"top": 2},
    "cache": {"points": [{"system": True}, {"message": 0}], "ttl": "CACHE_TTL_1H"},
    "reasoning": {"budget_tokens": 1024},
    "stop": ["END"],
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parameter", list(PARAMETERS))
def test_a_parameter_is_sent_or_told(parameter: str, name: str) -> None:
    """No parameter goes by in silence: it changes what is sent, or a warning names it; under `strict` an error does."""
    target = wire(name)
    fields = {parameter: PARAMETERS[parameter], "system": "Be brief.", "max_tokens": 4000}
    plain = target.ask(ask(system="Be brief.", max_tokens=4000)).body
    sent = target.ask(ask(**fields))
    told = [warning.field for warning in sent.warnings]
    assert all(place.split("[")[0].split(".")[0] == parameter for place in told)
    assert all(warning.code and warning.message for warning in sent.warnings)
    assert told or sent.body != plain
    strict = ask(**fields, strict=True)
    if not told:
        assert target.ask(strict).body == sent.body
        return
    with pytest.raises(UnsupportedParameter) as caught:
        target.ask(strict)
    assert [each.field for each in caught.value.violations] == told


@pytest.mark.parametrize("name", NAMES)
def test_rules_for_tools_that_can_not_be_kept(name: str) -> None:
    for choice, place in (
        ({"mode": "TOOL_CHOICE_MODE_NAMED"}, "tool_choice.names"),
        ({"mode": "TOOL_CHOICE_MODE_AUTO", "names": ["gone"]}, "tool_choice.names[0]"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            wire(name).ask(ask(tools=[GOOD], tool_choice=choice))
        assert caught.value.violations[0].field == place
    with pytest.raises(InvalidRequest) as caught:
        wire(name).ask(ask(tool_choice={"mode": "TOOL_CHOICE_MODE_REQUIRED"}))
    assert caught.value.violations[0].field == "tool_choice.mode"


def _chain(length: int) -> dict[str, Any]:
    links = {f"L{n}": {"$ref": f"#/$defs/L{n + 1}"} for n in range(length)}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/L0"}}, "$defs": {**links, f"L{length}": {}}}


def _bomb(levels: int) -> dict[str, Any]:
    parts = {f"L{n}": {"properties": {key: {"$ref": f"#/$defs/L{n + 1}"} for key in "ab"}} for n in range(levels)}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/L0"}}, "$defs": {**parts, f"L{levels}": {}}}


def _choices(levels: int) -> dict[str, Any]:
    parts = {f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 2} for n in range(levels)}
    return {"anyOf": [{"$ref": "#/$defs/L0"}] * 2, "$defs": {**parts, f"L{levels}": {"type": "object"}}}


HOSTILE: dict[str, Any] = {
    "chain": _chain(3000),
    "bomb": _bomb(40),
    "choices": _choices(40),
    "itself": {"allOf": [{"$ref": "#"}] * 3, "anyOf": [{"$ref": "#"}] * 3},
    "deep": json.loads('{"type":"object","properties":{"x":' * 90 + "{}" + "}}" * 90),
    "wide": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(4000)}},
    "surrogate": {"type": "object", "properties": {"\ud83d": {"type": "string"}}},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", list(HOSTILE))
def test_schemas_made_to_harm(kind: str, name: str) -> None:
    """They are translated or refused, in good time; never do they end in an error of ours."""
    request = ask(tools=[GOOD, {"name": "bad", "input_schema": json.dumps(HOSTILE[kind])}])
    begun = time.process_time()
    try:
        wire(name).ask(request)
    except InvalidRequest as error:
        places = [each.field for each in error.violations]
        assert places
        assert all(place.startswith("tools[1].input_schema") for place in places)
    assert time.process_time() - begun < 2
