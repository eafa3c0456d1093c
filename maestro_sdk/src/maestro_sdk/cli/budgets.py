"""`maestro budgets`: how the budgets of a running mesh stand."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer
from rich.markup import escape

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target


def budgets(
    name: Annotated[str, typer.Argument(help="Only the budget of this name.", show_default=False)] = "",
    *,
    tenant: Annotated[
        str, typer.Option("--tenant", help="Needs the scope operator; - for all.", show_default="your own")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    url: Annotated[
        str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)
    ] = None,
    key: Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")
    ] = None,
) -> None:
    """Show how budgets stand. Needs a key with the scope admin; that of `maestro up` has it."""
    asked = {field: value for field, value in (("budget", name), ("tenant", tenant)) if value}
    try:
        target = find_target(url, key, data)
        answer: Any = Api(target.url, target.key).get(f"/v1/budgets?{urlencode(asked)}")
    except (NoTarget, ApiError) as error:
        reason = error.reason or "error" if isinstance(error, ApiError) else ""
        typer.echo(f"{reason}: {error}" if reason else error, err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    found: list[Any] = answer["budgets"]
    numbers = ("spent", "held", "limit", "used")
    table = new_table(("budget", "for", "until", *numbers), numbers=numbers)
    for each in found:
        for cells in _lines(each):
            table.add_row(*(escape(cell) for cell in cells))
    display(table if found else "no budget is yours alone; operators see all with --tenant -")


def _lines(budget: Any) -> list[tuple[str, ...]]:
    """A line for each limit: US dollars, tokens."""
    group = ", ".join(f"{name} {value or '-'}" for name, value in sorted(budget["group"].items()))
    whose = group or budget["tenant"] or "all"
    start = (budget["budget"], whose, str(budget["period_end"])[:10])
    lines: list[tuple[str, ...]] = []
    for limit, spent, held, unit in (
        ("limit_usd", "spent_usd", "held_usd", "US$"),
        ("limit_tokens", "spent_tokens", "held_tokens", "tokens"),
    ):
        if (most := budget.get(limit)) is not None:
            share = Decimal(budget[spent]) / Decimal(most)
            lines.append((*start, f"{budget[spent]} {unit}", str(budget[held]), str(most), f"{share:.0%}"))
    return lines
