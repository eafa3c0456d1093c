"""Tables that the commands print. Pure: the API's JSON in, something that rich can print out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from maestro_sdk.cli.folder import MeshState
from maestro_sdk.cli.tables import new_table

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
_NUMBERS = frozenset(
    {"pid", "restarts", "context", "in $", "out $", "score", "about $", "time", "in", "out", "$", "calls"}
)


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


def backend_table(answer: Mapping[str, Any], name: str = "") -> Table:
    """The backends of `GET /v1/router/backends` whose id holds `name`, and the adapters that bring none."""
    table = _table("backend", "state", "until", "calls", "left", "why")
    for each in answer["backends"]:
        if name not in each["id"]:
            continue
        here: Mapping[str, Any] = each["here"]
        own = next((found for found in (here, here["account"]) if found["breaker"] != "closed"), None)
        state, why = each["state"], each["reason"] or ""
        if each["account_wide"]:
            why = f"account {each['account']}: {why}"
        if state == "active" and own is not None:
            # The router does not know yet, or can't be asked.
            state, why = own["breaker"], f"here: {own['reason'] or ''}"
        until = _to_second(each["until"]) if each["until"] else ""
        table.add_row(
            escape(each["id"]), _coloured(state), until, str(here["in_flight"]), _left(each["headroom"]), escape(why)
        )
    for each in answer["adapters"] or ():
        if not each["models"] and name in each["name"]:
            table.add_row(
                f"({escape(each['name'])})", _coloured(each["state"]), "", "", "", escape(each["reason"] or "")
            )
    return table


def decision_table(answer: Mapping[str, Any]) -> Table:
    """The candidates of `POST /v1/router:explain`, in the order in which they are tried."""
    candidates: list[Mapping[str, Any]] = answer["candidates"]
    facts = [
        (title, name)
        for title, name in (("score", "score"), ("about $", "estimated_usd"))
        if any(each.get(name) is not None for each in candidates)
    ]
    table = _table("", "backend", *(title for title, _ in facts), "why")
    number = 0
    for each in candidates:
        number += bool(each["kept"])
        mark = f"[green]{number}[/green]" if each["kept"] else "[red]✗[/red]"
        missing = f" (missing: {', '.join(each['missing'])})" if each["missing"] else ""
        numbers = (_short(each.get(name)) for _, name in facts)
        table.add_row(mark, escape(each["backend_id"] or each["model"]), *numbers, escape(each["reason"] + missing))
    return table


def decision_line(answer: Mapping[str, Any]) -> str:
    """What decided, in one line."""
    if not answer["strategy"] and not answer["candidates"]:
        return "nothing was decided"
    route = answer["route"]
    told = [f"route {route}" if route else "the model was named directly"]
    if answer["strategy"]:
        told.append(f"strategy {answer['strategy']}")
    if answer["experiment"]:
        told.append(f"experiment {answer['experiment']}, {answer['variant'] or 'no variant'}")
    if answer["table_version"]:
        told.append(f"table {answer['table_version']}")
    return escape(" · ".join(told))


def attempt_table(answer: Mapping[str, Any]) -> Table:
    """The attempts of a request that was recorded."""
    table = _table("attempt", "backend", "fate", "time", "in", "out", "$", "why")
    for each in answer["attempts"]:
        usage: Mapping[str, int] = each["usage"] or {}
        fate = str(each["fate"] or "unknown").replace("_", " ")
        table.add_row(
            str(each["attempt"]),
            escape(each["backend_id"] or ""),
            f"[green]{fate}[/green]" if each["fate"] == "answered" else f"[yellow]{fate}[/yellow]",
            "" if each["latency"] is None else f"{each['latency']:.3g} s",
            str(usage.get("input_tokens", "")),
            str(usage.get("output_tokens", "")),
            each["cost_usd"] or "",
            escape(_why(each["error"], after_content=bool(each["after_content"]))),
        )
    return table


def request_line(answer: Mapping[str, Any]) -> str:
    """What became of a request that was recorded, in one line."""
    request: Mapping[str, Any] = answer["request"]
    latency = "" if request["latency"] is None else f" after {request['latency']:.3g} s"
    told = [f"{_coloured_end(request['outcome'])}{latency}, {_to_second(request['ended'])}"]
    if answer["error"]:
        told.append(escape(_why(answer["error"], after_content=bool(request.get("after_content")))))
    if request.get("finish_reason"):
        told.append(escape(request["finish_reason"]))
    if usage := request["usage"]:
        told.append(f"{usage.get('input_tokens', 0)} tokens in, {usage.get('output_tokens', 0)} out")
    if request["cost_usd"] is not None:
        told.append(f"${request['cost_usd']}")
    if request["degraded"]:
        told.append("[yellow]routing was degraded[/yellow]")
    return " · ".join(told)


def _why(error: Mapping[str, Any] | None, *, after_content: bool) -> str:
    """An error without text, as events have it."""
    if error is None:
        return ""
    own = error.get("upstream_code") or (f"HTTP {error['upstream_status']}" if error.get("upstream_status") else "")
    told = str(error["reason"]) + (f" ({own})" if own else "")
    if error.get("retry_after") is not None:
        told += f", again in {error['retry_after']:.3g} s"
    return told + (", after content" if after_content else "")


def _coloured_end(outcome: str) -> str:
    return f"[green]{outcome}[/green]" if outcome == "completed" else f"[red]{outcome}[/red]"


def _to_second(moment: str) -> str:
    """An RFC 3339 time in UTC without its fractions."""
    return f"{moment.rstrip('Z').partition('.')[0]}Z"


def _left(headroom: Mapping[str, Any] | None) -> str:
    """The tightest rate limit as its provider told it last."""
    limits = [(name, headroom[name]) for name in ("requests", "tokens") if name in headroom] if headroom else []
    shares = [(limit["remaining"] / limit["limit"], name) for name, limit in limits if limit["limit"]]
    if shares:
        share, name = min(shares)
        return f"{share:.0%} of {name}"
    return ", ".join(f"{limit['remaining']} {name}" for name, limit in limits)


def _short(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)


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
    return new_table(_unique(columns), numbers=_NUMBERS, header="dim")


def _unique(columns: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(columns))
