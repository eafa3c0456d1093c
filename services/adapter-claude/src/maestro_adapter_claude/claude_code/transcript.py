"""The past of a conversation as Claude Code keeps sessions: one JSON object per line, each naming the one before it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import orjson

from maestro_adapter_claude.claude_code.request import Run, is_call

_NAMES = uuid.UUID("6f1d2c5e-30f1-4c0e-9d0c-2f6d2a6c7b10")
_TIME = "2026-01-01T00:00:00.000Z"
"""Sessions have times; a conversation of the contract has none."""


def session_file(session_id: str, folder: PurePath) -> PurePath:
    """Where, under Claude Code's own folder, it looks for a session of someone who works in `folder`."""
    return PurePath("projects", re.sub(r"[^a-zA-Z0-9]", "-", str(folder)), f"{session_id}.jsonl")


def to_transcript(run: Run, session_id: str, folder: PurePath, version: str) -> bytes:
    """The session before the run; empty when there is nothing to resume."""
    entries: list[bytes] = []
    before: str | None = None

    def add(fields: Mapping[str, Any]) -> None:
        nonlocal before
        name = str(uuid.uuid5(_NAMES, f"{session_id}/{len(entries)}"))
        entry = {
            "parentUuid": before,
            "isSidechain": False,
            "uuid": name,
            "timestamp": _TIME,
            "userType": "external",
            "cwd": str(folder),
            "sessionId": session_id,
            "version": version,
            **fields,
        }
        entries.append(orjson.dumps(entry))
        before = name

    for number, message in enumerate(run.past):
        if message["role"] == "user":
            add({"type": "user", "message": message})
        else:
            add({"type": "assistant", "message": _answered(message, run.outgoing.model, number)})
    if run.pending is not None:
        call, _ = run.pending
        waiting = {
            "type": "hook_deferred_tool",
            "toolUseID": call["id"],
            "toolName": call["name"],
            "toolInput": call["input"],
            "hookName": "settings",
            "hookEvent": "PreToolUse",
            "permissionMode": "dontAsk",
        }
        add({"type": "attachment", "attachment": waiting})
    return b"".join(entry + b"\n" for entry in entries)


def _answered(message: Mapping[str, Any], model: str, number: int) -> dict[str, Any]:
    calls = any(is_call(block) for block in message["content"])
    return {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": message["content"],
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
