"""The commands. Each one parses, calls one function, prints, and exits: 0 done, 1 failed, 2 used wrongly."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group as RichGroup
from rich.markup import escape

from maestro_sdk.cli import views
from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.audit import audit_app
from maestro_sdk.cli.budgets import budgets
from maestro_sdk.cli.conformance import conformance
from maestro_sdk.cli.console import Console
from maestro_sdk.cli.jobs import jobs_app
from maestro_sdk.cli.keys import keys_app
from maestro_sdk.cli.tables import display
from maestro_sdk.cli.target import KEY_HELP, NoTarget, Target, data_folder, find_target
from maestro_sdk.cli.up import Options, configured, running, start, stop
from maestro_sdk.cli.usage import usage
from maestro_sdk.cli.webhooks import webhooks_app
from maestro_sdk.service.health import longest_stop
from maestro_sdk.service.settings import ConfigError

app = typer.Typer(
    help="Any program speaks one contract, and Maestro keeps it answered: it starts and stops a mesh on this machine, "
    "and talks to it.",
    epilog="Examples:  [bold]maestro up --detach[/bold] · [bold]maestro chat hello[/bold] · "
    "[bold]maestro status[/bold] · [bold]maestro down[/bold]\n\n"
    "Put a key into [bold]MAESTRO_KEY[/bold]: what stands behind [bold]--key[/bold] everybody on the machine can see "
    "in the list of processes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config", rich_help_panel="The mesh")
app.add_typer(keys_app, name="keys", rich_help_panel="The mesh")
app.add_typer(webhooks_app, name="webhooks", rich_help_panel="The mesh")
app.add_typer(jobs_app, name="jobs", rich_help_panel="Ask it")
app.add_typer(audit_app, name="audit", rich_help_panel="The mesh")

_MESH = "The mesh"
_ASK = "Ask it"
_BUILD = "Build for it"
app.command("usage", rich_help_panel=_ASK)(usage)
app.command("budgets", rich_help_panel=_ASK)(budgets)

File = Annotated[Path | None, typer.Option("--config", help="Configuration file.", show_default="./maestro.yaml")]
Data = Annotated[Path | None, typer.Option("--data", help="Data folder.", show_default="from the configuration")]
Url = Annotated[str | None, typer.Option("--url", envvar="MAESTRO_URL", help="A mesh elsewhere.", show_default=False)]
Key = Annotated[str | None, typer.Option("--key", envvar="MAESTRO_KEY", help=KEY_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="Model, route or alias.", show_default="the route named default")
]
Text = Annotated[
    list[str] | None, typer.Argument(help="What to say; - or nothing reads standard input.", show_default=False)
]


@app.command(rich_help_panel=_MESH)
def up(
    *,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when it is ready.")] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", "-p", min=0, max=65535, help="Public port; 0 picks one.", show_default="8080"),
    ] = None,
    data: Data = None,
    config: File = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Pick free ports for everything inside.")] = False,
) -> None:
    """Start the mesh: NATS, Envoy and every service.

    When it is ready it says so in one line, with the URL and a key.

    Providers whose key is in the environment ([bold]ANTHROPIC_API_KEY[/bold], [bold]OPENAI_API_KEY[/bold]) take part by
    themselves; the offline model always does. Ctrl-C stops it once running streams have ended, a second one at once.

    [bold]maestro up --port 0 --free-ports --data other[/bold] runs a second mesh beside the first.
    """
    options = Options(config, data, port, free_ports, detach)
    raise typer.Exit(start(options, os.environ, Console()))


@app.command(rich_help_panel=_MESH)
def down(*, data: Data = None, config: File = None) -> None:
    """Stop the mesh and wait until it is gone. Nothing to do is fine."""
    folder = _or_exit(lambda: data_folder(data, config))
    limit = 60.0
    try:
        found = configured(config, data, os.environ)
        limit += longest_stop(found.notice, found.grace) * 2
    except ConfigError:
        limit += 60  # stopping must work with a file that is broken meanwhile
    raise typer.Exit(stop(folder, Console(), limit=limit))


@app.command(rich_help_panel=_MESH)
def status(*, as_json: Json = False, data: Data = None, config: File = None, key: Key = None) -> None:
    """Show the processes, and whether the providers can answer.

    Exit code 0 means that the mesh is ready.
    """
    folder = _or_exit(lambda: data_folder(data, config))
    state = running(folder)
    if state is None:
        if as_json:
            typer.echo(json.dumps({"state": "stopped"}))
        else:
            typer.echo(f"not running (data in {folder.root})")
        raise typer.Exit(1)
    target = _or_exit(lambda: find_target(state.url, key, folder.root, {}))
    health: dict[str, Any] | None = None
    trouble = ""
    try:
        health = Api(target.url, _or_exit(lambda: find_target(None, key, folder.root)).key).get("/v1/health/providers")
    except ApiError as error:
        trouble = str(error)
    data_ = views.status_data(state, health, trouble)
    if as_json:
        typer.echo(json.dumps(data_, indent=2))
    else:
        display(
            f"{state.state}  {state.url}  up {views.span(data_['uptime_seconds'])}  data in {folder.root}\n",
            views.process_table(data_),
            "",
            views.provider_table(health) if health is not None else f"[red]providers: {trouble}[/red]",
        )
    raise typer.Exit(0 if state.state == "ready" and health is not None else 1)


@app.command(rich_help_panel=_ASK)
def chat(
    text: Text = None, *, model: Model = "", system: str = "", url: Url = None, key: Key = None, data: Data = None
) -> None:
    """Ask a model and print its answer as it comes.

    [bold]maestro chat -m fast "Name three rivers"[/bold]

    [bold]git diff | maestro chat "Review this:" -[/bold]
    """
    from maestro_sdk.cli.chat import converse

    target = _target(url, key, data)
    raise typer.Exit(converse(target, model=model, system=system, text=_said(text)))


@app.command(rich_help_panel=_ASK)
def models(
    name: Annotated[str, typer.Argument(help="Only those whose name holds this text.")] = "",
    *,
    features: Annotated[
        bool, typer.Option("--features", help="Show every feature, also what nearly all have.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """List the models, routes and aliases that a request may name."""
    answer = _ask(_target(url, key, data), "GET", "/v1/models")
    _show(answer, views.model_table(answer, name, every_feature=features), as_json=as_json)


@app.command(rich_help_panel=_ASK)
def backends(
    name: Annotated[str, typer.Argument(help="Only those whose id holds this text.")] = "",
    *,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """List the backends: which are in service, which are not, until when and why."""
    answer = _ask(_target(url, key, data), "GET", "/v1/router/backends")
    _show(answer, views.backend_table(answer, name), as_json=as_json)
    if answer["router"]["trouble"] and not as_json:
        typer.echo(f"the router: {answer['router']['trouble']}", err=True)


@app.command(rich_help_panel=_ASK)
def explain(
    text: Text = None,
    *,
    model: Model = "",
    request: Annotated[
        str, typer.Option("--request", "-r", help="Id of a request that was made.", show_default=False)
    ] = "",
    after: Annotated[
        str,
        typer.Option("--after", help="With --request: look from this time on (RFC 3339).", show_default=False),
    ] = "",
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Show which backends would answer, and why the others would not.

    In the order in which they would be tried. Nothing is generated; the text matters by its length only.

    With [bold]--request[/bold] it shows how a request was decided when it was made, and what then happened to it.
    """
    if request:
        if text or model:
            raise typer.BadParameter("a request that was made has its text and model already", param_hint="--request")
        body: dict[str, Any] = {"request_id": request, **({"after": after} if after else {})}
        _show_record(_ask(_target(url, key, data), "POST", "/v1/router:explain", body), as_json=as_json)
        return
    if after:
        raise typer.BadParameter("only goes with --request", param_hint="--after")
    body = {"model": model, "messages": [{"role": "user", "content": _said(text or ["Hello!"])}]}
    answer = _ask(_target(url, key, data), "POST", "/v1/router:explain", body)
    _show(answer, RichGroup(views.decision_line(answer), "", views.decision_table(answer)), as_json=as_json)
    if answer.get("error"):
        if not as_json:
            typer.echo(f"would fail: {answer['error']['message']}", err=True)
        raise typer.Exit(1)


@app.command(rich_help_panel=_ASK)
def replay(
    request: Annotated[str, typer.Argument(help="Id of a request whose content was recorded.", show_default=False)],
    *,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
    data: Data = None,
) -> None:
    """Ask a recorded request again, of the backend that answered it, and compare the answers.

    Exit code 0 means that they are equal, 1 that they differ, 2 that it could not be asked again. Needs a tenant that
    has content recorded, and a key with the scope admin.
    """
    from maestro_sdk.cli.replay import NotReplayable, ask_again, recorded
    from maestro_sdk.errors import MaestroError

    try:
        target = find_target(url, key, data)
        found = recorded(target, request)
        comparison = ask_again(target, found)
    except (ApiError, MaestroError, NotReplayable, NoTarget) as error:
        typer.echo(f"{getattr(error, 'reason', '') or 'error'}: {error}", err=True)
        raise typer.Exit(2) from None
    for remark in found.remarks:
        typer.echo(f"note: {remark}", err=True)
    if as_json:
        told = {"model": found.model, "equal": not comparison.at, "differs_at": comparison.at}
        typer.echo(json.dumps({**told, "diff": comparison.diff(), "remarks": found.remarks}, indent=2))
    elif comparison.at:
        typer.echo(f"differs at {comparison.at} of {comparison.frames}\n" + "\n".join(comparison.diff()))
    else:
        typer.echo(f"equal: {len(comparison.before)} frames of {found.model or 'no backend'}")
    raise typer.Exit(1 if comparison.at else 0)


app.command(rich_help_panel=_BUILD)(conformance)


@config_app.command("check")
def check(
    file: Annotated[Path | None, typer.Argument(help="File to check.", show_default="./maestro.yaml")] = None,
) -> None:
    """Read the configuration and list every problem with its line."""
    try:
        config = configured(file, None, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(problem)
        count = len(error.problems)
        typer.echo(f"{count} problem{'s' if count > 1 else ''}", err=True)
        raise typer.Exit(1) from None
    off = [name for name, adapter in config.adapters.items() if not adapter.is_enabled()]
    typer.echo(
        f"fine: adapters {', '.join(config.enabled_adapters()) or 'none'}" + (f"; off: {', '.join(off)}" if off else "")
    )


def _said(text: list[str] | None) -> str:
    """The words of the command line; standard input stands in for none at all, and for the word "-"."""
    words = list(text or ["-"])
    if "-" in words:
        if sys.stdin.isatty() and not text:
            raise typer.BadParameter("say something, or pipe it in", param_hint="TEXT")
        words[words.index("-")] = sys.stdin.read()
    said = " ".join(words).strip()
    if not said:
        raise typer.BadParameter("there is nothing to say", param_hint="TEXT")
    return said


def _target(url: str | None, key: str | None, data: Path | None) -> Target:
    return _or_exit(lambda: find_target(url, key, data))


def _or_exit(find: Any) -> Any:
    try:
        return find()
    except NoTarget as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


def _ask(target: Target, method: str, path: str, body: Any = None) -> Any:
    api = Api(target.url, target.key)
    try:
        return api.get(path) if method == "GET" else api.post(path, body)
    except ApiError as error:
        typer.echo(f"{error.reason or 'error'}: {error}", err=True)
        raise typer.Exit(1) from None


def _show_record(answer: Any, *, as_json: bool) -> None:
    parts: list[Any] = [
        f"{escape(answer['request_id'])}: {views.request_line(answer)}",
        views.decision_line(answer),
        "",
    ]
    if answer["candidates"]:
        parts += [views.decision_table(answer), ""]
    parts.append(views.attempt_table(answer) if answer["attempts"] else "no backend was called")
    _show(answer, RichGroup(*parts), as_json=as_json)


def _show(answer: Any, table: Any, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        display(table)
