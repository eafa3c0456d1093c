"""A model that does what it is asked, as far as the conformance suite asks: the well-behaved side of its tests.

`ObligingModel` decides the answer to a request; `ObligingProvider` sends it as events; `obliging_wires` sends it as a
provider's bytes, so that real adapters can be proven without a provider.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.batch_pb2 import BatchItem, BatchItemResult
from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    Finish,
    FinishReason,
    ReasoningDelta,
    ReasoningEffort,
    Started,
    TextDelta,
    ToolCallDelta,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import Role, TokenLogprob
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import UnsupportedParameter, Violation
from maestro_sdk.testing.obliging_batches import ObligingBatcher
from maestro_sdk.testing.obliging_embeddings import ObligingEmbedder
from maestro_sdk.testing.obliging_files import ObligingFiles
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall, fragments

MODEL = "obliging/model"
EMBEDDER = "obliging/embedder"
"""A second model, which only embeds."""
FEATURES = (
    Feature.FEATURE_CHAT,
    Feature.FEATURE_STREAMING,
    Feature.FEATURE_SYSTEM_PROMPT,
    Feature.FEATURE_PREFILL,
    Feature.FEATURE_TOOLS,
    Feature.FEATURE_PARALLEL_TOOLS,
    Feature.FEATURE_TOOL_CHOICE,
    Feature.FEATURE_STREAMED_TOOL_ARGS,
    Feature.FEATURE_JSON_SCHEMA,
    Feature.FEATURE_VISION,
    Feature.FEATURE_DOCUMENTS,
    Feature.FEATURE_REASONING,
    Feature.FEATURE_LOGPROBS,
    Feature.FEATURE_STOP_SEQUENCES,
    Feature.FEATURE_SEED,
    Feature.FEATURE_PROMPT_CACHING,
    Feature.FEATURE_TOKEN_COUNTING,
    Feature.FEATURE_EMBEDDINGS,
    Feature.FEATURE_FILES,
    Feature.FEATURE_BATCH,
)
"""What the provider claims: all that the model can do; no TEMPERATURE, no AUDIO."""

_CITIES = re.compile(r"\b(?:Paris|Rome|Oslo)\b")
_COUNT = re.compile(r"Count from 1 to (\d+)")
_WORD = re.compile(r"Reply with (?:exactly: |the word )(\S+?)\.?$")
_SYSTEM_WORD = re.compile(r"the single word (\w+)")
_FRUIT = re.compile(rb"\(The fruit of the day is (\w+)\.\) Tj")
_CACHEABLE = 1024
"""Tokens from which on system text is kept in the cache, as at real providers."""


@dataclass(frozen=True, slots=True)
class Obliged:
    """An answer, and why it ends; one piece is one token."""

    answer: Answer
    reason: FinishReason.ValueType
    stop_sequence: str = ""


class ObligingModel:
    """Its only memory is a prompt cache."""

    def __init__(self) -> None:
        self._kept: set[str] = set()

    def answer(self, request: ChatRequest) -> Obliged:
        """The answer, with usage as a provider would charge it."""
        effort = request.reasoning.effort
        thinks = request.HasField("reasoning") and effort != ReasoningEffort.REASONING_EFFORT_OFF
        thoughts = ("Let me see:", " 2, 3, 5, 7", " and so on.") if thinks else ()
        calls = choose_calls(request)
        text, met = ("", "") if calls else _cut(_go_on(say(request), request), request.stop)
        pieces = re.findall(r"\s*\S+", text)
        room = request.max_tokens - len(thoughts) if request.HasField("max_tokens") else len(pieces)
        reason = FinishReason.FINISH_REASON_TOOL_CALLS if calls else FinishReason.FINISH_REASON_STOP
        if met:
            reason = FinishReason.FINISH_REASON_STOP_SEQUENCE
        if len(pieces) > room:
            pieces, reason, met = pieces[:room], FinishReason.FINISH_REASON_LENGTH, ""
        answer = Answer(pieces=pieces, calls=calls, thoughts=thoughts, interleaved=True)
        return Obliged(replace(answer, tokens=self._tokens(request, answer)), reason, met)

    def _tokens(self, request: ChatRequest, answer: Answer) -> Tokens:
        kept = len(request.system) // 4
        read = written = 0
        if kept >= _CACHEABLE:
            read, written = (kept, 0) if request.system in self._kept else (0, kept)
            self._kept.add(request.system)
        output = len(answer.thoughts) + len(answer.pieces) + sum(4 + len(call.text) // 4 for call in answer.calls)
        return Tokens(count_tokens(request), output, read, written, 0, len(answer.thoughts))


def count_tokens(request: ChatRequest) -> int:
    """A token per four characters of text."""
    characters = len(request.system) + sum(len(tool.input_schema) + len(tool.name) for tool in request.tools)
    for message in request.messages:
        for part in message.parts:
            characters += len(part.text.text) + len(part.tool_call.arguments_json)
            characters += sum(len(inner.text.text) for inner in part.tool_result.parts)
    return 1 + characters // 4


def question_of(request: ChatRequest) -> str:
    """The text of the last user turn."""
    users = [message for message in request.messages if message.role == Role.ROLE_USER]
    told = [part.text.text for message in users for part in message.parts if part.HasField("text")]
    return told[-1] if told else ""


def choose_calls(request: ChatRequest) -> tuple[ToolCall, ...]:
    """The calls that prompt and tool choice ask for."""
    choice, tools = request.tool_choice, {tool.name: tool for tool in request.tools}
    if not tools or choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE or _results(request):
        return ()
    question = question_of(request)
    named = [name for name in tools if name in question]
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
        named = list(choice.names)
    elif choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED:
        named = named or list(tools)[:1]
    if not named:
        return ()
    places = _CITIES.findall(question) or ["Oslo"]
    if "parallel" not in question:
        places = places[:1]
    field = next(iter(json.loads(tools[named[0]].input_schema)["properties"]))
    return tuple(ToolCall(f"call_{number}", named[0], {field: place}) for number, place in enumerate(places, 1))


def say(request: ChatRequest) -> str:
    """The text that is asked for."""
    if results := _results(request):
        return f"The tool says: {' and '.join(results)}."
    if request.response_format.HasField("json_schema"):
        return json.dumps(_instance(json.loads(request.response_format.json_schema.schema)))
    if found := _SYSTEM_WORD.search(request.system):
        return found[1]
    for part in request.messages[-1].parts:
        if part.HasField("image"):
            return colour_of(part.image.data)
        if part.HasField("document"):
            found_fruit = _FRUIT.search(part.document.data)
            return found_fruit[1].decode() if found_fruit else "none"
    question = question_of(request)
    if found := _COUNT.search(question):
        return ", ".join(str(number) for number in range(1, int(found[1]) + 1))
    if found := _WORD.search(question):
        return found[1]
    if "primes" in question:
        return "There are 10 of them."
    return f"The sea is wide. It has no number but {request.seed}."


def _go_on(text: str, request: ChatRequest) -> str:
    """What is left of the text behind what an assistant message that stands last says of it."""
    last = request.messages[-1]
    if last.role != Role.ROLE_ASSISTANT:
        return text
    return text.removeprefix("".join(part.text.text for part in last.parts))


def colour_of(png: bytes) -> str:
    """The colour of the first pixel of an eight-bit RGB image without a filter."""
    start = png.index(b"IDAT") + 4
    size = int.from_bytes(png[start - 8 : start - 4], "big")
    red, green, blue = zlib.decompress(png[start : start + size])[1:4]
    return {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}.get((red, green, blue), "grey")


def _results(request: ChatRequest) -> list[str]:
    last = request.messages[-1].parts if request.messages else ()
    return [
        "".join(inner.text.text for inner in part.tool_result.parts) for part in last if part.HasField("tool_result")
    ]


def _instance(schema: Mapping[str, Any]) -> Any:
    match schema:
        case {"enum": [first, *_]}:
            return first
        case {"type": "object"}:
            return {name: _instance(inner) for name, inner in schema.get("properties", {}).items()}
        case {"type": "integer"}:
            return 20
        case _:
            return "Paris"


def _cut(text: str, stops: Sequence[str]) -> tuple[str, str]:
    for stop in stops:
        if stop in text:
            return text[: text.index(stop)], stop
    return text, ""


def obliging_model() -> Model:
    """The model that `ObligingProvider` offers for everything."""
    price = Price(
        effective_date="2026-01-01",
        input="3",
        output="15",
        cache_read="0.3",
        cache_write_5m="3.75",
        batch_factor="0.5",
    )
    return _model(MODEL, FEATURES, price=price, context_window=100_000)


def obliging_embedder() -> Model:
    """The model that only embeds."""
    return _model(
        EMBEDDER, (Feature.FEATURE_EMBEDDINGS,), price=Price(effective_date="2026-01-01", input="1", output="0")
    )


def _model(model_id: str, features: Sequence[Feature.ValueType], **fields: Any) -> Model:
    provider, _, name = model_id.partition("/")
    native = [FeatureSupport(feature=kind, support=Support.SUPPORT_NATIVE) for kind in features]
    return Model(id=model_id, provider=provider, name=name, features=native, **fields)


class ObligingProvider(ObligingEmbedder, ObligingFiles, ObligingBatcher):
    """A `Provider` with every extra of the kit; every event is yielded on its own, `pace` seconds apart."""

    def __init__(self, pace: float = 0.0005) -> None:
        ObligingFiles.__init__(self)
        ObligingBatcher.__init__(self, self._answer_item)
        self.name = "adapter-obliging"
        self.providers: Sequence[str] = ("obliging",)
        self.brain = ObligingModel()
        self._pace = pace

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        warnings = _refuse(request)
        obliged = self.brain.answer(request)
        for event in (*_begin(request), *warnings, *content(obliged.answer, request), finish(obliged)):
            yield (event,)
            await asyncio.sleep(self._pace)

    async def count_tokens(self, request: ChatRequest) -> int:
        return count_tokens(request)

    async def models(self) -> Sequence[Model]:
        return [obliging_model(), obliging_embedder()]

    async def check(self) -> str:
        return ""

    async def close(self) -> None:
        pass

    async def _answer_item(self, item: BatchItem) -> BatchItemResult:
        provider, _, model = (item.chat.model or item.embed.model).partition("/")
        if item.HasField("embed"):
            vectors = await self.embed(item.embed)
            vectors.provider, vectors.model = provider, model
            return BatchItemResult(item_id=item.item_id, embed=vectors)
        events = [event async for some in self.stream(item.chat) for event in some]
        return BatchItemResult(item_id=item.item_id, chat=fold(events))


def _refuse(request: ChatRequest) -> list[ChatEvent]:
    """Warnings for what is not claimed; errors for sound, and under `strict`."""
    for number, message in enumerate(request.messages):
        for place, part in enumerate(message.parts):
            if part.HasField("audio"):
                raise UnsupportedParameter.at(f"messages[{number}].parts[{place}].audio", "it can't hear")
    fields = [name for name in ("temperature", "top_p") if request.HasField(name)]
    if fields and request.strict:
        violations = [Violation(name, "it does not sample") for name in fields]
        raise UnsupportedParameter("it does not sample", violations=violations)
    return [
        ChatEvent(warning=chat_pb2.Warning(code="unsupported_parameter", message="it does not sample", field=name))
        for name in fields
    ]


def _begin(request: ChatRequest) -> list[ChatEvent]:
    provider, _, name = request.model.partition("/")
    return [ChatEvent(started=Started(response_id="obliging-1", provider=provider, model=name, attempt=1))]


def content(answer: Answer, request: ChatRequest) -> list[ChatEvent]:
    """The events of the content: reasoning, text, and calls in fragments."""
    events = [ChatEvent(reasoning=ReasoningDelta(index=0, text=thought)) for thought in answer.thoughts]
    first = 1 if answer.thoughts else 0
    for piece in answer.pieces:
        delta = TextDelta(index=first, text=piece)
        if request.HasField("logprobs"):
            delta.logprobs.append(TokenLogprob(token=piece, logprob=-0.25))
        events.append(ChatEvent(text=delta))
    first += 1 if answer.pieces else 0
    for index, call in enumerate(answer.calls, first):
        head, *rest = fragments(call.text, answer.fragment)
        delta_of = ToolCallDelta(index=index, call_id=call.call_id, name=call.name, arguments_json=head)
        events.append(ChatEvent(tool_call=delta_of))
        events += [ChatEvent(tool_call=ToolCallDelta(index=index, arguments_json=piece)) for piece in rest]
    return events


def finish(obliged: Obliged) -> ChatEvent:
    """The last event."""
    counted = obliged.answer.tokens or Tokens()
    usage = Usage(
        input_tokens=counted.input,
        output_tokens=counted.output,
        cache_read_tokens=counted.cache_read,
        cache_write_5m_tokens=counted.cache_write_5m,
        reasoning_tokens=counted.reasoning,
    )
    return ChatEvent(finish=Finish(reason=obliged.reason, stop_sequence=obliged.stop_sequence, usage=usage))
