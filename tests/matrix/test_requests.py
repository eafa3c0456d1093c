"""One conversation, one reviewed wire per adapter: the body, the warnings, or the error where it can't be carried."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from matrix_wires import CONVERSATIONS, NAMES, conversation, wire

from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing import golden

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = sorted(file.stem for file in CONVERSATIONS.glob("*.json"))


def outcome(fixture: str, name: str) -> Any:
    try:
        sent = wire(name).ask(conversation(fixture))
    except InvalidRequest as error:
        violations = [{"field": each.field, "message": each.message} for each in error.violations]
        return {"error": {"reason": error.reason, "violations": violations}}
    return {"body": sent.body, "warnings": golden.plain(list(sent.warnings))}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_requests(fixture: str, name: str) -> None:
    golden.check(GOLDEN / f"{fixture}.{name}.json", outcome(fixture, name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fixture", FIXTURES)
def test_warnings_and_errors_name_fields_that_were_given(fixture: str, name: str) -> None:
    given = {field.name for field, _ in conversation(fixture).ListFields()}
    told = outcome(fixture, name)
    places = told["warnings"] if "warnings" in told else told["error"]["violations"]
    assert {re.split(r"[.\[#]", place["field"])[0] for place in places} <= given


def test_each_conversation_is_carried_by_somebody() -> None:
    assert len(FIXTURES) >= 14
    refused = {fixture for fixture in FIXTURES if all("error" in outcome(fixture, name) for name in NAMES)}
    assert refused == set()
