"""Counting tokens: what an answer takes goes along, what the count refuses does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude.translate import read_count, to_count
from maestro_sdk.adapter.provider import TokenCounter
from maestro_sdk.errors import InvalidRequest, Overloaded, ProviderAuth, UnsupportedParameter, UpstreamError
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.anthropic_auxiliary import COUNT, AnthropicAuxiliary
from maestro_sdk.testing.faults import FaultServer, Headers, SendJson

OPTIONS = {"service_tier": "auto", "metadata": {"user_id": "u"}, "betas": ["b"]}
CREATE = set(message_create_params.MessageCreateParamsNonStreaming.__annotations__) | {"stream"}
COUNTED = set(message_count_tokens_params.MessageCountTokensParams.__annotations__)
"""What the SDK says that an answer and a count take."""


async def test_the_provider_counts(ask: Any, provider_at: Any) -> None:
    request = ask(
        "How many tokens is this?",
        system="Be brief.",
        tools=[{"name": "weather", "input_schema": '{"type":"object"}'}],
        stop=["END"],
        max_tokens=5,
        provider_options={"anthropic": OPTIONS},
    )
    async with FaultServer() as server, provider_at(server.url) as provider:
        AnthropicAuxiliary().install(server)
        assert isinstance(provider, TokenCounter)
        count = await provider.count_tokens(request)
        longer = ask("How many tokens is this? And now?", system=request.system, tools=[{"name": "weather"}])
        assert await provider.count_tokens(longer) > count > 10
        seen = server.requests[0]
    assert (seen.method, seen.path) == ("POST", COUNT)
    assert seen.headers["anthropic-beta"] == "b"
    assert set(seen.json()) == {"model", "messages", "system", "tools"}


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).with_name("golden").glob("requests/*.request.json")), ids=lambda path: path.stem
)
def test_it_is_the_answers_body_without_limits(path: Path, translate: Any) -> None:
    outgoing = translate(ParseDict(json.loads(path.read_text(encoding="utf-8")), ChatRequest()))
    count = to_count(outgoing)
    assert set(outgoing.body) - set(count) == set(outgoing.body) & (CREATE - COUNTED)
    assert all(value is outgoing.body[name] for name, value in count.items())


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", InvalidRequest),
        (401, "authentication_error", ProviderAuth),
        (529, "overloaded_error", Overloaded),
    ],
)
async def test_refusals(status: int, kind: str, expected: Any, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", COUNT, Headers(status), SendJson(wire.WIRE.refusal(status, kind, "no")))
        with pytest.raises(expected) as caught:
            await provider.count_tokens(ask())
    assert caught.value.metadata["model"] == "anthropic/claude-sonnet-5"


async def test_what_can_not_be_sent_is_not_counted(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        with pytest.raises(UnsupportedParameter):
            await provider.count_tokens(ask(temperature=0.5, strict=True))
        assert server.requests == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"input_tokens": null}'])
def test_a_count_that_is_none(body: bytes) -> None:
    with pytest.raises(UpstreamError, match="can't be read"):
        read_count(body)
