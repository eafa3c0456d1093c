"""Methods as operations: paths, parameters, bodies and every answer that they may give."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from contract import Contract, Field, Message, Method
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto
from schema import Schema, Schemas

_HTTP_BODY = ".google.api.HttpBody"
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)(?:=([^}]*))?\}")
_DEPTH = 4
"""Messages within messages whose fields are parameters."""
_ANYWHERE = ("400", "404", "408", "413", "431", "503", "504")
"""Errors that need nobody who may be wrong about a key."""
_WAITING = ("429", "503")
"""Errors that may tell when to come back."""
_ID = {"$ref": "#/components/headers/RequestId"}


class Operations:
    """Operations by path and verb."""

    def __init__(self, contract: Contract, schemas: Schemas, own: Mapping[str, Any], statuses: Mapping[str, str]):
        """`own` tells per method, or path, what no proto does; `statuses` are the errors by their codes.

        A method `as` another one takes and gives the same over HTTP; its body is what the path does not say.
        """
        self._contract = contract
        self._schemas = schemas
        self._own = own
        self._statuses = statuses
        self.paths: dict[str, dict[str, Any]] = {}
        self.refusals: dict[str, Any] = {}
        """Answers that tell of errors, by the shape of the API and the status."""
        self.unfilled: list[str] = []
        """Methods of bodies that nobody described."""

    def add(self, method: Method, scope: str) -> None:
        """Adds a method by each of its rules; `scope` is what a key needs for it."""
        for number, rule in enumerate(method.rules):
            verb = rule.WhichOneof("pattern") or ""
            template: str = getattr(rule, verb)
            path = _VARIABLE.sub(r"{\1}", template)
            self.paths.setdefault(path, {})[verb] = self._operation(method, rule, template, scope, number)

    def add_own(self, path: str, verb: str, own: Mapping[str, Any]) -> None:
        """Adds an operation that is written by hand."""
        filled: dict[str, Any] = {
            "operationId": own["id"],
            "tags": [own["tag"]],
            "summary": own["summary"],
            "description": own.get("description", own["summary"]),
            "parameters": [self._schemas.filled(each) for each in own.get("parameters", [])],
        }
        if not filled["parameters"]:
            del filled["parameters"]
        if "bodies" in own:
            content = {kind: {"schema": self._schemas.filled(schema)} for kind, schema in own["bodies"].items()}
            filled["requestBody"] = {"required": True, "content": content}
        if own.get("open"):
            filled["security"] = []
        filled["responses"] = {
            str(code): self._answer(answer) for code, answer in own["answers"].items()
        } | self._errors(own)
        self.paths.setdefault(path, {})[verb] = filled

    def _operation(self, method: Method, rule: HttpRule, template: str, scope: str, number: int) -> dict[str, Any]:
        own: Mapping[str, Any] = self._own.get(method.name, {})
        native = self._contract.methods[own["as"]] if "as" in own else method
        request = self._contract.messages[native.descriptor.input_type.removeprefix(".")]
        summary = method.comment.partition(". ")[0].rstrip(".:")
        name = method.descriptor.name
        operation: dict[str, Any] = {
            "operationId": own.get("id")
            or f"{name[0].lower()}{name[1:]}" + (rule.WhichOneof("pattern") or "").title() * bool(number),
            "tags": [own.get("tag", method.service.rpartition(".")[2].removesuffix("Service"))],
            "summary": summary,
            "description": f"{method.comment} {_say_scope(scope)}".strip(),
        }
        taken = [name for name, _ in _VARIABLE.findall(template)]
        parameters = [self._in_path(request, name, pattern) for name, pattern in _VARIABLE.findall(template)]
        if native.descriptor.input_type != _HTTP_BODY and rule.body != "*" and native is method:
            skipped = {*taken, rule.body}
            parameters += self._in_query(request, skipped)
        parameters += [self._schemas.filled(each) for each in own.get("parameters", [])]
        if parameters:
            operation["parameters"] = parameters
        if body := self._body(native, rule, request, own, taken):
            operation["requestBody"] = body
        operation["responses"] = {"200": self._success(native, own)} | self._errors(own)
        return operation

    def _body(
        self, method: Method, rule: HttpRule, request: Message, own: Mapping[str, Any], taken: list[str]
    ) -> dict[str, Any] | None:
        if not rule.body:
            return None
        if method.descriptor.input_type == _HTTP_BODY:
            if "request" not in own:
                self.unfilled.append(method.name)
            return {"required": True, "content": self._content(own.get("request", {"type": "object"}))}
        if rule.body != "*" and "as" not in own:
            field = next(each for each in request.fields if each.descriptor.name == rule.body)
            return {"required": True, "content": self._content(self._schemas.field(field))}
        schema: Schema = self._schemas.message(request.name)
        if taken:
            # What the path says does not stand in the body too.
            whole = self._schemas.made[schema["$ref"].rpartition("/")[2]]
            schema = {
                **whole,
                "properties": {name: each for name, each in whole["properties"].items() if name not in taken},
                "required": [name for name in whole.get("required", []) if name not in taken],
            }
            if not schema["required"]:
                del schema["required"]
        reference: str = schema.get("$ref", "")
        whole = self._schemas.made[reference.rpartition("/")[2]] if reference else schema
        if "as" in own:
            whole["additionalProperties"] = False
        return {"required": bool({"required", "allOf"} & whole.keys()), "content": self._content(schema)}

    def _success(self, method: Method, own: Mapping[str, Any]) -> dict[str, Any]:
        if "answer" in own:
            return self._answer(own["answer"])
        if method.descriptor.output_type == _HTTP_BODY:
            self.unfilled.append(method.name)
            return self._answer({"description": "The answer.", "content": {"application/json": {"type": "object"}}})
        output = self._contract.messages[method.descriptor.output_type.removeprefix(".")]
        return {
            "description": output.comment or "The answer.",
            "headers": {"x-request-id": _ID},
            "content": self._content(self._schemas.message(output.name)),
        }

    def _answer(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"description": answer["description"], "headers": {"x-request-id": _ID}}
        found["headers"] |= {
            name: {"$ref": f"#/components/headers/{header}"} for name, header in answer.get("headers", {}).items()
        }
        if "content" in answer:
            found["content"] = {
                kind: {"schema": self._schemas.filled(schema)} for kind, schema in answer["content"].items()
            }
        return found

    def _errors(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Every error has the shape of its API; Envoy's own have that of the mesh."""
        shape = own.get("error", "Error")
        kinds = [self._schemas.own(name) for name in dict.fromkeys((shape, "Error"))]
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        codes = {code: text for code, text in self._statuses.items() if not own.get("open") or code in _ANYWHERE}
        found: dict[str, Any] = {}
        for code, text in (codes | own.get("errors", {})).items():
            headers = {"x-request-id": _ID}
            if code in _WAITING:
                headers["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
            content = {"application/json": {"schema": schema}}
            self.refusals[f"{shape}{code}"] = {"description": text, "headers": headers, "content": content}
            found[code] = {"$ref": f"#/components/responses/{shape}{code}"}
        return found

    def _content(self, schema: Any) -> dict[str, Any]:
        return {"application/json": {"schema": self._schemas.filled(schema)}}

    def _in_path(self, request: Message, name: str, pattern: str) -> dict[str, Any]:
        field = next(each for each in request.fields if each.descriptor.name == name)
        schema = {**self._schemas.field(field)}
        text = schema.pop("description", "")
        # An empty segment is another path, or none.
        schema.setdefault("minLength", 1)
        if not pattern:
            text += " A `/` in it is written as `%2F`."
        return {"name": name, "in": "path", "required": True, "description": text.strip(), "schema": schema}

    def _in_query(self, message: Message, skipped: set[str], above: str = "", depth: int = 0) -> Iterator[Any]:
        for field in message.fields:
            name = f"{above}{field.descriptor.name}"
            if name in skipped:
                continue
            inner = self._contract.messages.get(field.descriptor.type_name.removeprefix("."))
            if inner is not None and not inner.name.startswith("google.protobuf."):
                if not field.repeated and depth < _DEPTH:
                    yield from self._in_query(inner, skipped, f"{name}.", depth + 1)
                continue
            yield self._parameter(name, field, required=depth == 0)

    def _parameter(self, name: str, field: Field, *, required: bool) -> dict[str, Any]:
        schema = self._schemas.field(field)
        if schema.get("format") == "int64":
            schema = {"type": "integer", "description": schema.get("description", ""), "format": "int64"}
            schema |= {"minimum": 0 if field.descriptor.type == Proto.TYPE_UINT64 else -(2**63), "maximum": 2**63 - 1}
        text = schema.pop("description", "")
        found: dict[str, Any] = {"name": name, "in": "query", "description": text, "schema": schema}
        if required and text.startswith("Required."):
            found["required"] = True
        return found


def _say_scope(scope: str) -> str:
    return f"A key needs the scope `{scope}`." if scope else ""
