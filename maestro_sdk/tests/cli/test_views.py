"""Answers of the gateway as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from maestro_sdk.cli.views import attempt_table, decision_line, decision_table, model_table, request_line

ANSWER: dict[str, Any] = {
    "data": [
        {
            "id": "acme/large",
            "context_window": 128000,
            "price": {"input": "2.00", "output": "8.00"},
            "features": {"chat": "native", "streaming": "native", "tools": "native", "json_schema": "polyfilled"},
        },
        {"id": "acme/vectors", "features": {"embeddings": "native", "chat": "none"}},
    ],
    "routes": [{"name": "default", "strategy": "fallback", "models": ["acme/large"], "missing": []}],
    "aliases": {"fast": "acme/large"},
}


def shown(*arguments: str, **options: bool) -> list[list[str]]:
    return [line.split() for line in printed(model_table(ANSWER, *arguments, **options))]


def printed(what: Any) -> list[str]:
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_model_is_a_line_with_window_price_and_what_is_special() -> None:
    assert shown()[1:] == [
        ["acme/large", "128,000", "2.00", "8.00", "tools,", "json_schema", "(polyfilled)"],
        ["acme/vectors", "embeddings"],
        ["default", "fallback:", "acme/large"],
        ["fast", "→", "acme/large"],
    ]


def test_every_feature_is_shown_on_demand() -> None:
    assert shown(every_feature=True)[1][4:] == ["chat,", "streaming,", "tools,", "json_schema", "(polyfilled)"]


def test_a_text_chooses() -> None:
    assert [line[0] for line in shown("vec")[1:]] == ["acme/vectors"]
    assert [line[0] for line in shown("fast")[1:]] == ["fast"]


EXPLAINED: dict[str, Any] = {
    "request_id": "req_1",
    "route": "default",
    "strategy": "cost",
    "experiment": "cheaper",
    "variant": None,
    "table_version": 7,
    "candidates": [
        {
            "backend_id": "adapter-a:a/m",
            "model": "a/m",
            "kept": True,
            "reason": "cheapest",
            "missing": [],
            "score": 1.23456,
            "estimated_usd": "0.0015",
        },
        {"backend_id": None, "model": "b/m", "kept": False, "reason": "too [dear]", "missing": ["vision", "tools"]},
    ],
    "request": {
        "outcome": "failed",
        "ended": "2026-05-01T12:00:00.123456789Z",
        "latency": 0.25,
        "usage": {"input_tokens": 20},
        "cost_usd": "0.001",
        "degraded": True,
        "after_content": False,
    },
    "attempts": [
        {
            "attempt": 1,
            "backend_id": "adapter-a:a/m",
            "fate": "failed",
            "after_content": True,
            "latency": 0.0412,
            "usage": {"input_tokens": 20, "output_tokens": 3},
            "cost_usd": "0.001",
            "error": {"reason": "RATE_LIMITED", "retry_after": 1.5, "upstream_status": 429, "upstream_code": None},
        },
        {
            "attempt": 2,
            "backend_id": "adapter-b:b/m",
            "fate": "handed_over",
            "after_content": None,
            "latency": None,
            "usage": None,
            "cost_usd": None,
            "error": None,
        },
    ],
    "error": {"reason": "TIMEOUT", "retry_after": None, "upstream_status": None, "upstream_code": None},
}


def test_a_decision_is_a_table_of_candidates() -> None:
    assert printed(decision_line(EXPLAINED)) == [
        "route default · strategy cost · experiment cheaper, no variant · table 7"
    ]
    assert [line.split() for line in printed(decision_table(EXPLAINED))] == [
        ["backend", "score", "about", "$", "why"],
        ["1", "adapter-a:a/m", "1.235", "0.0015", "cheapest"],
        ["✗", "b/m", "too", "[dear]", "(missing:", "vision,", "tools)"],
    ]
    assert decision_line({**EXPLAINED, "strategy": None, "candidates": []}) == "nothing was decided"
    plain = {**EXPLAINED, "candidates": EXPLAINED["candidates"][1:]}
    assert printed(decision_table(plain))[0].split() == ["backend", "why"]


def test_a_recorded_request_tells_its_end_and_its_attempts() -> None:
    assert " ".join(printed(request_line(EXPLAINED))) == (
        "failed after 0.25 s, 2026-05-01T12:00:00Z · TIMEOUT · 20 tokens in, 0 out · $0.001 · routing was degraded"
    )
    assert [line.split() for line in printed(attempt_table(EXPLAINED))] == [
        ["attempt", "backend", "fate", "time", "in", "out", "$", "why"],
        [
            *("1", "adapter-a:a/m", "failed", "0.0412", "s", "20", "3", "0.001"),
            *("RATE_LIMITED", "(HTTP", "429),", "again", "in", "1.5", "s,", "after", "content"),
        ],
        ["2", "adapter-b:b/m", "handed", "over"],
    ]
