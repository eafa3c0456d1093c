"""`maestro jobs`: queues many requests from a file, and looks after them."""

from __future__ import annotations

import codecs
import json
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.markup import escape
from rich.table import Table

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.tables import display, new_table
from maestro_sdk.cli.target import KEY_HELP, NoTarget, find_target

jobs_app = typer.Typer(
    help="Run many requests in the background: each is answered once and paid once, whatever dies meanwhile.",
    no_args_is_help=True,
)

_INLINE = 2 * 2**20
"""Bytes of a file that goes with the request; a larger one is uploaded first."""
_MOST_ITEMS = 10_000
_LOOK = 0.5
_UPLOAD_TIMEOUT = 600.0

Data = Annotated[Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")]
Url = Annotated[str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)]
Key = Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobId = Annotated[str, typer.Argument(help="Identifier, as `maestro jobs list` shows it.", show_default=False)]


@jobs_app.command("create")
def create(
    file: Annotated[
        Path,
        typer.Argument(
            help='One item as JSON per line: {"item_id": "a", "chat": {…}} or {"embeddings": {…}}.',
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
    *,
    name: Annotated[str, typer.Option("--name", help="Name for people.", show_default="that of the file")] = "",
    priority: Annotated[str, typer.Option("--priority", help="low, normal or high.")] = "normal",
    economy: Annotated[bool, typer.Option("--economy", help="Let providers take their time, for less.")] = False,
    max_parallel: Annotated[
        int, typer.Option("--max-parallel", help="Most items at a time.", show_default="the tenant's limit")
    ] = 0,
    max_cost: Annotated[
        str, typer.Option("--max-cost", help="Most that it may cost, in US dollars.", show_default="no limit")
    ] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="name=value.", show_default=False)] = None,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Makes a repeated command harmless.", show_default=False)
    ] = "",
    watching: Annotated[bool, typer.Option("--watch", help="Wait until it is over.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Queue the requests of a file as a job, and print its identifier."""
    body: dict[str, Any] = {"display_name": name or file.name, "priority": _priority(priority), "economy": economy}
    body |= {"max_cost_usd": max_cost, "request_id": request_id, "metadata": dict(map(_label, label or []))}
    if max_parallel:
        body["max_parallel"] = max_parallel
    api = _api(url, key, data)
    text = file.read_bytes()
    lines = text.removeprefix(codecs.BOM_UTF8).split(b"\n")
    if len(text) <= _INLINE and len(lines) <= _MOST_ITEMS:
        body["items"] = [_item(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    else:
        query = urlencode({"filename": file.name, "purpose": "job_input"})
        uploaded = _tried(lambda: api.send(f"/v1/files?{query}", text, "application/jsonl"))
        body["input_file_id"] = uploaded.get("file_id") or uploaded["id"]
    job = _tried(lambda: api.post("/v1/jobs", body))
    if watching:
        _watch(api, job["job_id"], as_json=as_json)
    else:
        typer.echo(json.dumps(job, indent=2) if as_json else job["job_id"])


@jobs_app.command("list")
def list_jobs(*, as_json: Json = False, url: Url = None, key: Key = None, data: Data = None) -> None:
    """List the jobs, newest first."""
    api = _api(url, key, data)
    found: list[Any] = []
    token = ""
    while True:
        path = f"/v1/jobs?{urlencode({'page_size': 1000, 'page_token': token})}"
        page = _tried(lambda path=path: api.get(path))
        found += page["jobs"]
        if not (token := page["next_page_token"]):
            break
    if as_json:
        typer.echo(json.dumps({"jobs": found}, indent=2))
        return
    display(_table(found) if found else "there are no jobs")


@jobs_app.command("show")
def show(job_id: JobId, *, as_json: Json = False, url: Url = None, key: Key = None, data: Data = None) -> None:
    """Show how far a job is, and what it cost."""
    job = _tried(lambda: _api(url, key, data).get(_path(job_id)))
    if as_json:
        typer.echo(json.dumps(job, indent=2))
    else:
        display(_table([job]))


@jobs_app.command("results")
def results(
    job_id: JobId,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only items that failed.")] = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Print the results that are there, one as JSON per line, in the order in which items ended."""
    api, token, seen = _api(url, key, data), "", None
    query: dict[str, Any] = {"page_size": 1000, **({"state": "JOB_ITEM_STATE_FAILED"} if failed else {})}
    while token != seen:
        seen, path = token, _path(job_id, f"/results?{urlencode({**query, 'page_token': token})}")
        page = _tried(lambda path=path: api.get(path))
        for result in page["results"]:
            typer.echo(json.dumps(result, ensure_ascii=False))
        # The same place again: the job is under way, and nothing more is there.
        token = page["next_page_token"] or token


@jobs_app.command("cancel")
def cancel(job_id: JobId, *, as_json: Json = False, url: Url = None, key: Key = None, data: Data = None) -> None:
    """Cancel a job: what waits is not run, and what is under way is stopped."""
    job = _tried(lambda: _api(url, key, data).post(_path(job_id, ":cancel"), {}))
    typer.echo(json.dumps(job, indent=2) if as_json else f"{job['job_id']} is {_state(job)}")


@jobs_app.command("watch")
def watch(job_id: JobId, *, as_json: Json = False, url: Url = None, key: Key = None, data: Data = None) -> None:
    """Tell how far a job is until it is over; exit with 1 when items failed."""
    _watch(_api(url, key, data), job_id, as_json=as_json)


def _watch(api: Api, job_id: str, *, as_json: bool) -> None:
    told = ""
    while True:
        job = _tried(lambda: api.get(_path(job_id)))
        line = f"{_state(job)}: {_progress(job)}"
        if line != told and not as_json:
            typer.echo(line, err=True)
        told = line
        if job.get("end_time"):
            break
        time.sleep(_LOOK)
    if as_json:
        typer.echo(json.dumps(job, indent=2))
    else:
        display(_table([job]))
    raise typer.Exit(0 if job["progress"]["succeeded"] == job["progress"]["total"] else 1)


def _table(jobs: list[Any]) -> Table:
    table = new_table(("job", "name", "state", "items", "cost", "created"))
    # It is there to be copied.
    table.columns[0].min_width = 28
    for job in jobs:
        cost: str = job["usage"].get("cost_usd", "")
        created = str(job["create_time"])[:19].replace("T", " ")
        cells = (job["job_id"], job["display_name"], _state(job), _progress(job), f"${cost}" if cost else "-", created)
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _progress(job: Any) -> str:
    progress = job["progress"]
    told = [f"{progress['succeeded']}/{progress['total']}"]
    told += [f"{progress[name]} {name}" for name in ("failed", "cancelled", "running") if progress[name]]
    return ", ".join(told)


def _state(job: Any) -> str:
    return str(job["state"]).removeprefix("JOB_STATE_").lower()


def _path(job_id: str, rest: str = "") -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}{rest}"


def _priority(word: str) -> str:
    if word not in {"low", "normal", "high"}:
        raise typer.BadParameter(f"{word!r} is none of low, normal, high", param_hint="--priority")
    return f"JOB_PRIORITY_{word.upper()}"


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not name=value", param_hint="--label")
    return name, value


def _item(line: bytes, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise typer.BadParameter(f"line {number} is no JSON: {error}", param_hint="FILE") from None


def _api(url: str | None, key: str | None, data: Path | None) -> Api:
    try:
        target = find_target(url, key, data)
    except NoTarget as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    return Api(target.url, target.key, timeout=_UPLOAD_TIMEOUT)


def _tried(ask: Any) -> Any:
    try:
        return ask()
    except ApiError as error:
        typer.echo(f"{error.reason or 'error'}: {error}", err=True)
    raise typer.Exit(1)
