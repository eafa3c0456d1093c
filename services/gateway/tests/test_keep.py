"""What the keep gives back, to whom, and for how long; two gateways find what either of them kept."""

import asyncio
from collections.abc import Sequence

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, Started
from maestro.llm.v1.message_pb2 import Message, Origin, Part, ReasoningPart, Role, TextPart, ToolCallPart
from maestro_gateway.keep import Keep
from maestro_gateway.shelf import Shelf

ORIGIN = Origin(provider="anthropic", api="messages")
ANSWER = (
    Part(index=0, origin=ORIGIN, provider_state=b"\xfb\xff\x00", reasoning=ReasoningPart(text="Let me see.")),
    Part(index=1, text=TextPart(text="I look.")),
    Part(index=2, tool_call=ToolCallPart(call_id="c1", name="weather", arguments_json='{"city":"Paris"}')),
    Part(
        index=3,
        origin=ORIGIN,
        provider_state=b"\x01",
        tool_call=ToolCallPart(call_id="c2", name="weather", arguments_json='{"city":"Rome"}'),
    ),
)
WORDS = (ANSWER[0], Part(index=1, text=TextPart(text="Good day.")))


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Others:
    """Other gateways: they keep everything, and count what they are asked."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.offered: list[str] = []
        self.hangs = self.away = False
        self.age = 0.0

    async def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data

    async def offer(self, key: str, data: bytes) -> None:
        self.offered.append(key)
        if self.hangs:
            await asyncio.Event().wait()

    async def find(self, key: str) -> tuple[bytes, float] | None:
        self.asked.append(key)
        if self.away:
            raise LookupError
        if self.hangs:
            await asyncio.Event().wait()
        found = self.kept.get(key)
        return (found, self.age) if found is not None else None


def question(text: str = "Weather?") -> Message:
    return Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])


def call(call_id: str, city: str, name: str = "weather") -> Part:
    """A call as a client writes it anew."""
    return Part(tool_call=ToolCallPart(call_id=call_id, name=name, arguments_json=f'{{ "city": "{city}" }}'))


def said(*parts: Part) -> Message:
    return Message(role=Role.ROLE_ASSISTANT, parts=parts)


async def answered(keep: Keep, parts: Sequence[Part] = ANSWER, tenant: str = "acme", first: str = "Weather?") -> None:
    """An answer to a question was kept."""
    turn = await keep.recall(tenant, ChatRequest(messages=[question(first)]))
    await turn.keep(parts)


async def recalled(keep: Keep, *messages: Message, tenant: str = "acme") -> list[Part]:
    """The parts of the second turn, once the keep has seen it."""
    request = ChatRequest(messages=messages)
    await keep.recall(tenant, request)
    return list(request.messages[1].parts)


async def test_a_turn_with_the_same_calls_gets_its_parts_back_as_they_were():
    keep = Keep(3600)
    await answered(keep)
    # Without its words, in another order, with arguments that are written anew.
    turn = said(call("c2", "Rome"), call("c1", "Paris"))
    assert await recalled(keep, question(), turn) == list(ANSWER)
    # The conversation before it does not matter: the provider made its ids up.
    assert await recalled(keep, question("Another start"), turn) == list(ANSWER)


@pytest.mark.parametrize(
    "turn",
    [
        said(call("c1", "Paris")),
        said(call("c1", "Paris"), call("c3", "Rome")),
        said(call("c1", "Paris"), call("c2", "Oslo")),
        said(call("c1", "Paris"), call("c2", "Rome", name="time")),
        said(Part(text=TextPart(text="I look."))),
    ],
)
async def test_a_turn_with_other_calls_stays_as_it_is(turn: Message):
    keep = Keep(3600)
    await answered(keep)
    assert await recalled(keep, question(), turn) == list(turn.parts)


async def test_words_that_the_client_changed_stay_changed():
    keep = Keep(3600)
    await answered(keep)
    own = Part(text=TextPart(text="I LOOK."))
    parts = await recalled(keep, question(), said(own, call("c1", "Paris"), call("c2", "Rome")))
    assert parts == [ANSWER[0], own, ANSWER[2], ANSWER[3]]


async def test_plain_words_are_known_by_the_conversation_before_them():
    keep = Keep(3600)
    await answered(keep, WORDS)
    turn = said(Part(text=TextPart(text="Good day.")))
    assert await recalled(keep, question(), turn) == list(WORDS)
    assert await recalled(keep, question("What else?"), turn) == list(turn.parts)
    # The second turn of a conversation whose first one was given back: clients send that without its thoughts.
    request = ChatRequest(messages=[question(), turn, question("And?")])
    await (await keep.recall("acme", request)).keep(WORDS)
    again = ChatRequest(messages=[question(), turn, question("And?"), turn])
    await keep.recall("acme", again)
    assert [list(message.parts) for message in again.messages[1::2]] == [list(WORDS), list(WORDS)]


async def test_tenants_never_meet():
    keep = Keep(3600)
    await answered(keep)
    await answered(keep, WORDS)
    calls, words = said(call("c1", "Paris"), call("c2", "Rome")), said(Part(text=TextPart(text="Good day.")))
    for tenant in ("globex", "acm", "acme2", ""):
        assert await recalled(keep, question(), calls, tenant=tenant) == list(calls.parts)
        assert await recalled(keep, question(), words, tenant=tenant) == list(words.parts)


async def test_what_is_not_asked_for_goes_after_its_time():
    clock = Clock()
    keep = Keep(60, clock=clock)
    await answered(keep)
    turn = said(call("c1", "Paris"), call("c2", "Rome"))
    for _ in range(3):
        clock.now += 59
        assert await recalled(keep, question(), turn) == list(ANSWER)
    clock.now += 60
    assert await recalled(keep, question(), turn) == list(turn.parts)


async def test_the_oldest_go_when_there_is_no_room():
    keep = Keep(3600, room=10_000)
    for number in range(100):
        parts = [ANSWER[0], Part(tool_call=ToolCallPart(call_id=f"n{number}", name="weather"))]
        await answered(keep, parts)
    found = [
        number
        for number in range(100)
        if len(
            await recalled(keep, question(), said(Part(tool_call=ToolCallPart(call_id=f"n{number}", name="weather"))))
        )
        == 2
    ]
    assert 10 < len(found) < 40
    assert found == list(range(100 - len(found), 100))


async def test_answers_without_state_are_not_kept():
    others = Others()
    keep = Keep(3600, others)
    await answered(keep, ANSWER[1:3])
    assert others.kept == {}
    # Nobody is asked for what was seen to hold nothing.
    await recalled(keep, question(), said(call("c1", "Paris")))
    assert others.asked == []


async def test_a_stream_is_kept_before_its_end():
    keep = Keep(3600)
    turn = await keep.recall("acme", ChatRequest(messages=[question()]))
    assert turn.note([ChatEvent(started=Started(response_id="r", provider="anthropic", model="m", attempt=1))]) is None
    assert turn.note([ChatEvent(part=part) for part in ANSWER]) is None
    keeping = turn.note([ChatEvent(finish=Finish())])
    assert keeping is not None
    await keeping
    assert await recalled(keep, question(), said(call("c1", "Paris"), call("c2", "Rome"))) == list(ANSWER)


async def test_another_gateway_is_asked_once():
    others = Others()
    await answered(Keep(3600, others))
    keep = Keep(3600, others)
    turn, stranger = said(call("c1", "Paris"), call("c2", "Rome")), said(call("x", "Oslo"))
    for _ in range(3):
        assert await recalled(keep, question(), turn) == list(ANSWER)
        await recalled(keep, question(), stranger)
    assert len(others.asked) == len(set(others.asked)) == 2


async def test_nobody_waits_long_for_others():
    others = Others()
    others.hangs = True
    keep = Keep(3600, others)
    turn = said(call("c1", "Paris"))
    begun = asyncio.get_running_loop().time()
    assert await recalled(keep, question(), turn) == list(turn.parts)
    assert asyncio.get_running_loop().time() - begun < 1.0
    # Who did not answer may still have it.
    others.hangs = False
    await answered(Keep(3600, others))
    assert await recalled(keep, question(), said(call("c1", "Paris"), call("c2", "Rome"))) == list(ANSWER)
    others.away, others.asked = True, []
    await recalled(keep, question(), said(call("x", "Oslo")))
    await recalled(keep, question(), said(call("x", "Oslo")))
    assert len(others.asked) == 2


async def test_what_is_still_asked_for_is_written_again_at_half_its_life():
    clock, others = Clock(), Others()
    keep, turn = Keep(60, others, clock=clock), said(call("c1", "Paris"), call("c2", "Rome"))
    await answered(keep)
    for _ in range(7):
        clock.now += 10
        assert await recalled(keep, question(), turn) == list(ANSWER)
    # Forty seconds after it was written; ten seconds is not half of its life.
    assert len(others.offered) == 1
    for age, offered in ((29.0, 1), (31.0, 2), (31.0, 3)):
        others.age = age
        assert await recalled(Keep(60, others, clock=clock), question(), turn) == list(ANSWER)
        assert len(others.offered) == offered
    # Who does not take it holds up nobody for long.
    others.hangs, clock.now = True, clock.now + 50
    begun = asyncio.get_running_loop().time()
    assert await recalled(keep, question(), turn) == list(ANSWER)
    assert asyncio.get_running_loop().time() - begun < 1.0


async def test_what_is_over_here_may_be_known_to_others():
    clock, others = Clock(), Others()
    keep = Keep(60, others, clock=clock)
    await answered(keep)
    clock.now += 61
    turn = said(call("c1", "Paris"), call("c2", "Rome"))
    assert await recalled(keep, question(), turn) == list(ANSWER)
    assert len(others.asked) == 1


async def test_a_gateway_that_starts_anew_finds_what_a_long_conversation_needs(nats_url: str):
    lasting, bucket = 1.0, "MAESTRO_KEPT_BRIEFLY"
    async with Shelf(nats_url, lasting, bucket=bucket) as shelf, asyncio.timeout(20):
        while not await shelf.settle():
            await asyncio.sleep(0.01)
        keep, turn = Keep(lasting, shelf), said(call("c1", "Paris"), call("c2", "Rome"))
        await answered(keep)
        await shelf.put("words-idle", b"idle")
        # It goes on until what was written with it is gone.
        while await shelf.take("words-idle") is not None:
            assert await recalled(keep, question(), turn) == list(ANSWER)
            await asyncio.sleep(0.02)
        assert await recalled(Keep(lasting, shelf), question(), turn) == list(ANSWER)


async def test_gateways_share_by_nats(nats_url: str):
    async with Shelf(nats_url, 3600) as one, Shelf(nats_url, 3600) as other:
        async with asyncio.timeout(10):
            while not (await one.settle() and await other.settle()):
                await asyncio.sleep(0.01)
        await answered(Keep(3600, one))
        turn = said(call("c1", "Paris"), call("c2", "Rome"))
        assert await recalled(Keep(3600, other), question(), turn) == list(ANSWER)
        assert await recalled(Keep(3600, other), question(), turn, tenant="globex") == list(turn.parts)
        assert await other.take("calls-unknown") is None


async def test_without_nats_a_gateway_keeps_for_itself():
    async with Shelf("nats://127.0.0.1:1", 3600) as shelf:
        keep = Keep(3600, shelf)
        await answered(keep)
        turn = said(call("c1", "Paris"), call("c2", "Rome"))
        assert await recalled(keep, question(), turn) == list(ANSWER)
        with pytest.raises(LookupError):
            await shelf.take("calls-unknown")
