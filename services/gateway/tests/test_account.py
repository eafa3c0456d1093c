"""What the events of a request tell of its attempts: what each used, what came of it, and how they were chosen."""

from __future__ import annotations

import pytest

from maestro.event.v1.event_pb2 import AttemptFate, Event
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, Start, metadata

ANSWERED, FAILED = AttemptFate.ATTEMPT_FATE_ANSWERED, AttemptFate.ATTEMPT_FATE_FAILED
OUTRUN, ABANDONED = AttemptFate.ATTEMPT_FATE_OUTRUN, AttemptFate.ATTEMPT_FATE_ABANDONED
HANDED_OVER = AttemptFate.ATTEMPT_FATE_HANDED_OVER
QUESTION = ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello there"))])])


def priced(usd: str, *pieces: str) -> ScriptedProvider:
    """A provider whose answer costs `usd`."""
    *events, _ = answer(*pieces)
    used = Usage(input_tokens=3, output_tokens=len(pieces))
    end = Finish(reason=FinishReason.FINISH_REASON_STOP, usage=used, cost=Cost(usd=usd))
    return ScriptedProvider([*events, ChatEvent(finish=end)])


def fates(event: Event) -> list[AttemptFate.ValueType]:
    told = event.request_completed if event.HasField("request_completed") else event.request_failed
    return [attempt.fate for attempt in told.attempt_usages]


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_plain_answer(start: Start, streamed: bool) -> None:
    gateway = await start(priced("0.000042", "a", "b"), ScriptedProvider())
    if streamed:
        [batch async for batch in gateway.chats.StreamChat(QUESTION, metadata=metadata(KEY))]
    else:
        await gateway.chats.Chat(QUESTION, metadata=metadata(KEY))
    done = (await gateway.event("request.completed")).request_completed
    (used,) = done.attempt_usages
    assert (used.attempt, used.adapter, used.provider, used.model) == (1, "adapter-p0", "p0", "model")
    assert (used.fate, used.cost.usd) == (ANSWERED, "0.000042")
    assert used.usage == done.usage == Usage(input_tokens=3, output_tokens=2)
    assert done.cost == used.cost
    assert (done.decision.route, done.decision.strategy) == ("default", "fallback")
    assert [(found.backend_id, found.kept) for found in done.decision.candidates] == [
        ("adapter-p0:p0/model", True),
        ("adapter-p1:p1/model", True),
    ]


async def test_the_end_is_told_before_its_caller_sees_it(start: Start) -> None:
    """A death of the gateway right after it must not take what the answer cost."""
    gateway = await start(priced("0.000042", "a", "b"))
    async for batch in gateway.chats.StreamChat(QUESTION, metadata=metadata(KEY)):
        if any(event.HasField("finish") for event in batch.events):
            assert gateway.kinds() == ["request.started", "request.completed"]
    assert gateway.kinds() == ["request.started", "request.completed"]


async def test_a_hedged_answer_names_the_winner_and_both_attempts(start: Start) -> None:
    slow = ScriptedProvider(fault=Fault.STALL_BEFORE_CONTENT)
    gateway = await start(slow, priced("0.000042", "a"), hedge_after=0.03, max_extra=1.0)
    response = await gateway.chats.Chat(QUESTION, metadata=metadata(KEY))
    # The caller pays for its answer; what the mesh spent beside it stands in the account.
    assert response.cost.usd == "0.000042"
    event = await gateway.event("request.completed")
    done = event.request_completed
    assert (done.provider, done.attempts, fates(event)) == ("p1", 2, [OUTRUN, ANSWERED])
    assert done.attempt_usages[0].usage == Usage(input_tokens=2, estimated=True)
    assert done.usage == Usage(input_tokens=5, output_tokens=1, estimated=True)
    # The loser's price is unknown, and so is what both cost together.
    assert not done.HasField("cost")
    assert gateway.kinds() == ["request.started", "request.completed"]


async def test_an_answer_that_was_handed_over(start: Start) -> None:
    first = ScriptedProvider(answer("One", "x"), fault=Fault.ERROR_AFTER_CONTENT)
    gateway = await start(first, priced("0.000042", ", two"), resume=True)
    batches = [batch async for batch in gateway.chats.StreamChat(QUESTION, metadata=metadata(KEY))]
    finish = batches[-1].events[-1].finish
    event = await gateway.event("request.completed")
    assert fates(event) == [HANDED_OVER, ANSWERED]
    assert event.request_completed.usage == finish.usage
    assert event.request_completed.provider == "p1"
    failed = (await gateway.event("attempt.failed")).attempt_failed
    assert failed.after_content
    assert failed.will_continue


async def test_a_request_that_failed_tells_what_it_used_all_the_same(start: Start) -> None:
    gateway = await start(
        ScriptedProvider(fault=Fault.ERROR_BEFORE_CONTENT), ScriptedProvider(fault=Fault.NO_FINISH), max_attempts=2
    )
    call = gateway.call({"messages": [{"role": "user", "content": "hello there"}], "stream": True})
    [message async for message in call]
    event = await gateway.event("request.failed")
    told = event.request_failed
    assert fates(event) == [FAILED, FAILED]
    assert told.after_content
    assert told.usage.output_tokens == sum(used.usage.output_tokens for used in told.attempt_usages) > 0
    assert told.usage.estimated
    assert told.decision.route == "default"
    attempts = [event.attempt_failed for event in gateway.events if event.kind == "attempt.failed"]
    assert [(failed.attempt, failed.will_continue) for failed in attempts] == [(1, True), (2, False)]


async def test_a_caller_who_left_pays_for_what_was_read(start: Start) -> None:
    gateway = await start(ScriptedProvider(answer("a long piece of text", "x"), fault=Fault.STALL_AFTER_CONTENT))
    call = gateway.chats.StreamChat(QUESTION, metadata=metadata(KEY))
    await call.read()
    call.cancel()
    event = await gateway.event("request.failed")
    assert fates(event) == [ABANDONED]
    (used,) = event.request_failed.attempt_usages
    assert used.usage == Usage(input_tokens=2, output_tokens=5, estimated=True)
    assert event.request_failed.usage == used.usage
