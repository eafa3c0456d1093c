"""`maestro usage`: what was used and what it cost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.markup import escape

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target
from maestro_sdk.cli.times import FORMS, read_time

_PAGE = 10000
_NUMBERS = (
    ("requests", "requests"),
    ("failed", "failed_requests"),
    ("cached", "cached_requests"),
    ("input tokens", "input_tokens"),
    ("output tokens", "output_tokens"),
)


def usage(
    *,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            "-b",
            help="tenant, key, persona, skill, operation, provider, model, adapter, hour, day, month, label:NAME; "
            "several with commas.",
            show_default="one row for everything",
        ),
    ] = "",
    begin: Annotated[
        str,
        typer.Option("--from", help=f"{FORMS}.", show_default="the first of this month, UTC"),
    ] = "",
    end: Annotated[str, typer.Option("--to", help="The same forms; up to but not with it.", show_default="now")] = "",
    key_id: Annotated[str, typer.Option("--key-id", help="Only of this key.", show_default=False)] = "",
    persona: Annotated[str, typer.Option("--persona", help="Only of this persona.", show_default=False)] = "",
    provider: Annotated[str, typer.Option("--provider", help="Only of this provider.", show_default=False)] = "",
    model: Annotated[str, typer.Option("--model", help="Only of this model.", show_default=False)] = "",
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="Only with this label, name=value.", show_default=False)
    ] = None,
    tenant: Annotated[
        str, typer.Option("--tenant", help="Needs the scope operator; - for all.", show_default="your own")
    ] = "",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Annotated[
        str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)
    ] = None,
    key: Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")
    ] = None,
) -> None:
    """Show what was used and what it cost. Needs a key with the scope admin; that of `maestro up` has it."""
    words = [word.strip() for word in by.split(",") if word.strip()]
    now = datetime.now(UTC)
    asked: list[tuple[str, str]] = [("group_by", word) for word in words]
    asked += [("labels", each) for each in label or []]
    fields = {"key_id": key_id, "persona": persona, "provider": provider, "model": model, "tenant": tenant}
    fields |= {"start_time": read_time(begin, now, "--from"), "end_time": read_time(end, now, "--to")}
    asked += [(name, value) for name, value in fields.items() if value]
    try:
        target = find_target(url, key, data)
        api = Api(target.url, target.key, timeout=60.0)
        if as_csv:
            typer.echo(api.get_bytes(f"/v1/usage.csv?{urlencode(asked)}").decode(), nl=False)
            return
        answer = _whole(api, asked)
    except (NoTarget, ApiError) as error:
        reason = error.reason or "error" if isinstance(error, ApiError) else ""
        typer.echo(f"{reason}: {error}" if reason else error, err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _show(answer, words)


def _whole(api: Api, asked: list[tuple[str, str]]) -> Any:
    """The answer with the rows of all its pages."""
    query = urlencode([*asked, ("page_size", str(_PAGE))])
    answer = page = api.get(f"/v1/usage?{query}")
    while page["next_page_token"]:
        page = api.get(f"/v1/usage?{query}&{urlencode({'page_token': page['next_page_token']})}")
        answer["rows"] += page["rows"]
    answer["next_page_token"] = ""
    return answer


def _show(answer: Any, words: list[str]) -> None:
    numbers = [*(title for title, _ in _NUMBERS), "cost in US$"]
    table = new_table([*words, *numbers], numbers=numbers)
    rows: list[Any] = answer["rows"]
    for row in rows if words else ():
        table.add_row(*(escape(row["group"].get(word) or "-") for word in words), *_numbers(row["totals"]))
    table.add_row(*(("in all" if not index else "") for index in range(len(words))), *_numbers(answer["totals"]))
    display(table)
    unpriced = int(answer["totals"]["unpriced_requests"])
    if unpriced:
        display(f"The cost of {unpriced} requests is unknown and not in it: their models have no price.")


def _numbers(totals: Any) -> list[str]:
    return [*(f"{int(totals[name]):,}" for _, name in _NUMBERS), totals.get("cost_usd") or "unknown"]
