"""`maestro audit`: lists, proves and exports the audit records of a running mesh."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, TypeAlias
from urllib.parse import urlencode

import typer
from google.protobuf.json_format import ParseDict, ParseError
from rich.markup import escape

from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_sdk.audit import Chain, Head, prove, to_json
from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target
from maestro_sdk.cli.times import FORMS, read_time

audit_app = typer.Typer(
    help="List, prove and export the audit records. Needs a key with the scope admin; that of `maestro up` has it.",
    no_args_is_help=True,
)

_PAGE = 1000
_HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")
_OUTCOMES = ("succeeded", "failed", "denied", "cancelled")

Data: TypeAlias = Annotated[
    Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")
]
Url: TypeAlias = Annotated[
    str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)
]
Key: TypeAlias = Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Tenant: TypeAlias = Annotated[
    str,
    typer.Option("--tenant", help="Needs the scope operator; _mesh for calls of nobody.", show_default="your own"),
]


@audit_app.command("list")
def list_records(
    *,
    most: Annotated[int, typer.Option("--most", "-n", min=1, help="Most records.")] = 50,
    request: Annotated[str, typer.Option("--request", "-r", help="Only of this request.", show_default=False)] = "",
    key_id: Annotated[str, typer.Option("--key-id", help="Only of this key.", show_default=False)] = "",
    operation: Annotated[
        str, typer.Option("--operation", help="Only chat, embed, tool, job, file, memory or admin.", show_default=False)
    ] = "",
    target: Annotated[str, typer.Option("--target", help="Only of this model or tool.", show_default=False)] = "",
    outcome: Annotated[str, typer.Option("--outcome", help=f"Only {', '.join(_OUTCOMES)}.", show_default=False)] = "",
    since: Annotated[str, typer.Option("--since", help=f"Only from then on: {FORMS}.", show_default=False)] = "",
    until: Annotated[str, typer.Option("--until", help="Only before; the same forms.", show_default=False)] = "",
    tenant: Tenant = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """List records, the newest first: who called what, when, from where, and how it ended."""
    if outcome and outcome not in _OUTCOMES:
        raise typer.BadParameter(f"is none of {', '.join(_OUTCOMES)}", param_hint="--outcome")
    now = datetime.now(UTC)
    query = {
        "tenant": tenant,
        "request_id": request,
        "key_id": key_id,
        "operation": operation,
        "target": target,
        "outcome": f"AUDIT_OUTCOME_{outcome.upper()}" if outcome else "",
        "start_time": read_time(since, now, "--since"),
        "end_time": read_time(until, now, "--until"),
    }
    found: list[Any] = []
    for page in _pages(_api(url, key, data), query, most):
        found += page
        if len(found) >= most:
            break
    found = found[:most]
    if as_json:
        typer.echo(json.dumps({"records": found}, indent=2))
        return
    table = new_table(("#", "time", "who", "from", "what", "target", "outcome", "cost", "request"))
    for each in found:
        table.add_row(*(escape(cell) for cell in _cells(each)))
    display(table if found else "there are no such records")


@audit_app.command("verify")
def verify(
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Prove an exported file instead.", show_default=False)
    ] = None,
    expect: Annotated[
        str,
        typer.Option("--expect", help="Head that was noted earlier, SEQUENCE:HASH.", show_default=False),
    ] = "",
    tenant: Tenant = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Prove that no record was changed, left out or put elsewhere.

    It computes every hash anew. Exit code 1 means that the chain is broken, and tells the first place.

    Note the head that it prints, away from the mesh: with [bold]--expect[/bold] it also shows when the newest records
    were taken away.
    """
    head = None
    if expect:
        match = _HEAD.fullmatch(expect)
        if match is None:
            raise typer.BadParameter("is no head such as 43:9f86d0…, as verify prints it", param_hint="--expect")
        head = Head(int(match[1]), match[2])
    if file is not None:
        chain = prove(_read(file), head)
    else:
        with tempfile.TemporaryFile() as space:
            chain = prove(_oldest_first(_api(url, key, data), tenant, space), head)
    if as_json:
        broken = chain.broken and {"sequence": chain.broken.sequence, "what": chain.broken.what}
        told = {"records": chain.records, "first": chain.first, "anchor": chain.anchor}
        typer.echo(json.dumps({**told, "head": str(chain.head) if chain.records else "", "broken": broken}, indent=2))
    else:
        typer.echo(_say(chain))
    raise typer.Exit(1 if chain.broken is not None else 0)


@audit_app.command("export")
def export(
    *,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write.", show_default="the output")] = None,
    tenant: Tenant = "",
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Write all records as JSON lines, the oldest first. `maestro audit verify --file` proves such a file."""
    count, last = 0, Head()
    with tempfile.TemporaryFile() as space:
        records = _oldest_first(_api(url, key, data), tenant, space)
        with out.open("w", encoding="utf-8") if out is not None else nullcontext(sys.stdout) as lines:
            for record in records:
                lines.write(json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":")) + "\n")
                count, last = count + 1, Head(record.sequence, record.hash)
    typer.echo(f"{count} records" + (f"; head {last}" if count else ""), err=True)


def _say(chain: Chain) -> str:
    if chain.broken is not None:
        return f"record {chain.broken.sequence} {chain.broken.what} ({chain.records} records before it are fine)"
    if not chain.records:
        return "there are no records"
    pruned = ""
    if chain.first > 1:
        pruned = f"\nthose before {chain.first} were pruned; anchor {chain.anchor}"
    return f"fine: {chain.records} records, {chain.first} to {chain.head.sequence}{pruned}\nhead {chain.head}"


def _oldest_first(api: Api, tenant: str, space: IO[bytes]) -> Iterator[AuditRecord]:
    """All records of a tenant; the pages, which come newest first, wait in a file."""
    places: list[tuple[int, int]] = []
    for page in _pages(api, {"tenant": tenant}, _PAGE):
        places.append((space.tell(), len(page)))
        space.writelines(json.dumps(each).encode() + b"\n" for each in reversed(page))
    for place, count in reversed(places):
        space.seek(place)
        for _ in range(count):
            yield _parsed(json.loads(space.readline()))


def _pages(api: Api, query: dict[str, str], most: int) -> Iterator[list[Any]]:
    token = ""
    while True:
        asked = {name: value for name, value in query.items() if value}
        try:
            found = api.get(f"/v1/audit?{urlencode({**asked, 'page_size': min(most, _PAGE), 'page_token': token})}")
        except ApiError as error:
            typer.echo(f"{error.reason or 'error'}: {error}", err=True)
            raise typer.Exit(2 if error.status == 400 else 1) from None
        yield found["records"]
        if not (token := found["next_page_token"]):
            return


def _read(file: Path) -> Iterator[AuditRecord]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield _parsed(json.loads(line))
                except ValueError as error:
                    typer.echo(f"{file}:{number}: is no record: {error}", err=True)
                    raise typer.Exit(1) from None
    except (OSError, UnicodeDecodeError) as error:
        typer.echo(f"{file} can't be read: {error}", err=True)
        raise typer.Exit(1) from None


def _parsed(document: Any) -> AuditRecord:
    try:
        return ParseDict(document, AuditRecord())
    except ParseError as error:
        raise ValueError(str(error)) from None


def _cells(record: Any) -> tuple[str, ...]:
    cost: dict[str, str] = record.get("cost") or {}
    calls = int(record.get("calls") or 0)
    reason = str(record.get("reason", "")).removeprefix("ERROR_REASON_")
    outcome = str(record["outcome"]).removeprefix("AUDIT_OUTCOME_").lower()
    return (
        str(record["sequence"]),
        str(record["time"])[:19].replace("T", " "),
        record["principal"] or record["key_id"] or "nobody",
        record["client_address"],
        record["operation"] + (f" x{calls}" if calls > 1 else ""),
        record["target"] or record["method"],
        outcome + (f" ({reason})" if outcome in ("failed", "denied") else ""),
        f"${cost['usd']}" if cost.get("usd") else "",
        record["request_id"],
    )


def _api(url: str | None, key: str | None, data: Path | None) -> Api:
    try:
        target = find_target(url, key, data)
    except NoTarget as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    return Api(target.url, target.key, timeout=60.0)
