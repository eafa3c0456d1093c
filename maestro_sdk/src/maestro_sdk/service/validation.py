"""Checks messages against the rules that stand in the contract (`buf.validate`)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from maestro_sdk.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    import protovalidate

VALIDATED = ("x-maestro-validated", "1")
"""Metadata of a call whose request keeps the rules, as the service that sends it has found."""

_MOST = 16
"""Violations that one error tells; more would not fit into the metadata of a status."""


@cache
def validator() -> protovalidate.Validator:
    """The validator of this process, which keeps the compiled rules of every message type.

    It takes 17 MB and a tenth of a second, so it is loaded by who needs it: what comes from the mesh is validated
    already. Who serves callers calls this at its start, and its first request need not wait.
    """
    import protovalidate

    return protovalidate.Validator()


def validate(message: Message) -> None:
    """Raises `InvalidRequest` with the path of every field that breaks a rule: `messages[0].parts[1].image`."""
    found = validator().collect_violations(message)
    if not found:
        return
    violations = [
        Violation(_path(violation.proto), violation.proto.message or violation.proto.rule_id) for violation in found
    ]
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    sentence = f"{first.field}: {first.message}" if first.field else first.message
    raise InvalidRequest(sentence + more, violations=violations[:_MOST])


def has_rules(descriptor: Descriptor) -> bool:
    """Whether messages of this type, or what they hold, have any rule: without one there is nothing to check."""
    return _has_rules(descriptor, set())


def _has_rules(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    if descriptor.GetOptions().HasExtension(validate_pb2.message):
        return True
    if any(oneof.GetOptions().HasExtension(validate_pb2.oneof) for oneof in descriptor.oneofs):
        return True
    return any(_field_has_rules(field, seen) for field in descriptor.fields)


def _field_has_rules(field: FieldDescriptor, seen: set[str]) -> bool:
    if field.GetOptions().HasExtension(validate_pb2.field):
        return True
    return field.message_type is not None and _has_rules(field.message_type, seen)


def _path(violation: Any) -> str:
    """The path of the field as a JSON caller would write it."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += f".{element.field_name}" if path else element.field_name
        subscript = element.subscript
        if subscript is not None:
            path += f"[{subscript.value}]" if subscript.field == "index" else f'["{subscript.value}"]'
    return path
