"""A body of each dialect in which every field stands."""

from typing import Any

_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
_ROUTING = {"persona": "p", "skill": "s", "session_key": "k", "prefer_providers": ["openai"], "max_cost_usd": "1.0"}
_PICTURE: Any = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PIXEL}", "detail": "low"}}
_CALLS: Any = [
    {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}},
    {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
]

OPENAI: dict[str, Any] = {
    "model": "openai/gpt-4.1",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Very."}]},
        {"role": "user", "name": "ann", "content": "Look."},
        {"role": "assistant", "content": [{"type": "text", "text": "At"}, {"type": "refusal", "refusal": "No."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "At this."},
                _PICTURE,
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
                {"type": "file", "file": {"file_id": "file_1"}},
            ],
        },
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": _CALLS},
        {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "none"}]},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "weather", "description": "d", "parameters": _SCHEMA, "strict": True},
        }
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
    },
    "parallel_tool_calls": True,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "w", "description": "d", "schema": _SCHEMA, "strict": True},
    },
    "temperature": 0.5,
    "top_p": 0.9,
    "max_completion_tokens": 100,
    "seed": 7,
    "stop": ["a", "b"],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "reasoning_effort": "low",
    "n": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "modalities": ["text"],
    "metadata": {"team": "a"},
    "routing": _ROUTING,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {"50256": -100},
    "user": "u",
    "store": False,
    "service_tier": "auto",
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    "web_search_options": {"user_location": {"type": "approximate", "approximate": {"country": "FR"}}},
}

_EPHEMERAL: Any = {"type": "ephemeral", "ttl": "1h"}
_IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}}

ANTHROPIC: dict[str, Any] = {
    "model": "anthropic/claude-sonnet-5",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": _EPHEMERAL}],
    "messages": [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "At what?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "At this.", "cache_control": {"type": "ephemeral"}},
                _IMAGE,
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                {
                    "type": "document",
                    "title": "t",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
                },
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}},
                {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "redacted_thinking", "data": "aGlkZGVu"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
                {"type": "server_tool_use", "id": "st1", "name": "web_search", "input": {"query": "x"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "21 degrees", "is_error": False},
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "none"}, _IMAGE]},
                {"type": "text", "text": "And?"},
            ],
        },
    ],
    "tools": [
        {
            "type": "custom",
            "name": "weather",
            "description": "d",
            "input_schema": _SCHEMA,
            "strict": True,
            "cache_control": {"type": "ephemeral"},
        }
    ],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "stop_sequences": ["a"],
    "stream": True,
    "thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": _SCHEMA}},
    "cache_control": {"type": "ephemeral"},
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}]},
    "container": {"skills": [{"type": "anthropic", "skill_id": "pdf", "version": "latest"}]},
    "mcp_servers": [{"type": "url", "url": "https://example.com", "name": "m"}],
    "routing": _ROUTING,
}
