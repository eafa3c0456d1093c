"""A provider that replays events, and breaks each rule of the contract on demand.

provider = ScriptedProvider(answer("Hello", " there"))
provider.fault = Fault.NO_FINISH
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from enum import Enum, auto

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason, Started, TextDelta, ToolCallDelta
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import MaestroError, Overloaded


class Fault(Enum):
    """One way to break the contract, or to be slow within it."""

    NO_STARTED = auto()
    NO_FINISH = auto()
    TWO_FINISHES = auto()
    EVENTS_AFTER_FINISH = auto()
    ERROR_BEFORE_CONTENT = auto()
    ERROR_AFTER_CONTENT = auto()
    STALL_BEFORE_CONTENT = auto()
    STALL_AFTER_CONTENT = auto()
    SLOW = auto()


def scripted_model(model_id: str = "scripted/model") -> Model:
    """A model that chats, streams and calls tools; `model_id` as "provider/name"."""
    provider, _, name = model_id.partition("/")
    features = (Feature.FEATURE_CHAT, Feature.FEATURE_STREAMING, Feature.FEATURE_SYSTEM_PROMPT, Feature.FEATURE_TOOLS)
    native = [FeatureSupport(feature=feature, support=Support.SUPPORT_NATIVE) for feature in features]
    return Model(id=model_id, provider=provider, name=name, features=native)


def answer(
    *pieces: str,
    calls: Sequence[tuple[str, str, str]] = (),
    usage: Usage | None = None,
    model: str = "scripted/model",
    attempt: int = 1,
) -> list[ChatEvent]:
    """The events of a good answer: text in `pieces`, then whole calls given as (id, name, arguments)."""
    provider, _, name = model.partition("/")
    begin = Started(response_id="scripted-1", provider=provider, model=name, attempt=attempt)
    events = [ChatEvent(started=begin)]
    events += [ChatEvent(text=TextDelta(index=0, text=piece)) for piece in pieces]
    for index, (call_id, tool, arguments) in enumerate(calls, 1 if pieces else 0):
        delta = ToolCallDelta(index=index, call_id=call_id, name=tool, arguments_json=arguments)
        events.append(ChatEvent(tool_call=delta))
    reason = FinishReason.FINISH_REASON_TOOL_CALLS if calls else FinishReason.FINISH_REASON_STOP
    counted = usage if usage is not None else Usage(input_tokens=3, output_tokens=max(1, len(pieces)))
    events.append(ChatEvent(finish=Finish(reason=reason, raw_reason="scripted", usage=counted)))
    return events


class ScriptedProvider:
    """A `Provider`. Every event is yielded on its own, so that each is a read of the wire."""

    def __init__(
        self,
        events: Sequence[ChatEvent] | None = None,
        *,
        models: Sequence[Model] | None = None,
        fault: Fault | None = None,
        error: MaestroError | None = None,
        pace: float = 0.0,
        name: str = "adapter-scripted",
    ) -> None:
        """`error` is what error faults raise; `pace` in seconds between events, at least 0.05 under `Fault.SLOW`."""
        self.events = list(events) if events is not None else answer("Hello", " there", ".")
        self.fault = fault
        self.error = error or Overloaded("the scripted provider fails on demand")
        self.pace = pace
        self.name = name
        self.not_ready = ""
        """What `check` answers."""
        self.requests: list[ChatRequest] = []
        self.abandoned = asyncio.Event()
        """Set when a stream was closed before its end."""
        self.closed = False
        self._models = list(models) if models is not None else [scripted_model()]
        self.providers: Sequence[str] = sorted({model.provider for model in self._models})

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        self.requests.append(request)
        fault = self.fault
        whole = False
        try:
            async for event in self._replay(fault):
                yield (event,)
            whole = True
        except MaestroError:
            whole = True
            raise
        finally:
            if not whole:
                self.abandoned.set()

    async def models(self) -> Sequence[Model]:
        return self._models

    async def check(self) -> str:
        return self.not_ready

    async def close(self) -> None:
        self.closed = True

    async def _replay(self, fault: Fault | None) -> AsyncIterator[ChatEvent]:
        content = 0
        pace = max(self.pace, 0.05) if fault is Fault.SLOW else self.pace
        for event in self.events:
            kind = event.WhichOneof("kind")
            if pace:
                await asyncio.sleep(pace)
            if kind == "started" and fault is Fault.NO_STARTED:
                continue
            if kind in _CONTENT:
                await self._break(fault, before=content == 0)
                content += 1
            if kind == "finish":
                if fault is Fault.NO_FINISH:
                    return
                yield event
                if fault is Fault.TWO_FINISHES:
                    yield event
                if fault is Fault.EVENTS_AFTER_FINISH:
                    yield ChatEvent(text=TextDelta(index=0, text="more"))
            else:
                yield event

    async def _break(self, fault: Fault | None, *, before: bool) -> None:
        """Raises or stalls in front of the first piece of content, or in front of the second one."""
        if fault is (Fault.ERROR_BEFORE_CONTENT if before else Fault.ERROR_AFTER_CONTENT):
            raise self.error
        if fault is (Fault.STALL_BEFORE_CONTENT if before else Fault.STALL_AFTER_CONTENT):
            await asyncio.Event().wait()


_CONTENT = frozenset({"text", "reasoning", "tool_call", "part"})
