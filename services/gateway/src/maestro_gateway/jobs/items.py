"""Items of jobs as JSON: chats and embeddings as REST takes them, lines of OpenAI's batches, or protobuf's JSON.

What is wrong is told with the place of the item and the path of the field: "items[3].chat.messages", "line 4:
chat.model". Unknown fields are refused; those of OpenAI's bodies, which may be of a newer kind, are told in the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, cast

from maestro.llm.v1.batch_pb2 import AnswerShape, BatchItem
from maestro_gateway.json_codec.chat_request import read_chat
from maestro_gateway.json_codec.contract import read_message
from maestro_gateway.json_codec.decoder import mistyped, read_text, wrong
from maestro_gateway.openai.embeddings import read_embedding
from maestro_gateway.openai.request import read_completion
from maestro_sdk.errors import InvalidRequest, MaestroError, TooLarge, Violation
from maestro_sdk.service.validation import validate

_TURN = 50
"""Items that are read before other tasks get a turn."""
_FIELDS = ("item_id", "chat", "embeddings", "embed")
_MOST_WARNINGS = 64
_BATCH_FIELDS = ("custom_id", "method", "url", "body")


async def read_items(values: Any, most: int) -> list[BatchItem]:
    """The items of a list. Raises `InvalidRequest` with the first wrong one and its field, and `TooLarge`."""
    if type(values) is not list:
        raise mistyped((None, "items"), "a list", values)
    found = cast("list[Any]", values)
    if len(found) > most:
        message = f"holds {len(found)} items, more than the {most} that one request may have; upload them as a file"
        raise TooLarge(f"items: {message}", violations=[Violation("items", message)])
    items: list[BatchItem] = []
    for index, value in enumerate(found):
        items.append(read_item(value, f"items[{index}]"))
        if not index % _TURN:
            await asyncio.sleep(0)
    return items


def read_item(value: Any, place: str) -> BatchItem:
    """The item that a JSON value holds, validated. Raises `InvalidRequest`."""
    try:
        if type(value) is not dict:
            raise InvalidRequest.at("", "must be a JSON object: one item")
        document = cast("dict[str, Any]", value)
        if "custom_id" in document or "url" in document:
            return _read_batch_line(document)
        if _is_contract(document):
            return _read_contract(document)
        return _read_own(document)
    except MaestroError as error:
        raise placed(error, place) from None


def names_of(item: BatchItem) -> tuple[str, str]:
    """What its name and its request are called in the shape in which an item was asked."""
    match item.answer_shape:
        case AnswerShape.ANSWER_SHAPE_OPENAI:
            return "custom_id", "body"
        case AnswerShape.ANSWER_SHAPE_MAESTRO if item.HasField("embed"):
            return "item_id", "embeddings"
        case _:
            return "item_id", item.WhichOneof("request") or ""


def _read_own(document: dict[str, Any]) -> BatchItem:
    """`{"item_id", "chat"}` or `{"item_id", "embeddings"}`."""
    for name in document:
        if name not in _FIELDS:
            raise wrong((None, name), f"is no field of an item; there are {', '.join(_FIELDS[:3])}")
    item = BatchItem(answer_shape=AnswerShape.ANSWER_SHAPE_MAESTRO)
    if (item_id := document.get("item_id")) is not None:
        item.item_id = read_text(item_id, (None, "item_id"))
    _require_name(item, "item_id")
    asked = [name for name in _FIELDS[1:] if document.get(name) is not None]
    if len(asked) != 1:
        raise wrong((None, "request"), "one of chat and embeddings has to be set, and not more")
    name = asked[0]
    body = document[name]
    if type(body) is not dict:
        raise mistyped((None, name), "an object", body)
    with _within(name):
        if name == "chat":
            item.chat.CopyFrom(read_chat(cast("dict[str, Any]", body), refuse_unknown=True).request)
        else:
            _put_vectors(item, cast("dict[str, Any]", body))
    return item


def _read_batch_line(document: dict[str, Any]) -> BatchItem:
    """`{"custom_id", "method": "POST", "url", "body"}`: a line of OpenAI's batches."""
    for name in document:
        if name not in _BATCH_FIELDS:
            raise wrong((None, name), f"is no field of a line of a batch; there are {', '.join(_BATCH_FIELDS)}")
    item = BatchItem(answer_shape=AnswerShape.ANSWER_SHAPE_OPENAI)
    item.item_id = read_text(document.get("custom_id"), (None, "custom_id"))
    if not item.item_id:
        raise wrong((None, "custom_id"), "must not be empty")
    _require_name(item, "custom_id")
    if document.get("method") != "POST":
        raise wrong((None, "method"), 'must be "POST"')
    body = document.get("body")
    if type(body) is not dict:
        raise mistyped((None, "body"), "an object", body)
    fields = cast("dict[str, Any]", body)
    match document.get("url"):
        case "/v1/chat/completions":
            if fields.get("stream"):
                raise wrong(((None, "body"), "stream"), "must not be true: what runs in the background is not streamed")
            with _within("body"):
                _put_completion(item, fields)
        case "/v1/embeddings":
            with _within("body"):
                _put_vectors(item, fields)
        case _:
            raise wrong((None, "url"), "must be /v1/chat/completions or /v1/embeddings")
    return item


def _read_contract(document: dict[str, Any]) -> BatchItem:
    """The contract's own message in protobuf's JSON."""
    item = read_message(document, BatchItem())
    validate(item)
    return item


def _is_contract(document: Mapping[str, Any]) -> bool:
    """Whether an item is protobuf's JSON: its parts have no `type`, or what it embeds stands in `inputs`."""
    embed, chat = document.get("embed"), document.get("chat")
    if "itemId" in document or (type(embed) is dict and "inputs" in embed):
        return True
    messages: Any = cast("dict[str, Any]", chat).get("messages") if type(chat) is dict else None
    if type(messages) is not list:
        return False
    return any(_has_bare_parts(message) for message in cast("list[Any]", messages))


def _has_bare_parts(message: Any) -> bool:
    parts: Any = cast("dict[str, Any]", message).get("parts") if type(message) is dict else None
    return type(parts) is list and any(type(part) is dict and "type" not in part for part in cast("list[Any]", parts))


def _put_completion(item: BatchItem, body: dict[str, Any]) -> None:
    asked = read_completion(body)
    item.chat.CopyFrom(asked.request)
    _tell(item, asked.unknown)


def _put_vectors(item: BatchItem, body: dict[str, Any]) -> None:
    asked = read_embedding(body)
    if asked.unknown and item.answer_shape != AnswerShape.ANSWER_SHAPE_OPENAI:
        raise _unknown(asked.unknown, "a request for embeddings")
    item.embed.CopyFrom(asked.request)
    item.base64_vectors = asked.packed
    _tell(item, asked.unknown)


def _tell(item: BatchItem, unknown: Iterable[str]) -> None:
    """Keeps what OpenAI's clients are told in the answer: the same as at the path of its own."""
    for name in islice(unknown, _MOST_WARNINGS):
        item.warnings.add(code="unknown_field", message=f"{name} has no meaning here and was ignored", field=name)


def _unknown(names: tuple[str, ...], what: str) -> InvalidRequest:
    message = f"is not a field of {what}"
    return InvalidRequest(f"{names[0]}: {message}", violations=[Violation(name, message) for name in names[:32]])


def _require_name(item: BatchItem, field: str) -> None:
    # The rule of the contract, asked by hand: the validator would go through the whole request once more.
    name = item.item_id
    if len(name) > 64 or not all(each.isascii() and (each.isalnum() or each in "_-.") for each in name):
        raise wrong((None, field), "must be 1 to 64 letters, digits, `_`, `-` or `.`")


@contextmanager
def _within(place: str) -> Generator[None]:
    """What is raised within gets paths that begin with `place`."""
    try:
        yield
    except MaestroError as error:
        raise placed(rootless(error), place) from None


def rootless(error: MaestroError) -> MaestroError:
    """The error without the word for the whole document, where that is a part of another one."""
    if [found.field for found in error.violations] != ["body"]:
        return error
    bare = [Violation("", found.message) for found in error.violations]
    return type(error)(error.message.removeprefix("body: "), violations=bare)


def placed(error: MaestroError, place: str) -> MaestroError:
    """The error with paths that begin with the place of its item."""
    violations = [Violation(joined(place, found.field), found.message) for found in error.violations]
    field = next((found.field for found in error.violations if found.field), "")
    message = error.message if not field or error.message.startswith(field) else f"{field}: {error.message}"
    return type(error)(
        joined(place, message) if field else f"{place}: {message.removeprefix(': ')}",
        violations=violations or [Violation(place, error.message)],
        metadata=error.metadata,
        retry_after=error.retry_after,
    )


def joined(place: str, path: str) -> str:
    """The path of something at a place: "items[3].chat", "line 4: chat", "line 4: chat.model"."""
    if not path or not place:
        return place or path
    return f"{place}: {path}" if place.startswith("line ") and ": " not in place else f"{place}.{path}"
