"""The caller's own parameters: a merge patch, with paths in errors."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.adapter.options import merge_options, own_options
from maestro_sdk.errors import InvalidRequest


def options(**given: Any) -> Any:
    request = ChatRequest()
    request.provider_options["acme"].update(given)
    return request.provider_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"a": 1, "deep": {"x": 1, "y": {"z": 2}}}),
        ({"b": 2.0}, {"a": 1, "b": 2, "deep": {"x": 1, "y": {"z": 2}}}),
        ({"a": None}, {"deep": {"x": 1, "y": {"z": 2}}}),
        ({"deep": {"x": None, "y": {"w": True}}}, {"a": 1, "deep": {"y": {"z": 2, "w": True}}}),
        ({"deep": "text"}, {"a": 1, "deep": "text"}),
        ({"a": {"n": [1, 0.5, "t", {"k": 3}]}}, {"a": {"n": [1, 0.5, "t", {"k": 3}]}, "deep": {"x": 1, "y": {"z": 2}}}),
    ],
)
def test_options_are_a_merge_patch(given: dict[str, Any], expected: dict[str, Any]) -> None:
    body: dict[str, Any] = {"a": 1, "deep": {"x": 1, "y": {"z": 2}}}
    merge_options(options(**given), "acme", body, {})
    assert body == expected


def test_other_providers_options_are_not_read() -> None:
    others = options(a=1)
    assert own_options(others, "else") == {}
    assert list(others) == ["acme"]


def test_whole_numbers_are_whole_and_the_order_is_one() -> None:
    found = own_options(options(b=2.0**53, a=1e300, c=-0.5), "acme")
    assert list(found.items()) == [("a", 1e300), ("b", 2**53), ("c", -0.5)]
    assert isinstance(found["b"], int)


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"model": "x"}, "provider_options.acme.model", "can't be set here: the model is chosen by `model`"),
        ({"a": {"b": [1, float("nan")]}}, "provider_options.acme.a.b[1]", "holds nan, which JSON does not know"),
    ],
)
def test_what_is_refused(given: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        merge_options(options(**given), "acme", {}, {"model": "the model is chosen by `model`"})
    assert [(wrong.field, wrong.message) for wrong in caught.value.violations] == [(field, said)]
