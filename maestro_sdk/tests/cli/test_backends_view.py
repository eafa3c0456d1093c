"""The backends of the gateway's answer as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from maestro_sdk.cli.views import backend_table

CLOSED: dict[str, Any] = {"breaker": "closed", "reason": None, "seconds_left": None}


def backend(name: str, state: str = "active", **facts: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"id": name, "state": state, "reason": None, "until": None, "headroom": None}
    here = {**CLOSED, "account": CLOSED, "in_flight": 0}
    return usual | {"account": "a:p", "account_wide": False, "here": here} | facts


ANSWER: dict[str, Any] = {
    "backends": [
        backend(
            "a:p/well",
            headroom={
                "told": "2026-05-01T12:00:00Z",
                "requests": {"remaining": 900, "limit": 1000, "reset_seconds": None},
                "tokens": {"remaining": 250, "limit": 1000, "reset_seconds": 2.5},
            },
        ),
        backend("a:p/open", "open", reason="PROVIDER_AUTH", until="2026-05-01T12:00:00.123Z", account_wide=True),
        backend("a:p/bad", "quarantined", reason="events after finish", until="2026-05-01T12:00:00Z"),
        backend(
            "a:p/own",
            here={"breaker": "open", "reason": "TIMEOUT", "seconds_left": 3.0, "account": CLOSED, "in_flight": 2},
        ),
    ],
    "adapters": [
        {"name": "vertex", "state": "unconfigured", "reason": "set GOOGLE_CLOUD_PROJECT", "models": 0},
        {"name": "a", "state": "serving", "reason": None, "models": 4},
    ],
}


def shown(name: str = "", **facts: Any) -> list[str]:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(backend_table(ANSWER | facts, name))
    return [" ".join(line.split()) for line in capture.get().splitlines()[1:]]


def test_each_backend_is_a_line_with_its_state_end_and_reason() -> None:
    assert shown() == [
        "a:p/well active 0 25% of tokens",
        "a:p/open open 2026-05-01T12:00:00Z 0 account a:p: PROVIDER_AUTH",
        "a:p/bad quarantined 2026-05-01T12:00:00Z 0 events after finish",
        "a:p/own open 2 here: TIMEOUT",
        "(vertex) unconfigured set GOOGLE_CLOUD_PROJECT",
    ]


def test_a_text_chooses_and_a_router_that_is_away_tells_no_adapters() -> None:
    assert shown("bad", adapters=None) == ["a:p/bad quarantined 2026-05-01T12:00:00Z 0 events after finish"]
