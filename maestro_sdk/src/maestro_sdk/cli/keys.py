"""`maestro keys`: makes, lists, rotates and revokes keys of a running mesh."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.markup import escape

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target

keys_app = typer.Typer(
    help="Make, list, rotate and revoke keys. Needs a key with the scope admin; that of `maestro up` has it.",
    no_args_is_help=True,
)

_SPAN = re.compile(r"(\d+)(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Data = Annotated[Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")]
Url = Annotated[str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)]
Key = Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyId = Annotated[str, typer.Argument(help="Identifier, as `maestro keys list` shows it.", show_default=False)]


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Name for people.", show_default=False)],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", "-s", help="chat, embeddings, tools, jobs, files, admin, operator.", show_default=False
        ),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="Needs the scope operator.", show_default="your own")] = "",
    expires: Annotated[
        str, typer.Option("--expires", help="In 90d, 12h…, or at an RFC 3339 time.", show_default="never")
    ] = "",
    persona: Annotated[
        list[str] | None, typer.Option("--persona", help="Only as this persona.", show_default=False)
    ] = None,
    skill: Annotated[list[str] | None, typer.Option("--skill", help="Only for this skill.", show_default=False)] = None,
    description: Annotated[str, typer.Option("--description", help="What it is for.", show_default=False)] = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Make a key and show its secret, this once. Without --scope it may do all but administer."""
    body: dict[str, Any] = {"display_name": name, "description": description, "tenant": tenant}
    body |= {"scopes": scope or [], "personas": persona or [], "skills": skill or []}
    if expires:
        body["expire_time"] = _moment(expires)
    _show_secret(_ask(url, key, data, "POST", "/v1/keys", body), as_json=as_json)


@keys_app.command("list")
def list_keys(
    *,
    tenant: Annotated[
        str, typer.Option("--tenant", help="Needs the scope operator; - for all.", show_default="your own")
    ] = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """List the keys, with when they were last used. Secrets are nowhere to be had."""
    found: list[Any] = []
    token = ""
    while True:
        query = urlencode({"tenant": tenant, "page_token": token, "page_size": 1000})
        page = _ask(url, key, data, "GET", f"/v1/keys?{query}")
        found += page["keys"]
        if not (token := page["next_page_token"]):
            break
    if as_json:
        typer.echo(json.dumps({"keys": found}, indent=2))
        return
    table = new_table(("key", "tenant", "name", "state", "scopes", "secret", "last used", "expires"))
    for each in found:
        restricted = [f"persona {name}" for name in each["personas"]] + [f"skill {name}" for name in each["skills"]]
        cells = (
            each["key_id"],
            each["tenant"] or "-",
            each["display_name"],
            each["state"].removeprefix("KEY_STATE_").lower(),
            ", ".join([*each["scopes"], *restricted]),
            f"{each['hint']}…",
            _when(each, "last_use_time"),
            _when(each, "expire_time"),
        )
        table.add_row(*(escape(cell) for cell in cells))
    display(table if found else "no keys were made yet; those of the configuration stand there")


@keys_app.command("rotate")
def rotate(
    key_id: KeyId,
    *,
    grace: Annotated[str, typer.Option("--grace", help="Time for which the old secret is good: 0s to 30d.")] = "1d",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Give a key a new secret and show it, this once."""
    body = {"grace": f"{_seconds(grace, '--grace')}s"}
    _show_secret(_ask(url, key, data, "POST", f"/v1/keys/{quote(key_id, safe='')}:rotate", body), as_json=as_json)


@keys_app.command("revoke")
def revoke(key_id: KeyId, *, as_json: Json = False, url: Url = None, key: Key = None, data: Data = None) -> None:
    """End a key at once and for good."""
    answer = _ask(url, key, data, "POST", f"/v1/keys/{quote(key_id, safe='')}:revoke", {})
    typer.echo(json.dumps(answer, indent=2) if as_json else f"revoked {answer['key_id']} ({answer['display_name']})")


def _show_secret(answer: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    made = answer["key"]
    typer.echo(answer["secret"])
    # Beside the output, which a script may read the secret from.
    typer.echo(
        f"{made['key_id']} ({made['display_name']}): {', '.join(made['scopes'])}. It is not kept: store it now.",
        err=True,
    )


def _ask(url: str | None, key: str | None, data: Path | None, method: str, path: str, body: Any = None) -> Any:
    try:
        target = find_target(url, key, data)
        api = Api(target.url, target.key)
        return api.get(path) if method == "GET" else api.post(path, body)
    except NoTarget as error:
        typer.echo(error, err=True)
    except ApiError as error:
        typer.echo(f"{error.reason or 'error'}: {error}", err=True)
    raise typer.Exit(1)


def _moment(text: str) -> str:
    if _SPAN.fullmatch(text):
        return (datetime.now(UTC) + timedelta(seconds=_seconds(text, "--expires"))).isoformat().replace("+00:00", "Z")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter(
            "is neither a span such as 90d nor a time such as 2027-01-01T00:00:00Z", param_hint="--expires"
        )
    return found.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _seconds(text: str, hint: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise typer.BadParameter("is not a span such as 0s, 12h or 7d", param_hint=hint)
    return int(found[1]) * _SECONDS[found[2]]


def _when(key: Any, name: str) -> str:
    value = key.get(name)
    return str(value)[:16].replace("T", " ") if value else "never"
