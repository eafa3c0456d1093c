"""Real tools' schemas go through every wire: none is refused, and what a rewriting loses is told.

Whether a rewriting loses anything is not asked of the adapter, but found out: the schemas before and after judge the
same values, among them those at the edge of what the schema allows.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from matrix_instances import Judge, instances
from matrix_wires import NAMES, Sent, wire

from maestro.llm.v1.chat_pb2 import ChatRequest, Tool
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.adapter.tool_schema import parse_schema
from maestro_sdk.errors import UnsupportedParameter
from maestro_sdk.testing import strict_schemas

CORPUS = Path(__file__).parents[1] / "fixtures" / "schemas"
FILES = sorted(file.stem for file in CORPUS.glob("*.json"))
# Required fields whose names a provider does not take: refused before it is called, each with its place.
_STRANGE = {
    ("edge-names", "punctuation"),
    ("edge-names", "keywords"),
    ("edge-names", "unicode"),
    ("pydantic-unicode", "vermessen"),
}
STRICT_WIRES = ("openai", "azure")
"""Where `strict` is taken with a subset of schemas."""
STRANGE_NAMES = {"anthropic": _STRANGE, "bedrock": _STRANGE}


@cache
def corpus(file: str) -> list[dict[str, Any]]:
    return json.loads((CORPUS / f"{file}.json").read_text(encoding="utf-8"))["tools"]


@cache
def judged(file: str, number: int) -> tuple[list[Any], list[bool | None]]:
    """The values for a schema of the corpus, and whether it allows them as the arguments of a tool."""
    given = corpus(file)[number]["input_schema"]
    if "$schema" not in given:
        # Without it nobody knows which draft is meant; what old forms mean is tested where they are rewritten.
        given = parse_schema(json.dumps(given), "")
    values = [value for value in instances(given) if isinstance(value, dict)]
    judge = Judge(given)
    return values, [judge.judge(value) for value in values]


def ask(schema: Any, name: str = "tool") -> ChatRequest:
    tool = Tool(
        name=name, description="does it", input_schema=schema if isinstance(schema, str) else json.dumps(schema)
    )
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hi"))])
    return ChatRequest(messages=[turn], tools=[tool])


def as_json_schema(schema: Any) -> Any:
    """A schema of Gemini's as JSON Schema: words in capitals, numbers of enums as texts, null as a flag."""
    if schema is None:
        return {"type": "object"}
    made = dict(schema)
    kind = made.pop("type", None)
    if kind is not None:
        made["type"] = kind.lower()
    if "enum" in made and kind in {"INTEGER", "NUMBER"}:
        made["enum"] = [json.loads(value) for value in made["enum"]]
    for keyword in ("items", "additionalProperties"):
        if isinstance(made.get(keyword), dict):
            made[keyword] = as_json_schema(made[keyword])
    if "anyOf" in made:
        made["anyOf"] = [as_json_schema(inner) for inner in made["anyOf"]]
    if "properties" in made:
        made["properties"] = {name: as_json_schema(inner) for name, inner in made["properties"].items()}
    return made


def told(sent: Sent) -> list[str]:
    """The places of the schema that warnings name."""
    return [warning.field for warning in sent.warnings if warning.field.startswith("tools[0].input_schema")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", FILES)
def test_schemas_are_taken_and_losses_are_told(file: str, name: str) -> None:
    target = wire(name)
    for number, tool in enumerate(corpus(file)):
        label = f"{file}/{tool['name']} on {name}"
        given = tool["input_schema"]
        if (file, tool["name"]) in STRANGE_NAMES.get(name, ()):
            with pytest.raises(UnsupportedParameter) as caught:
                target.ask(ask(given))
            assert all(v.field.startswith("tools[0].input_schema#/properties/") for v in caught.value.violations), label
            continue
        sent = target.ask(ask(given))
        [made] = target.schemas(sent.body)
        assert target.refusals(made) == [], label
        places = told(sent)
        assert all(place.startswith("tools[0].input_schema#/") or place.endswith("#") for place in places), label
        if made in (given, parse_schema(json.dumps(given), "")):
            assert places == [], f"{label}: nothing was changed"
            continue
        if made is None:
            # A function without parameters is called without arguments.
            assert not given.get("properties"), label
            continue
        after = Judge(as_json_schema(made) if name == "vertex" else made)
        values, before = judged(file, number)
        differing = [
            value
            for value, allowed in zip(values, before, strict=True)
            if allowed is not None and (now := after.judge(value)) is not None and now != allowed
        ]
        if differing:
            assert places, f"{label}: {json.dumps(differing[:3])} is judged differently, and nothing was said"


def test_the_corpus_is_wide_and_its_values_tell_schemas_apart() -> None:
    tools = [(file, number) for file in FILES for number in range(len(corpus(file)))]
    assert len(FILES) >= 45
    assert len(tools) >= 200
    sources = [json.loads((CORPUS / f"{file}.json").read_text(encoding="utf-8"))["source"] for file in FILES]
    assert len({source for source in sources if "tools/list" in source}) >= 25
    # Of nearly all schemas both allowed and forbidden arguments are known.
    both = [place for place in tools if {True, False} <= set(judged(*place)[1])]
    assert len(both) >= 0.85 * len(tools)


def test_strict_tools_are_enforceable_or_told() -> None:
    """`strict` is sent only with schemas that are taken so, which then judge as the given ones do."""
    kept = dict.fromkeys(STRICT_WIRES, 0)
    for name, file in product(STRICT_WIRES, FILES):
        for number, tool in enumerate(corpus(file)):
            label = f"{file}/{tool['name']} on {name}"
            given = tool["input_schema"]
            asked = ask(given)
            asked.tools[0].strict = True
            sent = wire(name).ask(asked)
            function = sent.body["tools"][0]["function"]
            assert strict_schemas.openai(function["parameters"], function.get("strict")) == [], label
            dropped = [each for each in sent.warnings if each.field == "tools[0].strict"]
            if "strict" not in function:
                assert [each.code for each in dropped] == ["schema_rewritten"], label
                assert "tools[0].input_schema#" in dropped[0].message, label
                assert strict_schemas.openai(given, strict=True), label
                asked.strict = True
                with pytest.raises(UnsupportedParameter) as caught:
                    wire(name).ask(asked)
                assert "tools[0].strict" in [each.field for each in caught.value.violations], label
                continue
            assert function["strict"] is True, label
            assert dropped == [], label
            kept[name] += 1
            after = Judge(function["parameters"])
            values, before = judged(file, number)
            for value, allowed in zip(values, before, strict=True):
                if allowed is not None and not told(sent):
                    assert after.judge(value) in {None, allowed}, f"{label}: {json.dumps(value)}"
    assert min(kept.values()) >= 5


@pytest.mark.parametrize("name", STRICT_WIRES)
def test_strict_answers_are_enforceable_or_told(name: str) -> None:
    kept = 0
    for file in FILES:
        for tool in corpus(file):
            request = ask("")
            request.ClearField("tools")
            request.response_format.json_schema.schema = json.dumps(tool["input_schema"])
            request.response_format.json_schema.strict = True
            sent = wire(name).ask(request)
            made = sent.body["response_format"]["json_schema"]
            told = [(each.code, each.field) for each in sent.warnings]
            if made["strict"]:
                assert strict_schemas.openai(made["schema"], strict=True) == [], f"{file}/{tool['name']}"
                assert told == []
                kept += 1
            else:
                assert told == [("schema_rewritten", "response_format.json_schema.strict")]
    assert kept >= 5
