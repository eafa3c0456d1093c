"""The offline model answers in the JSON form that is asked for, or says why it can not."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from maestro.llm.v1.chat_pb2 import JsonFormat, ResponseFormat
from maestro_adapter_local.offline.prose import NOTICE
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

from .offline_asking import PERSON, WEATHER, answer, ask, calls_of, in_form, text_of, with_results


def test_json_schema_is_met_with_values_of_the_prompt() -> None:
    response = answer(ask("Her name is Ada and her age is 36.", response_format=in_form(PERSON)))
    value = json.loads(text_of(response))
    Draft202012Validator(PERSON).validate(value)
    assert (value["name"], value["age"]) == ("Ada", 36)


def test_json_mode_is_an_honest_object() -> None:
    value = json.loads(text_of(answer(ask("hi", response_format=ResponseFormat(json=JsonFormat())))))
    assert value == {"model": "offline", "notice": NOTICE, "text": "hi"}


def test_tools_come_before_the_structured_answer() -> None:
    request = ask("use get_weather for Paris", tools=[WEATHER], response_format=in_form(PERSON))
    first = answer(request)
    assert [name for name, _ in calls_of(first)] == ["get_weather"]
    second = answer(with_results(request, first, "her name is Bo, age: 3"))
    assert json.loads(text_of(second))["name"] == "Bo"


def test_schemas_that_can_not_be_met_are_told_apart() -> None:
    impossible = {"type": "integer", "minimum": 2, "maximum": 1}
    schema = {"type": "object", "required": ["a"], "properties": {"a": impossible}}
    with pytest.raises(InvalidRequest, match="#/properties/a: the least number 2 is above the greatest 1"):
        answer(ask("x", response_format=in_form(schema)))
    with pytest.raises(UnsupportedParameter, match="#/pattern"):
        answer(ask("x", response_format=in_form({"type": "string", "pattern": "^(?!a)b$"})))
