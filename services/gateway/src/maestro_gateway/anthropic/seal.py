"""State of providers inside blocks that Anthropic's clients send back untouched: `signature` and `redacted_thinking`.

Anthropic's own state has a place in its shape, other providers' (a thought signature on a call, encrypted reasoning)
has none. So every state travels sealed, with the word of who made it; what was not sealed here is Anthropic's own.
"""

from __future__ import annotations

import base64
import binascii

from google.protobuf.message import DecodeError

from maestro.llm.v1.message_pb2 import Origin, Part, ReasoningPart, TextPart, ToolCallPart

_SEAL = "maestro1."
_OWN = Origin(provider="anthropic", api="messages")


def seal(part: Part) -> str:
    """What only the maker of a part understands, as text; of the content only so much that `unseal` knows its place."""
    bare = Part(origin=part.origin, provider_state=part.provider_state)
    match part.WhichOneof("kind"):
        case "tool_call":
            bare.tool_call.CopyFrom(ToolCallPart(call_id=part.tool_call.call_id))
        case "text" | "refusal":
            # Whether the state belongs to words before it, or is all that there is.
            bare.text.CopyFrom(TextPart(text="said" if part.text.text or part.refusal.text else ""))
        case _:
            bare.reasoning.CopyFrom(ReasoningPart(redacted=part.reasoning.redacted))
    return _SEAL + base64.b64encode(bare.SerializeToString()).decode()


def unseal(text: str) -> Part:
    """A part without its content: `reasoning`, `tool_call` with its id, or `text`. Raises `ValueError`."""
    if not text.startswith(_SEAL):
        return Part(origin=_OWN, provider_state=text.encode(), reasoning=ReasoningPart())
    try:
        part = Part.FromString(base64.b64decode(text.removeprefix(_SEAL), validate=True))
    except (binascii.Error, DecodeError):
        raise ValueError("was altered on its way") from None
    if not part.HasField("origin") or part.WhichOneof("kind") not in ("reasoning", "tool_call", "text"):
        raise ValueError("was altered on its way")
    return part
