"""Instances of schemas: whatever comes back is valid, and what can't be made is refused at its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from maestro_adapter_local.offline.instance import dump, make_instance
from maestro_adapter_local.offline.literals import Literals
from maestro_adapter_local.offline.schema import BadSchema, TooHard, compile_schema

NAMES = st.sampled_from(["a", "b", "city", "count", "näme", "x/y", "q~", "order_id"])
SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4)


def _numbers() -> st.SearchStrategy[dict[str, Any]]:
    def build(kind: str, low: int, width: int, step: float | None, style: str) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": kind}
        if "low" in style:
            schema["minimum" if "=" in style else "exclusiveMinimum"] = low
        if "high" in style:
            # Always wide enough for a multiple of the step strictly between the bounds.
            schema["maximum" if "=" in style else "exclusiveMaximum"] = low + width + 2 * (step or 1) + 2
        if step is not None:
            schema["multipleOf"] = step
        return schema

    steps = st.none() | st.integers(1, 9) | st.sampled_from([0.5, 0.25])
    return st.builds(
        build,
        st.sampled_from(["integer", "number"]),
        st.integers(-50, 50),
        st.integers(0, 20),
        steps,
        st.sampled_from(["", "low", "low=", "high", "high=", "low high", "low high="]),
    )


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 30), st.integers(0, 10)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    )
    patterns = st.sampled_from([r"^[A-Z]{2}\d{3}$", "^(on|off)$", r"^\w+@\w+\.com$", "abc", "^$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    )
    formats = st.sampled_from(["date", "date-time", "email", "uuid", "uri", "ipv4", "nonsense"]).map(
        lambda kind: {"type": "string", "format": kind}
    )
    return st.just({"type": "string"}) | lengths | patterns | formats


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    enums = st.lists(SCALARS, min_size=1, max_size=4, unique_by=repr).map(lambda values: {"enum": values})
    consts = SCALARS.map(lambda value: {"const": value})
    plain = st.sampled_from(
        [{}, {"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {"type": "integer"}]
    )
    return _numbers() | _strings() | enums | consts | plain


def _composites(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def object_of(properties: dict[str, Any], required: list[bool], closed: bool, extra: int) -> dict[str, Any]:
        names = list(properties)
        schema: dict[str, Any] = {
            "type": "object",
            "properties": properties,
            "required": [name for name, needed in zip(names, required, strict=False) if needed],
        }
        if closed:
            schema["additionalProperties"] = False
        else:
            schema["minProperties"] = extra
        return schema

    objects = st.builds(
        object_of,
        st.dictionaries(NAMES, inner, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.booleans(),
        st.integers(0, 5),
    )
    arrays = st.builds(
        lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
        inner,
        st.integers(0, 4),
        st.integers(0, 3),
    )
    unique = st.builds(
        lambda low: {"type": "array", "items": {"type": "integer"}, "minItems": low, "uniqueItems": True},
        st.integers(0, 6),
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(lambda items: {"type": "array", "prefixItems": items})
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    both = inner.map(lambda schema: {"allOf": [schema, {"description": "as it is"}, True]})
    return objects | arrays | unique | tuples | unions | both


SCHEMAS = st.recursive(_leaves(), _composites, max_leaves=8)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    SCHEMAS,
    st.sampled_from(["", "city is Paris, count: 3 and a = true", 'on 2026-05-01 write to "Bob" at bob@example.com 7']),
)
def test_instances_are_valid(schema: dict[str, Any], prompt: str) -> None:
    for filling in ("all", "named"):
        value = make_instance(json.dumps(schema), Literals(prompt), filling)
        assert list(Draft202012Validator(schema).iter_errors(json.loads(dump(value)))) == []


@settings(max_examples=60, deadline=None)
@given(SCHEMAS)
def test_instances_are_the_same_every_time(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    assert dump(make_instance(text, Literals("city is Rome"))) == dump(make_instance(text, Literals("city is Rome")))


SAMPLES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 0.5, 2.5, 100, "", "a", "ab", "abc", "A1", "2026-01-01", [], [1], [1, 2], ["a"],
    [None], {}, {"a": 1}, {"a": "a"}, {"b": 1}, {"a": 1, "b": 2}, {"a": []}, {"a": None, "b": "x"}, {"city": "Rome"},
]  # fmt: skip


def _anything() -> st.SearchStrategy[Any]:
    """Schemas with any keywords in any combination, most of them odd, many impossible."""
    bound = st.integers(-3, 4)
    count = st.integers(0, 3)
    kind = st.sampled_from(["string", "integer", "number", "object", "array", "boolean", "null"])

    def extend(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, min_size=1, max_size=3)
        keywords: dict[str, st.SearchStrategy[Any]] = {
            "type": kind | st.lists(kind, min_size=1, max_size=3, unique=True),
            "enum": st.lists(SCALARS, min_size=1, max_size=3),
            "const": SCALARS,
            "minimum": bound,
            "maximum": bound,
            "exclusiveMinimum": bound,
            "exclusiveMaximum": bound,
            "multipleOf": st.sampled_from([1, 2, 3, 0.5]),
            "minLength": count,
            "maxLength": count,
            "pattern": st.sampled_from(["^a", "b$", "^[0-9]+$", "(?=a)", "^(a+)+$"]),
            "format": st.sampled_from(["date", "email", "odd"]),
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=1),
            "additionalProperties": inner,
            "propertyNames": inner,
            "required": st.lists(NAMES, max_size=2, unique=True),
            "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True), max_size=1),
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
            "minProperties": count,
            "maxProperties": count,
            "items": inner,
            "prefixItems": several,
            "contains": inner,
            "minContains": count,
            "maxContains": count,
            "minItems": count,
            "maxItems": count,
            "uniqueItems": st.booleans(),
            "allOf": several,
            "anyOf": several,
            "oneOf": several,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
            "default": SCALARS,
            "$ref": st.just("#"),
        }
        names = st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=4, unique=True)
        return names.flatmap(lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen}))

    return st.recursive(st.booleans() | st.just({}), extend, max_leaves=6)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(_anything())
def test_any_schema_is_met_or_refused_for_a_reason(schema: Any) -> None:
    validator = Draft202012Validator(schema)
    try:
        value = make_instance(json.dumps(schema), Literals("a is 2, city: Rome"))
    except BadSchema:
        # "Nothing can meet it" must be true.
        assert not [sample for sample in SAMPLES if not _circles(schema) and validator.is_valid(sample)]
    except TooHard:
        pass
    else:
        assert validator.is_valid(json.loads(dump(value)))


def _circles(schema: Any) -> bool:
    """Whether a schema refers to itself without any content: the library would follow that without end."""
    try:
        compile_schema(json.dumps(schema))
    except BadSchema:
        return True
    return False


WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "detailed": {"type": "boolean"},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("prompt", "value"),
    [
        ("What is the weather in Paris?", {"city": "Paris"}),
        ("weather for New York in fahrenheit for 3 days", {"city": "New York", "unit": "fahrenheit", "days": 3}),
        ('weather, city: "são paulo", detailed=true', {"city": "são paulo", "detailed": True}),
        ('use {"city": "Oslo", "days": 2}', {"city": "Oslo", "days": 2}),
        ("weather in Rome for 99 days", {"city": "Rome", "days": 1}),
        ("weather please", {"city": "offline model"}),
    ],
)
def test_literals_are_used_where_they_fit(prompt: str, value: dict[str, Any]) -> None:
    assert make_instance(json.dumps(WEATHER), Literals(prompt), "named") == value


def test_a_value_that_breaks_the_format_is_not_taken() -> None:
    schema = {"type": "object", "properties": {"to": {"type": "string", "format": "email"}}, "required": ["to"]}
    assert make_instance(json.dumps(schema), Literals("to: Bob")) == {"to": "offline@example.com"}


def test_formats_take_their_literals_and_names_their_values() -> None:
    schema = {
        "type": "object",
        "properties": {
            "to": {"type": "string", "format": "email"},
            "when": {"type": "string", "format": "date"},
            "subject": {"type": "string"},
            "copies": {"type": "integer"},
            "size": {"type": "number"},
        },
        "required": ["to", "when", "subject", "copies", "size"],
    }
    prompt = 'Send "Hello" to ann@example.com on 2026-03-04, copies: 2, and 1.5 of it'
    assert make_instance(json.dumps(schema), Literals(prompt)) == {
        "to": "ann@example.com", "when": "2026-03-04", "subject": "Hello", "copies": 2, "size": 1.5,
    }  # fmt: skip


def test_literals_are_kept_from_expressions_that_explode() -> None:
    schema = {"type": "string", "not": {"pattern": "^(a+)+$"}}
    assert make_instance(json.dumps(schema), Literals('"' + "a" * 60 + '!"')) == "offline model"
