"""`maestro webhooks`: what became of the webhooks of a tenant, and dead letters once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.markup import escape

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target

webhooks_app = typer.Typer(
    help="Look at webhooks, try them, and deliver dead letters again. Needs a key with the scope admin.",
    no_args_is_help=True,
)

Data = Annotated[Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")]
Url = Annotated[str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)]
Key = Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant = Annotated[str, typer.Option("--tenant", help="Needs the scope operator.", show_default="your own")]
Name = Annotated[str, typer.Argument(help="Name in the configuration.", show_default=False)]


@webhooks_app.command("list")
def list_webhooks(
    *, tenant: Tenant = "", as_json: Json = False, url: Url = None, key: Key = None, data: Data = None
) -> None:
    """List the webhooks, with what waits for them."""
    found = _ask(url, key, data, "GET", f"/v1/webhooks?{urlencode({'tenant': tenant})}")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = new_table(("webhook", "state", "address", "kinds", "waiting", "retrying", "dead"))
    for each in found["webhooks"]:
        state = each["state"].removeprefix("WEBHOOK_STATE_").lower()
        cells = (
            each["name"],
            f"{state}: {each['reason']}" if each["reason"] else state,
            each["url"],
            ", ".join(each["kinds"]) or "all",
            *(str(each[name]) for name in ("waiting", "retrying", "dead")),
        )
        table.add_row(*(escape(cell) for cell in cells))
    display(table if found["webhooks"] else "the configuration gives this tenant no webhook")


@webhooks_app.command("dead")
def dead(
    name: Name, *, tenant: Tenant = "", as_json: Json = False, url: Url = None, key: Key = None, data: Data = None
) -> None:
    """List the events that a webhook did not take, oldest first."""
    letters: list[Any] = []
    token = ""
    while True:
        query = urlencode({"tenant": tenant, "page_token": token})
        page = _ask(url, key, data, "GET", f"/v1/webhooks/{quote(name, safe='')}/dead-letters?{query}")
        letters += page["letters"]
        if not (token := page["next_page_token"]):
            break
    if as_json:
        typer.echo(json.dumps({"letters": letters}, indent=2))
        return
    table = new_table(("number", "given up", "kind", "about", "tries", "why"))
    for each in letters:
        cells = (
            str(each["number"]),
            str(each.get("time", ""))[:16].replace("T", " "),
            each["event"]["kind"],
            each["event"]["subject"],
            str(each["attempts"]),
            each["reason"],
        )
        table.add_row(*(escape(cell) for cell in cells))
    display(table if letters else "no dead letters")


@webhooks_app.command("replay")
def replay(
    name: Name,
    numbers: Annotated[list[int] | None, typer.Argument(help="Letters; all when left out.", show_default=False)] = None,
    *,
    tenant: Tenant = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Deliver dead letters again, until all are taken or one fails."""
    delivered = 0
    while True:
        body = {"tenant": tenant, "numbers": numbers or []}
        answer = _ask(url, key, data, "POST", f"/v1/webhooks/{quote(name, safe='')}:replay", body)
        delivered += answer["delivered"]
        left = int(answer["left"])
        if numbers or not left or not answer["delivered"]:
            break
    if as_json:
        typer.echo(json.dumps({"delivered": delivered, "left": left, "reason": answer["reason"]}, indent=2))
    else:
        typer.echo(f"{delivered} delivered, {left} left" + (f": {answer['reason']}" if answer["reason"] else ""))
    raise typer.Exit(1 if answer["reason"] else 0)


@webhooks_app.command("test")
def try_out(
    name: Name, *, tenant: Tenant = "", as_json: Json = False, url: Url = None, key: Key = None, data: Data = None
) -> None:
    """Send a signed message of the type webhook.test. A success puts a webhook back that its receiver had ended."""
    answer = _ask(url, key, data, "POST", f"/v1/webhooks/{quote(name, safe='')}:test", {"tenant": tenant})
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        typer.echo(f"taken with {answer['status']}" if answer["delivered"] else f"not taken: {answer['reason']}")
    raise typer.Exit(0 if answer["delivered"] else 1)


def _ask(url: str | None, key: str | None, data: Path | None, method: str, path: str, body: Any = None) -> Any:
    try:
        target = find_target(url, key, data)
        # A replay and a test wait for receivers.
        api = Api(target.url, target.key, timeout=65.0)
        return api.get(path) if method == "GET" else api.post(path, body)
    except NoTarget as error:
        typer.echo(error, err=True)
    except ApiError as error:
        typer.echo(f"{error.reason or 'error'}: {error}", err=True)
    raise typer.Exit(1)
