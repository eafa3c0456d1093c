"""YAML with places: every value of a configuration knows the file and line, or the variable, that it came from.

A wrong configuration is told as a whole: `ConfigError` lists every problem, one per line, as
`maestro.yaml:12: routes.default.strategy: 'foo' is not one of fallback, weighted`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

ENV_PREFIX = "MAESTRO__"
"""Variables that set one value: `MAESTRO__GATEWAY__ADDRESS` sets `gateway.address`."""

Path_ = tuple[str | int, ...]
"""Keys and indexes from the top of the configuration down to a value."""

# `$${` stands for a plain `${`.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)?(?::-(?P<default>[^}]*))?\}|\$\{")
_MAP, _SEQUENCE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `place` is "file:line" or a variable, `path` is dotted and may be empty."""

    place: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(text for text in (self.place, self.path, self.message) if text)


class ConfigError(Exception):
    """A configuration that can't be used; its text has one problem per line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Document:
    """Plain data and the place of each of its values."""

    data: dict[str, Any] = field(default_factory=dict[str, Any])
    places: dict[Path_, str] = field(default_factory=dict[Path_, str])
    problems: list[Problem] = field(default_factory=list[Problem])

    def place(self, path: Path_) -> str:
        """Where the value at `path` was set; the place of the nearest parent when it wasn't set itself."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")

    def add(self, path: Path_, message: str) -> None:
        """Notes a problem at `path`."""
        self.problems.append(Problem(self.place(path), dotted(path), message))

    def error(self) -> ConfigError:
        """The problems that were noted, in the order of the file."""
        return ConfigError(sorted(self.problems, key=_reading_order))


def parse(text: str, name: str, env: Mapping[str, str]) -> Document:
    """Parses YAML whose strings may hold `${NAME}` and `${NAME:-default}`.

    Problems are noted in the result; `name` is the file's name in them.
    """
    document = Document(places={(): f"{name}:1"})
    value = _read(document, text, name, env)
    if isinstance(value, dict):
        document.data = cast("dict[str, Any]", value)
    elif value is not None:
        document.add((), "the top is not a mapping")
    return document


def overlay(document: Document, env: Mapping[str, str]) -> None:
    """Lays the variables that begin with `ENV_PREFIX` over the document.

    A value is parsed as YAML, so a list or a mapping may be given.
    """
    for variable in sorted(name for name in env if name.startswith(ENV_PREFIX)):
        names = variable[len(ENV_PREFIX) :].split("__")
        if not all(names):
            document.problems.append(Problem(variable, "", "an empty name between the underscores"))
            continue
        given = Document()
        value = _read(given, env[variable], variable, None) if env[variable].strip() else ""
        if given.problems:
            document.problems += [Problem(variable, "", problem.message) for problem in given.problems]
            continue
        target, path = document.data, cast("Path_", ())
        for name in names[:-1]:
            key = _matching_key(target, name)
            path += (key,)
            below = target.get(key)
            if not isinstance(below, dict):
                below = target[key] = {}
            target = cast("dict[str, Any]", below)
        key = _matching_key(target, names[-1])
        path += (key,)
        target[key] = value
        document.places = {at: place for at, place in document.places.items() if at[: len(path)] != path}
        document.places[path] = variable


def note_invalid(document: Document, error: ValidationError, model: type[BaseModel], prefix: Path_ = ()) -> None:
    """Notes every finding of pydantic as a problem of the document; `prefix` is where the model's data stand in it."""
    findings = error.errors(include_url=False)
    told = {problem.path for problem in document.problems}  # a value that could not even be read
    for details in findings:
        loc = details["loc"]
        # A list whose entries are all wrong is reported as too short as well.
        if details["type"] == "too_short" and any(
            len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in findings
        ):
            continue
        if dotted(prefix + loc) not in told:
            document.add(prefix + loc, _sentence(details, model))


def dotted(path: Path_) -> str:
    """The path as text: `gateway.keys[0].tenant`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def escaped(value: Any) -> Any:
    """The value with every `${` in its strings protected, so that reading it again gives the same."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: escaped(below) for key, below in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [escaped(below) for below in cast("list[Any]", value)]
    return value


def display_name(path: Path) -> str:
    """The path as a person would type it: relative to the working directory when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _read(document: Document, text: str, name: str, env: Mapping[str, str] | None) -> Any:
    """The value of YAML text; without `env` its strings stand as they are."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if root is None else _Reader(document, name, env).read(root, ())
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the line, which may hold a key: only the place and the problem are told.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        document.problems.append(Problem(f"{name}:{line}", "", f"not YAML: {error.problem or error.context}"))
    except yaml.YAMLError:
        document.problems.append(Problem(name, "", "not YAML: it holds characters that YAML doesn't allow"))
    except RecursionError:
        document.problems.append(Problem(name, "", "is nested too deep, or an alias contains itself"))
    return None


class _Reader:
    """Builds plain data from the nodes of one file."""

    def __init__(self, document: Document, name: str, env: Mapping[str, str] | None) -> None:
        self._document = document
        self._name = name
        self._env = env
        self._scalars = yaml.SafeLoader("")

    def read(self, node: yaml.Node, path: Path_) -> Any:
        self._document.places.setdefault(path, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQUENCE:
            return [self.read(below, (*path, index)) for index, below in enumerate(cast("list[yaml.Node]", node.value))]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._problem(node, path, f"{node.tag} is not allowed")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        if node.tag != _MAP:
            self._problem(node, path, f"{node.tag} is not allowed")
        # What `<<` merges in comes first in the flattened list and gives way to the mapping's own keys: no double.
        own = {
            id(key)
            for key, _ in cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
            if key.tag != "tag:yaml.org,2002:merge"
        }
        try:
            self._scalars.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self._problem(node, path, str(error.problem))
            return {}
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be a plain word")
                continue
            key = str(key_node.value)
            below = (*path, key)
            if key in lines and id(key_node) in own:
                self._problem(key_node, below, f"given twice, first in line {lines[key]}")
                continue
            if id(key_node) in own:
                lines[key] = key_node.start_mark.line + 1
            self._document.places[below] = self._place(key_node)
            result[key] = self.read(value_node, below)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        value: Any
        try:
            value = self._scalars.construct_object(node)  # pyright: ignore[reportUnknownMemberType]
        except (yaml.MarkedYAMLError, ValueError):
            self._problem(node, path, f"can't be read as {node.tag.removeprefix('tag:yaml.org,2002:')}")
            return None
        if isinstance(value, str):
            env = self._env
            return (
                value if env is None else _REFERENCE.sub(lambda match: self._replacement(match, env, node, path), value)
            )
        if value is None or isinstance(value, bool | int | float):
            return value
        # Dates and bytes: no setting is one, so what was written stands as text.
        return str(node.value)

    def _replacement(self, match: re.Match[str], env: Mapping[str, str], node: yaml.Node, path: Path_) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if not name:
            found = match[0] if match[0] != "${" else f"{match.string[match.start() :][:32]!r}"
            self._problem(node, path, f"{found} names no variable; write $${{ for a plain ${{")
            return ""
        value = env.get(name)
        if value or (value is not None and default is None):
            return value
        if default is not None:
            return default
        self._problem(node, path, f"the variable {name} is not set; set it, or give a default: ${{{name}:-…}}")
        return ""

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _problem(self, node: yaml.Node, path: Path_, message: str) -> None:
        self._document.problems.append(Problem(self._place(node), dotted(path), message))


def _reading_order(problem: Problem) -> tuple[bool, str, int]:
    """By file and line; variables at the end."""
    name, _, line = problem.place.rpartition(":")
    return (False, name, int(line)) if line.isdigit() else (True, problem.place, 0)


def _matching_key(target: Mapping[str, Any], name: str) -> str:
    """The key that an environment variable means: variables have neither lower case nor hyphens."""
    plain = name.lower()
    return next((key for key in target if key.lower().replace("-", "_") == plain), plain)


def _sentence(details: ErrorDetails, model: type[BaseModel]) -> str:
    """pydantic's finding in words that hold no value which might be a secret."""
    match details["type"]:
        case "literal_error":
            expected = str(details.get("ctx", {}).get("expected", "")).replace("'", "").replace(" or ", ", ")
            return f"{details['input']!r} is not one of {expected}"
        case "missing":
            return "is required"
        case "extra_forbidden":
            name = str(details["loc"][-1])
            near = difflib.get_close_matches(name, _field_names(model, details["loc"][:-1]), n=1)
            return f"no such setting; did you mean {near[0]}?" if near else "no such setting"
        case "value_error":
            return str(details.get("ctx", {}).get("error", details["msg"]))
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a mapping"
        case "too_short":
            return "must have at least one entry"
        case "list_type" | "tuple_type":
            return "must be a list"
        case _:
            message = details["msg"]
            return message[0].lower() + message[1:]


def _field_names(model: type[BaseModel], path: Path_) -> list[str]:
    """The settings that stand at `path` below `model`: the candidates for a misspelt name."""
    for part in path:
        if isinstance(part, str) and (info := model.model_fields.get(part)):
            found = _model_in(info.annotation)
            if found is None:
                return []
            model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for below in get_args(annotation) if (found := _model_in(below))), None)
