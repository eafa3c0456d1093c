"""What providers refuse in a schema is written otherwise; what can't be said is told."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_sdk.adapter.plain_schema import WITHOUT_CHOICES, Limits, PlainSchema, plain_schema
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

PATH = "tools[3].input_schema"
TEXT = {"type": "string"}
WHOLE = {"type": "integer"}


def rewrite(schema: Any, limits: Limits = WITHOUT_CHOICES) -> PlainSchema:
    return plain_schema(json.dumps(schema), PATH, limits)


def of(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": [*required]} if required else {})}


def test_what_is_plain_stays_as_it_was_written() -> None:
    text = '{"type" : "object", "properties": {"a": {"anyOf": [{"maximum": 1.0}]}} }'
    for limits in (WITHOUT_CHOICES, Limits(), Limits(names="[a-z]+"), Limits(keys=frozenset({"type", "properties"}))):
        plain = plain_schema(text, PATH, limits)
        assert orjson.dumps(plain.fragment).decode() == text
        assert plain.losses == ()
        assert plain is not plain_schema(text, PATH, limits)
        assert plain.document is plain_schema(text, PATH, limits).document


# Given, made of it, and the pointers of what is lost.
CHOICES: list[tuple[Any, Any, list[str]]] = [
    ({"$ref": "#/$defs/A", "$defs": {"A": of(a=TEXT)}}, {**of(a=TEXT), "$defs": {"A": of(a=TEXT)}}, []),
    ({"allOf": [of("a", a=TEXT), of("b", b=WHOLE)]}, of("a", "b", a=TEXT, b=WHOLE), []),
    ({"allOf": [of(a=TEXT), of(a={"minLength": 2})]}, of(a={"allOf": [TEXT, {"minLength": 2}]}), []),
    ({"anyOf": [of("a", a=TEXT)]}, of("a", a=TEXT), []),
    ({"anyOf": [of("a", a=TEXT), {"type": "null"}]}, of("a", a=TEXT), []),
    ({"anyOf": [of("a", a=TEXT), of("a", a=TEXT)]}, of("a", a=TEXT), []),
    ({"oneOf": [of("a", a=TEXT), of("a", a=WHOLE)]}, of("a", a={"anyOf": [TEXT, WHOLE]}), ["/oneOf"]),
    ({"oneOf": [of("a", a=TEXT), of("b", b=WHOLE)]}, of(a=TEXT, b=WHOLE), ["/oneOf"]),
    ({**of(a=TEXT), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, of(a=TEXT), ["/anyOf"]),
    (
        {"allOf": [{**of(a=TEXT), "additionalProperties": False}, of(b=TEXT)]},
        of(a=TEXT, b=TEXT),
        ["/allOf/1/additionalProperties"],
    ),
    (
        {"oneOf": [{**of(a=TEXT), "additionalProperties": False}, {**of(b=TEXT), "additionalProperties": False}]},
        {**of(a=TEXT, b=TEXT), "additionalProperties": False},
        ["/oneOf"],
    ),
    (
        {"anyOf": [{"oneOf": [of(a=TEXT), of(b=TEXT)]}, {"$ref": "#/$defs/C"}], "$defs": {"C": of(c=TEXT)}},
        {**of(a=TEXT, b=TEXT, c=TEXT), "$defs": {"C": of(c=TEXT)}},
        ["/anyOf/0/oneOf", "/anyOf"],
    ),
]


@pytest.mark.parametrize(("given", "made", "lost"), CHOICES, ids=lambda value: json.dumps(value)[:50])
def test_choices_of_whole_arguments(given: Any, made: Any, lost: list[str]) -> None:
    plain = rewrite(given)
    assert plain.document == made
    assert orjson.loads(orjson.dumps(plain.fragment)) == made
    assert [loss.field for loss in plain.losses] == [f"{PATH}#{pointer}" for pointer in lost]
    assert all(loss.message for loss in plain.losses)


def test_other_rules_at_the_root() -> None:
    plain = rewrite({**of(a=TEXT), "not": {"required": ["a"]}, "enum": [{}]}, Limits(frozenset({"enum", "not"})))
    assert plain.document == of(a=TEXT)
    assert [loss.field for loss in plain.losses] == [f"{PATH}#/enum", f"{PATH}#/not"]


def test_only_some_keywords_at_the_root() -> None:
    limits = Limits(keys=frozenset({"type", "properties", "required"}), references=False)
    given = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "additionalProperties": False,
        **of("a", a={"$ref": "#/$defs/A", "description": "an A"}, b={"$ref": "#/$defs/A", "maxLength": 3}),
        "$defs": {"A": TEXT},
    }
    plain = rewrite(given, limits)
    narrowed = {"allOf": [TEXT, {"maxLength": 3}]}
    assert plain.document == of("a", a={**TEXT, "description": "an A"}, b=narrowed)
    assert [loss.field for loss in plain.losses] == [f"{PATH}#/additionalProperties"]
    assert rewrite({**of(), "additionalProperties": True}, limits).losses == ()


def test_recursion_ends_where_references_are_not_read() -> None:
    node = of(value=WHOLE, next={"$ref": "#/$defs/Node"})
    plain = rewrite({**of(node={"$ref": "#/$defs/Node"}), "$defs": {"Node": node}}, Limits(references=False))
    assert plain.document == of(node=of(value=WHOLE, next={}))
    assert [loss.field for loss in plain.losses] == [f"{PATH}#/$defs/Node/properties/next/$ref"]


def test_references_that_would_fill_the_memory_are_refused() -> None:
    levels = {f"L{n}": of(a={"$ref": f"#/$defs/L{n + 1}"}, b={"$ref": f"#/$defs/L{n + 1}"}) for n in range(30)}
    given = {**of(root={"$ref": "#/$defs/L0"}), "$defs": {**levels, "L30": TEXT}}
    with pytest.raises(UnsupportedParameter, match="too many schemas"):
        rewrite(given, Limits(references=False))
    assert rewrite(given).losses == ()


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_a_root_that_holds_itself_ends(keyword: str) -> None:
    plain = rewrite({**of(a=TEXT), keyword: [{"$ref": "#"}, {"$ref": "#"}, {"$ref": "#"}]})
    assert plain.document == of(a=TEXT)
    assert [loss.field for loss in plain.losses] == [f"{PATH}#/{keyword}/{number}/$ref" for number in range(3)]


def test_choices_without_end_are_refused() -> None:
    levels = {f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 2} for n in range(30)}
    with pytest.raises(UnsupportedParameter, match="too many schemas"):
        rewrite({"$ref": "#/$defs/L0", "$defs": {**levels, "L30": of(a=TEXT)}})
    chain = {f"L{n}": {"$ref": f"#/$defs/L{n + 1}"} for n in range(2000)}
    with pytest.raises(UnsupportedParameter, match="a chain of more than"):
        rewrite({"$ref": "#/$defs/L0", "$defs": {**chain, "L2000": of(a=TEXT)}})
    with pytest.raises(UnsupportedParameter, match="too many schemas"):
        rewrite({**of(a={"$ref": "#/$defs/L0"}), "$defs": {**chain, "L2000": TEXT}}, Limits(references=False))


FIELDS = st.sampled_from(["a", "b", "type", "$ref", "a/b"])
SCHEMAS: st.SearchStrategy[Any] = st.deferred(lambda: st.booleans() | OBJECTS)
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["object", "string", "array", ["object", "null"], "integer"]),
    "properties": st.dictionaries(FIELDS, SCHEMAS, max_size=2),
    "required": st.lists(FIELDS, max_size=2, unique=True),
    "additionalProperties": SCHEMAS,
    "items": SCHEMAS | st.lists(SCHEMAS, max_size=2),
    "anyOf": st.lists(SCHEMAS, min_size=1, max_size=2),
    "oneOf": st.lists(SCHEMAS, min_size=1, max_size=2),
    "allOf": st.lists(SCHEMAS, min_size=1, max_size=2),
    "not": SCHEMAS,
    "enum": st.lists(st.sampled_from([1, "x", None, {}]), min_size=1, max_size=2),
    "exclusiveMinimum": st.sampled_from([0, 1.5]),
    "description": st.sampled_from(["", "text"]),
    "$ref": st.sampled_from(["#", "#/$defs/A", "#/$defs/B", "#/$defs/B/properties/a", "#/properties/a"]),
}
OBJECTS = st.fixed_dictionaries({}, optional=KEYWORDS)
ROOTS = st.fixed_dictionaries(
    {"$defs": st.fixed_dictionaries({"A": SCHEMAS, "B": SCHEMAS})},
    optional={**KEYWORDS, "type": st.just("object"), "$schema": st.just("http://json-schema.org/draft-07/schema#")},
)
LIMITS = (
    WITHOUT_CHOICES,
    Limits(items=True, booleans=False, references=False),
    Limits(keys=frozenset({"type", "properties", "required"}), references=False),
)


@settings(max_examples=50)
@given(ROOTS)
def test_whatever_comes_is_a_plain_object_or_refused(schema: dict[str, Any]) -> None:
    for limits in LIMITS:
        try:
            plain = rewrite(schema, limits)
        except InvalidRequest as error:
            told = [each.field for each in error.violations if each.message]
        else:
            told = [loss.field for loss in plain.losses if loss.message]
            assert plain.document["type"] == "object"
            assert not limits.root & plain.document.keys()
            assert not limits.keys or plain.document.keys() <= limits.keys
            # What comes out is sound, and there is nothing left to rewrite.
            again = rewrite(plain.document, limits)
            assert again.document == plain.document
        assert all(field.startswith(f"{PATH}#") for field in told)


def test_items_and_booleans() -> None:
    given = {"type": "object", "$defs": {"L": {"type": ["array", "null"]}}}
    assert rewrite(given, Limits(items=True)).document == {
        "type": "object",
        "$defs": {"L": {"type": ["array", "null"], "items": {}}},
        "properties": {},
    }
    given = {**of(a=True, b=False, c={"anyOf": [True, TEXT]}), "additionalProperties": False}
    plain = rewrite(given, Limits(booleans=False))
    assert plain.document == {**of(a={}, b={"not": {}}, c={"anyOf": [{}, TEXT]}), "additionalProperties": False}
    assert plain.losses == ()


def test_names_of_fields() -> None:
    limits = Limits(names="[a-z]+")
    plain = rewrite(of("a", a=TEXT, **{"b/c": TEXT}), limits)
    assert plain.document == of("a", a=TEXT)
    assert [loss.field for loss in plain.losses] == [f"{PATH}#/properties/b~1c"]
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UnsupportedParameter) as caught:
            rewrite(of("ä", "ö", a=TEXT, ä=TEXT, ö=TEXT), limits)
        assert [each.field for each in caught.value.violations] == [f"{PATH}#/properties/ä", f"{PATH}#/properties/ö"]
        assert "rename" in caught.value.message


def test_what_is_no_schema_is_told_as_everywhere() -> None:
    with pytest.raises(InvalidRequest) as caught:
        rewrite({"anyOf": [{"type": "int"}]})
    assert caught.value.violations[0].field == f"{PATH}#/anyOf/0/type"
