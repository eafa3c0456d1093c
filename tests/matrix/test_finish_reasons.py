"""Every word for the end of an answer that a provider's own SDK knows means something, and no other word means STOP."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import pytest
from matrix_streams import answered
from matrix_wires import NAMES, conversation, wire

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing.wire import Answer, ToolCall

STOPS = {
    "anthropic": {"end_turn"},
    "openai": {"stop"},
    "vertex": {"STOP"},
    "bedrock": {"end_turn"},
    "ollama": {"stop"},
}
# Words that stand for nothing in particular, or that only other uses of the wire know.
VAGUE = {
    "vertex": {
        *("FINISH_REASON_UNSPECIFIED", "OTHER", "IMAGE_OTHER", "NO_IMAGE", "PUP_LIMITED_DISABLED"),
        *("TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE"),
    },
}
SPEAKS = {"azure": "openai", "vllm": "openai", "nova": "bedrock"}


def package(name: str) -> Path:
    """Where an SDK lies; importing it would take seconds."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin
    return Path(spec.origin).parent


@cache
def words(name: str) -> frozenset[str]:
    """The words of the provider's own SDK."""
    match SPEAKS.get(name, name):
        case "anthropic":
            source = (package("anthropic") / "types" / "stop_reason.py").read_text(encoding="utf-8")
            return frozenset(re.findall(r'"(\w+)"', source.split("Literal[", 1)[1]))
        case "openai":
            source = (package("openai") / "types" / "chat" / "chat_completion_chunk.py").read_text(encoding="utf-8")
            found = re.search(r"finish_reason: Optional\[Literal\[(.*?)\]\]", source)
            assert found
            return frozenset(re.findall(r'"(\w+)"', found[1]))
        case "vertex":
            from google.genai import types

            return frozenset(reason.value for reason in types.FinishReason)
        case "bedrock":
            [file] = (package("botocore") / "data" / "bedrock-runtime").glob("*/service-2.json*")
            raw = file.read_bytes()
            model = json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)
            return frozenset(model["shapes"]["StopReason"]["enum"])
        case "ollama":
            # Its types name no words; these are those of its server.
            return frozenset({"stop", "length", "load", "unload"})
        case other:
            raise AssertionError(other)


def end(name: str, word: str, *, calls: bool = False) -> ChatResponse:
    made = (ToolCall("call_1", "get_weather", {"city": "Rome"}),) if calls else ()
    answer = Answer(pieces=("hi",), calls=made, stop=word)
    return fold(answered(name, wire(name).ask(conversation("tools_required")), answer))


@pytest.mark.parametrize("name", NAMES)
def test_every_word_is_known(name: str) -> None:
    speaker = SPEAKS.get(name, name)
    found = words(name)
    assert len(found) >= 4
    assert STOPS[speaker] <= found
    for word in found:
        answer = end(name, word)
        assert answer.raw_reason == word
        stopped = answer.finish_reason == FinishReason.FINISH_REASON_STOP
        assert stopped == (word in STOPS[speaker]), word
        vague = answer.finish_reason == FinishReason.FINISH_REASON_OTHER
        assert vague == (word in VAGUE.get(speaker, {"load", "unload"})), word


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_nobody_knows(name: str) -> None:
    answer = end(name, "brand_new")
    assert (answer.finish_reason, answer.raw_reason) == (FinishReason.FINISH_REASON_OTHER, "brand_new")


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_never_a_mere_stop(name: str) -> None:
    """Gemini and Ollama say that they stopped, calls or not; and a limit that cut a call off is told as that."""
    [stop] = STOPS[SPEAKS.get(name, name)]
    assert end(name, stop, calls=True).finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    [limit] = words(name) & {"max_tokens", "length", "MAX_TOKENS"}
    assert end(name, limit, calls=True).finish_reason == FinishReason.FINISH_REASON_LENGTH
