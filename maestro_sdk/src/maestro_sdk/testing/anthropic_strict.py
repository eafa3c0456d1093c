"""A strict emulator of `POST /v1/messages`: it refuses what the provider refuses, in the provider's own words.

    strict = StrictMessages([thinking("Let me see.", "c2ln"), call("t1", "weather", {})], [text("It is sunny.")])
    strict.install(server)

Each request that it accepts gets the next turn (the last one repeats). It remembers what it signed: a thinking block
that comes back with another letter in its text or its signature, or not at all, is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from maestro_sdk.testing.anthropic_messages import PATH
from maestro_sdk.testing.anthropic_subset import find_unsupported
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Sse, Step
from maestro_sdk.testing.strict_schemas import anthropic as refuse_input

Block = Mapping[str, Any]

_FIELDS = frozenset(
    (
        *("model", "max_tokens", "messages", "system", "tools", "tool_choice", "stop_sequences", "thinking"),
        *("output_config", "cache_control", "metadata", "service_tier", "speed", "container", "inference_geo"),
        *("stream", "diagnostics", "user_profile_id", "workspace_id"),
    )
)
_ID = re.compile(r"^[a-zA-Z0-9_-]+$")
_TOOL_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,128}$")
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_THINKING = frozenset({"thinking", "redacted_thinking"})
_USER = frozenset({"text", "image", "document", "tool_result", "search_result", "container_upload"})
_MAX_CACHE_POINTS = 4
_BETAS = {"context_management": "context-management-2025-06-27", "mcp_servers": "mcp-client-2025-11-20"}
"""Fields that a beta brings."""


def text(words: str) -> Block:
    """A text block of an answer."""
    return {"type": "text", "text": words}


def thinking(words: str, signature: str) -> Block:
    """A signed thought; `words` may be empty."""
    return {"type": "thinking", "thinking": words, "signature": signature}


def redacted(data: str) -> Block:
    """A thought that nobody may read."""
    return {"type": "redacted_thinking", "data": data}


def call(call_id: str, name: str, given: Mapping[str, Any]) -> Block:
    """A tool call of an answer."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": dict(given)}


class RefusedError(Exception):
    """A request that the provider answers with 400; the text is its explanation."""


class StrictMessages:
    """Checks requests, and answers those that are right."""

    def __init__(self, *turns: Sequence[Block]) -> None:
        self.accepted: list[Any] = []
        """The bodies that were right, in order."""
        self.refused: list[str] = []
        """Why the others were not."""
        self._turns = turns or ([text("Hello.")],)
        self._signed: dict[str, str] = {}
        self._thoughts: dict[str, list[Block]] = {}

    def install(self, server: FaultServer) -> None:
        """Lets `server` answer the messages wire."""
        server.on("POST", PATH, self.reply)

    def reply(self, seen: Seen) -> Sequence[Step]:
        """The answer to one request."""
        body: Any = seen.json()
        try:
            if "anthropic-version" not in seen.headers:
                raise RefusedError("anthropic-version: header is required")
            self.check(without_betas(seen, body))
        except RefusedError as refusal:
            self.refused.append(str(refusal))
            return refuse(str(refusal))
        message = self.answer(body)
        return list(stream(message)) if body.get("stream") else [SendJson(message)]

    def answer(self, body: Any) -> dict[str, Any]:
        """The message for a body that `check` let pass; remembers what it signs."""
        turn = self._turns[min(len(self.accepted), len(self._turns) - 1)]
        self.accepted.append(body)
        thoughts = [block for block in turn if block["type"] in _THINKING]
        for block in turn:
            if block["type"] == "thinking":
                self._signed[block["signature"]] = block["thinking"]
            elif block["type"] == "redacted_thinking":
                self._signed[block["data"]] = ""
            elif block["type"] == "tool_use":
                self._thoughts[block["id"]] = thoughts
        calls = any(block["type"] == "tool_use" for block in turn)
        return {
            "id": f"msg_{len(self.accepted)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [dict(block) for block in turn],
            "stop_reason": "tool_use" if calls else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 5},
        }

    def check(self, body: Any) -> None:
        """Raises `RefusedError` for the first thing in `body` that the provider would refuse."""
        if extra := sorted(set(body) - _FIELDS):
            raise RefusedError(f"{extra[0]}: Extra inputs are not permitted")
        for name in ("model", "max_tokens", "messages"):
            if name not in body:
                raise RefusedError(f"{name}: Field required")
        if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
            raise RefusedError("max_tokens: must be greater than or equal to 1")
        mode = _check_thinking(body)
        _check_tools(body, forced_refused=mode == "enabled")
        _check_format(body)
        _check_cache(body)
        self._check_messages(body["messages"], mode)

    def _check_messages(self, messages: Any, mode: str) -> None:
        if not messages:
            raise RefusedError("messages: at least one message is required")
        if messages[0]["role"] != "user":
            raise RefusedError("messages: first message must use the user role")
        pending: list[str] = []
        for number, message in enumerate(messages):
            role, at = message["role"], f"messages.{number}"
            if role != ("user", "assistant")[number % 2]:
                raise RefusedError('messages: roles must alternate between "user" and "assistant"')
            blocks = _blocks(message["content"], at)
            for position, block in enumerate(blocks):
                self._check_block(block, role, f"{at}.content.{position}")
            if role == "user":
                _check_results(blocks, pending, number)
            pending = [block["id"] for block in blocks if block["type"] == "tool_use"]
        if messages[-1]["role"] == "assistant" and not _paused(messages[-1]["content"]):
            raise RefusedError(
                "This model does not support assistant message prefill. The conversation must end with a user message."
            )
        self._check_thoughts(messages, mode)

    def _check_block(self, block: Any, role: str, at: str) -> None:
        kind = block["type"]
        if role == "user" and kind not in _USER:
            raise RefusedError(f"{at}: `{kind}` blocks can only be in `assistant` messages")
        if role == "assistant" and kind in _USER - {"text"}:
            raise RefusedError(f"{at}: `{kind}` blocks can only be in `user` messages")
        match kind:
            case "text":
                if not block["text"].strip():
                    raise RefusedError("messages: text content blocks must contain non-whitespace text")
            case "image" | "document":
                _check_source(block["source"], kind, f"{at}.{kind}.source")
            case "tool_use":
                if not _ID.match(block["id"]):
                    raise RefusedError(f"{at}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
                if not _TOOL_NAME.match(block["name"]):
                    raise RefusedError(f"{at}.tool_use.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
                if not isinstance(block["input"], dict):
                    raise RefusedError(f"{at}.tool_use.input: Input should be a valid dictionary")
            case "tool_result":
                for position, inner in enumerate(_blocks(block.get("content") or "-", at)):
                    self._check_block(inner, "user", f"{at}.tool_result.content.{position}")
            case "thinking":
                if self._signed.get(block["signature"]) != block["thinking"]:
                    raise RefusedError(f"{at}: Invalid `signature` in `thinking` block")
            case "redacted_thinking":
                if block["data"] not in self._signed:
                    raise RefusedError(f"{at}: Invalid `data` in `redacted_thinking` block")
            case _:
                pass  # The provider's own tools; only it knows what may stand there.

    def _check_thoughts(self, messages: Sequence[Any], mode: str) -> None:
        """The last turn of the assistant keeps its thoughts as they were while its tools are being answered."""
        last = max((number for number, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        if last < 0 or mode in {"", "disabled"}:
            return
        blocks = _blocks(messages[last]["content"], f"messages.{last}")
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        first = blocks[0]["type"]
        if calls and mode == "enabled" and first not in _THINKING:
            raise RefusedError(
                f"messages.{last}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{first}`. "
                "When `thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding "
                "the lastmost set of `tool_use` and `tool_result` blocks)."
            )
        thoughts = [block for block in blocks if block["type"] in _THINKING]
        if any(self._thoughts.get(call_id, thoughts) != thoughts for call_id in calls):
            raise RefusedError(
                f"messages.{last}.content: `thinking` or `redacted_thinking` blocks in the latest assistant message "
                "cannot be modified. These blocks must remain as they were in the original response."
            )


def without_betas(seen: Seen, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without what is allowed by the header `anthropic-beta` only, as far as the request sends it."""
    betas = seen.headers.get("anthropic-beta", "")
    allowed = {name for name, beta in _BETAS.items() if beta in betas}
    return {name: value for name, value in body.items() if name not in allowed}


def refuse(message: str, status: int = 400, kind: str = "invalid_request_error") -> Sequence[Step]:
    """A refusal as the provider writes it."""
    error = {"type": kind, "message": message}
    document = {"type": "error", "error": error, "request_id": "req_strict"}
    return Headers(status, {"request-id": "req_strict"}), SendJson(document)


def stream(message: Mapping[str, Any]) -> Iterator[Step]:
    """The events of a message."""
    usage = message["usage"]
    opening: dict[str, Any] = {**message, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield Sse("message_start", {"type": "message_start", "message": opening})
    for index, block in enumerate(message["content"]):
        start, deltas = _deltas(block)
        yield Sse("content_block_start", {"type": "content_block_start", "index": index, "content_block": start})
        for delta in deltas:
            yield Sse("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
        yield Sse("content_block_stop", {"type": "content_block_stop", "index": index})
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": message["stop_sequence"]}
    yield Sse("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
    yield Sse("message_stop", {"type": "message_stop"})


def _deltas(block: Block) -> tuple[Block, list[Block]]:
    match block["type"]:
        case "text":
            words: str = block["text"]
            half = len(words) // 2
            pieces = [piece for piece in (words[:half], words[half:]) if piece]
            return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
        case "thinking":
            deltas: list[Block] = []
            if block["thinking"]:
                deltas.append({"type": "thinking_delta", "thinking": block["thinking"]})
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": "thinking", "thinking": "", "signature": ""}, deltas
        case "tool_use":
            written = json.dumps(block["input"])
            half = len(written) // 2
            pieces = [written[:half], written[half:]]
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        case _:
            return block, []


def _blocks(content: Any, at: str) -> Sequence[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not content:
        raise RefusedError(f"{at}: all messages must have non-empty content")
    return cast("Sequence[Any]", content)


def _paused(content: Any) -> bool:
    """Whether a turn ends with one of the provider's own tools, and so may be gone on with."""
    return isinstance(content, list) and str(cast("list[Any]", content)[-1]["type"]).startswith(("server_tool", "web_"))


def _check_results(blocks: Sequence[Any], pending: Sequence[str], number: int) -> None:
    results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
    first = [block["tool_use_id"] for block in blocks[: len(results)] if block["type"] == "tool_result"]
    if missing := [call_id for call_id in pending if call_id not in first]:
        raise RefusedError(
            f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks immediately after: "
            f"{', '.join(missing)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
            "message."
        )
    if strange := [call_id for call_id in results if call_id not in pending]:
        raise RefusedError(
            f"messages.{number}.content.0: unexpected `tool_use_id` found in `tool_result` blocks: {strange[0]}. Each "
            "`tool_result` block must have a corresponding `tool_use` block in the previous message."
        )
    if len(set(results)) < len(results):
        raise RefusedError(f"messages.{number}: each tool_use must have a single result.")


def _check_source(source: Any, kind: str, at: str) -> None:
    match source["type"]:
        case "base64":
            types = _IMAGES if kind == "image" else {"application/pdf"}
            if source["media_type"] not in types:
                allowed = " or ".join(f"'{name}'" for name in sorted(types))
                raise RefusedError(f"{at}.base64.media_type: Input should be {allowed}")
        case "url":
            if not source["url"].startswith("https://"):
                raise RefusedError(f"{at}.url.url: Only HTTPS URLs are supported.")
        case "file":
            if not source["file_id"].startswith("file_"):
                raise RefusedError(f"{at}.file.file_id: File not found: {source['file_id']}")
        case "text" if kind == "document":
            pass
        case other:
            raise RefusedError(f"{at}: Input tag '{other}' found using 'type' does not match any of the expected tags")


def _check_thinking(body: Any) -> str:
    """The mode of thinking, empty when the request does not say."""
    mode: Any = body.get("thinking") or {}
    match mode.get("type"):
        case None:
            return ""
        case "enabled":
            if mode["budget_tokens"] < 1024:
                raise RefusedError("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
            if mode["budget_tokens"] >= body["max_tokens"]:
                raise RefusedError("`max_tokens` must be greater than `thinking.budget_tokens`.")
        case "adaptive" | "disabled" | "between_tools":
            pass
        case other:
            raise RefusedError(f"thinking: Input tag '{other}' found using 'type' does not match any expected tag")
    return str(mode["type"])


def _check_tools(body: Any, *, forced_refused: bool) -> None:
    names: set[str] = set()
    for number, tool in enumerate(body.get("tools", ())):
        at = f"tools.{number}.custom"
        if not _TOOL_NAME.match(tool["name"]):
            raise RefusedError(f"{at}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if tool["name"] in names:
            raise RefusedError("tools: Tool names must be unique.")
        names.add(tool["name"])
        check_input_schema(tool["input_schema"], f"{at}.input_schema")
        if tool.get("strict"):
            for pointer, why in find_unsupported(tool["input_schema"]):
                raise RefusedError(f"{at}: {why} ({pointer})")
    choice = body.get("tool_choice") or {"type": "auto"}
    if choice["type"] == "tool" and choice["name"] not in names:
        raise RefusedError(f"Tool '{choice['name']}' not found in provided tools")
    if choice["type"] in {"any", "tool"} and forced_refused:
        raise RefusedError("Thinking may not be enabled when tool_choice forces tool use.")


def check_input_schema(schema: Any, at: str) -> None:
    """Raises `RefusedError` for what is no schema of a tool's input."""
    for refusal in refuse_input(schema):
        raise RefusedError(f"{at}{refusal.pointer.replace('/', '.')}: {refusal.message}")


def _check_format(body: Any) -> None:
    config: Any = body.get("output_config") or {}
    wanted: Any = config.get("format")
    if wanted is None:
        return
    if wanted["type"] != "json_schema":
        raise RefusedError("output_config.format.type: Input should be 'json_schema'")
    for pointer, why in find_unsupported(wanted["schema"]):
        raise RefusedError(f"output_config.format.schema: {why} ({pointer})")


def _check_cache(body: Any) -> None:
    found = [1] if body.get("cache_control") else []
    for message in body["messages"]:
        for block in _blocks(message["content"], "messages") if message["content"] else ():
            if "cache_control" in block:
                if block["type"] in _THINKING:
                    raise RefusedError(f"messages: {block['type']}.cache_control: Extra inputs are not permitted")
                found.append(1)
    system = body.get("system") or ()
    places: list[Any] = [*(cast("list[Any]", system) if isinstance(system, list) else ()), *body.get("tools", ())]
    found += [1 for place in places if "cache_control" in place]
    if len(found) > _MAX_CACHE_POINTS:
        raise RefusedError(
            f"A maximum of {_MAX_CACHE_POINTS} blocks with cache_control may be provided. Found {len(found)}."
        )
