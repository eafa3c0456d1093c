"""`maestro usage` against a server that notes what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from maestro_sdk.cli.app import app

TOTALS = {
    "requests": "2110",
    "failed_requests": "4",
    "cached_requests": "1",
    "input_tokens": "4100233",
    "output_tokens": "911204",
    "unpriced_requests": "2",
}


class Server(HTTPServer):
    """Gives two pages of usage, or a table."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, list[str]]] = []
        self.paths: list[str] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        server = cast("Server", self.server)
        server.paths.append(parts.path)
        server.asked.append(query)
        status, body = 200, b"model,requests\r\nm,1\r\n"
        if parts.path == "/v1/usage":
            second = "page_token" in query
            row = {"group": {"model": "[b]m-2" if second else "m-1"}, "totals": {**TOTALS, "cost_usd": "1.5"}}
            page: dict[str, Any] = {"rows": [row], "totals": TOTALS, "next_page_token": "" if second else "next"}
            body = json.dumps(page).encode()
        if query.get("key_id") == ["wrong"]:
            status, body = 400, b'{"error":{"message":"key_id: no","reason":"INVALID_REQUEST"}}'
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(server: Server, *arguments: str) -> Result:
    url = f"http://127.0.0.1:{server.server_port}"
    return CliRunner().invoke(app, ["usage", "--url", url, "--key", "mk-x", *arguments], env={"COLUMNS": "200"})


def test_all_pages_in_one_view(server: Server) -> None:
    result = run(
        server, "--by", "model, label:team", "--from", "2026-03", "--to", "2026-03-09T12:00:00+01:00", "-l", "a=b"
    )
    assert result.exit_code == 0
    assert server.asked[0]["group_by"] == ["model", "label:team"]
    assert server.asked[0]["labels"] == ["a=b"]
    assert server.asked[0]["start_time"] == ["2026-03-01T00:00:00Z"]
    assert server.asked[0]["end_time"] == ["2026-03-09T11:00:00Z"]
    assert server.asked[1]["page_token"] == ["next"]
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["m-1", "[b]m-2"]
    assert "4,100,233" in lines[3]
    assert "unknown" in lines[3]
    assert "The cost of 2 requests is unknown" in result.output


def test_json_holds_all_rows(server: Server) -> None:
    found = json.loads(run(server, "--by", "model", "--json").output)
    assert [row["group"]["model"] for row in found["rows"]] == ["m-1", "[b]m-2"]


def test_a_table_is_passed_on_as_it_is(server: Server) -> None:
    result = run(server, "--csv", "--tenant", "-")
    assert result.stdout_bytes == b"model,requests\r\nm,1\r\n"
    assert (server.paths, server.asked[0]["tenant"]) == (["/v1/usage.csv"], ["-"])


@pytest.mark.parametrize("text", ["yesterday", "2026-13", "7w", "2026-02-30"])
def test_a_wrong_time_is_told_before_anybody_is_asked(server: Server, text: str) -> None:
    result = run(server, "--from", text)
    assert result.exit_code == 2
    assert "is neither a day such as" in result.output.replace("\n", " ")
    assert server.paths == []


def test_what_is_refused_is_told(server: Server) -> None:
    result = run(server, "--key-id", "wrong")
    assert (result.exit_code, result.stderr) == (1, "INVALID_REQUEST: key_id: no\n")
