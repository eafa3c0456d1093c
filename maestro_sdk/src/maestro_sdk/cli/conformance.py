"""`maestro conformance`: proves a server against the contract."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from maestro_sdk.cli.target import KEY_HELP, NoTarget, data_folder
from maestro_sdk.cli.up import running
from maestro_sdk.service.meshes import TOKEN_VARIABLE


def conformance(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Server to prove.")],
    *,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model to ask.", show_default="the one with most features")
    ] = "",
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the report as JSON.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Most seconds per answer.")] = 60.0,
    key: Annotated[
        str, typer.Option("--key", envvar="MAESTRO_KEY", help=f"For a gateway. {KEY_HELP}", show_default=False)
    ] = "",
    token: Annotated[
        str,
        typer.Option(
            "--token",
            envvar=TOKEN_VARIABLE,
            help="Mesh token, for an adapter.",
            show_default="that of the running mesh, for its own adapters",
        ),
    ] = "",
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder of that mesh.", show_default="from the configuration")
    ] = None,
) -> None:
    """Prove that a server keeps the contract, case by case.

    Works against any server of the contract, in any language: an adapter, or a gateway. The model is asked about fifty
    small questions, so a paid one costs a few cents. Exit code 0 means that it conforms.
    """
    from maestro_sdk.conformance.report import line
    from maestro_sdk.conformance.suite import prove
    from maestro_sdk.service.peer import Peer

    found = asyncio.run(
        prove(
            address,
            model=model,
            timeout=timeout,
            key=key,
            peer=Peer.showing(token or _token_at(address, data)),
            watch=lambda outcome: typer.echo(line(outcome)),
        )
    )
    typer.echo("\n" + "\n".join([*found.tail(), found.head()]))
    if report is not None:
        report.write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(0 if found.passed else 1)


def _token_at(address: str, data: Path | None) -> str:
    """The token of the mesh on this machine for one of its own processes. Nobody else is shown it."""
    try:
        folder = data_folder(data)
    except NoTarget:
        return ""
    state = running(folder)
    if state is None or address not in {process.address for process in state.processes}:
        return ""
    return folder.mesh_token()
