"""Frames of Gemini's stream, as the tests of answers write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from maestro_adapter_vertex.translate import Outgoing

OUTGOING = Outgoing({}, "gemini-3.5-flash", tool_names={"_1st": "1st"})


def frames(*documents: Any) -> bytes:
    return b"".join(b"data: %b\r\n\r\n" % orjson.dumps(document) for document in documents)


def frame(*parts: Mapping[str, Any], stop: str = "", usage: Any = None, **candidate: Any) -> dict[str, Any]:
    made = {"content": {"role": "model", "parts": list(parts)}, **candidate}
    if stop:
        made["finishReason"] = stop
    return {"candidates": [made], "responseId": "r1", **({"usageMetadata": usage} if usage else {})}
