"""The contract as its files say it: messages, enums and methods with their comments, options and rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from buf.validate import validate_pb2
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

# Numbers of the fields of descriptors, of which paths of comments are made.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _VALUE, _METHOD = 2, 3, 4, 2, 2


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message; `entry` is the message of a map's pairs."""

    descriptor: FieldDescriptorProto
    comment: str
    rules: validate_pb2.FieldRules

    @property
    def repeated(self) -> bool:
        return self.descriptor.label == FieldDescriptorProto.LABEL_REPEATED


@dataclass(frozen=True, slots=True)
class Message:
    """A message by its full name; `choices` are the names of its `oneof`s, and whether one of each has to be set."""

    name: str
    descriptor: DescriptorProto
    comment: str
    fields: list[Field]
    choices: list[tuple[str, bool, list[str]]]

    @property
    def is_entry(self) -> bool:
        return self.descriptor.options.map_entry


@dataclass(frozen=True, slots=True)
class Enum:
    """An enum by its full name, with the names of its values and what they say."""

    name: str
    comment: str
    values: list[tuple[str, int, str]]


@dataclass(frozen=True, slots=True)
class Method:
    """A method, "package.Service/Name", with the ways in which HTTP reaches it."""

    service: str
    descriptor: MethodDescriptorProto
    comment: str
    rules: list[HttpRule]

    @property
    def name(self) -> str:
        return f"{self.service}/{self.descriptor.name}"


@dataclass(slots=True)
class Contract:
    """Everything by full name."""

    messages: dict[str, Message] = field(default_factory=dict[str, Message])
    enums: dict[str, Enum] = field(default_factory=dict[str, Enum])
    methods: dict[str, Method] = field(default_factory=dict[str, Method])


def load(root: Path) -> Contract:
    """The contract of the repository at `root`, as buf builds it."""
    built = subprocess.run(
        [Path(sys.executable).with_name("buf"), "build", "--as-file-descriptor-set", "--output", "-#format=binpb"],
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
    )
    contract = Contract()
    for file in FileDescriptorSet.FromString(built.stdout).file:
        _add(contract, file)
    return contract


def _add(contract: Contract, file: FileDescriptorProto) -> None:
    comments = {tuple(place.path): _text(place.leading_comments) for place in file.source_code_info.location}
    for index, message in enumerate(file.message_type):
        _add_message(contract, message, file.package, (_MESSAGE, index), comments)
    for index, enum in enumerate(file.enum_type):
        _add_enum(contract, enum, file.package, (_ENUM, index), comments)
    for index, service in enumerate(file.service):
        for number, method in enumerate(service.method):
            found = Method(
                f"{file.package}.{service.name}",
                method,
                comments.get((_SERVICE, index, _METHOD, number), ""),
                list(_rules(method)),
            )
            contract.methods[found.name] = found


def _add_message(
    contract: Contract,
    message: DescriptorProto,
    above: str,
    path: tuple[int, ...],
    comments: Mapping[tuple[int, ...], str],
) -> None:
    name = f"{above}.{message.name}"
    fields = [
        Field(each, comments.get((*path, _FIELD, index), ""), each.options.Extensions[validate_pb2.field])
        for index, each in enumerate(message.field)
    ]
    choices: list[tuple[str, bool, list[str]]] = []
    for index, choice in enumerate(message.oneof_decl):
        members = [
            each.name
            for each in message.field
            if each.HasField("oneof_index") and each.oneof_index == index and not each.proto3_optional
        ]
        if members:
            choices.append((choice.name, choice.options.Extensions[validate_pb2.oneof].required, members))
    contract.messages[name] = Message(name, message, comments.get(path, ""), fields, choices)
    for index, nested in enumerate(message.nested_type):
        _add_message(contract, nested, name, (*path, _NESTED, index), comments)
    for index, enum in enumerate(message.enum_type):
        _add_enum(contract, enum, name, (*path, _NESTED_ENUM, index), comments)


def _add_enum(
    contract: Contract,
    enum: EnumDescriptorProto,
    above: str,
    path: tuple[int, ...],
    comments: Mapping[tuple[int, ...], str],
) -> None:
    values = [
        (value.name, value.number, comments.get((*path, _VALUE, index), "")) for index, value in enumerate(enum.value)
    ]
    name = f"{above}.{enum.name}"
    contract.enums[name] = Enum(name, comments.get(path, ""), values)


def _rules(method: MethodDescriptorProto) -> Iterator[HttpRule]:
    # The types of this module know its extension only as a field.
    http = cast("Any", annotations_pb2.http)
    if method.options.HasExtension(http):
        rule: HttpRule = method.options.Extensions[http]
        yield rule
        yield from rule.additional_bindings


def _text(comment: str) -> str:
    return " ".join(line.strip() for line in comment.strip().splitlines())
