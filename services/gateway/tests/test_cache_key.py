"""Everything that shapes an answer is in its key: every field of a request, found by its descriptor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_gateway.cache.key import IRRELEVANT, key_of

DEPTH = 5
"""Messages within messages that are looked into: parts hold results, which hold parts, without end."""


def variants(message: Any, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Any]]:
    """Messages that differ from `message` in one field each, which they have in another way or at all."""
    for field in message.DESCRIPTOR.fields:
        here = f"{path}.{field.name}" if path else field.name
        changed = type(message)()
        changed.CopyFrom(message)
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            if field.is_repeated:
                getattr(changed, field.name).append(_other(field, None))
            else:
                setattr(changed, field.name, _other(field, getattr(message, field.name)))
            yield here, changed
        elif field.message_type.GetOptions().map_entry:
            yield from _pairs(message, field, here)
        elif field.is_repeated:
            element = getattr(changed, field.name).add()
            yield here, changed
            if depth:
                yield from _within(changed, getattr(changed, field.name), element, here, depth)
        else:
            getattr(changed, field.name).SetInParent()
            if not message.HasField(field.name):
                yield here, changed
            if depth:
                inner = getattr(changed, field.name)
                for where, other in variants(inner, here, depth - 1):
                    outer = type(message)()
                    outer.CopyFrom(changed)
                    getattr(outer, field.name).CopyFrom(other)
                    yield where, outer


def _within(message: Any, elements: Any, element: Message, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    for where, other in variants(element, path, depth - 1):
        del elements[:]
        elements.add().CopyFrom(other)
        outer = type(message)()
        outer.CopyFrom(message)
        yield where, outer


def _pairs(message: Any, field: FieldDescriptor, path: str) -> Iterator[tuple[str, Any]]:
    changed = type(message)()
    changed.CopyFrom(message)
    entries = getattr(changed, field.name)
    kind = field.message_type
    if kind is not None and kind.fields_by_name["value"].message_type is not None:
        entries["k"].SetInParent()
    else:
        entries["k"] = "v"
    yield path, changed


def _other(field: FieldDescriptor, value: Any) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"x" + (value or b"") if field.type == FieldDescriptor.TYPE_BYTES else f"x{value or ''}"
        case FieldDescriptor.CPPTYPE_BOOL:
            return not value
        case _:
            return (value or 0) + 1


@pytest.mark.parametrize("kind", [ChatRequest, EmbedRequest])
def test_every_field_that_is_not_named_irrelevant_is_part_of_the_key(kind: Any) -> None:
    keys: dict[str, str] = {}
    plain = key_of("acme", kind(), b"route", "")
    seen, same = 0, set[str]()
    for path, request in variants(kind()):
        key = key_of("acme", request, b"route", "")
        seen += 1
        if key == plain:
            same.add(path)
        else:
            # No two different requests share a key either.
            content = request.SerializeToString(deterministic=True)
            assert keys.setdefault(key, content) == content or "routing" in path or "metadata" in path
    # A `routing` that says nothing else is none.
    assert same <= {*IRRELEVANT, "routing"}
    assert {path for path in same if path in IRRELEVANT} == set(IRRELEVANT)
    assert seen > {ChatRequest: 100, EmbedRequest: 25}[kind]


def test_tenant_route_and_variant_are_part_of_the_key() -> None:
    request = ChatRequest(system="Be brief.")
    keys = {
        key_of(tenant, asked, seal, variant)
        for tenant in ("acme", "acme2", "")
        for seal in (b"one", b"other")
        for variant in ("", "a")
        for asked in (request, EmbedRequest())
    }
    assert len(keys) == 24
    # What stands at the border of two parts belongs to one of them.
    assert key_of("a", request, b"bc", "") != key_of("ab", request, b"c", "")
