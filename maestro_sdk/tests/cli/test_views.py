"""Answers of the gateway as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from maestro_sdk.cli.views import model_table

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
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(model_table(ANSWER, *arguments, **options))
    return [line.split() for line in capture.get().splitlines()]


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
