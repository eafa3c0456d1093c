"""What the provider refuses, it names by its own paths; callers know the contract's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestro_adapter_claude.location import locate
from maestro_adapter_claude.translate import to_error
from maestro_sdk.errors import ContextTooLong, InvalidRequest
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.faults import FaultServer, Headers, SendJson

MESSAGES = [
    {"role": "ROLE_USER", "parts": [{"text": {"text": " "}}, {"text": {"text": "look"}}]},
    {"role": "ROLE_USER", "parts": [{"image": {"url": "https://x.example/a.png"}}]},
    {"role": "ROLE_ASSISTANT", "parts": [{"reasoning": {"text": "mine"}}]},
    {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": {"call_id": "c", "name": "a.b"}}]},
    {
        "role": "ROLE_TOOL",
        "parts": [
            {
                "tool_result": {
                    "call_id": "c",
                    "parts": [{"text": {"text": ""}}, {"image": {"data": "AA==", "mime_type": "image/png"}}],
                }
            }
        ],
    },
]
TOOLS = [{"name": "unused"}, {"name": "a.b"}]
OPTIONS = {"anthropic": {"service_tier": "fast"}}


@pytest.mark.parametrize(
    ("told", "fields"),
    [
        ("messages.0.content.0.text: too odd", ["messages[0].parts[1].text"]),
        ("messages.0.content.1.image.source.url: Unable to load", ["messages[1].parts[0].image"]),
        ("messages.1.content.0.tool_use.id: wrong", ["messages[3].parts[0].tool_call"]),
        (
            "messages.2.content.0.tool_result.content.0.image.source.base64: image exceeds 5 MB maximum",
            ["messages[4].parts[0].tool_result.parts[1].image"],
        ),
        ("messages.1: `tool_use` ids were found without `tool_result` blocks", ["messages[3]"]),
        ("messages.9.content.0: what?", []),
        ("tools.0.custom.input_schema: JSON schema is invalid", ["tools[1].input_schema"]),
        ("tools.0.custom.name: String should match pattern", ["tools[1].name"]),
        ("tools.7: what?", []),
        ("max_tokens: 9 > 3, which is the maximum", ["max_tokens"]),
        ("thinking.enabled.budget_tokens: Input should be greater", ["reasoning.budget_tokens"]),
        ("output_config.format.schema: For 'integer' type", ["response_format.json_schema.schema"]),
        ("stop_sequences.0: each stop sequence must contain non-whitespace", ["stop"]),
        ("service_tier: Input should be 'auto'", ["provider_options.anthropic.service_tier"]),
        ("Unable to download the file. Please verify the URL and try again.", ["messages[1].parts[0].image.url"]),
        ("Something else is wrong", []),
    ],
)
def test_paths(told: str, fields: list[str], ask: Any, translate: Any) -> None:
    request = ask(messages=MESSAGES, tools=TOOLS, tool_choice={"names": ["a.b"]}, provider_options=OPTIONS)
    error = to_error(400, json.dumps(wire.WIRE.refusal(400, "", told)).encode(), {})
    assert isinstance(error, InvalidRequest)
    locate(error, request, translate(request))
    assert [found.field for found in error.violations] == fields
    assert told in error.message


def test_all_images_that_are_too_large(ask: Any, translate: Any) -> None:
    details = {
        "error_code": "image_dimensions_too_large",
        "paths": ["messages.0.content.1", "messages.2.content.0.content.0"],
    }
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "too large", "details": details}}
    request = ask(messages=MESSAGES, tools=TOOLS)
    error = to_error(400, json.dumps(body).encode(), {})
    assert isinstance(error, InvalidRequest)
    locate(error, request, translate(request))
    assert [found.field for found in error.violations] == [
        "messages[1].parts[0].image",
        "messages[4].parts[0].tool_result.parts[1].image",
    ]


async def test_a_call_tells_the_field(ask: Any, provider_at: Any) -> None:
    said = "messages.0.content.0.image.source.base64.data: image exceeds 5 MB maximum: 6 bytes > 5 bytes"
    request = ask(messages=[{"role": "ROLE_USER", "parts": [{"image": {"data": "AA==", "mime_type": "image/png"}}]}])
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, Headers(400), SendJson(wire.WIRE.refusal(400, "", said)))
        for call in (provider.complete(request), anext(provider.stream(request))):
            with pytest.raises(InvalidRequest) as caught:
                await call
            assert [found.field for found in caught.value.violations] == ["messages[0].parts[0].image"]


def test_a_conversation_that_is_too_long_names_no_field(ask: Any, translate: Any) -> None:
    error = to_error(
        400, json.dumps(wire.WIRE.refusal(400, "", "prompt is too long: 9 tokens > 8 maximum")).encode(), {}
    )
    assert isinstance(error, ContextTooLong)
    locate(error, ask(), translate(ask()))
    assert error.violations == ()
