"""Core cases: the shape of an answer, streamed and whole."""

from __future__ import annotations

import asyncio
import itertools
import re
from decimal import Decimal

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason, Reasoning, ReasoningEffort
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.models import cost_of
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.case import ANSWERS, core
from maestro_sdk.conformance.outcome import Broken, NotApplicable, expect
from maestro_sdk.conformance.target import Exchange, Refusal, Target
from maestro_sdk.types import assistant, text_of, user

CONTENT = frozenset({"text", "reasoning", "tool_call", "part"})
_READ = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


async def exchanges(target: Target) -> list[Exchange]:
    """The recorded exchanges on which the rules of streams are checked: text, a tool call and reasoning."""
    asked: list[tuple[str, ChatRequest]] = [("count", prompts.count())]
    if target.claims(Feature.FEATURE_TOOLS):
        asked.append(("tool", prompts.weather()))
    if target.claims(Feature.FEATURE_PARALLEL_TOOLS):
        asked.append(("two calls", two_calls()))
    if target.claims(Feature.FEATURE_REASONING):
        asked.append(("reasoning", thoughtful()))
    return list(await asyncio.gather(*(target.recorded(label, request) for label, request in asked)))


def two_calls() -> ChatRequest:
    """A request that wants two calls at once."""
    text = "Call the tool get_weather for Paris and for Rome, both calls at once, in parallel."
    return prompts.ask(text, tools=[prompts.weather_tool()])


def thoughtful() -> ChatRequest:
    """A request that wants reasoning."""
    text = "How many of the numbers from 1 to 30 are primes? Think it over, then give the number."
    return prompts.ask(text, reasoning=Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))


@core("a question is answered", "ChatService.StreamChat: success is content and status OK")
async def answers(target: Target) -> str:
    """Everything else stands on this."""
    for exchange in await exchanges(target):
        expect(exchange.refusal is None, f"ended with {exchange.refusal}", exchange.label)
        expect(CONTENT.intersection(exchange.kinds), f"no content: {', '.join(exchange.kinds)}", exchange.label)
    text = "".join(event.text.text for event in (await target.recorded("count", prompts.count())).events)
    return f"“{text[:40]}”"


@core(
    "exactly one `started`, first",
    "chat.proto ChatEvent.started: first event, once; Started: response_id, provider, model and attempt are required",
    needs=("answers",),
)
async def started_first(target: Target) -> str:
    """The caller learns who answers before the answer."""
    for exchange in await exchanges(target):
        kinds = exchange.kinds
        expect(kinds[0] == "started", f"the first event is `{kinds[0]}`", exchange.at(0))
        expect(kinds.count("started") == 1, f"`started` came {kinds.count('started')} times", exchange.label)
        started = exchange.events[0].started
        expect(started.response_id, "response_id is empty", exchange.at(0))
        named = f"{started.provider}/{started.model}"
        expect(started.provider and started.model, f"names {named!r}", exchange.at(0))
        expect(started.attempt >= 1, f"attempt is {started.attempt}", exchange.at(0))
    return "first and once in every answer"


@core(
    "exactly one `finish`, last",
    "chat.proto StreamChat: success is exactly one `finish` event, last; any other end is an error status",
    needs=("answers",),
)
async def finish_last(target: Target) -> str:
    """A clean end without it would be a lost answer that looks like a short one."""
    for exchange in await exchanges(target):
        kinds = exchange.kinds
        amount = kinds.count("finish")
        expect(amount, "status OK without a `finish` event", exchange.label)
        expect(amount == 1, f"`finish` came {amount} times", exchange.label)
        after = kinds[kinds.index("finish") + 1 :]
        expect(not after, f"{', '.join(after)} after `finish`", exchange.at(kinds.index("finish")))
    return "last and once in every answer"


@core(
    "the finish reason is known and fits",
    "chat.proto FinishReason: UNSPECIFIED is never sent; TOOL_CALLS exactly when the model waits for results",
    needs=("finish_last",),
)
async def finish_reason(target: Target) -> str:
    """An invented reason makes a caller take half an answer for a whole one."""
    names: list[str] = []
    for exchange in await exchanges(target):
        last = len(exchange.events) - 1
        reason = exchange.events[last].finish.reason
        known = reason in FinishReason.values() and reason != FinishReason.FINISH_REASON_UNSPECIFIED
        expect(known, f"reason {reason}", exchange.at(last))
        name = FinishReason.Name(reason).removeprefix("FINISH_REASON_")
        calls = "tool_call" in exchange.kinds
        waits = reason == FinishReason.FINISH_REASON_TOOL_CALLS
        expect(waits == calls, f"{name} {'with' if calls else 'without'} a tool call", exchange.at(last))
        names.append(name)
    return ", ".join(names)


@core(
    "parts have their own indexes and one kind each",
    "chat.proto deltas: index tells the part; a part is of one kind, its first tool_call delta has call_id and name",
    needs=("answers",),
)
async def indexes(target: Target) -> str:
    """Interleaved calls are put together by index."""
    most = 0
    for exchange in await exchanges(target):
        kinds: dict[int, str] = {}
        calls: dict[int, str] = {}
        for number, event in enumerate(exchange.events):
            kind, index = _place(event)
            if kind not in CONTENT:
                continue
            place = exchange.at(number)
            kept = kinds.setdefault(index, kind)
            expect(kept == kind, f"part {index} is {kept} and {kind}", place)
            if kind == "tool_call":
                _check_call(event, calls, place)
        most = max(most, len(kinds))
        doubled = len(set(calls.values())) < len(calls)
        expect(not doubled, f"two calls share an id: {sorted(calls.values())}", exchange.label)
    return f"up to {most} parts in an answer"


def _place(event: ChatEvent) -> tuple[str, int]:
    match event.WhichOneof("kind"):
        case "part":
            return event.part.WhichOneof("kind") or "part", event.part.index
        case "text" | "reasoning" | "tool_call" as kind:
            return kind, getattr(event, kind).index
        case kind:
            return kind or "", -1


def _check_call(event: ChatEvent, calls: dict[int, str], place: str) -> None:
    if event.WhichOneof("kind") == "part":
        index, call_id, name = event.part.index, event.part.tool_call.call_id, event.part.tool_call.name
    else:
        delta = event.tool_call
        index, call_id, name = delta.index, delta.call_id, delta.name
    if index not in calls:
        expect(call_id and name, "the first delta of a call lacks call_id or name", place)
        calls[index] = call_id
    expect(not call_id or call_id == calls[index], f"part {index} is two calls: {calls[index]}, {call_id}", place)


@core(
    "deltas of a part keep their order",
    "chat.proto TextDelta.text: text to append; deltas of one part keep order",
    needs=("indexes",),
)
async def order(target: Target) -> str:
    """Seen in an answer that counts: its numbers must ascend."""
    exchange = await target.recorded("count", prompts.count())
    text = "".join(event.text.text for event in exchange.events if event.HasField("text"))
    text += "".join(event.part.text.text for event in exchange.events if event.HasField("part"))
    numbers = [int(found) for found in re.findall(r"\d+", text)]
    expect(len(numbers) >= 5, f"the model did not count: “{text[:120]}”", exchange.label)
    wrong = next((place for place, pair in enumerate(itertools.pairwise(numbers)) if pair[0] >= pair[1]), None)
    expect(wrong is None, f"{numbers[wrong or 0]} stands before {numbers[(wrong or 0) + 1]}", exchange.label)
    return f"1 to {numbers[-1]} in {len(exchange.messages)} messages"


@core(
    "usage is there and inclusive",
    "usage.proto: Finish.usage is required; input contains cache parts, output contains reasoning; usage in a stream "
    "is cumulative",
    needs=("finish_last",),
)
async def usage(target: Target) -> str:
    """Money is counted by it."""
    told = Usage()
    for exchange in await exchanges(target):
        last = len(exchange.events) - 1
        place = exchange.at(last)
        expect(exchange.events[last].finish.HasField("usage"), "no usage", place)
        told = exchange.events[last].finish.usage
        expect(told.input_tokens > 0, f"input_tokens is {told.input_tokens}", place)
        expect(told.output_tokens > 0, f"output_tokens is {told.output_tokens}", place)
        read = sum(getattr(told, name) for name in _READ)
        expect(read <= told.input_tokens, f"cache parts {read} in input_tokens {told.input_tokens}", place)
        thought, written = told.reasoning_tokens, told.output_tokens
        expect(thought <= written, f"reasoning_tokens {thought} in output_tokens {written}", place)
        before = Usage()
        for number, event in enumerate(exchange.events):
            if event.HasField("usage"):
                grows = event.usage.output_tokens >= before.output_tokens
                expect(grows, "output_tokens shrink; usage is cumulative", exchange.at(number))
                before = event.usage
        expect(before.output_tokens <= written, f"{before.output_tokens} before a final {written}", place)
    return f"{told.input_tokens} in, {told.output_tokens} out"


@core(
    "the cost follows from usage and price",
    "contract: unknown cost is absent, never 0; a known price gives Finish.cost by exact decimal arithmetic",
    needs=("usage", "models"),
)
async def cost(target: Target) -> str:
    """A wrong cost is worse than none."""
    exchange = await target.recorded("count", prompts.count())
    finish = exchange.events[-1].finish
    model = target.asked
    if not model.HasField("price"):
        invented = finish.HasField("cost") and finish.cost.price_date
        expect(not invented, f"a cost of {finish.cost.usd} without a price", exchange.label)
        return "price unknown, cost absent"
    expect(finish.HasField("cost"), "the model has a price, the answer no cost", exchange.label)
    got, wanted = finish.cost.usd, cost_of(finish.usage, model.price).usd
    expect(re.fullmatch(r"[0-9]+(\.[0-9]+)?", got), f"usd is {got!r}", exchange.label)
    close = abs(Decimal(got) - Decimal(wanted)) <= Decimal("1e-9")
    expect(close, f"{got} instead of {wanted} US dollars", exchange.label)
    return f"{got} US dollars"


@core(
    "Chat is the fold of StreamChat",
    "chat.proto Chat: the fold of what StreamChat would send",
    needs=(*ANSWERS, "order", "cost", "finish_reason"),
)
async def unary_is_fold(target: Target) -> str:
    """Both ways must tell the same; where a model is not deterministic, answers of the same shape."""
    fixed: dict[str, object] = {}
    if target.claims(Feature.FEATURE_SEED):
        fixed["seed"] = 7
    if target.claims(Feature.FEATURE_TEMPERATURE):
        fixed["temperature"] = 0.0
    asked: list[tuple[str, ChatRequest]] = [("word", prompts.say(prompts.WORD, **fixed))]
    if target.claims(Feature.FEATURE_TOOLS):
        asked.append(("call", prompts.weather(**fixed)))
    alike = True
    for label, request in asked:
        streamed = _comparable(await target.ask(request, label))
        whole = _comparable(_answered(await target.whole(request), label))
        if streamed == whole:
            continue
        alike = False
        again = (
            _comparable(_answered(await target.whole(request), label)),
            _comparable(await target.ask(request, label)),
        )
        steady = again == (whole, streamed)
        difference = _difference(streamed, whole)
        expect(not steady, f"each way repeats itself, but they differ: {difference}", f"Chat “{label}”")
        kinds = ["".join(sorted(part.WhichOneof("kind") or "" for part in found.parts)) for found in (streamed, whole)]
        expect(kinds[0] == kinds[1], f"other parts: {difference}", f"Chat “{label}”")
        expect(streamed.finish_reason == whole.finish_reason, difference, f"Chat “{label}”")
        expect(whole.HasField("usage"), "no usage", f"Chat “{label}”")
    return "equal" if alike else "of the same shape; the model is not deterministic"


def _answered(answer: ChatResponse | Refusal, label: str) -> ChatResponse:
    if isinstance(answer, Refusal):
        raise Broken(f"ended with {answer}", f"Chat “{label}”")
    return answer


def _comparable(answer: ChatResponse) -> ChatResponse:
    """The answer without what names this one call."""
    copy = ChatResponse()
    copy.CopyFrom(answer)
    copy.ClearField("response_id")
    copy.ClearField("provider_metadata")
    ids = {part.tool_call.call_id for part in copy.parts if part.HasField("tool_call")}
    for number, call_id in enumerate(sorted(ids)):
        for part in copy.parts:
            if part.HasField("tool_call") and part.tool_call.call_id == call_id:
                part.tool_call.call_id = f"call {number}"
    return copy


def _difference(streamed: ChatResponse, whole: ChatResponse) -> str:
    for field in ChatResponse.DESCRIPTOR.fields:
        one, other = str(getattr(streamed, field.name)), str(getattr(whole, field.name))
        if one != other:
            return f"{field.name} is {' '.join(one.split())[:80]!r} streamed and {' '.join(other.split())[:80]!r} whole"
    return "fields are set differently"


@core(
    "max_tokens bounds the answer",
    "chat.proto ChatRequest.max_tokens: most tokens to produce; FinishReason LENGTH when it was reached",
    needs=(*ANSWERS, "finish_reason", "usage"),
)
async def max_tokens(target: Target) -> str:
    """The caller's bound on time and money."""
    answer = await target.ask(prompts.count(max_tokens=16), "max_tokens=16")
    name = FinishReason.Name(answer.finish_reason)
    expect(
        answer.finish_reason == FinishReason.FINISH_REASON_LENGTH, f"{name}, {prompts.said(answer)}", "max_tokens=16"
    )
    amount = answer.usage.output_tokens
    expect(amount <= 16, f"{amount} output tokens", "max_tokens=16")
    return f"{amount} tokens, LENGTH"


@core("a conversation goes on", "message.proto Message.role: user and assistant turns in order", needs=ANSWERS)
async def conversation(target: Target) -> str:
    """Earlier turns come back as input."""
    turns = [user("My name is Ada."), assistant("Hello, Ada."), user(f"Reply with exactly: {prompts.WORD}")]
    answer = await target.ask(ChatRequest(messages=turns), "three turns")
    expect(prompts.WORD in text_of(answer).lower(), f"answered {prompts.said(answer)}", "three turns")
    return prompts.said(answer)


@core("a large prompt is read whole", "Model.context_window: tokens that fit into one call", needs=(*ANSWERS, "usage"))
async def large_prompt(target: Target) -> str:
    """Half the window, at most 60 000 characters."""
    window = target.asked.context_window or 8_192
    if window < 2_048:
        raise NotApplicable(f"the window is {window} tokens")
    lines = min(60_000, window) // 60
    text = "\n".join(f"Line {number}: the quick brown fox jumps over the lazy dog." for number in range(lines))
    small = await target.ask(prompts.say(prompts.WORD), "small prompt")
    large = await target.ask(prompts.ask(f"{text}\n\nReply with the word {prompts.WORD}."), "large prompt")
    low, high = small.usage.input_tokens, large.usage.input_tokens
    expect(high - low > lines * 3, f"{high} input tokens for {len(text)} characters, {low} for a word", "large prompt")
    return f"{len(text)} characters, {high} input tokens"
