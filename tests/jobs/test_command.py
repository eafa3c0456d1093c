"""`maestro jobs`, as a person uses it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from maestro_sdk.testing.chaos.provider import Providers, text_of
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEYS, MODEL

WHERE = ("--key", KEYS["acme"], "--url")


def lines(count: int, padding: int = 0) -> str:
    asked = [{"role": "user", "content": f"[r{n}] go on" + " " * padding} for n in range(count)]
    return "\n".join(
        json.dumps({"item_id": f"q{n}", "chat": {"model": MODEL, "messages": [each]}}) for n, each in enumerate(asked)
    )


async def test_a_job_from_its_file_to_its_results(mesh: MeshProcess, providers: Providers, tmp_path: Path):
    file = tmp_path / "rivers.jsonl"
    file.write_text(lines(3) + "\n")
    code, out, err = await mesh.run("jobs", "create", str(file), "--label", "a=b", "--watch", *WHERE, mesh.url)
    assert code == 0, err
    [job_id] = [word for word in out.split() if word.startswith("job_")]
    code, out, err = await mesh.run("jobs", "results", job_id, *WHERE, mesh.url)
    assert code == 0, err
    told = [json.loads(line) for line in out.splitlines()]
    assert {each["item_id"]: each["chat"]["text"] for each in told} == {f"q{n}": text_of(f"r{n}") for n in range(3)}


async def test_a_large_file_is_uploaded_and_a_wrong_one_refused(
    mesh: MeshProcess, providers: Providers, tmp_path: Path
):
    large, wrong = tmp_path / "large.jsonl", tmp_path / "wrong.jsonl"
    large.write_text(lines(2, padding=3 * 2**19))
    wrong.write_text("{}\n\n{nonsense\n")
    (code, out, err), (refused, _, complaint) = await asyncio.gather(
        mesh.run("jobs", "create", str(large), "--json", *WHERE, mesh.url),
        mesh.run("jobs", "create", str(wrong), *WHERE, mesh.url),
    )
    assert code == 0, err
    assert json.loads(out)["input_file_id"]
    assert refused == 2
    assert "line 3" in complaint
    code, out, _ = await mesh.run("jobs", "watch", json.loads(out)["job_id"], "--json", *WHERE, mesh.url)
    assert (code, json.loads(out)["progress"]["succeeded"]) == (0, 2)
