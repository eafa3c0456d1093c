"""What each provider refuses in the schema of a tool, for servers of tests that refuse the same.

    for refusal in strict_schemas.openai(function["parameters"], strict=False): …     # pointer and explanation

Each function names its source. Rules come from the provider's documentation and types, or from the messages with which
its API refuses; a rule that is only hearsay is not here. An empty list means that the provider takes the schema.
Needs jsonschema, which the SDK itself does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import jsonschema

from maestro_sdk.adapter.schema_check import NAMED_SCHEMAS, SCHEMA, SCHEMAS, pointer_to


class Refusal(NamedTuple):
    """Something that a provider does not take; `pointer` is a JSON pointer, empty for the root."""

    pointer: str
    message: str


Schema = Mapping[str, Any]

_META = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
_CHOICES = ("oneOf", "anyOf", "allOf")


def openai(schema: Any, strict: bool | None = False) -> list[Refusal]:
    """`function.parameters` of OpenAI and Azure.

    Without `strict`: the API's own words, "schema must be a JSON Schema of 'type: \"object\"'", "schema must have type
    'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level", "object schema missing properties" (at
    the root) and "array schema missing items". With `strict`: "Structured Outputs", supported schemas: all objects
    closed, all fields required, a subset of keywords, at most 5000 properties, 10 levels, 1000 values of enums.
    """
    found: list[Refusal] = []
    if not isinstance(schema, dict) or cast("Any", schema).get("type") != "object":
        return [Refusal("/type", "schema must be a JSON Schema of 'type: \"object\"'")]
    root = cast("dict[str, Any]", schema)
    for keyword in (*_CHOICES, "enum", "const", "not"):
        if keyword in root:
            words = "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level"
            found.append(Refusal(f"/{keyword}", words))
    if "properties" not in root:
        found.append(Refusal("", "object schema missing properties"))
    found += _draft_2020_12(root, "schema is not a valid JSON Schema")
    for pointer, node in _walk(root):
        if _is(node, "array") and "items" not in node:
            found.append(Refusal(pointer, "array schema missing items"))
        if strict:
            found += _openai_strict(pointer, node)
    if strict:
        nodes = list(_walk(root))
        if sum(len(node.get("properties", ())) for _, node in nodes) > 5000:
            found.append(Refusal("", "more than 5000 properties"))
        if sum(len(node.get("enum", ())) for _, node in nodes) > 1000:
            found.append(Refusal("", "more than 1000 values of enums"))
        if _levels(root) > 10:
            found.append(Refusal("", "more than 10 levels of nesting"))
    return found


_OPENAI_STRICT_NOT = frozenset(
    {"allOf", "dependentRequired", "dependentSchemas", "else", "if", "not", "oneOf", "then"}
    | {"contains", "maxContains", "minContains", "patternProperties", "propertyNames", "unevaluatedItems"}
    | {"maxLength", "maxProperties", "minLength", "minProperties", "prefixItems", "unevaluatedProperties"}
    | {"uniqueItems"}
)


def _openai_strict(pointer: str, node: Schema) -> Iterator[Refusal]:
    for keyword in sorted(_OPENAI_STRICT_NOT & node.keys()):
        yield Refusal(f"{pointer}/{keyword}", f"'{keyword}' is not permitted")
    if not {"type", "anyOf", "$ref", "enum", "const"} & node.keys():
        yield Refusal(pointer, "schema must have a 'type' key")
    if _is(node, "object"):
        if node.get("additionalProperties") is not False:
            yield Refusal(pointer, "'additionalProperties' is required to be supplied and to be false")
        missing = [name for name in node.get("properties", ()) if name not in node.get("required", ())]
        if missing:
            yield Refusal(
                f"{pointer}/required",
                "'required' is required to be supplied and to be an array including every key in properties. "
                f"Missing '{missing[0]}'",
            )


_ANTHROPIC_PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def anthropic(schema: Any) -> list[Refusal]:
    """`input_schema` of Anthropic's tools, and of Claude models elsewhere.

    The API's own words: "input_schema.type: Field required", "input_schema does not support oneOf, allOf, or anyOf at
    the top level", "Property keys should match pattern '^[a-zA-Z0-9_.-]{1,64}$'" (at the root), and "JSON schema is
    invalid. It must match JSON Schema draft 2020-12".
    """
    if not isinstance(schema, dict):
        return [Refusal("", "Input should be a valid dictionary")]
    root = cast("dict[str, Any]", schema)
    found: list[Refusal] = []
    if root.get("type") != "object":
        found.append(Refusal("/type", "Input should be 'object'" if "type" in root else "Field required"))
    for keyword in _CHOICES:
        if keyword in root:
            words = "input_schema does not support oneOf, allOf, or anyOf at the top level"
            found.append(Refusal(f"/{keyword}", words))
    properties: Any = root.get("properties")
    for name in cast("dict[str, Any]", properties) if isinstance(properties, dict) else ():
        if not _ANTHROPIC_PROPERTY.fullmatch(name):
            words = "Property keys should match pattern '^[a-zA-Z0-9_.-]{1,64}$'"
            found.append(Refusal(f"/properties{pointer_to(name)}", words))
    return [*found, *_draft_2020_12(root, "JSON schema is invalid. It must match JSON Schema draft 2020-12")]


_GEMINI_KEYWORDS = frozenset(
    {"additionalProperties", "anyOf", "default", "defs", "description", "enum", "example", "format", "items"}
    | {"maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum"}
    | {"nullable", "pattern", "properties", "propertyOrdering", "ref", "required", "title", "type"}
)
_GEMINI_TYPES = frozenset({"ARRAY", "BOOLEAN", "INTEGER", "NULL", "NUMBER", "OBJECT", "STRING"})
_GEMINI_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_GEMINI_FORMATS: Mapping[str, frozenset[str]] = {
    "INTEGER": frozenset({"int32", "int64", "enum"}),
    "NUMBER": frozenset({"double", "float"}),
}
_GEMINI_ONLY_FOR: Mapping[str, str] = {"items": "ARRAY", "properties": "OBJECT", "required": "OBJECT"}


def gemini(schema: Any) -> list[Refusal]:
    """`functionDeclarations[].parameters` of Gemini on Vertex AI: its `Schema`, an excerpt of OpenAPI 3.0.

    The fields of google-genai's `types.Schema` and their descriptions (`type` is one word, `enum` is of texts), and the
    API's own words: "Cannot find field", "schema didn't specify the schema type field", "missing field" for an
    array without items, "property is not defined" in required, "only allowed for OBJECT type", "when using any_of, it
    must be the only field set". None stands for a function without parameters.

    Not held against anybody: the documented limit of parameter names to letters, digits and `_`, which the API is not
    known to enforce.
    """
    if schema is None:
        return []
    found = list(_gemini(schema, ""))
    if isinstance(schema, dict) and str(cast("Any", schema).get("type", "")).upper() != "OBJECT":
        found.append(Refusal("/type", "parameters schema should be of type OBJECT"))
    return found


def _gemini(schema: Any, at: str) -> Iterator[Refusal]:
    if not isinstance(schema, dict):
        yield Refusal(at, "Invalid value: a schema is an object")
        return
    node = cast("dict[str, Any]", schema)
    for keyword in node:
        if keyword not in _GEMINI_KEYWORDS:
            yield Refusal(
                f"{at}/{keyword}", f'Invalid JSON payload received. Unknown name "{keyword}": Cannot find field.'
            )
    if "anyOf" in node:
        if len(node) > 1:
            yield Refusal(
                at, "schema specified other fields alongside any_of. When using any_of, it must be the only one"
            )
        branches: Any = node["anyOf"]
        if not isinstance(branches, list) or not branches:
            yield Refusal(f"{at}/anyOf", "should be a list of schemas")
            return
        for number, branch in enumerate(cast("list[Any]", branches)):
            yield from _gemini(branch, f"{at}/anyOf/{number}")
        return
    yield from _gemini_node(node, at)
    properties: Any = node.get("properties", {})
    if not isinstance(properties, dict):
        yield Refusal(f"{at}/properties", "Invalid value: should be schemas by name")
        return
    for name, below in cast("dict[str, Any]", properties).items():
        yield from _gemini(below, f"{at}/properties{pointer_to(name)}")
    for position, name in enumerate(node.get("required", ())):
        if name not in properties:
            yield Refusal(f"{at}/required/{position}", "property is not defined")
    if "items" in node:
        yield from _gemini(node["items"], f"{at}/items")
    extra: Any = node.get("additionalProperties", True)
    if not isinstance(extra, bool):
        yield from _gemini(extra, f"{at}/additionalProperties")


def _gemini_node(node: Schema, at: str) -> Iterator[Refusal]:
    kind: Any = node.get("type")
    if isinstance(kind, list):
        yield Refusal(f"{at}/type", "Proto field is not repeating, cannot start list.")
        return
    if kind is None and "ref" not in node:
        yield Refusal(at, "schema didn't specify the schema type field")
        return
    word = str(kind).upper()
    if kind is not None and word not in _GEMINI_TYPES:
        yield Refusal(f"{at}/type", f'Invalid value at type (Type), "{kind}"')
    if word == "ARRAY" and "items" not in node:
        yield Refusal(f"{at}/items", "missing field")
    for keyword, owner in _GEMINI_ONLY_FOR.items():
        if keyword in node and word != owner:
            yield Refusal(f"{at}/{keyword}", f"only allowed for {owner} type")
    if "enum" in node:
        values: Any = node["enum"]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in cast("list[Any]", values)):
            yield Refusal(f"{at}/enum", "Invalid value: enum is of texts")
        elif word not in {"INTEGER", "NUMBER", "STRING"} or not values:
            yield Refusal(f"{at}/enum", "only allowed for STRING type, and not empty")
        elif word != "STRING" and node.get("format") != "enum":
            yield Refusal(f"{at}/enum", "numbers are written as texts, with the format enum")
    if "format" in node and node["format"] not in _GEMINI_FORMATS.get(word, {node["format"]}):
        yield Refusal(f"{at}/format", f"unknown format for {word} type")
    for keyword in sorted(_GEMINI_COUNTS & node.keys()):
        if isinstance(node[keyword], bool) or not re.fullmatch(r"\d+", str(node[keyword])):
            yield Refusal(f"{at}/{keyword}", "Invalid value (TYPE_INT64)")
    for keyword in ("minimum", "maximum"):
        if keyword in node and (isinstance(node[keyword], bool) or not isinstance(node[keyword], int | float)):
            yield Refusal(f"{at}/{keyword}", "Invalid value (TYPE_DOUBLE)")
    for keyword in ("description", "format", "pattern", "title"):
        if not isinstance(node.get(keyword, ""), str):
            yield Refusal(f"{at}/{keyword}", "Invalid value (TYPE_STRING)")


_NOVA_ROOT = frozenset({"properties", "required", "type"})


def bedrock(schema: Any, family: Literal["anthropic", "nova", ""] = "") -> list[Refusal]:
    """`toolSpec.inputSchema.json` of Bedrock's Converse.

    A document of type object (API reference, ToolInputSchema); NaN and infinities are no JSON. And what the models
    behind it take: Claude what Anthropic takes; Nova only the fields type, properties and required at the top level
    (Nova's user guide, "Defining a tool").
    """
    if not isinstance(schema, dict):
        return [Refusal("", "inputSchema.json should be an object")]
    found = [Refusal(pointer, "is not a finite number") for pointer in _not_finite(schema, "")]
    root = cast("dict[str, Any]", schema)
    if root.get("type") != "object":
        found.append(Refusal("/type", "The value at toolConfig.tools.0.toolSpec.inputSchema.json.type must be object."))
    if family == "anthropic":
        return [*found, *anthropic(root)]
    if family == "nova":
        found += [
            Refusal(f"/{keyword}", "only type, properties and required may stand at the top level")
            for keyword in root
            if keyword not in _NOVA_ROOT
        ]
    return [*found, *_draft_2020_12(root, "The model returned the following errors: invalid JSON Schema")]


def ollama(schema: Any) -> list[Refusal]:
    """`function.parameters` of Ollama's `/api/chat`.

    Its types in Go (`api.ToolFunctionParameters`, `api.ToolProperty`): what has another JSON type can't be unmarshalled
    and is a 400; fields that are not among them are not seen by the model, and no error.
    """
    if not isinstance(schema, dict):
        return [Refusal("", _go("object", "api.ToolFunctionParameters"))]
    root = cast("dict[str, Any]", schema)
    found: list[Refusal] = []
    if root.get("type") != "object":
        found.append(Refusal("/type", "parameters are of type object"))
    found += _ollama_required(root, "")
    properties: Any = root.get("properties", {})
    if not isinstance(properties, dict):
        return [*found, Refusal("/properties", _go("value", "map[string]api.ToolProperty"))]
    for name, below in cast("dict[str, Any]", properties).items():
        found += _ollama(below, f"/properties{pointer_to(name)}")
    return found


def _ollama(schema: Any, at: str) -> Iterator[Refusal]:
    if not isinstance(schema, dict):
        yield Refusal(at, _go(type(schema).__name__, "api.ToolProperty"))
        return
    node = cast("dict[str, Any]", schema)
    kind: Any = node.get("type", "")
    if not isinstance(kind, str) and not (
        isinstance(kind, list) and all(isinstance(word, str) for word in cast("list[Any]", kind))
    ):
        yield Refusal(f"{at}/type", _go("value", "api.PropertyType"))
    if not isinstance(node.get("description", ""), str):
        yield Refusal(f"{at}/description", _go("value", "string"))
    if not isinstance(node.get("enum", []), list):
        yield Refusal(f"{at}/enum", _go("value", "[]interface {}"))
    branches: Any = node.get("anyOf", [])
    if not isinstance(branches, list):
        yield Refusal(f"{at}/anyOf", _go("value", "[]api.ToolProperty"))
    else:
        for number, branch in enumerate(cast("list[Any]", branches)):
            yield from _ollama(branch, f"{at}/anyOf/{number}")
    properties: Any = node.get("properties", {})
    if not isinstance(properties, dict):
        yield Refusal(f"{at}/properties", _go("value", "map[string]api.ToolProperty"))
    else:
        for name, below in cast("dict[str, Any]", properties).items():
            yield from _ollama(below, f"{at}/properties{pointer_to(name)}")


def _ollama_required(root: Schema, at: str) -> Iterator[Refusal]:
    names: Any = root.get("required", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[Any]", names)):
        yield Refusal(f"{at}/required", _go("value", "[]string"))


def _go(given: str, wanted: str) -> str:
    return f"json: cannot unmarshal {given} into Go value of type {wanted}"


def _draft_2020_12(schema: Schema, words: str) -> Iterator[Refusal]:
    for error in cast("Any", _META).iter_errors(schema):
        yield Refusal(pointer_to(*error.absolute_path), f"{words}: {error.message[:200]}")


def _is(node: Schema, kind: str) -> bool:
    given: Any = node.get("type")
    return given == kind or (isinstance(given, list) and kind in given)


def _walk(schema: Any, at: str = "") -> Iterator[tuple[str, Schema]]:
    """All schemas within a schema, with their pointers; booleans are left out."""
    if not isinstance(schema, dict):
        return
    node = cast("dict[str, Any]", schema)
    yield at, node
    for keyword, value in node.items():
        here = at + pointer_to(keyword)
        if keyword in NAMED_SCHEMAS and isinstance(value, dict):
            for name, below in cast("dict[str, Any]", value).items():
                yield from _walk(below, here + pointer_to(name))
        elif keyword in SCHEMAS and isinstance(value, list):
            for number, below in enumerate(cast("list[Any]", value)):
                yield from _walk(below, f"{here}/{number}")
        elif keyword in SCHEMA or keyword == "items":
            yield from _walk(value, here)


def _levels(schema: Any) -> int:
    """How deep objects stand in objects and arrays, references not followed."""
    if not isinstance(schema, dict):
        return 0
    node = cast("dict[str, Any]", schema)
    below: Sequence[Any] = [*node.get("properties", {}).values(), node.get("items"), *node.get("anyOf", ())]
    own = 1 if _is(node, "object") or _is(node, "array") else 0
    return own + max((_levels(inner) for inner in below), default=0)


def _not_finite(value: Any, at: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield at
    elif isinstance(value, dict):
        for name, below in cast("dict[str, Any]", value).items():
            yield from _not_finite(below, at + pointer_to(name))
    elif isinstance(value, list):
        for number, below in enumerate(cast("list[Any]", value)):
            yield from _not_finite(below, f"{at}/{number}")
