"""Instances of schemas: whatever comes back is valid, and what can't be made is refused at its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

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


LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TREE = {
    "$id": "https://example.com/tree",
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
}
MUTUAL = {
    "$defs": {
        "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {"oneOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}, {"const": "end"}]},
    },
    "$ref": "#/$defs/a",
}


@pytest.mark.parametrize(
    "schema",
    [
        LIST,
        TREE,
        MUTUAL,
        True,
        {},
        {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]},
        {"not": {"type": ["string", "integer", "number"]}},
        {"type": "string", "not": {"const": "offline model"}},
        {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["x"]}, "else": {"required": ["y"]},
         "type": "object", "properties": {"kind": {"enum": ["b", "a"]}}, "required": ["kind"]},
        {"oneOf": [{"properties": {"t": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["t", "lives"]},
                   {"properties": {"t": {"const": "dog"}, "tricks": {"type": "array"}}, "required": ["t"]}]},
        {"type": "object", "minProperties": 3, "propertyNames": {"pattern": "^[a-c]$"}},
        {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False,
         "minProperties": 2},
        {"type": "object", "required": ["a"], "dependentRequired": {"a": ["b"]},
         "additionalProperties": {"type": "integer"}},
        {"type": "object", "required": ["a"], "dependentSchemas": {"a": {"required": ["c"]}}},
        {"type": "array", "contains": {"const": 5}, "minContains": 2, "items": {"type": "integer"}},
        {"type": "array", "uniqueItems": True, "minItems": 4, "items": {"type": "object", "required": ["id"],
         "properties": {"id": {"type": "integer"}}}},
        {"type": "array", "uniqueItems": True, "minItems": 3, "items": {"enum": [1, True, "1"]}},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer", "multipleOf": 0.7, "minimum": 3},
        {"type": "number", "multipleOf": 0.1, "minimum": 0.25, "maximum": 0.6},
        {"allOf": [{"multipleOf": 4}, {"multipleOf": 6}, {"minimum": 1}], "type": "integer"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"p": {"type": "integer"}},
         "type": "array", "items": [{"$ref": "#/definitions/p"}, {"type": "string"}], "additionalItems": False,
         "minItems": 2},
        {"type": "string", "minLength": 5_000},
        {"enum": ["\ud800"]},
    ],
)  # fmt: skip
def test_hard_schemas_are_met(schema: Any) -> None:
    value = json.loads(dump(make_instance(json.dumps(schema))))
    cls: Any = validator_for(schema, default=Draft202012Validator)
    assert list(cls(schema).iter_errors(value)) == []


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (False, "#"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "#: the least number 5 is above the greatest 3"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "#"),
        ({"type": "object", "required": ["x"], "properties": {"x": {"type": "string", "minLength": 2, "maxLength": 1}}},
         "#/properties/x: minLength 2 is above maxLength 1"),
        ({"type": "object", "required": ["x"], "additionalProperties": False},
         "#/additionalProperties: the required property 'x' is not allowed"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "#: minItems 2 is above maxItems 1"),
        ({"type": "array", "minItems": 3, "uniqueItems": True, "items": {"enum": [1, 2]}}, "#"),
        ({"type": "string", "const": 3}, "#"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "#"),
        ({"$ref": "#"}, "#: a reference leads back to itself"),
        ({"if": {"not": {"$ref": "#"}}}, "#: a reference leads back to itself"),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}}, "#/properties/a: a reference leads back"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#"),
        ({"$ref": "#/$defs/nowhere"}, "#/$ref"),
        ({"properties": {"a": {"$ref": "https://example.com/other.json"}}}, "#/properties/a/$ref"),
        ({"type": "text"}, "#/type"),
        ({"properties": {"a": {"minimum": "3"}}}, "#/properties/a/minimum"),
        ({"type": "object", "minProperties": 2, "maxProperties": 1}, "#"),
    ],
)  # fmt: skip
def test_impossible_schemas_are_refused_at_their_place(schema: Any, place: str) -> None:
    with pytest.raises(BadSchema) as caught:
        make_instance(json.dumps(schema))
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("text", ["", "{", "3", '"x"', '{"maximum": NaN}', '{"maximum": 1e999}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(BadSchema):
        make_instance(text)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "^(?=.*b)a.*$"}, "#/pattern"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": r"^(\w)\1$"}}, "required": ["a"]},
         "#/properties/a/pattern"),
        ({"type": "string", "pattern": "("}, "#/pattern"),
        ({"type": "string", "minLength": 10_000_000}, "#"),
        ({"type": "array", "minItems": 1_000_000}, "#"),
        ({"$dynamicRef": "#node"}, "#/$dynamicRef"),
    ],
)  # fmt: skip
def test_what_is_too_hard_is_told_apart(schema: Any, place: str) -> None:
    with pytest.raises(TooHard) as caught:
        make_instance(json.dumps(schema))
    assert str(caught.value).startswith(place)


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


def test_recursion_ends_soon() -> None:
    assert make_instance(json.dumps(TREE)) == {
        "name": "offline model", "children": [{"name": "offline model", "children": []}],
    }  # fmt: skip


def test_no_foreign_address_is_loaded() -> None:
    with pytest.raises(BadSchema, match="can't be resolved within the schema"):
        make_instance('{"$ref": "http://127.0.0.1:9/schema.json"}')


def test_literals_are_kept_from_expressions_that_explode() -> None:
    schema = {"type": "string", "not": {"pattern": "^(a+)+$"}}
    assert make_instance(json.dumps(schema), Literals('"' + "a" * 60 + '!"')) == "offline model"


@pytest.mark.parametrize("levels", [5, 20, 23, 24, 100])
def test_deep_schemas_are_met_or_refused_but_never_end_the_process(levels: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    if levels > 23:
        with pytest.raises(TooHard, match="nested deeper than 48 levels"):
            make_instance(json.dumps(schema))
    else:
        assert Draft202012Validator(schema).is_valid(make_instance(json.dumps(schema)))


@pytest.mark.parametrize("length", [5, 20, 40])
def test_long_chains_are_met_or_refused(length: int) -> None:
    links: dict[str, Any] = {f"d{place}": {"allOf": [{"$ref": f"#/$defs/d{place + 1}"}]} for place in range(length)}
    links[f"d{length}"] = {"type": "object", "properties": {"n": {"$ref": "#/$defs/d0"}}, "required": ["n"]}
    text = json.dumps({"$defs": links, "$ref": "#/$defs/d0"})
    with pytest.raises((BadSchema, TooHard), match=r"levels can meet it|lead to each other"):
        make_instance(text)
