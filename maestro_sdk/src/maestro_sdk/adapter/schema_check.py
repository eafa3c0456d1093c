"""Whether a JSON Schema is sound: what each keyword takes, and that references lead somewhere.

Own code rather than a validation against the meta-schema: that says "[] is not of type 'object'" of the whole tool,
while the one who sent it needs the place and what to write there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote

import orjson

MAX_DEPTH = 100
"""How deep a schema may be nested; real ones stay below 20."""
MAX_FLAWS = 10
"""How many flaws one error tells."""

TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

# What other languages call a type.
_OTHER_NAMES: Mapping[str, str] = {
    "any": "no `type` at all",
    "bool": "boolean",
    "date": 'string with "format": "date"',
    "datetime": 'string with "format": "date-time"',
    "dict": "object",
    "double": "number",
    "enum": "string, with the values in `enum`",
    "file": "string",
    "float": "number",
    "int": "integer",
    "list": "array",
    "map": "object",
    "none": "null",
    "str": "string",
    "tuple": "array",
}

SCHEMA = frozenset(
    {"additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "not"}
    | {"propertyNames", "then", "unevaluatedItems", "unevaluatedProperties"}
)
"""Keywords whose value is a schema. `items` is one too, or in older drafts a list."""
SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
NAMED_SCHEMAS = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords whose value is schemas by name."""
_NUMBERS = frozenset({"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"})
_COUNTS = frozenset(
    {"maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength", "minProperties"}
)
_FLAGS = frozenset({"deprecated", "readOnly", "uniqueItems", "writeOnly"})
_TEXTS = frozenset(
    {"$anchor", "$comment", "$dynamicAnchor", "$id", "$schema", "contentEncoding", "contentMediaType", "description"}
    | {"format", "pattern", "title"}
)


class Check:
    """Walks through a schema and all that it refers to, and keeps the flaws it finds and whether old forms occur."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.flaws: list[tuple[str, str]] = []
        self.old = False
        self.names: dict[str, str] = {}
        """What `$anchor` and `$id` name: the reference's text, and the pointer of the schema it stands for."""
        self.named = False
        """Whether a reference uses such a name instead of a pointer."""
        self._references: deque[tuple[str, str]] = deque()
        self._seen: set[int] = set()
        self._ending: set[str] = set()
        """References that were followed to their end, so that a chain of them is followed once."""
        self._walk(root, "", 0)
        # What stands outside of the schema keywords (`#/components/schemas/X`) is a schema when something refers to it.
        while self._references and len(self.flaws) < MAX_FLAWS:
            self._follow(*self._references.popleft())

    def target(self, reference: str) -> Any:
        """What `reference` names inside the document, None when there is no such thing."""
        pointer = self.pointer_of(reference)
        return None if pointer is None else resolve(self.root, f"#{pointer}")

    def pointer_of(self, reference: str) -> str | None:
        """The pointer from the root of what `reference` names, None when it is no name of this document."""
        base, _, fragment = reference.partition("#")
        if not base or base == self.root.get("$id"):
            start = ""
        elif base in self.names:
            start = self.names[base]
        else:
            return None
        if fragment and not fragment.startswith("/"):
            return self.names.get(f"#{fragment}")
        return start + fragment

    def type_of(self, reference: str) -> Any:
        """The `type` of what `reference` names, through further references; None when it says none."""
        below: Any = {"$ref": reference}
        for _ in range(MAX_DEPTH):
            if not isinstance(below, dict):
                return None
            schema = cast("dict[str, Any]", below)
            if "type" in schema or "$ref" not in schema:
                return schema.get("type")
            below = self.target(schema["$ref"])
        return None

    def _say(self, pointer: str, why: str) -> None:
        if len(self.flaws) < MAX_FLAWS:
            self.flaws.append((pointer, why))

    def _follow(self, pointer: str, reference: str) -> None:
        self.named = self.named or not (reference == "#" or reference.startswith("#/"))
        target = self.target(reference)
        if target is None:
            inside = reference.startswith("#")
            what = "nothing stands there" if inside else "only references into the schema itself (#/$defs/…) are read"
            self._say(pointer, f"refers to {reference!r}, but {what}; put the schema under `$defs` and refer to it")
            return
        met = {reference}
        below: Any = target
        while isinstance(below, dict) and isinstance(next_one := cast("dict[str, Any]", below).get("$ref"), str):
            if next_one in self._ending:
                break
            if next_one in met:
                self._say(pointer, f"refers to {reference!r}, which refers back without describing anything")
                return
            met.add(next_one)
            below = self.target(next_one)
        self._ending |= met
        if reference.startswith("#/"):
            self._walk(target, reference[1:], reference.count("/"))

    def _walk(self, schema: Any, pointer: str, depth: int) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            self._say(pointer, f'is {describe(schema)}, not a schema; write an object such as {{"type": "string"}}')
            return
        if id(cast("Any", schema)) in self._seen or len(self.flaws) >= MAX_FLAWS:
            return
        if depth > MAX_DEPTH:
            self._say(pointer, f"is nested deeper than {MAX_DEPTH} levels; put parts under `$defs` and refer to them")
            return
        self._seen.add(id(cast("Any", schema)))
        for keyword, value in cast("dict[str, Any]", schema).items():
            self._keyword(keyword, value, pointer + pointer_to(keyword), cast("dict[str, Any]", schema), depth)

    def _keyword(self, keyword: str, value: Any, pointer: str, schema: dict[str, Any], depth: int) -> None:
        if keyword in NAMED_SCHEMAS:
            if not isinstance(value, dict):
                self._say(pointer, f"is {describe(value)}; write an object of schemas by name")
                return
            for name, below in cast("dict[str, Any]", value).items():
                self._walk(below, pointer + pointer_to(name), depth + 1)
        elif keyword == "items" and isinstance(value, list):
            self.old = True
            for number, below in enumerate(cast("list[Any]", value)):
                self._walk(below, f"{pointer}/{number}", depth + 1)
        elif keyword in SCHEMA or keyword == "items":
            self.old = self.old or keyword == "additionalItems"
            self._walk(value, pointer, depth + 1)
        elif keyword in SCHEMAS:
            if not isinstance(value, list) or not value:
                self._say(pointer, f"is {describe(cast('Any', value))}; write a list with at least one schema")
                return
            for number, below in enumerate(cast("list[Any]", value)):
                self._walk(below, f"{pointer}/{number}", depth + 1)
        elif keyword in {"exclusiveMinimum", "exclusiveMaximum"} and isinstance(value, bool):
            bound = keyword.removeprefix("exclusive").lower()
            if value and bound not in schema:
                self._say(pointer, f"is true without `{bound}`; write the bound itself, as in {keyword}: 0")
            self.old = True
        elif keyword in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._say(pointer, f"is {describe(value)}; write a number")
            elif keyword == "multipleOf" and value <= 0:
                self._say(pointer, f"is {value}; write a number above 0")
        elif keyword in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != int(value):
                self._say(pointer, f"is {show(value)}; write a whole number from 0")
        elif keyword in _FLAGS:
            if not isinstance(value, bool):
                self._say(pointer, f"is {show(value)}; write true or false")
        elif keyword in _TEXTS:
            self._text(keyword, value, pointer)
        else:
            self._rest(keyword, value, pointer, depth)

    def _text(self, keyword: str, value: Any, pointer: str) -> None:
        if not isinstance(value, str):
            self._say(pointer, f"is {describe(value)}; write a text, or leave `{keyword}` out")
        elif keyword in {"$anchor", "$dynamicAnchor"}:
            self.names[f"#{value}"] = pointer.rpartition("/")[0]
        elif keyword == "$id":
            self.names[value.rstrip("#")] = pointer.rpartition("/")[0]

    def _rest(self, keyword: str, value: Any, pointer: str, depth: int) -> None:
        match keyword:
            case "type":
                self._type(value, pointer)
            case "required":
                if isinstance(value, bool):
                    why = "is a boolean; list the names of the fields that must be there in the object around them"
                    self._say(pointer, f'{why}, as in "required": ["name"]')
                else:
                    self._names_of_fields(value, pointer)
            case "enum":
                if not isinstance(value, list) or not value:
                    self._say(pointer, f"is {describe(cast('Any', value))}; write a list with at least one value")
            case "examples":
                if not isinstance(value, list):
                    self._say(pointer, f"is {describe(value)}; write a list")
            case "$ref" | "$dynamicRef":
                if isinstance(value, str):
                    self._references.append((pointer, value))
                else:
                    self._say(pointer, f"is {describe(value)}; write a text such as #/$defs/Name")
            case "dependentRequired":
                for name, below in self._members(value, pointer):
                    self._names_of_fields(below, pointer + pointer_to(name))
            case "dependencies":
                self.old = True
                for name, below in self._members(value, pointer):
                    if isinstance(below, list):
                        self._names_of_fields(cast("Any", below), pointer + pointer_to(name))
                    else:
                        self._walk(below, pointer + pointer_to(name), depth + 1)
            case _:
                # `const` and `default` take any value; what no draft knows (`x-order`, `nullable`) is a remark.
                pass

    def _members(self, value: Any, pointer: str) -> Iterator[tuple[str, Any]]:
        if not isinstance(value, dict):
            self._say(pointer, f"is {describe(value)}; write an object")
            return
        yield from cast("dict[str, Any]", value).items()

    def _names_of_fields(self, value: Any, pointer: str) -> None:
        if not isinstance(value, list):
            self._say(pointer, f'is {describe(value)}; write a list of names, as in ["name"]')
            return
        met: set[str] = set()
        for number, name in enumerate(cast("list[Any]", value)):
            if not isinstance(name, str):
                self._say(f"{pointer}/{number}", f"is {describe(name)}; write the name of a field as a text")
            elif name in met:
                self._say(f"{pointer}/{number}", f"names {name!r} twice; leave one out")
            else:
                met.add(name)

    def _type(self, value: Any, pointer: str) -> None:
        if not isinstance(value, list):
            self._type_name(value, pointer)
            return
        names = cast("list[Any]", value)
        if not names:
            self._say(pointer, "is an empty list; leave `type` out to allow every value")
        for number, name in enumerate(names):
            self._type_name(name, f"{pointer}/{number}")
            if name in names[:number]:
                self._say(f"{pointer}/{number}", f"names {show(name)} twice; leave one out")

    def _type_name(self, value: Any, pointer: str) -> None:
        if not isinstance(value, str):
            self._say(pointer, f"is {describe(value)}; write one of {', '.join(sorted(TYPES))}")
        elif value not in TYPES:
            word = value.lower()
            instead = word if word in TYPES else _OTHER_NAMES.get(word)
            hint = f"write {instead}" if instead else f"write one of {', '.join(sorted(TYPES))}"
            self._say(pointer, f"is {value!r}, which is no type of JSON; {hint}")


def describe(value: Any) -> str:
    """What kind of JSON value it is, in words."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return "an object"


def show(value: Any) -> str:
    """The value as JSON, cut to 60 characters."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:59]}…"


def pointer_to(*steps: object) -> str:
    """A JSON pointer: "/properties/a~1b"."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def resolve(root: Any, reference: str) -> Any:
    """What a reference such as "#/$defs/x" stands for inside `root`, None when nothing is there."""
    found = root
    for step in unquote(reference.removeprefix("#")).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = cast("dict[str, Any]", found).get(name)
        elif isinstance(found, list) and name.isascii() and name.isdigit():
            items = cast("list[Any]", found)
            found = items[int(name)] if int(name) < len(items) else None
        else:
            return None
    return found
