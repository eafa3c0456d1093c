"""What a tenant's rules match is nowhere in what is recorded, wherever it stands and however it is written."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    ReasoningDelta,
    Routing,
    StreamChatResponse,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import (
    Citation,
    DocumentPart,
    ImagePart,
    Message,
    OpaquePart,
    Part,
    ReasoningPart,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro_gateway.audit.content import Content, as_document
from maestro_gateway.audit.recorder import Policy, Recorder
from maestro_gateway.audit.redaction import Redactor
from maestro_gateway.audit.wire import Wire
from maestro_sdk.service.audits import EVERY_RULE, RuleConfig
from maestro_sdk.tracing import Call

BADGE = "B-123456"
EMAIL = "ada.lovelace@example.com"
CARD = "4111 1111 1111 1111"
KEY = "sk-proj-0123456789abcdefghij"
PASSWORD = "correct-horse-battery"
RULES = Redactor([*EVERY_RULE, RuleConfig(name="badge", pattern="B-[0-9]{6}")])


def said(*parts: Part, **fields: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=[Message(role=Role.ROLE_USER, parts=parts)], **fields)


def text(words: str) -> Part:
    return Part(text=TextPart(text=words))


def call(arguments: str = "{}", **fields: str) -> Part:
    return Part(tool_call=ToolCallPart(**{"call_id": "c1", "name": "send", **fields}, arguments_json=arguments))


def result(*parts: Part) -> Part:
    return Part(tool_result=ToolResultPart(call_id="c1", parts=parts))


def options(**values: Any) -> ChatRequest:
    asked = said(text("hello"))
    asked.provider_options["openai"].update(values)
    return asked


def answered(**values: Any) -> ChatResponse:
    response = ChatResponse(response_id="r1", parts=[text("hello")])
    response.provider_metadata["openai"].update(values)
    return response


def tool(**fields: str) -> ChatRequest:
    asked = said(text("hello"))
    asked.tools.add(**{"name": "send", **fields})
    return asked


def nested(levels: int) -> str:
    """JSON that holds an address, within so many strings of JSON."""
    found = json.dumps({"to": [EMAIL]})
    for _ in range(levels):
        found = json.dumps({"body": found})
    return found


def wide(words: str) -> str:
    """The words in the wide letters of East Asian texts."""
    return "".join(chr(ord(letter) + 0xFEE0) for letter in words)


CASES: dict[str, tuple[ChatRequest | ChatResponse, str]] = {
    "text": (said(text(f"I am {BADGE}.")), BADGE),
    "system": (ChatRequest(system=f"You serve {EMAIL}"), EMAIL),
    "key of a label": (said(text("x"), metadata={BADGE: "yes"}), BADGE),
    "value of a label": (said(text("x"), metadata={"who": EMAIL}), EMAIL),
    "label named password": (said(text("x"), metadata={"password": PASSWORD}), PASSWORD),
    "name of an option": (options(**{f"user {BADGE}": 1}), BADGE),
    "name of an option far down": (options(deep=[{"more": {EMAIL: True}}]), EMAIL),
    "value of an option far down": (options(deep=[{"more": [KEY]}]), KEY),
    "number of an option": (options(account=4111111111111111), "4111111111111111"),
    "option named api_key": (options(api_key=PASSWORD), PASSWORD),
    "options of a provider with such a name": (ChatRequest(provider_options={EMAIL: Struct()}), EMAIL),
    "name of a provider's fact": (answered(**{EMAIL: "x"}), EMAIL),
    "name of a tool": (tool(name=BADGE), BADGE),
    "description of a tool": (tool(description=f"ask {EMAIL}"), EMAIL),
    "member of a tool's schema": (tool(input_schema=json.dumps({"properties": {EMAIL: {}}})), EMAIL),
    "name of a tool that is called": (said(call(name=BADGE)), BADGE),
    "name of an argument": (said(call(json.dumps({EMAIL: 1}))), EMAIL),
    "value of an argument": (said(call(json.dumps({"password": PASSWORD}))), PASSWORD),
    "number of an argument": (said(call('{"card": 4111111111111111}')), "4111111111111111"),
    "argument with escapes": (said(call('{"to": "ada.lovelace\\u0040example.com"}')), "ada.lovelace"),
    "identifier of a call": (said(call(call_id=BADGE)), BADGE),
    "result of a tool": (said(result(text(f"found {KEY}"))), KEY),
    "JSON within JSON": (said(result(text(nested(1)))), EMAIL),
    "JSON within JSON within JSON": (said(result(text(nested(2)))), EMAIL),
    "reasoning": (ChatResponse(parts=[Part(reasoning=ReasoningPart(text=f"it is {CARD}"))]), CARD),
    "words of a citation": (
        ChatResponse(parts=[Part(text=TextPart(text="x", citations=[Citation(cited_text=EMAIL, title=BADGE)]))]),
        EMAIL,
    ),
    "title of a document": (said(Part(document=DocumentPart(file_id="f", title=f"{BADGE}.pdf"))), BADGE),
    "address of a picture": (said(Part(image=ImagePart(url=f"https://x.org/?password={PASSWORD}"))), PASSWORD),
    "what a provider alone knows": (ChatResponse(parts=[Part(opaque=OpaquePart(json=json.dumps({EMAIL: 1})))]), EMAIL),
    "picture": (said(Part(image=ImagePart(data=EMAIL.encode()))), base64.b64encode(EMAIL.encode()).decode()),
    "session": (ChatRequest(routing=Routing(session_key=EMAIL)), EMAIL),
    "model": (ChatRequest(model=BADGE), BADGE),
    "words at which to stop": (ChatRequest(stop=[BADGE]), BADGE),
    "address in other letters": (said(text("write to jörg.müller@münchen.example now")), "müller"),
    "card with narrow spaces": (said(text(CARD.replace(" ", "\u202f"))), "1111"),
    "number with hyphens that don't break": (said(text("4111\u20111111\u20111111\u20111111")), "1111"),
    "wide letters": (said(text(wide(BADGE))), wide("123")),
    "key with what nobody sees in it": (said(text("AKIA\u200bABCDEFGH\u00ad\ufeffIJKLMNOP")), "IJKLMNOP"),
    "address with what nobody sees in it": (said(text("ada\u2060@\u200dexam\u200cple.com")), "ple.com"),
    "number with what nobody sees in it": (said(text("4111\u200b1111\u200b1111\u200b1111")), "1111"),
    "wide letters with what nobody sees in them": (said(text("\u200b".join(wide(BADGE)))), wide("1")),
    "what nobody sees, escaped": (said(call('{"to": "ada\\u200b@exam\\u200bple.com"}')), "ple.com"),
}


@pytest.mark.parametrize("case", CASES)
def test_no_place_hides_it(case: str) -> None:
    message, secret = CASES[case]
    if isinstance(message, ChatRequest):
        content = Content(as_document(message), as_document(ChatResponse()))
    else:
        content = Content(as_document(said(text("hello"))), as_document(message))
    recorded = content.document(RULES.begin()).decode()
    told = json.dumps(json.loads(recorded), ensure_ascii=False)
    assert secret not in recorded
    assert secret not in told
    if case != "picture":
        assert json.loads(recorded)["redactions"], told


DELTAS: dict[str, Callable[[str], ChatEvent]] = {
    "text": lambda piece: ChatEvent(text=TextDelta(text=piece)),
    "reasoning": lambda piece: ChatEvent(reasoning=ReasoningDelta(text=piece)),
    "tool_call": lambda piece: ChatEvent(tool_call=ToolCallDelta(arguments_json=piece)),
}
SECRETS = (BADGE, EMAIL, CARD, KEY, f"password: {PASSWORD}", "ada.lovelace\\u0040example.com")


@given(
    kind=st.sampled_from(sorted(DELTAS)),
    secret=st.sampled_from(SECRETS),
    cuts=st.lists(st.integers(1, 40), max_size=30),
    together=st.booleans(),
)
def test_no_cut_between_deltas_hides_it(kind: str, secret: str, cuts: Sequence[int], *, together: bool) -> None:
    whole = f'{{"it is": "{secret}"}} and more'
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    pieces = [whole[start:end] for start, end in pairwise(edges)]
    events = [DELTAS[kind](piece) for piece in pieces]
    batches = [events] if together else [[event] for event in events]
    content = Content(as_document(said(text("hello"))))
    content.frames = [as_document(StreamChatResponse(events=batch)) for batch in batches]
    found = orjson.loads(content.document(RULES.begin()))
    member = "arguments_json" if kind == "tool_call" else "text"
    told = "".join(event[kind].get(member, "") for frame in found["frames"] for event in frame["events"])
    assert secret.removeprefix("password: ") not in told
    assert "[" in told
    assert told.endswith(" and more")


def test_names_that_are_alike_stay_apart_and_the_same_stay_the_same() -> None:
    asked = said(
        call(name="B-111111"), call(name="B-222222"), call(name="B-111111"), metadata={"B-1111115": "", EMAIL: ""}
    )
    asked.metadata["ada@example.com"] = "x"
    found = orjson.loads(Content(as_document(asked), as_document(ChatResponse())).document(RULES.begin()))["request"]
    names = [part["tool_call"]["name"] for part in found["messages"][0]["parts"]]
    assert names == ["[badge]", "[badge] 2", "[badge]"]
    assert sorted(found["metadata"]) == ["[badge]5", "[email]", "[email] 2"]


def test_what_nobody_asked_to_hide_stays() -> None:
    asked = options(temperature=0.5, count=7, exact=True, nothing=None, names=["a", "b"], password_hint="none")
    asked.metadata["team"] = "a-b"
    before = as_document(asked)
    found = orjson.loads(Content(as_document(asked), as_document(ChatResponse())).document(RULES.begin()))
    assert found == {"request": before, "response": {}}


class Held(Recorder):
    """Brings nothing anywhere."""

    def __init__(self) -> None:
        super().__init__(Wire(""), {"acme": Policy(RULES, 60.0)}, limit=400)
        self.held: list[bytes] = []

    def keep(self, call: Call, content: bytes, retention: float) -> str:
        self.held.append(content)
        return "kept"


@pytest.mark.parametrize("secret", [KEY, EMAIL, CARD, PASSWORD, BADGE])
@pytest.mark.parametrize("before", range(20, 55, 3))
def test_a_recording_that_ends_within_a_secret_holds_no_half_of_it(secret: str, before: int) -> None:
    recorder = Held()
    recording = recorder.begin(Call("r1", "acme", ""), said(text("hello")))
    assert recording is not None
    pieces = [*"." * before, *" token: ", *secret, *["and more, "] * 20_000]
    for piece in pieces:
        recording.note(StreamChatResponse(events=[ChatEvent(text=TextDelta(text=piece))]))
    assert recording.finish()
    (kept,) = recorder.held
    found = orjson.loads(kept)
    told = "".join(event["text"].get("text", "") for frame in found["frames"] for event in frame["events"])
    assert found["truncated"]
    assert before <= len(told) < 200
    # The beginning of the whole as it would be recorded.
    assert RULES.begin().redact("".join(pieces[:1000])).startswith(told)
