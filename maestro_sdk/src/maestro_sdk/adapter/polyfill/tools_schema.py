"""The JSON schema of an answer that is either a reply or calls: what a server holds a model to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest, Tool
from maestro_sdk.adapter.polyfill.json_schema import form_of, schema_of
from maestro_sdk.adapter.polyfill.plan import Means, Plan

_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
# Keywords whose values are data, not schemas: a "$ref" in there is a text like any other.
_DATA = frozenset({"const", "enum", "default", "examples"})
_DEFINITIONS = ("$defs", "definitions")


def answer_schema(request: ChatRequest, plan: Plan) -> str:
    """The schema of the answer as JSON text: a reply, unless a call is a must, or calls of the tools that are offered.

    Raises `InvalidRequest` for a schema of the request that is none.
    """
    definitions: dict[str, Any] = {}
    calls = [
        _object(
            {"name": {"type": "string", "enum": [tool.name]}, "arguments": _embed(schema, f"tool{number}", definitions)}
        )
        for number, tool, schema in _offered(request, plan)
    ]
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    some: dict[str, Any] = {"type": "array", "items": items, "minItems": 1}
    if plan.single:
        some["maxItems"] = 1
    schema: dict[str, Any] = _object({"calls": some})
    if not plan.must:
        reply: Any = {"type": "string"}
        if plan.form is not Means.NATIVE:
            reply = _embed(form_of(request).schema, "reply", definitions)
        schema = {"anyOf": [_object({"reply": reply}), schema]}
    if definitions:
        schema["$defs"] = definitions
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _offered(request: ChatRequest, plan: Plan) -> Sequence[tuple[int, Tool, Any]]:
    """Number, tool and parsed schema of each tool that may be called."""
    return [
        (
            number,
            tool,
            schema_of(tool.input_schema, f"tools[{number}].input_schema") if tool.input_schema else _NO_ARGUMENTS,
        )
        for number, tool in enumerate(request.tools)
        if tool.name in plan.offered
    ]


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _embed(schema: Any, name: str, definitions: dict[str, Any]) -> Any:
    """`schema` to stand within another one: what it refers to moves to `definitions`, to names that begin with `name`.

    Servers resolve references from the root of the document, and many know those into `$defs` only.
    """
    if not isinstance(schema, Mapping):
        return schema
    root = cast("Mapping[str, Any]", schema)
    refers = _Refers(name)
    own = {key: value for key, value in root.items() if key not in {"$schema", "$id", *_DEFINITIONS}}
    body = refers.rewrite(own)
    waiting = list(refers.met)
    while waiting:
        reference = waiting.pop()
        if reference in definitions:
            continue
        kept = len(refers.met)
        path = refers.met[reference]
        definitions[reference] = refers.rewrite(own if path == "#" else _target(root, path))
        waiting += list(refers.met)[kept:]
    return body


class _Refers:
    """Rewrites references into their document to definitions; `met` has the path of each one in the document."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.met: dict[str, str] = {}

    def rewrite(self, value: Any) -> Any:
        match value:
            case {"$ref": str(reference), **rest} if reference.startswith("#"):
                return {"$ref": f"#/$defs/{self._meet(reference)}", **cast("dict[str, Any]", self.rewrite(rest))}
            case Mapping():
                inside = cast("Mapping[str, Any]", value)
                return {key: below if key in _DATA else self.rewrite(below) for key, below in inside.items()}
            case list():
                return [self.rewrite(below) for below in cast("list[Any]", value)]
            case _:
                return value

    def _meet(self, reference: str) -> str:
        steps = [step for step in reference[1:].split("/") if step]
        if steps and steps[0] in _DEFINITIONS:
            steps = steps[1:]
        plain = "".join(letter if letter.isalnum() else "_" for letter in "_".join(steps))
        known = next((name for name, met in self.met.items() if met == reference), None)
        name = f"{self._name}_{plain}" if plain else self._name
        while known is None and name in self.met:
            name += "_"
        self.met.setdefault(known or name, reference)
        return known or name


def _target(root: Any, reference: str) -> Any:
    """What a reference such as `#/$defs/Place` names."""
    found: Any = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        found = cast("list[Any]", found)[int(key)] if isinstance(found, list) else found[key]
    return found
