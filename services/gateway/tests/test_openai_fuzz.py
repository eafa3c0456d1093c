"""Whatever a body holds, `decode_completion` says what is wrong and where, and nothing else happens."""

import json

import pytest

from maestro_gateway.openai.request import decode_completion
from maestro_sdk.errors import InvalidRequest

from .full_bodies import OPENAI
from .spoiling import spoil_bytes, tally


def test_the_full_body_is_good():
    asked = decode_completion(json.dumps(OPENAI).encode())
    # OpenAI's own word for who of several users speaks.
    assert asked.unknown == ("messages[2].name",)
    assert len(asked.request.messages) == 5


def test_every_wrong_value_is_an_invalid_request_with_its_place():
    tried, refused, faults = tally(decode_completion, OPENAI)
    assert faults == []
    assert tried > 3000
    assert refused > tried / 2


def test_bytes_that_are_no_body_are_refused():
    for raw in spoil_bytes(OPENAI):
        with pytest.raises(InvalidRequest):
            decode_completion(raw)
