"""Bodies in protobuf's JSON: what is wrong in one is refused with its path, and nothing is passed over."""

from __future__ import annotations

import json

import pytest
from google.protobuf.message import Message

from maestro.gateway.v1.key_pb2 import CreateKeyRequest, RotateKeyRequest
from maestro.gateway.v1.webhook_pb2 import ReplayDeadLettersRequest
from maestro.usage.v1.usage_pb2 import EstimateCostRequest
from maestro_gateway.json_codec.contract import read_body
from maestro_sdk.errors import InvalidRequest

NAMES = "tenant, display_name, description, scopes, personas, skills, expire_time, request_id"
TIME = 'must be a time with its zone, such as "2026-05-01T12:00:00Z", and is '
SPAN = 'must be a span in seconds, such as "3600s", and is '
NUMBER = "must be a whole number of 64 bits, not below 0, and is "
PATH = "is said by the path of the request and can't stand in its body too"


def said(field: str, message: str, asked: Message, *bodies: str) -> list[tuple[Message, str, str, str]]:
    return [(asked, body, field, message) for body in bodies]


WRONG = [
    # Names.
    *said("scoops", "is no field here; did you mean scopes?", CreateKeyRequest(), '{"scoops":["chat"]}'),
    *said("colour", f"is no field here; there are {NAMES}", CreateKeyRequest(), '{"scopes":[],"colour":1}'),
    *said("@type", f"is no field here; there are {NAMES}", CreateKeyRequest(), '{"@type":"x"}'),
    *said("[a.b]", f"is no field here; there are {NAMES}", CreateKeyRequest(), '{"[a.b]":1}'),
    *said("body", f"is no field here; there are {NAMES}", CreateKeyRequest(), '{"":1}'),
    *said("colour", "is no field here; there are grace, request_id", RotateKeyRequest(key_id="k"), '{"colour":1}'),
    *said("key_id", PATH, RotateKeyRequest(key_id="k"), '{"key_id":"k"}', '{"key_id":"other"}'),
    *said("keyId", PATH, RotateKeyRequest(key_id="k"), '{"keyId":"k"}'),
    *said(
        "displayName",
        "stands there twice, as display_name and in another spelling",
        CreateKeyRequest(),
        '{"display_name":"a","displayName":"b"}',
    ),
    *said("body", "the key 'tenant' stands twice in one object", CreateKeyRequest(), '{"tenant":"a","tenant":"b"}'),
    *said(
        "chat.messages[0].parts[0].text.txt",
        "is no field here; did you mean text?",
        EstimateCostRequest(),
        '{"chat":{"messages":[{"role":"ROLE_USER","parts":[{"text":{"txt":"hi"}}]}]}}',
    ),
    # Kinds.
    *said("scopes", 'must be a list, and is "chat"', CreateKeyRequest(), '{"scopes":"chat"}'),
    *said("scopes[1]", "must be text, and is 1", CreateKeyRequest(), '{"scopes":["chat",1]}'),
    *said("scopes[0]", "must be text, and is null", CreateKeyRequest(), '{"scopes":[null]}'),
    *said("display_name", "must be text, and is 5", CreateKeyRequest(), '{"display_name":5}'),
    *said("expire_time", f'{TIME}"soon"', CreateKeyRequest(), '{"expire_time":"soon"}'),
    *said("expire_time", f"{TIME}17", CreateKeyRequest(), '{"expire_time":17}'),
    *said("expire_time", f'{TIME}{{"seconds": 1}}', CreateKeyRequest(), '{"expire_time":{"seconds":1}}'),
    *said("grace", f'{SPAN}"soon"', RotateKeyRequest(key_id="k"), '{"grace":"soon"}'),
    *said("numbers[0]", f'{NUMBER}"one"', ReplayDeadLettersRequest(webhook="w"), '{"numbers":["one"]}'),
    *said("numbers[1]", f"{NUMBER}-1", ReplayDeadLettersRequest(webhook="w"), '{"numbers":[1,-1]}'),
    *said("numbers[0]", f"{NUMBER}true", ReplayDeadLettersRequest(webhook="w"), '{"numbers":[true]}'),
    *said(
        "chat.messages[0].role",
        'must be one of ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, and is "user"',
        EstimateCostRequest(),
        '{"chat":{"messages":[{"role":"user"}]}}',
    ),
    *said(
        "chat.messages[0]",
        "must be a JSON object, and is 5",
        EstimateCostRequest(),
        '{"chat":{"messages":[5]}}',
    ),
    *said(
        "body",
        "holds chat and embed, of which only one may be there",
        EstimateCostRequest(),
        '{"chat":{},"embed":{}}',
    ),
    # What the contract demands.
    *said("display_name", "must be at most 128 characters", CreateKeyRequest(), f'{{"display_name":"{"x" * 129}"}}'),
    *said("key_id", "must be at most 64 characters", RotateKeyRequest(key_id="k" * 65), "{}", ""),
    # No object at all.
    *said("body", "must be a JSON object", CreateKeyRequest(), "[]", "null", "5"),
    *said("body", "is nested more than 64 levels deep", CreateKeyRequest(), f'{{"x":{"[" * 65}{"]" * 65}}}'),
    *said("body", "is empty; send a JSON object", EstimateCostRequest(), "", " \n"),
]


@pytest.mark.parametrize(("asked", "body", "field", "message"), WRONG)
def test_what_is_wrong_has_its_path(asked: Message, body: str, field: str, message: str):
    with pytest.raises(InvalidRequest) as caught:
        read_body(body.encode(), asked, optional=not isinstance(asked, EstimateCostRequest))
    assert [(found.field, found.message) for found in caught.value.violations] == [(field, message)]


@pytest.mark.parametrize("body", ["scopes=chat", "<key/>", '{"scopes":["chat"]', "\ufeff{}"])
def test_what_is_no_json_is_refused(body: str):
    with pytest.raises(InvalidRequest, match=r"^body: is not JSON"):
        read_body(body.encode(), CreateKeyRequest())


@pytest.mark.parametrize(
    ("asked", "path", "entries", "most"),
    [
        pytest.param(CreateKeyRequest(), "scopes", [1] * 500_000, 16, id="scopes"),
        pytest.param(EstimateCostRequest(), "chat.messages", [5] * 4097, 4096, id="messages"),
        pytest.param(EstimateCostRequest(), "chat.metadata", dict.fromkeys(map(str, range(33)), ""), 32, id="metadata"),
    ],
)
def test_long_lists_are_counted_before_they_are_read(asked: Message, path: str, entries: list[int], most: int):
    body: object = entries
    for name in reversed(path.split(".")):
        body = {name: body}
    with pytest.raises(InvalidRequest) as caught:
        read_body(json.dumps(body).encode(), asked)
    assert caught.value.message == f"{path}: holds {len(entries)} entries, more than the {most} that are allowed"


def test_one_wrong_entry_of_many_is_found():
    body = json.dumps({"chat": {"messages": [*[{}] * 3_000, 1]}})
    with pytest.raises(InvalidRequest, match=r"^chat\.messages\[3000\]: must be a JSON object"):
        read_body(body.encode(), EstimateCostRequest())


def test_long_values_are_not_quoted_whole():
    with pytest.raises(InvalidRequest) as caught:
        read_body(b'{"expire_time":"%b"}' % (b"x" * 100_000), CreateKeyRequest())
    assert len(caught.value.message) < 300


def test_what_is_right_arrives():
    made = CreateKeyRequest(display_name="a", scopes=["chat"])
    made.expire_time.FromJsonString("2027-01-01T00:00:00Z")
    bodies = (
        b'{"display_name":"a","scopes":["chat"],"expire_time":"2027-01-01T00:00:00Z","skills":null}',
        b'{"displayName":"a","scopes":["chat"],"expireTime":"2027-01-01T01:00:00+01:00"}',
    )
    for body in bodies:
        assert read_body(body, CreateKeyRequest()) == made
    assert read_body(b"", CreateKeyRequest(), optional=True) == CreateKeyRequest()
    rotated = read_body(b'{"grace":"0s"}', RotateKeyRequest(key_id="k"), optional=True)
    assert (rotated.key_id, rotated.HasField("grace"), rotated.grace.seconds) == ("k", True, 0)
