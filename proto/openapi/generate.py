"""Writes the OpenAPI document of everything that the gateway serves over HTTP, from the contract and `bodies/`.

write    update the document (only when it changed)
check    exit 1 when what is committed is not what would be generated
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson
import yaml
from contract import Contract, load
from operations import Operations
from schema import Schemas

from maestro_gateway.identity.scopes import scope_of_method

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENT = Path("services/gateway/src/maestro_gateway/reference/openapi.json")
BODIES = Path(__file__).resolve().parent / "bodies"
ENVOY = Path("envoy/envoy.yaml")
_TRANSCODER = "envoy.filters.http.grpc_json_transcoder"


def transcoded() -> list[str]:
    """The services that Envoy's transcoder serves."""
    config = yaml.safe_load((ROOT / ENVOY).read_text(encoding="utf-8"))
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (transcoder,) = [each for each in manager["http_filters"] if each["name"] == _TRANSCODER]
    return transcoder["typed_config"]["services"]


def bodies() -> dict[str, Any]:
    """What is written by hand, of all files together."""
    found: dict[str, Any] = {}
    for file in sorted(BODIES.glob("*.yaml")):
        for section, content in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            known = found.setdefault(section, type(content)())
            if isinstance(content, dict):
                if again := known.keys() & content.keys():
                    raise SystemExit(f"{file.name}: {section} has {', '.join(sorted(again))} twice")
                known.update(content)
            else:
                known.extend(content)
    return found


def document(contract: Contract, own: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The document, and the methods whose bodies nobody described."""
    schemas = Schemas(contract, own["schemas"], own["messages"])
    operations = Operations(contract, schemas, own["methods"], own["statuses"])
    services = transcoded()
    for method in contract.methods.values():
        if method.service in services and method.rules:
            operations.add(method, scope_of_method(f"/{method.name}"))
    for path, verbs in own["paths"].items():
        for verb, operation in verbs.items():
            operations.add_own(path, verb, operation)
    tags = {tag for verbs in operations.paths.values() for operation in verbs.values() for tag in operation["tags"]}
    made = {
        "openapi": "3.1.0",
        "info": own["info"],
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "tags": [{"name": tag} for tag in sorted(tags)],
        "paths": dict(sorted(operations.paths.items())),
        "components": {
            "securitySchemes": own["security"],
            "headers": own["headers"],
            "responses": dict(sorted(operations.refusals.items())),
            "schemas": dict(sorted(schemas.made.items())),
        },
    }
    return made, operations.unfilled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    action = parser.parse_args().action
    made, unfilled = document(load(ROOT), bodies())
    for name in unfilled:
        sys.stderr.write(f"{name}: its body is described nowhere in {BODIES.relative_to(ROOT)}\n")
    fresh = orjson.dumps(made, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    target = ROOT / DOCUMENT
    if target.exists() and target.read_bytes() == fresh:
        return 0
    if action == "check":
        sys.stderr.write(f"{DOCUMENT} does not match the contract: run `make openapi` and commit the result\n")
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(fresh)
    sys.stdout.write(f"{DOCUMENT}: {sum(len(verbs) for verbs in made['paths'].values())} operations\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
