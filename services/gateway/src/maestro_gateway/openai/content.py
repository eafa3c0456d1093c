"""`content` of a message: a string, or parts of text, images, sound and files. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from maestro.llm.v1.message_pb2 import ImageDetail, Message, Part, ToolResultPart
from maestro_gateway.json_codec.decoder import (
    Path,
    Reading,
    mistyped,
    note_others,
    read_bytes,
    read_choice,
    read_object,
    read_text,
    wrong,
)

_DETAILS: Mapping[str, ImageDetail.ValueType] = {
    "auto": ImageDetail.IMAGE_DETAIL_AUTO,
    "low": ImageDetail.IMAGE_DETAIL_LOW,
    "high": ImageDetail.IMAGE_DETAIL_HIGH,
    # The finest that the contract knows.
    "original": ImageDetail.IMAGE_DETAIL_HIGH,
}
_SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_MARK = "prompt_cache_breakpoint"
_TEXT = frozenset({"type", "text", _MARK})
_REFUSAL = frozenset({"type", "refusal"})
_KINDS = {kind: frozenset({"type", kind, _MARK}) for kind in ("text", "image_url", "input_audio", "file")}
_IMAGE = frozenset({"url", "detail"})
_SOUND = frozenset({"data", "format"})
_FILE = frozenset({"file_id", "file_data", "filename"})

Marks = list[tuple[Any, Path]]
"""What asks to keep the prompt up to where it stands, with its place."""


def plain_text(value: Any, path: Path, reading: Reading, marks: Marks) -> str:
    """Text, given as a string or as text parts."""
    if type(value) is str:
        return value
    if type(value) is not list:
        raise mistyped(path, "a string or a list of text parts", value)
    texts: list[str] = []
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = cast("dict[str, Any]", item) if type(item) is dict else {}
        if fields.get("type") != "text":
            raise wrong((here, "type"), "must be text here")
        texts.append(read_text(fields.get("text"), (here, "text")))
        _note(fields, _TEXT, here, reading, marks)
    return "\n\n".join(texts)


def fill_content(target: Message | ToolResultPart, value: Any, path: Path, reading: Reading, marks: Marks) -> None:
    """The parts of what a user says, or of a tool's result."""
    if type(value) is str:
        target.parts.add().text.text = value
        return
    if type(value) is not list:
        raise mistyped(path, "a string or a list of parts", value)
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        if type(item) is not dict:
            raise mistyped(here, "an object with a type", item)
        fields = cast("dict[str, Any]", item)
        _fill_part(target.parts.add(), fields, here, reading)
        _note(fields, _KINDS[fields["type"]], here, reading, marks)


def fill_refusable(message: Message, value: Any, path: Path, reading: Reading, marks: Marks) -> None:
    """The parts of what an assistant said: text and refusals; nothing for null."""
    if value is None or value == "":
        return
    if type(value) is str:
        message.parts.add().text.text = value
        return
    if type(value) is not list:
        raise mistyped(path, "a string, a list of parts, or null", value)
    for index, item in enumerate(cast("list[Any]", value)):
        here = (path, index)
        fields = cast("dict[str, Any]", item) if type(item) is dict else {}
        match fields.get("type"):
            case "text":
                message.parts.add().text.text = read_text(fields.get("text"), (here, "text"))
                _note(fields, _TEXT, here, reading, marks)
            case "refusal":
                message.parts.add().refusal.text = read_text(fields.get("refusal"), (here, "refusal"))
                note_others(fields, _REFUSAL, here, reading)
            case _:
                raise wrong((here, "type"), "must be one of text, refusal")


def _note(fields: dict[str, Any], known: frozenset[str], path: Path, reading: Reading, marks: Marks) -> None:
    """Notes the mark of a part, and what nobody reads of it."""
    note_others(fields, known, path, reading)
    mark = fields.get(_MARK)
    if mark is not None:
        marks.append((mark, (path, _MARK)))


def _fill_part(part: Part, fields: dict[str, Any], path: Path, reading: Reading) -> None:
    match fields.get("type"):
        case "text":
            part.text.text = read_text(fields.get("text"), (path, "text"))
        case "image_url":
            _fill_image(part, fields.get("image_url"), (path, "image_url"), reading)
        case "input_audio":
            _fill_audio(part, fields.get("input_audio"), (path, "input_audio"), reading)
        case "file":
            _fill_file(part, fields.get("file"), (path, "file"), reading)
        case _:
            raise wrong((path, "type"), "must be one of text, image_url, input_audio, file")


def _fill_image(part: Part, value: Any, path: Path, reading: Reading) -> None:
    fields = read_object(value, path)
    note_others(fields, _IMAGE, path, reading)
    here = (path, "url")
    url = read_text(fields.get("url"), here)
    image = part.image
    if url.startswith("data:"):
        image.mime_type, image.data = _data_url(url, here)
    else:
        image.url = url
    detail = fields.get("detail")
    if detail is not None:
        image.detail = read_choice(detail, (path, "detail"), _DETAILS)


def _fill_audio(part: Part, value: Any, path: Path, reading: Reading) -> None:
    fields = read_object(value, path)
    note_others(fields, _SOUND, path, reading)
    sound = read_choice(fields.get("format"), (path, "format"), _SOUNDS)
    part.audio.data = read_bytes(fields.get("data"), (path, "data"))
    part.audio.mime_type = sound


def _fill_file(part: Part, value: Any, path: Path, reading: Reading) -> None:
    fields = read_object(value, path)
    note_others(fields, _FILE, path, reading)
    document = part.document
    if fields.get("file_id") is not None:
        document.file_id = read_text(fields["file_id"], (path, "file_id"))
    elif fields.get("file_data") is not None:
        here = (path, "file_data")
        document.mime_type, document.data = _data_url(read_text(fields["file_data"], here), here)
    else:
        raise wrong(path, "needs file_id or file_data")
    if fields.get("filename") is not None:
        document.title = read_text(fields["filename"], (path, "filename"))


def _data_url(url: str, path: Path) -> tuple[str, bytes]:
    head, comma, body = url.removeprefix("data:").partition(",")
    mime_type, _, encoding = head.partition(";")
    if not url.startswith("data:") or not comma or encoding != "base64" or not mime_type:
        raise wrong(path, "must be of the form data:MIME/TYPE;base64,…")
    return mime_type, read_bytes(body, path)
