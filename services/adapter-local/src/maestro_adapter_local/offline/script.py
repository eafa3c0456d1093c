"""Scripts of the offline model: a YAML file of rules, pattern → answer, calls, error or delay."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from maestro.llm.v1.chat_pb2 import ChatRequest, FinishReason
from maestro_adapter_local.offline.answer import Answer, Call, warnings_for
from maestro_adapter_local.offline.conversation import Conversation
from maestro_adapter_local.offline.instance import dump
from maestro_sdk.errors import BY_REASON, MaestroError
from maestro_sdk.service.config_file import ConfigError, Problem, display_name, note_invalid, parse
from maestro_sdk.service.settings import Duration, Settings

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_REASONS = ", ".join(BY_REASON)


def _reason(value: str) -> str:
    if value not in BY_REASON:
        raise ValueError(f"{value!r} is not one of {_REASONS}")
    return value


Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Match(Settings):
    """When a rule holds: all that is given must hold. `text` and `system` are searched, `model` matches as a whole."""

    text: re.Pattern[str] | None = None
    system: re.Pattern[str] | None = None
    model: re.Pattern[str] | None = None
    has_tool_result: bool | None = None
    turn: Annotated[int, Field(ge=1)] | None = None
    tools: tuple[str, ...] = ()


class ScriptedCall(Settings):
    """A tool call; `arguments` may also be text, to send something that is no JSON."""

    name: Annotated[str, Field(min_length=1)]
    arguments: dict[str, Any] | str = Field(default_factory=dict[str, Any])


class ScriptedError(Settings):
    """An error of the contract, raised as the class of its reason."""

    reason: Annotated[str, AfterValidator(_reason)]
    message: str = ""
    retry_after: Duration | None = None

    def make(self) -> MaestroError:
        """A new error."""
        message = self.message or f"{self.reason}, as the script of the offline model asks"
        return BY_REASON[self.reason](message, retry_after=self.retry_after)


class ScriptedUsage(Settings):
    """Counts that replace those of the offline model."""

    input_tokens: Count | None = None
    output_tokens: Count | None = None
    reasoning_tokens: Count | None = None
    cache_read_tokens: Count | None = None
    cache_write_5m_tokens: Count | None = None
    cache_write_1h_tokens: Count | None = None


class Rule(Settings):
    """One rule. `after` content events the error comes; without `after` it comes instead of an answer."""

    match: Match = Match()
    reply: str | None = None
    json_: Any = Field(default=None, alias="json")
    reasoning: str = ""
    tool_calls: tuple[ScriptedCall, ...] = ()
    error: ScriptedError | None = None
    after: Annotated[int, Field(ge=0)] | None = None
    delay: Duration = 0.0
    pace: Duration | None = None
    usage: ScriptedUsage = ScriptedUsage()
    finish_reason: (
        Literal[
            "STOP",
            "LENGTH",
            "CONTEXT_WINDOW",
            "TOOL_CALLS",
            "CONTENT_FILTER",
            "REFUSAL",
            "PAUSED",
            "MALFORMED",
            "OTHER",
        ]
        | None
    ) = None

    @field_validator("match", mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_json = "json_" in self.model_fields_set
        content = self.reply is not None or has_json or bool(self.tool_calls)
        if self.reply is not None and has_json:
            raise ValueError("give either reply or json")
        if not content and self.error is None:
            raise ValueError("give reply, json, tool_calls or error")
        if self.error is None and self.after is not None:
            raise ValueError("after needs an error")
        if self.error is not None and content and self.after is None:
            raise ValueError("an error beside an answer needs after: the number of events before it")
        if self.error is not None and self.after and not content:
            raise ValueError("after needs something to send before the error: reply, json or tool_calls")
        return self


class Script(Settings):
    """Rules in order."""

    rules: tuple[Rule, ...] = ()

    def find(self, request: ChatRequest, conversation: Conversation) -> tuple[Rule, Mapping[str, str]] | None:
        """The first rule that holds, and the values of its placeholders."""
        name = request.model.rpartition("/")[2]
        offered = {tool.name for tool in request.tools}
        for rule in self.rules:
            wish = rule.match
            if wish.has_tool_result is not None and wish.has_tool_result != conversation.awaits_answer:
                continue
            if wish.turn is not None and wish.turn != conversation.turn:
                continue
            if not offered.issuperset(wish.tools):
                continue
            if wish.model is not None and wish.model.fullmatch(name) is None:
                continue
            values = {
                "question": conversation.question,
                "result": "\n".join(result.text for result in conversation.results),
                "turn": str(conversation.turn),
                "model": name,
            }
            if _search(wish.system, conversation.system, values) and _search(wish.text, conversation.question, values):
                return rule, values
        return None


def scripted_answer(rule: Rule, values: Mapping[str, str], request: ChatRequest) -> Answer:
    """The answer that a rule gives."""
    text = _fill(rule.reply, values) if rule.reply is not None else ""
    if "json_" in rule.model_fields_set:
        text = dump(_fill(rule.json_, values))
    calls = tuple(
        Call(
            call.name,
            _fill(call.arguments, values) if isinstance(call.arguments, str) else dump(_fill(call.arguments, values)),
        )
        for call in rule.tool_calls
    )
    reason = FinishReason.FINISH_REASON_UNSPECIFIED
    if rule.finish_reason is not None:
        reason = FinishReason.Value(f"FINISH_REASON_{rule.finish_reason}")
    return Answer(
        text=text,
        calls=calls,
        reasoning=_fill(rule.reasoning, values),
        reason=reason,
        usage=rule.usage.model_dump(exclude_none=True),
        warnings=warnings_for(request),
    )


def load_script(path: Path) -> Script:
    """The script in a file. Raises `ConfigError` that lists every problem with its line."""
    name = display_name(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError([Problem(name, "", f"the script can't be read: {reason}")]) from error
    document = parse(text, name, os.environ)
    script = Script()
    if not document.problems:
        try:
            script = Script.model_validate(document.data)
        except ValidationError as error:
            note_invalid(document, error, Script)
    if document.problems:
        raise document.error()
    return script


def _search(pattern: re.Pattern[str] | None, text: str, values: dict[str, str]) -> bool:
    if pattern is None:
        return True
    found = pattern.search(text)
    if found is None:
        return False
    values.update({str(number): group or "" for number, group in enumerate(found.groups(), 1)})
    values.update({name: group or "" for name, group in found.groupdict().items()})
    return True


def _fill(value: Any, values: Mapping[str, str]) -> Any:
    """The value with `{name}` replaced in all its texts; an unknown name stays as it is."""
    if isinstance(value, str):
        return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), value)
    if isinstance(value, list):
        return [_fill(item, values) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: _fill(item, values) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value
