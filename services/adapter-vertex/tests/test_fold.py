"""The stream of an answer, folded, is the unary answer, however it is cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from maestro_adapter_vertex.translate import Stream, to_events
from maestro_sdk.adapter.fold import fold

from .frames import OUTGOING, frame, frames

# One answer, said on both of the provider's wires.
_text = st.text(min_size=1, max_size=12)
_value = st.one_of(_text, st.integers(-9, 9), st.booleans(), st.none(), st.lists(_text, min_size=1, max_size=3))
_signature = st.sampled_from(["", "", "c2ln", "+/8="])
_part = st.one_of(
    st.fixed_dictionaries({"text": _text}),
    st.fixed_dictionaries({"text": _text, "thought": st.just(True)}),
    st.builds(
        lambda name, args, call_id, signature: {
            "functionCall": {"name": name, "args": args, **({"id": call_id} if call_id else {})},
            **({"thoughtSignature": signature} if signature else {}),
        },
        st.sampled_from(["weather", "_1st"]),
        st.dictionaries(_text, _value, max_size=3),
        st.sampled_from(["", "own"]),
        _signature,
    ),
    st.builds(lambda signature: {"text": "", "thoughtSignature": signature}, st.sampled_from(["bGFzdA==", "eA=="])),
    st.fixed_dictionaries({"executableCode": st.fixed_dictionaries({"code": _text})}),
)


def _cut(part: Mapping[str, Any], size: int, partial: bool) -> list[dict[str, Any]]:
    """A part as the provider streams it: text in pieces, calls whole or by their arguments."""
    if part.get("text"):
        text = part["text"]
        return [{**part, "text": text[at : at + size]} for at in range(0, len(text), size)]
    if "functionCall" not in part or not partial:
        return [dict(part)]
    told = dict(part["functionCall"])
    args = told.pop("args")
    pieces: list[dict[str, Any]] = [{**part, "functionCall": {**told, "willContinue": True}}]
    for name, value in args.items():
        path = f"$[{json.dumps(name)}]" if "\\" not in json.dumps(name, ensure_ascii=False) else None
        if path is None:
            return [dict(part)]
        path = f'$["{name}"]'
        entries = _entries(path, value, size)
        pieces += [{"functionCall": {"partialArgs": [entry], "willContinue": True}} for entry in entries]
    return [*pieces, {"functionCall": {}}]


def _entries(path: str, value: Any, size: int) -> list[dict[str, Any]]:
    match value:
        case str():
            pieces = [value[at : at + size] for at in range(0, len(value), size)]
            going = [{"jsonPath": path, "stringValue": piece, "willContinue": True} for piece in pieces[:-1]]
            return [*going, {"jsonPath": path, "stringValue": pieces[-1]}]
        case bool():
            return [{"jsonPath": path, "boolValue": value}]
        case int():
            return [{"jsonPath": path, "numberValue": float(value)}]
        case None:
            return [{"jsonPath": path, "nullValue": "NULL_VALUE"}]
        case _:
            return [entry for place, item in enumerate(value) for entry in _entries(f"{path}[{place}]", item, size)]


@given(
    parts=st.lists(_part, min_size=1, max_size=6),
    size=st.integers(1, 6),
    reads=st.integers(1, 90),
    partial=st.booleans(),
    data=st.data(),
)
def test_folding_the_stream_gives_the_unary_answer(
    parts: list[Any], size: int, reads: int, partial: bool, data: st.DataObject
) -> None:
    # In a whole answer the provider joins the texts that a stream brings in pieces.
    joined: list[dict[str, Any]] = []
    for part in parts:
        last = joined[-1] if joined else {}
        both_text = part.get("text") and last.get("text") and part.get("thought") == last.get("thought")
        if both_text and "thoughtSignature" not in last:
            joined[-1] = {**last, "text": last["text"] + part["text"]}
        else:
            joined.append(dict(part))
    pieces = [piece for part in joined for piece in _cut(part, size, partial)]
    groups: list[list[dict[str, Any]]] = []
    for piece in pieces:
        if not groups or data.draw(st.booleans()):
            groups.append([])
        groups[-1].append(piece)
    usage = {"promptTokenCount": 10, "cachedContentTokenCount": 5, "candidatesTokenCount": 7}
    raw = frames(*(frame(*group, usage=usage) for group in groups), frame(stop="STOP", usage=usage))
    stream = Stream(OUTGOING)
    events = [event for at in range(0, len(raw), reads) for event in stream.feed(raw[at : at + reads])]
    events += stream.end()
    unary = to_events(orjson.dumps(frame(*joined, stop="STOP", usage=usage)), OUTGOING)
    assert fold(events).SerializeToString(deterministic=True) == fold(unary).SerializeToString(deterministic=True)
    indexes = [part.index for part in fold(unary).parts]
    assert indexes == sorted(set(indexes))
    # Nothing of any call was lost on the way.
    calls = [part["functionCall"] for part in joined if "functionCall" in part]
    got = [json.loads(part.tool_call.arguments_json) for part in fold(events).parts if part.HasField("tool_call")]
    assert got == [told["args"] for told in calls]
