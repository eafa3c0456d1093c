"""Tagged objects, `{"type": "text", "text": "…"}`, into parts of the contract. A string stands for one text part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import orjson

from maestro.llm.v1.message_pb2 import (
    AudioPart,
    DocumentPart,
    ImagePart,
    OpaquePart,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro_gateway.json_codec.decoder import Compiler, Path, Put, Reading, mistyped, read_bytes, read_text, wrong


def _fill_part(part: Any, value: Any, path: Path, reading: Reading) -> None:
    if type(value) is not dict:
        raise mistyped(path, "an object with a `type`", value)
    items = cast("dict[str, Any]", value)
    kind = items.get("type")
    entry = _kinds.get(kind) if type(kind) is str else None
    if entry is None:
        raise wrong((path, "type"), f"must be one of {', '.join(_kinds)}")
    fields, finish = entry
    inner = getattr(part, cast("str", kind))
    inner.SetInParent()
    for key, item in items.items():
        put = fields.get(key)
        if put is not None:
            if item is not None:
                put(inner, item, path, reading)
        elif key in _envelope:
            if item is not None:
                _envelope[key](part, item, path, reading)
        elif key != "type":
            reading.unknown.append((path, key))
    if finish is not None:
        finish(inner, items, path)


def _require_text(inner: Any, items: dict[str, Any], path: Path) -> None:
    if items.get("text") is None:
        raise wrong((path, "text"), "is required")


def _require_mime_type(inner: Any, items: dict[str, Any], path: Path) -> None:
    if inner.data and not inner.mime_type:
        raise wrong((path, "mime_type"), 'is required with data, for example "image/png"')


def _put_image_url(image: Any, value: Any, path: Path, reading: Reading) -> None:
    """A `data:` URL, which is what browsers make of a file, becomes the data itself."""
    here = (path, "url")
    if image.WhichOneof("source") is not None:
        raise wrong(path, "only one of data, url, file_id may be given")
    url = read_text(value, here)
    if not url.startswith("data:"):
        image.url = url
        return
    head, comma, body = url[5:].partition(",")
    mime_type, _, encoding = head.partition(";")
    if not comma or encoding != "base64" or not mime_type:
        raise wrong(here, "is a data: URL, but not of the form data:MIME/TYPE;base64,…")
    image.data = read_bytes(body, here)
    image.mime_type = mime_type


def _put_arguments(call: Any, value: Any, path: Path, reading: Reading) -> None:
    """The arguments of a call: an object, or the text of one."""
    here = (path, "arguments")
    if type(value) is dict:
        call.arguments_json = orjson.dumps(value).decode()
        return
    text = read_text(value, here) if type(value) is str else None
    if text is None:
        raise mistyped(here, "an object, or a string that holds one", value)
    if text and not text.isspace():
        try:
            holds_object = type(orjson.loads(text)) is dict
        except orjson.JSONDecodeError:
            holds_object = False
        if not holds_object:
            raise wrong(here, "is a string, but does not hold a JSON object")
    call.arguments_json = text


def _put_opaque(opaque: Any, value: Any, path: Path, reading: Reading) -> None:
    # A string is taken as it stands: only that is byte-identical to what the provider sent.
    opaque.json = value if type(value) is str else orjson.dumps(value).decode()


def put_content(target: Any, value: Any, path: Path, reading: Reading) -> None:
    """Reads `content`: a string or a list of parts."""
    _read_content(target.parts, value, (path, "content"), reading)


def put_parts(target: Any, value: Any, path: Path, reading: Reading) -> None:
    """Reads `parts`, the name that answers use for the same thing."""
    _read_content(target.parts, value, (path, "parts"), reading)


def _put_inner_content(result: Any, value: Any, path: Path, reading: Reading) -> None:
    put_content(result, value, path, reading)
    for index, part in enumerate(result.parts):
        if part.WhichOneof("kind") in ("tool_call", "tool_result"):
            raise wrong((((path, "content"), index), "type"), "a tool result can't hold tool calls or tool results")


def _read_content(parts: Any, value: Any, path: Path, reading: Reading) -> None:
    if len(parts):
        raise wrong(path, "give either content or parts")
    if type(value) is str:
        parts.add().text.text = value
    elif type(value) is list:
        for index, item in enumerate(cast("list[Any]", value)):
            _fill_part(parts.add(), item, (path, index), reading)
    else:
        raise mistyped(path, "a string or a list of parts", value)


def _ignore(target: Any, value: Any, path: Path, reading: Reading) -> None:
    """A field of an answer that comes back as part of the conversation, and means nothing here."""


compiler = Compiler({Part.DESCRIPTOR.full_name: _fill_part})

Finish = Callable[[Any, dict[str, Any], Path], None]
_kinds: dict[str, tuple[dict[str, Put], Finish | None]] = {
    "text": (compiler.puts(TextPart.DESCRIPTOR, {}), _require_text),
    "image": (compiler.puts(ImagePart.DESCRIPTOR, {"url": _put_image_url}), _require_mime_type),
    "audio": (compiler.puts(AudioPart.DESCRIPTOR, {}), _require_mime_type),
    "document": (compiler.puts(DocumentPart.DESCRIPTOR, {}), _require_mime_type),
    "tool_call": (compiler.puts(ToolCallPart.DESCRIPTOR, {"arguments": _put_arguments}), None),
    "tool_result": (compiler.puts(ToolResultPart.DESCRIPTOR, {"content": _put_inner_content}), None),
    "reasoning": (compiler.puts(ReasoningPart.DESCRIPTOR, {}), None),
    "refusal": (compiler.puts(RefusalPart.DESCRIPTOR, {}), None),
    "opaque": (compiler.puts(OpaquePart.DESCRIPTOR, {"json": _put_opaque}), None),
}
# What the REST form names otherwise than the contract.
for _kind, _hidden in (("tool_call", "arguments_json"), ("tool_result", "parts")):
    del _kinds[_kind][0][_hidden]

_part_fields = compiler.puts(Part.DESCRIPTOR, {})
_envelope: dict[str, Put] = {
    "origin": _part_fields["origin"],
    "provider_state": _part_fields["provider_state"],
    "index": _ignore,
    "polyfilled": _ignore,
}

PART_TYPES = tuple(_kinds)
"""What `type` may say."""
PART_FIELDS = frozenset(name for fields, _ in _kinds.values() for name in fields)
"""Names of fields of parts."""
