"""What the rules of redaction find, and that no text makes them slow."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, StreamChatResponse, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import ImagePart, Message, Part, Role, TextPart, TokenLogprob, ToolCallPart
from maestro_gateway.audit.content import Content, as_document
from maestro_gateway.audit.escapes import Escapes
from maestro_gateway.audit.redaction import Redactor, TooSlowError
from maestro_sdk.service.audits import EVERY_RULE, RuleConfig, TenantAuditConfig

ALL = Redactor(EVERY_RULE)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to Bob.O'Neil+x@mail.example.co.uk, please", "write to [email], please"),
        ("a@b is none, and @here neither", "a@b is none, and @here neither"),
        ("card 4111 1111 1111 1111 12/26", "card [card] 12/26"),
        ("order 12 4111-1111-1111-1111, amex 378282246310005", "order 12 [card], amex [card]"),
        ("4111 1111 1111 1111 5500 0000 0000 0004 4111111111111111", "[card] [card] [card]"),
        ("4111 1111 1111 1112 fails Luhn", "4111 1111 1111 1112 fails Luhn"),
        ("DE89 3704 0044 0532 0130 00 AND GB82WEST12345698765432.", "[iban] AND [iban]."),
        ("DE00370400440532013000", "DE00370400440532013000"),
        ("192.168.0.1:80, 999.1.1.1, v1.2.3 and 2001:db8::ff00:42:8329", "[ip]:80, 999.1.1.1, v1.2.3 and [ip]"),
        ("12:30:45, std::vector, abc::def", "12:30:45, std::vector, abc::def"),
        ("+49 (0)30 1234567, (212) 555-0123, 030/12345678", "[phone], [phone], [phone]"),
        ("on 2024-01-02 at 10:15 we had 12345 rows", "on 2024-01-02 at 10:15 we had 12345 rows"),
        ("sk-abcdefghijklmnopqrstuvwx AKIAABCDEFGHIJKLMNOP", "[secret] [secret]"),
        ('password: hunter2222 {"api_key": "supersecret"}', 'password: [secret] {"api_key": "[secret]"}'),
        ("Authorization: Bearer abc.def.ghijkl", "Authorization: Bearer [secret]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "[secret]"),
        ("max_tokens=1024 and tokens: many", "max_tokens=1024 and tokens: many"),
    ],
)
def test_what_is_found(text: str, redacted: str) -> None:
    assert ALL.begin().redact(text) == redacted


@given(st.lists(st.integers(1, 40), max_size=12))
def test_a_text_in_pieces_is_redacted_like_the_whole(cuts: list[int]) -> None:
    text = "Mail ada@example.com, call +49 30 1234567 or pay with 4111 1111 1111 1111 from 10.1.2.3 today."
    pieces: list[str] = []
    at = 0
    for cut in cuts:
        pieces.append(text[at : at + cut])
        at += cut
    pieces.append(text[at:])
    found = ALL.begin().redact_pieces(pieces)
    assert len(found) == len(pieces)
    assert "".join(found) == "Mail [email], call [phone] or pay with [card] from [ip] today."


@pytest.mark.parametrize(
    ("meant", "redacted"),
    [
        ("the key:\nsk-abcdefghijklmnopqrstuv\n", "the key:\n[secret]\n"),
        ("paid\twith\t4111111111111111", "paid\twith\t[card]"),
        ('say "a\\nb"\nor DE89370400440532013000', 'say "a\\nb"\nor [iban]'),
    ],
)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_what_stands_behind_an_escape_is_found(meant: str, redacted: str, depth: int) -> None:
    wrapped, wanted = meant, redacted
    for _ in range(depth):
        wrapped, wanted = orjson.dumps({"text": wrapped}).decode(), orjson.dumps({"text": wanted}).decode()
    assert ALL.begin().redact(wrapped) == wanted


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        # The letter of an escape is no part of an address, and is not left behind alone.
        (r'{"to":"x\nada@example.com"}', r'{"to":"x[email]"}'),
        (r'{"to":"ada\u0040example.com"}', r'{"to":"[email]"}'),
        (r'{"to":"\u0073k-abcdefghijklmnopqrstuv\ud83d\ude00"}', r'{"to":"[secret]\ud83d\ude00"}'),
        (r"CORP\nada@example.com, C:\temp\new.txt", r"CORP[email], C:\temp\new.txt"),
    ],
)
def test_escapes_stay_whole(text: str, redacted: str) -> None:
    assert ALL.begin().redact(text) == redacted


@given(st.text(alphabet='\\nu0041d8"ab@.c ', max_size=60))
def test_escapes_know_where_they_are_written(text: str) -> None:
    escapes = Escapes(text)
    places = [escapes.written(place) for place in range(len(escapes.meant) + 1)]
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, len(text))
    for place, letter in enumerate(escapes.meant):
        written = text[places[place] : places[place + 1]]
        assert Escapes(written).meant == letter
        for inner in range(places[place] + 1, places[place + 1]):
            assert escapes.widened(inner, inner) == (places[place], places[place + 1])


def test_own_rules_and_their_order() -> None:
    config = TenantAuditConfig.model_validate({"redact": ["email", {"name": "badge", "pattern": "B-[0-9]{6}"}]})
    redaction = Redactor(config.redact).begin()
    assert redaction.redact("B-123456 wrote to a@b.de from 10.0.0.1") == "[badge] wrote to [email] from 10.0.0.1"
    assert dict(redaction.counts) == {"badge": 1, "email": 1}
    assert Redactor(()).begin().redact("a@b.de") == "a@b.de"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("emails", "is no rule; there are secret, email"),
        ({"name": "email", "pattern": "x{1,3}"}, "is the name of a rule that is there already"),
        ({"name": "UP", "pattern": "x"}, "should match pattern"),
        ({"name": "badge"}, "is no rule; there are secret, email"),
        ({"name": "a", "pattern": "(a+)+b"}, r"has a \+ without an end"),
        ({"name": "a", "pattern": ".*secret"}, r"has a \* without an end"),
        ({"name": "a", "pattern": "x{3,}"}, "has a repeat without an end"),
        ({"name": "a", "pattern": "(a{1,30}){1,30}b"}, "could find 901 characters"),
        ({"name": "a", "pattern": "(a|a?){1,30}b"}, "in more than 1000 ways"),
        ({"name": "a", "pattern": "(?=a)b"}, r"has a group \(\?="),
        ({"name": "a", "pattern": r"(a)\1"}, r"has the escape \\1"),
        ({"name": "a", "pattern": "a?"}, "would find nothing everywhere"),
        ({"name": "a", "pattern": "(a"}, r"has a \( without its \)"),
        ({"name": "a", "pattern": "a)"}, r"has a \) without its \("),
        ({"name": "a", "pattern": "[a"}, "is no regular expression"),
        ({"name": "a", "pattern": "a" * 201}, "at most 200 characters"),
    ],
)
def test_a_rule_that_may_take_for_ever_stops_the_start(rule: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TenantAuditConfig.model_validate({"redact": [rule]})


@pytest.mark.parametrize("piece", ["1", "222 ", "@a.", "AB12 ", "1:", "password ", "eyJ", "+1 ", "sk-", "(0", "abcd:"])
def test_no_text_makes_the_rules_slow(piece: str) -> None:
    begun = time.process_time()
    ALL.begin().redact(piece * (200_000 // len(piece)))
    assert time.process_time() - begun < 2.0


def test_own_rules_have_a_budget() -> None:
    # Some pattern is slow all the same: then nothing is kept, and nobody waits.
    slow = Redactor([RuleConfig(name="slow", pattern="(?:a|a|a|a|a){4}b")])
    begun = time.process_time()
    with pytest.raises(TooSlowError):
        slow.begin().redact("a" * 4_000_000)
    assert time.process_time() - begun < 5.0


def test_a_document_holds_text_but_nothing_binary() -> None:
    picture = ImagePart(data=b"\x89PNG" * 10, mime_type="image/png")
    asked = ChatRequest(
        model="fast",
        system="Ada's number is +49 30 1234567.",
        seed=4111111111111111,
        messages=[
            Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="mail a@b.de")), Part(image=picture)]),
            Message(
                role=Role.ROLE_ASSISTANT,
                parts=[
                    Part(
                        tool_call=ToolCallPart(
                            call_id="call_4111111111111111", name="send", arguments_json='{"to":"a@b.de"}'
                        ),
                        provider_state=b"signature",
                    )
                ],
            ),
        ],
    )
    asked.provider_options["openai"].update({"user": "a@b.de", "data": "no binary"})
    told = TextPart(text="a@b.de it is", logprobs=[TokenLogprob(token="a@b.de", logprob=-0.5)])
    content = Content(as_document(asked), as_document(ChatResponse(response_id="r1", parts=[Part(text=told)])))
    found = orjson.loads(content.document(ALL.begin()))
    request = found["request"]
    assert request["system"] == "Ada's number is [phone]."
    assert request["messages"][0]["parts"] == [
        {"text": {"text": "mail [email]"}},
        {"image": {"mime_type": "image/png"}},
    ]
    call = request["messages"][1]["parts"][0]["tool_call"]
    assert call == {"call_id": "call_[card]", "name": "send", "arguments_json": '{"to":"[email]"}'}
    assert request["provider_options"] == {"openai": {"user": "[email]", "data": "no binary"}}
    assert request["seed"] == "4111111111111111"
    assert [(gone["path"], gone["size"]) for gone in found["omitted"]] == [
        ("request.messages[0].parts[1].image.data", 40),
        ("request.messages[1].parts[0].provider_state", 9),
    ]
    assert found["response"]["parts"] == [{"text": {"text": "[email] it is"}}]
    assert found["redactions"] == {"email": 4, "phone": 1, "card": 1}
    assert b"a@b.de" not in orjson.dumps(found)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_number_for_is_told_in_words(number: float) -> None:
    asked, answered = ChatRequest(model="m"), ChatResponse(response_id="r1")
    asked.provider_options["openai"].update({"deep": [{"value": number}]})
    answered.provider_metadata["openai"].update({"kept": 2.5})
    answered.provider_metadata["openai"]["score"] = number
    found = orjson.loads(Content(as_document(asked), as_document(answered)).document(ALL.begin()))
    assert found["request"]["provider_options"] == {"openai": {"deep": [{"value": str(number)}]}}
    assert found["response"]["provider_metadata"] == {"openai": {"kept": 2.5, "score": str(number)}}


def test_what_came_in_pieces_is_redacted_across_them() -> None:
    pieces = ["mail a", "da@exam", "ple.com now"]
    frames = [StreamChatResponse(events=[ChatEvent(text=TextDelta(index=0, text=piece))]) for piece in pieces]
    call = [ChatEvent(tool_call=ToolCallDelta(index=1, arguments_json=part)) for part in ('{"to":"x', '@y.de"}')]
    content = Content(as_document(ChatRequest(model="m")))
    content.frames = [as_document(frame) for frame in [*frames, StreamChatResponse(events=call)]]
    found = orjson.loads(content.document(ALL.begin()))["frames"]
    assert [event["text"].get("text", "") for frame in found[:3] for event in frame["events"]] == [
        "mail [email]",
        "",
        " now",
    ]
    assert "".join(event["tool_call"].get("arguments_json", "") for event in found[3]["events"]) == '{"to":"[email]"}'
