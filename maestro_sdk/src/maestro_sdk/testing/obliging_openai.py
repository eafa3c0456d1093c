"""The obliging model behind whole accounts at OpenAI and at Azure: chat, embeddings, files and batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from maestro_sdk.testing import openai_auxiliary, openai_chat
from maestro_sdk.testing.faults import FaultServer, Seen, SendJson, Sse, Step
from maestro_sdk.testing.obliging_wires import oblige_openai, openai_reply
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary
from maestro_sdk.testing.openai_embedding import embed

AZURE_CHAT = "/openai/deployments/*/chat/completions"
_CLEAN = {"hate": {"filtered": False, "severity": "safe"}, "violence": {"filtered": False, "severity": "safe"}}
_PROMPT_FILTER = {
    "id": "",
    "object": "",
    "created": 0,
    "model": "",
    "choices": [],
    "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": _CLEAN}],
}


def oblige_openai_account(server: FaultServer) -> None:
    """Lets `server` be OpenAI's API, under `/v1`."""
    oblige_openai(server)
    OpenAIAuxiliary(server, answers=_answers)


def oblige_azure(server: FaultServer) -> None:
    """Lets `server` be a resource of Azure, with a deployment of any name and filters that find nothing."""
    reply = openai_reply()

    def filtered(seen: Seen) -> Sequence[Step]:
        steps = [_judged(step) for step in reply(seen)]
        streamed = [place for place, step in enumerate(steps) if isinstance(step, Sse)]
        if streamed:
            steps.insert(streamed[0], Sse(None, _PROMPT_FILTER))
        return steps

    server.on("POST", AZURE_CHAT, filtered)
    OpenAIAuxiliary(server, openai_auxiliary.AZURE, _answers)


def _judged(step: Step) -> Step:
    match step:
        case Sse(event, {"choices": [choice]} as chunk):
            return Sse(event, {**chunk, "choices": [{**choice, "content_filter_results": _CLEAN}]})
        case SendJson({"choices": [choice]} as document):
            return SendJson({**document, "choices": [{**choice, "content_filter_results": _CLEAN}]})
        case _:
            return step


def _answers(body: Any) -> tuple[int, Any]:
    if "input" in body:
        return 200, embed(body, str(body.get("model") or ""))
    seen = Seen("POST", openai_chat.PATH, "", {}, json.dumps(body).encode())
    document = next(step.value for step in openai_reply()(seen) if isinstance(step, SendJson))
    return 200, document
