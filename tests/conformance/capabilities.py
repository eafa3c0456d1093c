"""Writes docs/capabilities.md, or checks that it is fresh: what the models of every adapter claim.

    python tests/conformance/capabilities.py write|check

The adapters run as in `adapters.py`. Nothing is asked but `ListModels`, so nothing is proven here.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
from adapters import ADAPTERS, Adapter, process

from maestro.llm.v1.model_pb2 import Feature, ListModelsRequest, Model, Support
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_sdk.testing.faults import FaultServer

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
AT_ONCE = 2
"""Adapters that run side by side."""
NOTES: Mapping[str, str] = {
    "azure": "Models are deployments, named in the configuration. A deployment has the features of its model; here "
    "stand those that the conformance suite proves.",
    "bedrock": "A model that stands with regions has the same features under each of its inference profiles.",
    "local": "Models without a server: the offline model for development, and a lexical embedder.",
    "local-ollama": "Models of a server are found at run time, with what the server tells of them; the configuration "
    "can add or take away. Here stand four of an emulated Ollama: `able` has tools and schemas itself, `plain` has no "
    "tools, `handed` has neither tools nor constrained output, `embedder` only embeds.",
    "local-vllm": "A model of an OpenAI-compatible server, with the features that the configuration says that the "
    "server was started with.",
}
HEAD = """# Capabilities

What each model claims, as its adapter tells it by `ModelService.ListModels`: **native** (the model itself),
**polyfilled** (the adapter, around the model) or none. This page is generated: `make capabilities` writes it, and a
test proves that it is fresh. `make conformance` proves the claims against emulators of the providers, for models that
differ in them; [conformance.md](conformance.md) tells how.

The router filters by these claims: a request that needs what no allowed model has fails with `CAPABILITY_UNAVAILABLE`.
A model of which an adapter knows nothing but the name gets CHAT, STREAMING and SYSTEM_PROMPT, no price, and a warning;
the operator adds what it can do under `models` in the adapter's settings.

## Overview

How many models of each provider have a feature; *p* counts polyfills.

"""
POLYFILLS = """## Polyfills

Models of local servers get what they lack from the adapter, unless their server's `polyfill` is false, or `without` of
the server or model names the feature. Tools and schemas go through constrained output where the server has it
(`structured_output` in `provider_metadata`), else through the prompt (`prompt`).

"""
MEANS = (
    ("feature", "with constrained output", "by the prompt"),
    (
        "TOOLS, PARALLEL_TOOLS, TOOL_CHOICE",
        "the output is bound to a schema of calls",
        "instructions, and a strict parser that reads calls out of the streamed text; bounded repair, then MALFORMED",
    ),
    (
        "JSON_SCHEMA",
        "the output is bound to the schema",
        "the schema in the prompt, validation, and at most `max_repairs` repairs, then OUTPUT_INVALID",
    ),
)
TAIL = """
A part that a polyfill made says so (`polyfilled`); a caller that wants none asks with `routing.require_native`.
"""


async def list_models(adapter: Adapter, turn: asyncio.Semaphore) -> list[Model]:
    """What an adapter offers in its setting of the conformance run."""
    async with turn, FaultServer() as provider:
        if adapter.oblige is not None:
            adapter.oblige(provider)
        async with (
            process(adapter, adapter.settings(provider.url)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            return list((await ModelServiceStub(channel).ListModels(ListModelsRequest(), timeout=10)).models)


async def collect() -> dict[str, list[Model]]:
    """The models by section: the provider, or the label of an adapter that stands in the table twice."""
    turn = asyncio.Semaphore(AT_ONCE)
    listed = await asyncio.gather(*(list_models(adapter, turn) for adapter in ADAPTERS))
    sections: dict[str, list[Model]] = {}
    seen: set[str] = set()
    for adapter, models in zip(ADAPTERS, listed, strict=True):
        for model in models:
            # The same adapter with a server behind it tells again what it has without one.
            if model.id not in seen:
                seen.add(model.id)
                own = adapter.label if adapter.label.startswith(model.provider) else model.provider
                sections.setdefault(own, []).append(model)
    return {name: sorted(models, key=lambda model: model.id) for name, models in sections.items()}


def page(sections: Mapping[str, Sequence[Model]]) -> str:
    """The whole page."""
    counted = [[f"{name} ({len(models)})" for name, models in sections.items()]]
    counted += [[_count(models, kind) for models in sections.values()] for kind in _kinds()]
    heads = ["feature", *(_name(kind) for kind in _kinds())]
    rows = [[head, *cells] for head, cells in zip(heads, counted, strict=True)]
    parts = [HEAD + _table(rows), *(_section(name, models) for name, models in sections.items())]
    return "\n".join([*parts, POLYFILLS + _table(MEANS) + TAIL])


def _section(name: str, models: Sequence[Model]) -> str:
    """One provider: models with the same features share a column."""
    groups: dict[tuple[Support.ValueType, ...], list[Model]] = {}
    for model in models:
        groups.setdefault(tuple(_support(model, kind) for kind in _kinds()), []).append(model)
    letters = [chr(ord("A") + number) for number in range(len(groups))]
    text = f"## {name}\n\n" + (f"{NOTES[name]}\n\n" if NOTES.get(name) else "")
    for letter, members in zip(letters, groups.values(), strict=True):
        text += f"- **{letter}**: {_list(members)}\n"
    rows = [["feature", *letters]]
    rows += [
        [_name(kind), *(_word(supports[place]) for supports in groups)]
        for place, kind in enumerate(_kinds())
        if any(supports[place] != Support.SUPPORT_NONE for supports in groups)
    ]
    return f"{text}\n{_table(rows)}"


def _list(models: Sequence[Model]) -> str:
    """The ids; a model and its regional profiles, such as `us.` and `eu.`, stand together."""
    names = {model.name for model in models}
    regions: dict[str, list[str]] = {}
    for name in names:
        region, _, rest = name.partition(".")
        if rest in names:
            regions.setdefault(rest, []).append(f"`{region}.`")
    lone = {model.name: model.id for model in models if model.name.partition(".")[2] not in regions}
    told = [(f"`{lone[name]}`", sorted(regions.get(name, ()))) for name in sorted(lone)]
    return ", ".join(f"{said} (also {', '.join(also)})" if also else said for said, also in told)


def _count(models: Sequence[Model], kind: Feature.ValueType) -> str:
    native = sum(_support(model, kind) == Support.SUPPORT_NATIVE for model in models)
    polyfilled = sum(_support(model, kind) == Support.SUPPORT_POLYFILLED for model in models)
    told = [str(native)] if native else []
    return " + ".join([*told, *([f"{polyfilled} *p*"] if polyfilled else [])])


def _kinds() -> list[Feature.ValueType]:
    order = sorted(Feature.values(), key=lambda kind: (kind != Feature.FEATURE_CHAT, kind))
    return [kind for kind in order if kind != Feature.FEATURE_UNSPECIFIED]


def _name(kind: Feature.ValueType) -> str:
    return Feature.Name(kind).removeprefix("FEATURE_")


def _support(model: Model, kind: Feature.ValueType) -> Support.ValueType:
    found = next((entry.support for entry in model.features if entry.feature == kind), Support.SUPPORT_NONE)
    return found or Support.SUPPORT_NONE


def _word(support: Support.ValueType) -> str:
    return {Support.SUPPORT_NATIVE: "native", Support.SUPPORT_POLYFILLED: "polyfilled"}.get(support, "")


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> int:
    """Writes the page, or compares it; exit code 1 when it is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("action", choices=("write", "check"))
    action = parser.parse_args().action
    made = page(asyncio.run(collect()))
    kept = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    if action == "write":
        PAGE.write_text(made, encoding="utf-8")
        return 0
    if made == kept:
        return 0
    difference = difflib.unified_diff(kept.splitlines(), made.splitlines(), "docs/capabilities.md", "now", lineterm="")
    print("\n".join(difference))
    print("docs/capabilities.md is stale: run `make capabilities`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
