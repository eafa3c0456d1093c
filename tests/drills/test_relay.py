"""A provider is cut after every word of its answer, and another one goes on: the caller reads one whole answer."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio
from drill_doors import STREAMED, Got, Stand, ask
from drill_stage import Stage, chosen, prompt, run_all
from drill_table import OTHER, WIRES

from maestro_sdk.testing.faults import Cut, Headers, Reply, Seen, Step, Wait
from maestro_sdk.testing.wire import SETTLE, Answer, Tokens, ToolCall, Wire

WORDS = 60
# Four characters a word, since that is what a token counts where nobody told its number.
PIECES = tuple(f"w{number:02} " for number in range(1, WORDS + 1))
TEXT = "".join(PIECES)
INPUT = {"openai": 14, "anthropic": 17}
"""Input tokens that each provider counts."""
ROUTES = {"to-prefill": "openai", "to-instruction": "anthropic"}
"""Who is cut; the other one goes on, by prefill where the route says so, else by an instruction."""
AT_ONCE = 24
_TOLD = re.compile(r"w\d\d(?: w\d\d)*")


@dataclass(frozen=True, slots=True)
class Case:
    """A cut after so many words, on a route, at a door."""

    route: str
    door: str
    words: int

    @property
    def name(self) -> str:
        """Its name, which its prompt holds too."""
        return f"relay, {self.route}, {self.door}, after {self.words}"


CASES = {
    case.name: case
    for case in (Case(route, door, words) for route in ROUTES for door in STREAMED for words in range(1, WORDS + 1))
}


def told(seen: Seen) -> str:
    """The answer so far that a provider was handed."""
    turns = [turn for turn in seen.json()["messages"] if turn["role"] == "assistant"]
    [found] = _TOLD.findall(json.dumps([turn["content"] for turn in turns]))
    return str(found)


def rest(seen: Seen) -> Answer:
    """What belongs behind the answer so far."""
    before = told(seen)
    assert TEXT.startswith(before), before
    text = TEXT[len(before) :]
    pieces = tuple(text[start : start + 4] for start in range(0, len(text), 4))
    provider = "anthropic" if seen.path == WIRES["anthropic"].path else "openai"
    return Answer(pieces=pieces, tokens=Tokens(input=INPUT[provider], output=len(pieces)))


def goes_on(wire: Wire) -> Reply:
    """The answer of the provider that goes on; where all was said, an empty one."""
    return lambda seen: wire.answer(rest(seen))(seen)


def cut_after(wire: Wire, provider: str, words: int) -> Reply:
    """A stream that is cut; what it counted before is its input alone."""
    return wire.cut_after(words, Answer(pieces=PIECES, tokens=Tokens(input=INPUT[provider], output=0)))


async def drill(case: Case, stage: Stage, stand: Stand) -> None:
    """One case. Raises `AssertionError` with all that is wrong."""
    first = ROUTES[case.route]
    second = OTHER[first]
    stage.script(case.name, first, cut_after(WIRES[first], first, case.words))
    stage.script(case.name, second, goes_on(WIRES[second]))
    got = await ask(stand, case.door, prompt(case.name), model=case.route)
    assert got.text == TEXT, f"the text is {got.text!r}"
    handed = [told(seen) for seen in stage.seen(case.name, second)]
    assert handed == ["".join(PIECES[: case.words]).rstrip()]
    wrong = [*_wrong(got, first, second), *_wrong_sums(got, first, second)]
    assert not wrong, "; ".join(wrong)
    stage.forget(case.name)


def _wrong(got: Got, first: str, second: str) -> list[str]:
    found: list[str] = []
    if (got.began, got.ended, got.finish, got.error) != (1, 1, "stop", {}):
        found.append(f"it began {got.began} times, ended {got.ended} times with {got.finish!r}, error {got.error}")
    if got.kinds[0] != "started" or got.kinds[-1] != "finish":
        found.append(f"it begins with {got.kinds[0]} and ends with {got.kinds[-1]}")
    expected = {"from_model": f"{first}/relay", "to_model": f"{second}/relay", "why": "STREAM_BROKEN"}
    if got.switched != [expected]:
        found.append(f"switched: {got.switched}")
    return found


def _wrong_sums(got: Got, first: str, second: str) -> list[str]:
    """OpenAI counts at the end only: what it had read is an estimate then, and what it had written, too."""
    read, written = got.usage.get("input_tokens", 0), got.usage.get("output_tokens", 0)
    least = INPUT[second] + (INPUT[first] if first == "anthropic" else 1)
    exact = first == "anthropic"
    found: list[str] = []
    if read < least or (exact and read != least):
        found.append(f"{read} input tokens, not {least}")
    # White space at a seam may be a piece of its own.
    if not WORDS <= written <= WORDS + 1:
        found.append(f"{written} output tokens, not {WORDS}")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(
    request: pytest.FixtureRequest, stage: Stage, calm_stand: Stand, figures: list[str]
) -> Mapping[str, str]:
    """What was wrong with each case that was asked for, by name."""
    names = chosen(request, test_the_answer_is_whole)
    found = await run_all(names, lambda name: drill(CASES[name], stage, calm_stand), AT_ONCE)
    lost = sum(what.startswith("the text") for what in found.values())
    figures.append(
        f"handover inside an answer: {len(found)} cases, {sum(map(bool, found.values()))} failures, "
        f"{lost} with characters lost or repeated"
    )
    return found


@pytest.mark.parametrize("name", CASES)
async def test_the_answer_is_whole(outcomes: Mapping[str, str], name: str):
    assert not outcomes[name], outcomes[name]


def goes_on_for(wire: Wire, words: int) -> Reply:
    """The rest of the answer, cut after so many more words."""

    def reply(seen: Seen) -> Sequence[Step]:
        return wire.cut_after(words, rest(seen))(seen)

    return reply


@pytest.mark.parametrize(("first", "more"), [(1, 1), (1, 30), (20, 1), (20, 20), (40, 19), (58, 1)])
@pytest.mark.parametrize("door", STREAMED)
async def test_the_second_is_cut_too(stage: Stage, calm_stand: Stand, door: str, first: int, more: int):
    case = f"relay of three, {door}, {first}, {more}"
    stage.script(case, "openai", cut_after(WIRES["openai"], "openai", first))
    # The first piece that it says may be the white space at the seam.
    stage.script(case, "anthropic", goes_on_for(WIRES["anthropic"], more))
    stage.script(case, "vllm", goes_on(WIRES["openai"]))
    got = await ask(calm_stand, door, prompt(case), model="to-two")
    asked = [len(stage.seen(case, provider)) for provider in ("openai", "anthropic", "vllm")]
    stage.forget(case)
    assert got.text == TEXT
    assert (got.began, got.ended, got.finish, got.error) == (1, 1, "stop", {})
    assert [each["to_model"] for each in got.switched] == ["anthropic/relay", "local/third"]
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("door", STREAMED)
async def test_when_nobody_is_left_the_answer_ends_in_an_error(stage: Stage, calm_stand: Stand, door: str):
    case = f"relay without an end, {door}"
    stage.script(case, "openai", cut_after(WIRES["openai"], "openai", 10))
    stage.script(case, "anthropic", goes_on_for(WIRES["anthropic"], 10))
    got = await ask(calm_stand, door, prompt(case), model="to-prefill")
    stage.forget(case)
    assert TEXT.startswith(got.text)
    assert len(got.text) >= len("".join(PIECES[:19]))
    assert (got.began, got.ended, got.finish) == (1, 1, "")
    assert (got.reason, got.after_content, got.error["retryable"]) == ("STREAM_BROKEN", True, False)
    assert len(got.switched) == 1


def cut_in_call(wire: Wire, groups: int) -> Reply:
    """The stream is cut inside a tool call, after so many pieces of the answer."""
    answer = Answer(pieces=("Let me look. ",), calls=(ToolCall("c1", "find", {"query": "the whole thing"}),))

    def reply(seen: Seen) -> Sequence[Step]:
        shown = [step for group in wire.content(answer, seen)[:groups] for step in group]
        head = Headers(200, {"content-type": "text/event-stream"})
        return (head, *wire.opening(answer, seen), *shown, Wait(SETTLE), Cut())

    return reply


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("door", STREAMED)
@pytest.mark.parametrize("route", ROUTES)
async def test_half_a_call_is_never_gone_on_with(stage: Stage, calm_stand: Stand, route: str, door: str, groups: int):
    first = ROUTES[route]
    case = f"relay inside a call, {route}, {door}, {groups}"
    stage.script(case, first, cut_in_call(WIRES[first], groups))
    stage.script(case, OTHER[first], WIRES[OTHER[first]].text("from the second"))
    tool = {"name": "find", "input_schema": {"type": "object", "properties": {"query": {"type": "string"}}}}
    got = await ask(calm_stand, door, prompt(case), model=route, tools=[tool])
    seen = len(stage.seen(case, OTHER[first]))
    stage.forget(case)
    assert (got.reason, got.after_content, got.error["retryable"]) == ("STREAM_BROKEN", True, False)
    assert (got.began, got.ended, got.finish, got.switched) == (1, 1, "", [])
    assert got.text == "Let me look. "
    assert seen == 0
    [(name, arguments)] = got.calls
    assert name == "find"
    # Half a call is no JSON: nobody can take it for a whole one.
    with pytest.raises(json.JSONDecodeError):
        json.loads(arguments)
