"""One answer as each provider streams it, and as each adapter reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from matrix_wires import Sent, encoded, wire

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_sdk.testing import anthropic_messages, bedrock_converse, gemini_content, ollama_chat, openai_chat
from maestro_sdk.testing.faults import Headers, Seen, Send, SendJson, Sse, Step, encode_sse
from maestro_sdk.testing.wire import Answer, Wire

_GEMINI = "/v1/projects/p/locations/l/publishers/google/models/m:streamGenerateContent"
SPEAKERS: Mapping[str, tuple[Wire, str]] = {
    "anthropic": (anthropic_messages.WIRE, anthropic_messages.PATH),
    "openai": (openai_chat.WIRE, openai_chat.PATH),
    "azure": (openai_chat.WIRE, "/openai/deployments/my-deployment/chat/completions"),
    "vertex": (gemini_content.WIRE, _GEMINI),
    "bedrock": (bedrock_converse.WIRE, "/model/m/converse-stream"),
    "nova": (bedrock_converse.WIRE, "/model/m/converse-stream"),
    "ollama": (ollama_chat.WIRE, ollama_chat.PATH),
    "vllm": (openai_chat.WIRE, openai_chat.PATH),
}


def spoken(name: str, sent: Sent, answer: Answer) -> bytes:
    """The bytes of the provider's stream that answers what was sent."""
    speaker, path = SPEAKERS[name]
    body = sent.body | {"stream": True} if name in {"anthropic", "ollama"} else sent.body
    seen = Seen("POST", path, "", {}, encoded(body))
    assert speaker.streams(seen)
    return b"".join(_bytes(step) for step in speaker.answer(answer)(seen))


def _bytes(step: Step) -> bytes:
    match step:
        case Headers():
            return b""
        case Send(data):
            return data
        case SendJson(value):
            return json.dumps(value).encode()
        case Sse():
            return encode_sse(step)
        case _:
            raise AssertionError(f"a good answer has no {step}")


def read(sent: Sent, pieces: Sequence[bytes]) -> list[ChatEvent]:
    """The events of a stream that arrives in these pieces."""
    reader = sent.reader()
    events = [event for piece in pieces for event in reader.feed(piece)]
    return [*events, *(reader.end() or [])]


def answered(name: str, sent: Sent, answer: Answer) -> list[ChatEvent]:
    """What the mesh is told of the answer, all of it in one read."""
    return read(sent, [spoken(name, sent, answer)])


__all__ = ("SPEAKERS", "answered", "read", "spoken", "wire")
