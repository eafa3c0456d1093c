"""Names and paths of a chat request's body, for people who mistyped one."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_gateway.json_codec.parts import PART_FIELDS, PART_TYPES
from maestro_sdk.errors import InvalidRequest, Violation

SYSTEM_ROLES = ("system", "developer")
"""Roles whose messages become `ChatRequest.system`."""

# What other APIs call the same thing.
_FOREIGN_NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop_sequences": "stop",
    "thinking": "reasoning",
    "reasoning_effort": "reasoning.effort",
    "parallel_tool_calls": "tool_choice.parallel",
    "top_logprobs": "logprobs.top",
    "parameters": "input_schema",
    "functions": "tools",
    "tool_calls": "parts of type tool_call",
    "tool_call_id": "parts of type tool_result",
}
_KNOWN_NAMES = sorted(
    {field.name for field in ChatRequest.DESCRIPTOR.fields} | {"stream", "role", "content", "parts"} | PART_FIELDS
)


@lru_cache(maxsize=512)
def hint(name: str) -> str:
    """What an unknown field may have been meant as: "; did you mean max_tokens?", or nothing."""
    if name in _FOREIGN_NAMES:
        return f"; it is {_FOREIGN_NAMES[name]} here"
    near = get_close_matches(name, _KNOWN_NAMES, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near and near[0] != name else ""


_PART_PATH = re.compile(r"\bparts\b(?:(\[\d+\])(?:\.(?:" + "|".join(PART_TYPES) + r")\b)?)?")
_MESSAGE_PATH = re.compile(r"^messages\[(\d+)\]")
# What a violation of a oneof, whose path ends in the name of the group, means in the body.
_GROUPS = {".source": "give one of data, url, file_id", ".after": "give one of tools, system, message"}


def with_paths_of(document: dict[str, Any], error: InvalidRequest) -> InvalidRequest:
    """The error of a validation, with the paths of the body that was validated."""
    violations: list[Violation] = []
    for found in error.violations:
        group = next((name for name in _GROUPS if found.field.endswith(name)), "")
        field = body_path(document, found.field.removesuffix(group))
        violations.append(Violation(field, _GROUPS.get(group, found.message)))
    message = "; ".join(f"{found.field}: {found.message}" for found in violations) or error.message
    return InvalidRequest(message, violations=violations)


def body_path(document: dict[str, Any], path: str) -> str:
    """The path in the body of what the contract calls `path`.

    `messages[1].parts[0].image.url` is `messages[2].content[0].url` behind a message of the system.
    """
    message = _MESSAGE_PATH.match(path)
    if message is None:
        return path.replace("response_format.json_schema.", "response_format.")
    items = cast("list[dict[str, Any]]", document["messages"])
    kept = [n for n, item in enumerate(items) if item.get("role") not in SYSTEM_ROLES]
    index = kept[int(message[1])]
    rest = _PART_PATH.sub(lambda found: f"content{found[1] or ''}", path[message.end() :])
    content = items[index].get("content")
    if content is None:
        rest = rest.replace(".content", ".parts", 1)
    elif type(content) is str:
        rest = rest.replace(".content[0]", ".content", 1)
    return f"messages[{index}]{rest}".replace(".arguments_json", ".arguments")
