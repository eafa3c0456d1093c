"""Models that have nothing but text, for tests of what adapters make of them.

`TextProvider` says what it is told to; `PromptedProvider` does what the prompts of the polyfills ask it to.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    JsonSchemaFormat,
    ResponseFormat,
    Started,
    TextDelta,
    ToolChoice,
    ToolChoiceMode,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Part, Role, TextPart, ToolResultPart
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.errors import UnsupportedParameter
from maestro_sdk.testing.obliging import Obliged, ObligingModel, content, count_tokens, finish
from maestro_sdk.testing.wire import Answer, fragments

PLAIN = (Feature.FEATURE_CHAT, Feature.FEATURE_STREAMING, Feature.FEATURE_SYSTEM_PROMPT)


def plain_model(model_id: str = "plain/model", *native: Feature.ValueType) -> Model:
    """A model that chats and streams, and has the `native` features besides."""
    provider, _, name = model_id.partition("/")
    features = [FeatureSupport(feature=kind, support=Support.SUPPORT_NATIVE) for kind in (*PLAIN, *native)]
    price = Price(effective_date="2026-01-01", input="1", output="2")
    return Model(id=model_id, provider=provider, name=name, features=features, price=price)


class TextProvider:
    """A `Provider` that answers each request with the next of its texts, or list of events, and keeps the requests."""

    def __init__(self, *answers: str | Sequence[ChatEvent], model: Model | None = None, size: int = 4) -> None:
        """A text comes in pieces of `size` characters, each a read of the wire; a call costs 10 tokens in and 5 out."""
        self.name = "adapter-plain"
        self.requests: list[ChatRequest] = []
        self.abandoned = 0
        """How many streams were closed before their end."""
        self._answers = list(answers)
        self._model = model or plain_model()
        self.providers: Sequence[str] = (self._model.provider,)
        self._size = size

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        answer = self._answers[len(self.requests)]
        self.requests.append(request)
        events = say(answer, size=self._size, model=self._model) if isinstance(answer, str) else answer
        whole = False
        try:
            for event in events:
                yield (event,)
                await asyncio.sleep(0)
            whole = True
        finally:
            self.abandoned += not whole

    async def models(self) -> Sequence[Model]:
        return [self._model]

    async def check(self) -> str:
        return ""

    async def close(self) -> None:
        pass


def say(
    text: str,
    *,
    size: int = 4,
    model: Model | None = None,
    reason: FinishReason.ValueType = FinishReason.FINISH_REASON_STOP,
    before: Iterable[ChatEvent] = (),
) -> list[ChatEvent]:
    """The events of an answer in words; `before` stands between its beginning and the text."""
    found = model or plain_model()
    begin = Started(response_id="plain-1", provider=found.provider, model=found.name, attempt=1)
    events = [ChatEvent(started=begin), *before]
    events += [ChatEvent(text=TextDelta(index=0, text=piece)) for piece in fragments(text, size)]
    usage = Usage(input_tokens=10, output_tokens=5)
    return [*events, ChatEvent(finish=Finish(reason=reason, raw_reason="end", usage=usage))]


class PromptedProvider:
    """A `Provider` whose model reads the prompts of the polyfills, and answers in the forms that they describe.

    Behind the text it is an `ObligingModel`. With `constrained` its answers keep to a JSON schema where one is given.
    """

    def __init__(self, *, constrained: bool, pace: float = 0.0005) -> None:
        native = [Feature.FEATURE_REASONING, Feature.FEATURE_STOP_SEQUENCES, Feature.FEATURE_SEED]
        if constrained:
            native.append(Feature.FEATURE_JSON_SCHEMA)
        self.name = "adapter-prompted"
        self.providers: Sequence[str] = ("prompted",)
        self.refused: list[str] = []
        """What came that such a model does not take; it answers with nonsense then."""
        self._model = plain_model("prompted/model", *native)
        self._brain = ObligingModel()
        self._pace = pace

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        warnings = self._refuse(request)
        understood = understand(request)
        obliged = self._brain.answer(understood)
        text = write(request, obliged.answer)
        said = Obliged(
            Answer(pieces=text, thoughts=obliged.answer.thoughts, tokens=obliged.answer.tokens),
            FinishReason.FINISH_REASON_STOP if obliged.answer.calls else obliged.reason,
            obliged.stop_sequence,
        )
        begin = Started(response_id="prompted-1", provider="prompted", model="model", attempt=1)
        for event in (ChatEvent(started=begin), *warnings, *content(said.answer, request), finish(said)):
            yield (event,)
            await asyncio.sleep(self._pace)

    async def count_tokens(self, request: ChatRequest) -> int:
        return count_tokens(understand(request))

    async def models(self) -> Sequence[Model]:
        return [self._model]

    async def check(self) -> str:
        return ""

    async def close(self) -> None:
        pass

    def _refuse(self, request: ChatRequest) -> list[ChatEvent]:
        """Notes what should not have come; warnings for parameters, errors for parts and under `strict`."""
        kinds = {part.WhichOneof("kind") for message in request.messages for part in message.parts}
        self.refused += [str(kind) for kind in kinds & {"tool_call", "tool_result"}]
        self.refused += ["tools"] if request.tools else []
        self.refused += ["tool_choice"] if request.HasField("tool_choice") else []
        for number, message in enumerate(request.messages):
            for place, part in enumerate(message.parts):
                if not part.HasField("text"):
                    raise UnsupportedParameter.at(f"messages[{number}].parts[{place}]", "it only reads")
        fields = [name for name in ("temperature", "top_p", "logprobs") if request.HasField(name)]
        if fields and request.strict:
            raise UnsupportedParameter.at(fields[0], "it is too plain")
        return [
            ChatEvent(warning=Warning(code="unsupported_parameter", message="it is too plain", field=name))
            for name in fields
        ]


_TOOL = re.compile(r'^\{"name":.*\}$', re.MULTILINE)
_RESULT = re.compile(r"<tool_result>(.*)</tool_result>")
_SCHEMA = re.compile(r"It meets this JSON schema:\n(.*)")


def understand(request: ChatRequest) -> ChatRequest:
    """The request that the prompts describe, as a model understands it: tools, rule, results and form."""
    system, marker, rules = request.system.partition("# Tools\n")
    meant = ChatRequest()
    meant.CopyFrom(request)
    meant.system = system.strip()
    meant.ClearField("response_format")
    if marker:
        for line in _TOOL.findall(rules):
            tool: Any = json.loads(line)
            meant.tools.add(
                name=tool["name"], description=tool.get("description", ""), input_schema=json.dumps(tool["arguments"])
            )
        if "You must call" in rules:
            meant.tool_choice.CopyFrom(ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED))
    if schema := _SCHEMA.search(request.system):
        form = JsonSchemaFormat(name="form", schema=schema[1])
        meant.response_format.CopyFrom(ResponseFormat(json_schema=form))
        meant.system = system.partition("# Form of the answer")[0].strip()
    elif not marker and request.response_format.HasField("json_schema"):
        meant.response_format.CopyFrom(request.response_format)
    last = meant.messages[-1]
    results = [json.loads(found) for part in last.parts for found in _RESULT.findall(part.text.text)]
    if results:
        del last.parts[:]
        last.role = Role.ROLE_TOOL
        told = [Part(text=TextPart(text=result.get("content", ""))) for result in results]
        last.parts.extend(Part(tool_result=ToolResultPart(call_id="c", parts=[part])) for part in told)
    return meant


def write(request: ChatRequest, answer: Answer) -> Sequence[str]:
    """The pieces of text in which the model gives `answer`, in the form that the prompt describes."""
    text = "".join(answer.pieces)
    calls = [{"name": call.name, "arguments": json.loads(call.text)} for call in answer.calls]
    if '{"calls": ' in request.system:
        if calls:
            return list(fragments(json.dumps({"calls": calls}), 3))
        plain = 'The value of "reply"' in request.system
        return list(fragments(json.dumps({"reply": json.loads(text) if plain else text}), 3))
    if calls:
        return list(fragments("\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls), 3))
    return answer.pieces
