"""The obliging model behind a vLLM server: OpenAI's wire, a list of models with their windows, and `/tokenize`."""

from __future__ import annotations

from collections.abc import Sequence

from maestro_sdk.testing.faults import FaultServer, Seen, SendJson, Step
from maestro_sdk.testing.obliging import count_tokens
from maestro_sdk.testing.obliging_wires import oblige_openai, read_openai

MODEL = "obliging/model-8b"
WINDOW = 40960


def oblige_vllm(server: FaultServer) -> None:
    """Lets `server` answer as a vLLM server that was started with a parser for tool calls and one for reasoning."""
    oblige_openai(server)
    listed = {"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": WINDOW}
    server.on("GET", "/v1/models", SendJson({"object": "list", "data": [listed]}))
    server.on("POST", "/tokenize", _tokenize)


def _tokenize(seen: Seen) -> Sequence[Step]:
    count = count_tokens(read_openai(seen.json()))
    return [SendJson({"count": count, "max_model_len": WINDOW, "tokens": list(range(count))})]
