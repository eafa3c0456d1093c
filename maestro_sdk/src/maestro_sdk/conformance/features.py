"""Cases of features around text: what a model claims is proven, or fails."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import (
    Cache,
    CachePoint,
    ChatRequest,
    ChatResponse,
    FinishReason,
    JsonSchemaFormat,
    Logprobs,
    ResponseFormat,
)
from maestro.llm.v1.message_pb2 import AudioPart, DocumentPart, ImagePart, Message, Part, Role
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.answering import CONTENT, thoughtful
from maestro_sdk.conformance.case import feature
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.conformance.target import Refusal, Target
from maestro_sdk.types import assistant, reasoning_of, text, text_of


def _expect_no_warning(answer: ChatResponse, field: str) -> None:
    """What is claimed may not come back as "not done as asked"."""
    found = [warning.message for warning in answer.warnings if warning.field.startswith(field)]
    expect(not found, f"warned: {'; '.join(found)}", field)


@feature(
    Feature.FEATURE_STREAMING, "a long answer comes in several messages", "FEATURE_STREAMING: answers piece by piece"
)
async def streaming(target: Target) -> str:
    """All at once at the end would be no stream."""
    exchange = await target.recorded("count", prompts.count())
    carrying = sum(any(event.WhichOneof("kind") in CONTENT for event in message) for message in exchange.messages)
    expect(carrying > 1, f"{carrying} message with content for {prompts.COUNT_TO} numbers", exchange.label)
    return f"{carrying} messages with content"


@feature(
    Feature.FEATURE_SYSTEM_PROMPT,
    "system text reaches the model",
    "chat.proto ChatRequest.system: instructions that stand above the conversation",
    needs=("usage",),
)
async def system_prompt(target: Target) -> str:
    """Seen in the answer, or in the tokens that were read."""
    system = f"Whatever is asked, your whole answer is the single word {prompts.CODEWORD}, in capital letters."
    plain = await target.ask(prompts.ask("What is the capital of France?"), "without system text")
    told = await target.ask(prompts.ask("What is the capital of France?", system=system), "with system text")
    _expect_no_warning(told, "system")
    if prompts.CODEWORD in text_of(told):
        return prompts.said(told)
    more = told.usage.input_tokens - plain.usage.input_tokens
    expect(more >= 8, f"answered {prompts.said(told)} and read {more} tokens more", "with system text")
    return f"read: {more} tokens more"


@feature(
    Feature.FEATURE_PREFILL,
    "an answer that was begun goes on",
    "FEATURE_PREFILL: goes on with an assistant message that stands last, as if it had begun the message itself",
    needs=("order",),
)
async def prefill(target: Target) -> str:
    """Seen in a count: it goes on behind the numbers that were given, and does not begin again."""
    request = prompts.count()
    request.messages.append(assistant(", ".join(str(number) for number in range(1, prompts.BEGUN_TO + 1))))
    answer = await target.ask(request, "prefill")
    _expect_no_warning(answer, "messages")
    numbers = re.findall(r"\d+", text_of(answer))
    goes_on = numbers[:2] == [str(prompts.BEGUN_TO + 1), str(prompts.BEGUN_TO + 2)]
    expect(goes_on, f"answered {prompts.said(answer)} after {prompts.BEGUN_TO}", "prefill")
    return prompts.said(answer)


@feature(
    Feature.FEATURE_JSON_SCHEMA,
    "the answer meets the schema",
    "chat.proto JsonSchemaFormat.schema: the answer is JSON that meets it",
)
async def json_schema(target: Target) -> str:
    """Checked for an object with required texts, a choice and a whole number."""
    wanted = JsonSchemaFormat(name="city", schema=json.dumps(prompts.CITY_SCHEMA), strict=True)
    request = prompts.ask("Describe Paris.", response_format=ResponseFormat(json_schema=wanted))
    answer = await target.ask(request, "json_schema")
    _expect_no_warning(answer, "response_format")
    try:
        value: Any = json.loads(text_of(answer))
    except ValueError as error:
        raise Broken(f"not JSON: {prompts.said(answer)}", "json_schema") from error
    expect(_is_city(value), f"does not meet the schema: {prompts.said(answer)}", "json_schema")
    made = [part for part in answer.parts if part.HasField("text")]
    target.expect_marked(Feature.FEATURE_JSON_SCHEMA, made, "json_schema")
    return prompts.said(answer)


def _is_city(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    city = cast("dict[str, Any]", value)
    whole = isinstance(city.get("districts"), int) and not isinstance(city.get("districts"), bool)
    texts = isinstance(city.get("name"), str) and isinstance(city.get("country"), str)
    return (
        whole and texts and city.get("size") in {"small", "large"} and set(city) == set(prompts.CITY_SCHEMA["required"])
    )


@feature(
    Feature.FEATURE_STOP_SEQUENCES,
    "a stop text ends the answer",
    "chat.proto ChatRequest.stop: texts that end the answer; the stop text itself is not part of it",
    needs=("order", "finish_reason"),
)
async def stop_sequences(target: Target) -> str:
    """Providers that do not tell stop texts from an end say STOP."""
    answer = await target.ask(prompts.count(stop=["13"]), "stop")
    _expect_no_warning(answer, "stop")
    said = text_of(answer)
    expect("12" in said and "13" not in said, f"answered {prompts.said(answer)}", "stop “13”")
    ends = {FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_STOP_SEQUENCE}
    expect(answer.finish_reason in ends, FinishReason.Name(answer.finish_reason), "stop “13”")
    return FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_")


@feature(Feature.FEATURE_SEED, "a seed repeats the answer", "chat.proto ChatRequest.seed: repeatable sampling")
async def seed(target: Target) -> str:
    """The same bytes twice."""
    request = prompts.ask("Write two sentences about the sea.", seed=42)
    if target.claims(Feature.FEATURE_TEMPERATURE):
        request.temperature = 1.0
    one, other = await target.ask(request, "seed"), await target.ask(request, "seed")
    _expect_no_warning(one, "seed")
    expect(text_of(one), "no text", "seed")
    expect(text_of(one) == text_of(other), f"{prompts.said(one)}, then {prompts.said(other)}", "seed")
    return f"{len(text_of(one))} characters, twice"


@feature(Feature.FEATURE_TEMPERATURE, "temperature is taken", "chat.proto ChatRequest.temperature and top_p are obeyed")
async def temperature(target: Target) -> str:
    """What it does can't be seen in one answer; that it is taken can: no warning, no error under `strict`."""
    for fields in ({"temperature": 0.0}, {"temperature": 0.7}, {"top_p": 0.9}):
        answer = await target.ask(prompts.say(prompts.WORD, strict=True, **fields), f"strict {fields}")
        expect(not answer.warnings, f"warned: {[warning.message for warning in answer.warnings]}", f"{fields}")
    return "temperature and top_p, strict"


@feature(
    Feature.FEATURE_TOKEN_COUNTING,
    "tokens are counted as they are charged",
    "chat.proto CountTokensResponse: input tokens that the request would send, not estimated",
    needs=("usage",),
)
async def token_counting(target: Target) -> str:
    """Compared with the usage of the same request: a tenth, or 8 tokens, may lie between them."""
    small, large = prompts.say(prompts.WORD), prompts.ask("word " * 200 + f"Reply with exactly: {prompts.WORD}")
    counts: list[int] = []
    for request in (small, large):
        found = await target.count(request)
        if isinstance(found, Refusal):
            raise Broken(f"ended with {found}", "CountTokens")
        expect(not found.estimated, f"{found.input_tokens}, an estimate", "CountTokens")
        named = f"{found.provider}/{found.model}"
        expect(found.provider and found.model, f"names {named!r}", "CountTokens")
        used = (await target.ask(request, "counted")).usage.input_tokens
        close = abs(found.input_tokens - used) <= max(8, used // 10)
        expect(close, f"{found.input_tokens} counted, {used} used", "CountTokens")
        counts.append(found.input_tokens)
    expect(counts[1] > counts[0] > 0, f"{counts[0]} for a word, {counts[1]} for 200", "CountTokens")
    return f"{counts[0]} and {counts[1]} tokens"


@feature(
    Feature.FEATURE_REASONING,
    "the model reasons when asked to",
    "chat.proto Reasoning.effort; seen as reasoning parts or Usage.reasoning_tokens",
    needs=("usage",),
)
async def reasoning(target: Target) -> str:
    """Some providers show their reasoning, others only count it."""
    answer = (await target.recorded("reasoning", thoughtful())).answer()
    _expect_no_warning(answer, "reasoning")
    shown = [part for part in answer.parts if part.HasField("reasoning")]
    counted = answer.usage.reasoning_tokens
    expect(shown or counted, f"no reasoning in {prompts.said(answer)}", "reasoning")
    expect(text_of(answer), "reasoning without an answer", "reasoning")
    return f"{len(reasoning_of(answer))} characters, {counted} tokens"


@feature(
    Feature.FEATURE_LOGPROBS,
    "log probabilities come with the text",
    "chat.proto Logprobs; message.proto TokenLogprob: at most 0, as many alternatives as asked",
)
async def logprobs(target: Target) -> str:
    """The tokens make up the text."""
    answer = await target.ask(prompts.say(prompts.WORD, logprobs=Logprobs(top=2)), "logprobs")
    _expect_no_warning(answer, "logprobs")
    found = [entry for part in answer.parts for entry in part.text.logprobs]
    expect(found, "none", "logprobs")
    for entry in found:
        expect(entry.logprob <= 0, f"{entry.token!r} has {entry.logprob}", "logprobs")
        expect(len(entry.top) <= 2, f"{entry.token!r} has {len(entry.top)} alternatives", "logprobs")
    tokens = "".join(entry.token for entry in found)
    expect(text_of(answer).strip() in tokens, f"tokens “{tokens[:80]}” for {prompts.said(answer)}", "logprobs")
    return f"{len(found)} tokens"


@feature(
    Feature.FEATURE_PROMPT_CACHING,
    "a long prompt is kept",
    "usage.proto cache_read_tokens and cache_write tokens: what was read from, or written to, the provider's cache",
    needs=("usage",),
)
async def prompt_caching(target: Target) -> str:
    """The same long system text up to three times."""
    system = "\n".join(f"Rule {number}: be kind, be brief, and tell the truth about numbers." for number in range(400))
    cache = Cache(points=[CachePoint(system=True)])
    read = written = 0
    for number in range(3):
        answer = await target.ask(prompts.say(prompts.WORD, system=system, cache=cache), f"cached call {number + 1}")
        used = answer.usage
        read = max(read, used.cache_read_tokens)
        written = max(written, used.cache_write_5m_tokens + used.cache_write_1h_tokens)
        if read:
            break
    expect(read, f"nothing read from the cache in 3 calls, {written} tokens written", "cached calls")
    return f"{read} tokens read, {written} written"


async def _look(target: Target, part: Part, question: str, word: str) -> str:
    """Asks about a part that holds `word`; an empty word asks only that the part is taken."""
    kind = str(part.WhichOneof("kind"))
    request = ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[part, text(question)])], strict=True)
    answer = await target.ask(request, kind)
    said = text_of(answer)
    expect(said and word.lower() in said.lower(), f"answered {prompts.said(answer)}", kind)
    return prompts.said(answer)


@feature(Feature.FEATURE_VISION, "an image is seen", "message.proto ImagePart.data")
async def vision(target: Target) -> str:
    """A red square."""
    part = Part(image=ImagePart(data=prompts.red_square(), mime_type="image/png"))
    return await _look(target, part, "Which colour is this square? Answer with one word.", prompts.COLOUR)


@feature(Feature.FEATURE_DOCUMENTS, "a document is read", "message.proto DocumentPart.data")
async def documents(target: Target) -> str:
    """A PDF that names a fruit."""
    part = Part(document=DocumentPart(data=prompts.page(), mime_type="application/pdf", title="fruit.pdf"))
    return await _look(target, part, "Which fruit does the document name? Answer with one word.", prompts.FRUIT)


@feature(Feature.FEATURE_AUDIO, "sound is taken", "message.proto AudioPart.data")
async def audio(target: Target) -> str:
    """A second of silence: that it is taken is proven, not that it is understood."""
    part = Part(audio=AudioPart(data=prompts.silence(), mime_type="audio/wav"))
    return await _look(target, part, "Describe what you hear in a few words.", "")
