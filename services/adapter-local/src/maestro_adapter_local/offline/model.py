"""The offline model as a source of events: prepares an answer, then sends it at a pace."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_local.offline.answer import compose, digest_of
from maestro_adapter_local.offline.begun import go_on, take_begun
from maestro_adapter_local.offline.conversation import read
from maestro_adapter_local.offline.events import PROVIDER, Rendering, limit, usage_of
from maestro_adapter_local.offline.script import Script, scripted_answer
from maestro_sdk.adapter.tool_schema import parse_schema
from maestro_sdk.errors import ContextTooLong, MaestroError

_BATCH = 16
"""Events per batch when there is no pace: what a fast server's socket would bring at once."""


@dataclass(frozen=True, slots=True)
class Performance:
    """What to send, and the seconds before the first event and per content event.

    `error` comes after `events_before_error` content events; `rendering` is None when it comes before anything.
    """

    rendering: Rendering | None
    delay: float
    pace: float
    error: MaestroError | None = None
    events_before_error: int = 0


def prepare(request: ChatRequest, model: Model, script: Script, pace: float) -> Performance:
    """Decides the whole answer; pure. Raises a `MaestroError` for a request that can't be answered."""
    # Also of tools that are not called: a schema that no provider takes should not wait for the first real one.
    for number, tool in enumerate(request.tools):
        parse_schema(tool.input_schema, f"tools[{number}].input_schema")
    conversation = read(request)
    input_tokens = conversation.input_tokens
    left = model.context_window - input_tokens
    if left <= 0:
        raise ContextTooLong(
            f"the conversation has {input_tokens} tokens, the window of {model.id} {model.context_window}"
        )
    asked, begun = take_begun(request)
    if begun:
        conversation = read(asked)
    digest = digest_of(request)
    error, events_before_error, delay = None, 0, 0.0
    found = script.find(asked, conversation)
    if found is not None:
        rule, values = found
        delay = rule.delay
        pace = pace if rule.pace is None else rule.pace
        error = rule.error.make() if rule.error else None
        if error is not None and rule.after is None:
            return Performance(None, delay, pace, error)
        events_before_error = rule.after or 0
        answer = scripted_answer(rule, values, asked)
    else:
        answer = compose(asked, conversation)
    if begun:
        answer = go_on(answer, begun)
    limited = limit(answer, request, min(model.max_output_tokens, left))
    wished = request.max_tokens or model.max_output_tokens
    if limited.reason == FinishReason.FINISH_REASON_LENGTH and left < min(wished, model.max_output_tokens):
        limited = replace(limited, reason=FinishReason.FINISH_REASON_CONTEXT_WINDOW)
    usage = usage_of(limited, answer, input_tokens)
    rendering = Rendering(model.name, digest, answer, limited, usage)
    return Performance(rendering, delay, pace, error, events_before_error)


class OfflineModel:
    """Answers requests for the offline model under any of its names."""

    def __init__(
        self, model: Model, names: Sequence[str] = (), script: Script | None = None, pace: float = 0.0
    ) -> None:
        """`model` describes it, `names` are further names; `pace` is in seconds per token."""
        self._script = script or Script()
        self._pace = pace
        self.models: dict[str, Model] = {model.name: model}
        for name in names:
            other = Model()
            other.CopyFrom(model)
            other.id, other.name = f"{model.provider}/{name}", name
            self.models[name] = other

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers token by token; see `Provider.stream`."""
        performance = self._prepare(request)
        if performance.delay:
            await asyncio.sleep(performance.delay)
        rendering, error, pace = performance.rendering, performance.error, performance.pace
        if rendering is not None:
            content = rendering.piecemeal()
            if error is not None:
                content = content[: performance.events_before_error]
            if pace:
                yield rendering.begin()
                loop = asyncio.get_running_loop()
                due = loop.time()
                for event in content:
                    # Against the clock, not against the last event: a slow reader must not slow the pace further.
                    due += pace
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    yield [event]
            else:
                rest = iter(content)
                yield [*rendering.begin(), *itertools.islice(rest, 1)]
                while batch := list(itertools.islice(rest, _BATCH)):
                    yield batch
        if error is not None:
            raise error
        if rendering is not None:
            yield [rendering.end()]

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers at once, after the time that the stream would take."""
        performance = self._prepare(request)
        rendering = performance.rendering
        seconds = performance.delay
        if performance.pace and rendering is not None:
            events = len(rendering.piecemeal())
            seconds += performance.pace * (
                min(events, performance.events_before_error) if performance.error else events
            )
        if seconds:
            await asyncio.sleep(seconds)
        if performance.error is not None or rendering is None:
            raise performance.error or AssertionError("a performance without content has an error")
        return [*rendering.begin(), *rendering.whole(), rendering.end()]

    def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`, exactly as its usage would say."""
        return read(request).input_tokens

    def _prepare(self, request: ChatRequest) -> Performance:
        return prepare(request, self.models[request.model.removeprefix(f"{PROVIDER}/")], self._script, self._pace)
