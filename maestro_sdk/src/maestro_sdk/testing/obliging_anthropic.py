"""The obliging model behind a whole account at Anthropic: messages, counts, batches and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from maestro_sdk.testing import anthropic_messages
from maestro_sdk.testing.anthropic_auxiliary import AnthropicAuxiliary
from maestro_sdk.testing.faults import FaultServer, Seen, SendJson, Sse, Step
from maestro_sdk.testing.obliging_wires import anthropic_reply, oblige_anthropic

_INPUT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_PREFIX = "mcp__maestro__"
_ITS_OWN = 2
"""Blocks of system text that Claude Code puts before the caller's."""
_LOOKS = 3
"""Looks at a batch that see it under way."""


def oblige_anthropic_account(server: FaultServer) -> None:
    """Lets `server` be Anthropic's API. What was uploaded does not come back, as at the provider."""
    oblige_anthropic(server)
    AnthropicAuxiliary(looks=_LOOKS, make=_make, count=_count).install(server)


def oblige_claude_code(server: FaultServer) -> None:
    """Lets `server` be the API behind runs of Claude Code, whose own reminders the model does not see."""
    reply = anthropic_reply()

    def without_reminders(seen: Seen) -> Sequence[Step]:
        # The model knows tools by the names that its caller gave them.
        text = json.dumps(plain_conversation(seen.json())).replace(_PREFIX, "")
        return [_prefixed(step) for step in reply(replace(seen, body=text.encode()))]

    server.on("POST", anthropic_messages.PATH, without_reminders)


def _prefixed(step: Step) -> Step:
    match step:
        case Sse(event, {"content_block": {"type": "tool_use", "name": str(name)} as block} as frame):
            return Sse(event, {**frame, "content_block": {**block, "name": _PREFIX + name}})
        case _:
            return step


def plain_conversation(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request of Claude Code without what it adds: reminders in the system's name, and its own system text."""
    turns = [message for message in body["messages"] if message["role"] != "system"]
    system = [block["text"] for block in body.get("system", ())]
    return {**body, "messages": turns, "system": system[-1] if len(system) > _ITS_OWN else ""}


def _make(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "succeeded", "message": _answer(params)}


def _count(body: Mapping[str, Any]) -> int:
    usage = _answer({**body, "max_tokens": 1024})["usage"]
    return sum(usage[name] for name in _INPUT)


def _answer(body: Mapping[str, Any]) -> Any:
    seen = Seen("POST", anthropic_messages.PATH, "", {}, json.dumps(body).encode())
    return next(step.value for step in anthropic_reply()(seen) if isinstance(step, SendJson))
