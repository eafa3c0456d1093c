"""Tables that the commands print. Pure: the API's JSON in, something that rich can print out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from maestro_sdk.cli.folder import MeshState

_GOOD = {"ready", "ok", "active"}
_MIDDLING = {"starting", "degraded", "waiting", "stopping", "half_open"}


def status_data(state: MeshState, health: Mapping[str, Any] | None, trouble: str) -> dict[str, Any]:
    """What `maestro status --json` prints; `health` is the gateway's answer, or None and `trouble` says why."""
    now = time.time()
    return {
        "state": state.state,
        "url": state.url,
        "pid": state.pid,
        "uptime_seconds": round(now - state.started, 1),
        "processes": [
            {
                "name": each.name,
                "pid": each.pid,
                "state": each.state,
                "address": each.address,
                "restarts": each.restarts,
                "uptime_seconds": round(now - each.since, 1) if each.pid else None,
                "note": each.note or None,
            }
            for each in state.processes
        ],
        "health": health,
        "trouble": trouble or None,
    }


def process_table(data: Mapping[str, Any]) -> Table:
    """The processes of `status_data`."""
    table = _table("process", "pid", "state", "address", "restarts", "up", "note")
    for each in data["processes"]:
        up = each["uptime_seconds"]
        table.add_row(
            each["name"],
            str(each["pid"] or ""),
            _coloured(each["state"]),
            each["address"],
            str(each["restarts"]),
            "" if up is None else span(up),
            escape(each["note"] or ""),
        )
    return table


# What a model of today has; a list of differences is shorter to read.
_USUAL = frozenset(
    (
        *("chat", "streaming", "system_prompt", "stop_sequences", "temperature", "seed"),
        *("parallel_tools", "tool_choice", "streamed_tool_args"),
    )
)
_NUMBERS = frozenset({"pid", "restarts", "context", "in $", "out $"})


def provider_table(health: Mapping[str, Any]) -> Table:
    """The providers of the gateway's health answer, and the adapters that brought none."""
    table = _table("provider", "state", "models", "why")
    for each in health["providers"]:
        why = "; ".join(dict.fromkeys(str(text) for text in each["troubles"].values()))
        table.add_row(
            each["provider"], _coloured(each["status"]), f"{each['models_able']}/{each['models']}", escape(why)
        )
    for each in health.get("adapters_without_models", []):
        table.add_row(f"({each['name']})", _coloured(each["state"]), "0", escape(each["reason"] or ""))
    for each in health.get("adapters_switched_off", []):
        table.add_row(f"({each['adapter']})", "[dim]off[/dim]", "0", f"[dim]{escape(each['reason'])}[/dim]")
    return table


def model_table(answer: Mapping[str, Any], name: str = "", *, every_feature: bool = False) -> Table:
    """The models, routes and aliases of `GET /v1/models` whose name holds `name`; prices per million tokens.

    Features that nearly every model has are left out unless `every_feature`.
    """
    table = _table("model", "context", "in $", "out $", "features")
    for each in answer["data"]:
        if name not in each["id"]:
            continue
        features = [
            feature.lower() + ("" if support == "native" else f" ({support})")
            for feature, support in each["features"].items()
            if support != "none" and (every_feature or feature.lower() not in _USUAL)
        ]
        window = each.get("context_window")
        price: Mapping[str, str] = each.get("price") or {}
        table.add_row(
            escape(each["id"]),
            f"{window:,}" if window else "",
            price.get("input", ""),
            price.get("output", ""),
            ", ".join(features),
        )
    for each in answer.get("routes", []):
        if name in each["name"]:
            told = f"{each['strategy']}: {escape(', '.join(each['models']))}"
            table.add_row(f"[bold]{escape(each['name'])}[/bold]", "", "", "", told)
    for alias, target in answer.get("aliases", {}).items():
        if name in alias:
            table.add_row(f"[bold]{escape(alias)}[/bold]", "", "", "", f"→ {escape(target)}")
    return table


def decision_table(answer: Mapping[str, Any]) -> Table:
    """The candidates of `POST /v1/router:explain`, in the order in which they would be tried."""
    table = _table("", "backend", "why")
    number = 0
    for each in answer["candidates"]:
        number += bool(each["kept"])
        mark = f"[green]{number}[/green]" if each["kept"] else "[red]✗[/red]"
        missing = f" (missing: {', '.join(each['missing'])})" if each["missing"] else ""
        table.add_row(mark, each["backend_id"] or each["model"], escape(each["reason"] + missing))
    return table


def span(seconds: float) -> str:
    """A time for a person: 7 s, 12 min, 3.5 h, 2.1 d."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if size < 3600 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def _coloured(state: str) -> str:
    colour = "green" if state in _GOOD else "yellow" if state in _MIDDLING else "red"
    return f"[{colour}]{escape(state)}[/{colour}]"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in _unique(columns):
        table.add_column(column, overflow="fold", justify="right" if column in _NUMBERS else "left")
    return table


def _unique(columns: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(columns))
