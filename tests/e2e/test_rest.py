"""REST through the whole mesh: the unary answer, server-sent events, and what the mesh tells about itself."""

import asyncio
import json
from decimal import Decimal

import pytest

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Arrived, Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.wire import PIECES, Answer, Tokens, Wire

WIRES = [
    pytest.param(openai_chat.WIRE, "openai/gpt-6.1-terra", id="openai"),
    pytest.param(anthropic_messages.WIRE, "anthropic/claude-sonnet-5-5", id="anthropic"),
]


async def test_hello_without_a_model_is_answered_by_the_default_route(alpha: Caller):
    answer = await alpha.chat(question("hello"))
    assert answer.status == 200, answer.body
    body = answer.json()
    assert (body["provider"], body["model"], body["route"]) == ("local", "offline", "default")
    assert body["text"]
    assert body["finish_reason"] == "stop"
    assert body["usage"]["input_tokens"] > 0
    assert body["usage"]["output_tokens"] > 0
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_unary_text(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    provider.on("POST", wire.path, wire.text(tokens=Tokens(input=1000, output=200, cache_read=400)))
    answer = await alpha.chat(question("hello", model=model, system="Be brief."))
    body = answer.json()
    assert answer.status == 200, body
    assert f"{body['provider']}/{body['model']}" == model
    assert (body["text"], body["finish_reason"], body["warnings"]) == ("".join(PIECES), "stop", [])
    usage = {name: body["usage"][name] for name in ("input_tokens", "output_tokens", "cache_read_tokens")}
    assert usage == {"input_tokens": 1000, "output_tokens": 200, "cache_read_tokens": 400}
    assert Decimal(body["cost_usd"]) > 0
    sent = provider.requests[0].json()
    assert not sent.get("stream")
    assert sent["model"] == model.partition("/")[2]


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_events_arrive_one_by_one_and_end_with_finish_and_done(
    alpha: Caller, provider: FaultServer, wire: Wire, model: str
):
    # The provider says each piece when the one before has arrived: who collected them would wait for ever.
    arrived = [asyncio.Event() for _ in PIECES]
    provider.on("POST", wire.path, wire.answer_after(arrived))
    events: list[Arrived] = []
    arrived[0].set()
    async with asyncio.timeout(20), alpha.stream(question("hello", model=model)) as stream:
        async for event in stream:
            events.append(event)
            heard = sum(each.name == "text" for each in events)
            for each in arrived[: heard + 1]:
                each.set()
    names = [event.name for event in events]
    assert names[0] == "started"
    assert names[-2:] == ["finish", ""]
    assert events[-1].data == "[DONE]"
    text = [event for event in events if event.name == "text"]
    assert [event.json()["text"] for event in text] == list(PIECES)
    assert [int(event.number) for event in events[:-1]] == list(range(1, len(events)))
    finish = events[-2].json()
    assert finish["finish_reason"] == "stop"
    assert finish["usage"]["input_tokens"] == Tokens().input
    assert finish["usage"]["output_tokens"] == Tokens().output


async def test_the_first_event_does_not_wait_for_the_last(alpha: Caller, provider: FaultServer):
    gate = asyncio.Event()
    provider.on("POST", openai_chat.PATH, openai_chat.hold_after(1, gate))
    async with alpha.stream(question("hello", model="openai/gpt-6.1-terra")) as events:
        seen: list[str] = []
        async for event in events:
            seen.append(event.name or event.data)
            if event.name == "text":
                # The provider goes on only now: nothing can have come from behind the gate.
                gate.set()
    assert seen[:2] == ["started", "text"]
    assert seen[-2:] == ["finish", "[DONE]"]


async def test_an_idle_stream_is_kept_open_by_comments(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.slow_first_token(1.6))
    body = json.dumps({**question("hello", model="openai/gpt-6.1-terra"), "stream": True}).encode()
    answer = await alpha.post("/v1/chat", body)
    assert b": ping\n\n" in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_a_stream_has_the_headers_that_keep_it_flowing(alpha: Caller):
    async with alpha.session.post("/v1/chat", json=question("hello", stream=True)) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-request-id"]


async def test_system_text_and_conversation_reach_the_provider(alpha: Caller, provider: FaultServer):
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("Paris."))
    body = {
        "model": "anthropic/claude-sonnet-5-5",
        "max_tokens": 50,
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]},
            {"role": "assistant", "content": "Lyon"},
            {"role": "user", "content": "Are you sure?"},
        ],
    }
    assert (await alpha.chat(body)).json()["text"] == "Paris."
    sent = provider.requests[0].json()
    assert "Answer in one word." in json.dumps(sent["system"])
    assert sent["max_tokens"] == 50
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("stream", [True, False])
async def test_thinking_comes_with_its_signature_and_goes_back(alpha: Caller, provider: FaultServer, stream: bool):
    thoughtful = Answer(pieces=("Yes.",), thoughts=("Let me", " think"), signature="c2lnbmF0dXJl")
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.answer(thoughtful))
    ask = question("Sure?", model="anthropic/claude-sonnet-5-5", reasoning={"effort": "low"})
    if stream:
        events = await alpha.collect(ask)
        thoughts = "".join(event.json()["text"] for event in events if event.name == "reasoning")
        assert thoughts == "Let me think"
        assert any(event.name == "part_state" for event in events)
        return
    answer = (await alpha.chat(ask)).json()
    assert [part["type"] for part in answer["parts"]] == ["reasoning", "text"]
    back = {
        "model": "anthropic/claude-sonnet-5-5",
        "messages": [*ask["messages"], {"role": "assistant", "parts": answer["parts"]}, *ask["messages"]],
    }
    assert (await alpha.chat(back)).status == 200
    blocks = provider.requests[1].json()["messages"][1]["content"]
    assert {"type": "thinking", "thinking": "Let me think", "signature": "c2lnbmF0dXJl"} in blocks


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_stop_reasons_are_the_contracts(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    word = "length" if wire is openai_chat.WIRE else "max_tokens"
    provider.on("POST", wire.path, wire.text("Half an", stop=word))
    answer = (await alpha.chat(question("go on", model=model))).json()
    assert (answer["finish_reason"], answer["raw_finish_reason"]) == ("length", word)
    provider.reset()
    provider.on("POST", wire.path, wire.text("Odd", stop="a_new_reason"))
    events = await alpha.collect(question("go on", model=model))
    assert events[-2].json()["finish_reason"] == "other"
    assert events[-2].json()["raw_finish_reason"] == "a_new_reason"


async def test_models_lists_models_routes_and_aliases(alpha: Caller):
    body = (await alpha.get("/v1/models")).json()
    ids = {model["id"] for model in body["data"]}
    assert {"local/offline", "openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"} <= ids
    assert {route["name"] for route in body["routes"]} >= {"default", "openai-first"}
    assert body["aliases"] == {"fast": "local/offline"}


async def test_backends_and_health_tell_their_state(alpha: Caller):
    backends = (await alpha.get("/v1/router/backends")).json()
    states = {backend["model"]: backend["state"] for backend in backends["backends"]}
    assert states["openai/gpt-6.1-terra"] == "active"
    assert {adapter["name"] for adapter in backends["adapters"]} == {"claude", "openai", "vertex", "bedrock", "local"}
    health = (await alpha.get("/v1/health/providers")).json()
    told = {provider["provider"]: provider["status"] for provider in health["providers"]}
    assert set(told) == {"anthropic", "bedrock", "local", "openai", "vertex"}
    # Other tests may have closed single backends on purpose; a provider is down only when all of its backends are.
    assert "down" not in told.values()


async def test_explain_says_who_would_answer_and_why(alpha: Caller, provider: FaultServer):
    body = (await alpha.post("/v1/router:explain", question("hello", model="openai-first"))).json()
    kept = [candidate["model"] for candidate in body["candidates"] if candidate["kept"]]
    assert kept == ["openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"]
    assert provider.requests == []


async def test_alias_and_route_name_are_models(alpha: Caller):
    answer = (await alpha.chat(question("hello", model="fast"))).json()
    assert (answer["provider"], answer["model"]) == ("local", "offline")


async def test_a_request_id_is_kept(alpha: Caller):
    body = json.dumps(question("hello", stream=True)).encode()
    answer = await alpha.post("/v1/chat", body, {"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
