"""What goes out to OpenAI and what comes back, as reviewed files.

`golden/requests/NAME.request.json` is a request of the contract, `NAME.wire.json` what is sent for it;
`golden/streams/NAME.sse` is a recorded stream, `NAME.events.json` what it means. `MAESTRO_GOLDEN=write` writes the
outputs anew: review the difference.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_openai.models import models
from maestro_adapter_openai.translate import OPENAI, Stream, to_wire
from maestro_sdk.testing.golden import check, plain

GOLDEN = Path(__file__).with_name("golden")
REQUESTS = sorted(path.name.removesuffix(".request.json") for path in GOLDEN.glob("requests/*.request.json"))
STREAMS = sorted(path.stem for path in GOLDEN.glob("streams/*.sse"))


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    text = (GOLDEN / f"requests/{name}.request.json").read_text(encoding="utf-8")
    request = ParseDict(json.loads(text), ChatRequest())
    dialect = models()[request.model.removeprefix("openai/")].dialect
    assert dialect is not None
    wire = to_wire(request, dialect, stream=name in {"text", "options"})
    warnings = [MessageToDict(warning, preserving_proto_field_name=True) for warning in wire.warnings]
    check(GOLDEN / f"requests/{name}.wire.json", {"body": json.loads(wire.encode()), "warnings": warnings})


@pytest.mark.parametrize("name", STREAMS)
def test_stream(name: str) -> None:
    stream = Stream(OPENAI, "gpt-4.1")
    data = (GOLDEN / f"streams/{name}.sse").read_bytes()
    events = [*stream.feed(data), *stream.end()]
    check(GOLDEN / f"streams/{name}.events.json", plain(events))
