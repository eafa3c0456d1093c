"""Whatever a body holds, `decode_message` says what is wrong and where, and nothing else happens."""

import json

import pytest

from maestro_gateway.anthropic.request import decode_message
from maestro_sdk.errors import InvalidRequest

from .full_bodies import ANTHROPIC
from .spoiling import spoil_bytes, tally


def test_the_full_body_is_good():
    asked = decode_message(json.dumps(ANTHROPIC).encode())
    assert asked.unknown == ()
    assert len(asked.request.messages) == 6


def test_every_wrong_value_is_an_invalid_request_with_its_place():
    tried, refused, faults = tally(decode_message, ANTHROPIC)
    assert faults == []
    assert tried > 3000
    assert refused > tried / 2


def test_bytes_that_are_no_body_are_refused():
    for raw in spoil_bytes(ANTHROPIC):
        with pytest.raises(InvalidRequest):
            decode_message(raw)
