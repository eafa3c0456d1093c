"""The scripts of each wire: a good answer has all that the wire promises, and every fault is what its name says."""

import asyncio
import itertools
import json
from typing import Any

import aiohttp
import pytest

from maestro_sdk.adapter.sse import SseEvent, SseParser
from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import FaultServer, Reply
from maestro_sdk.testing.wire import PIECES, Answer, Tokens, ToolCall, Wire

WIRES = [pytest.param(openai_chat.WIRE, id="openai"), pytest.param(anthropic_messages.WIRE, id="anthropic")]
CALLS = (ToolCall("c1", "add", {"a": 1, "b": 2}), ToolCall("c2", "find", {"query": "the other side"}))


class Answered:
    """What a client read: status, headers, events or document, and how the reading ended."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.error: BaseException | None = None

    @property
    def events(self) -> list[SseEvent]:
        return SseParser().feed(self.body)

    @property
    def text(self) -> str:
        return "".join(_text(event) for event in self.events)


async def _ask(reply: Reply, wire: Wire, *, stream: bool, timeout: float = 5.0) -> Answered:
    got = Answered()
    async with FaultServer() as server, aiohttp.ClientSession() as client:
        server.on("POST", wire.path, reply)
        body: dict[str, Any] = {"model": "m-1", "stream": stream, "stream_options": {"include_usage": True}}
        limit = aiohttp.ClientTimeout(sock_read=timeout)
        try:
            async with client.post(server.url + wire.path, json=body, timeout=limit) as response:
                got.status = response.status
                got.headers = {name.lower(): value for name, value in response.headers.items()}
                while chunk := await response.content.readany():
                    got.body += chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            got.error = error
    return got


def _text(event: SseEvent) -> str:
    if event.data == b"[DONE]":
        return ""
    try:
        data = json.loads(event.data)
    except ValueError:
        return ""
    if event.name:
        return str(data.get("delta", {}).get("text", ""))
    return "".join(choice["delta"].get("content") or "" for choice in data.get("choices", ()))


def _terminal(wire: Wire, got: Answered) -> bool:
    last = got.events[-1] if got.events else SseEvent(b"", b"")
    return last.data == b"[DONE]" if wire is openai_chat.WIRE else last.name == b"message_stop"


@pytest.mark.parametrize("wire", WIRES)
async def test_text_streams_piece_by_piece_to_its_terminal_event(wire: Wire):
    got = await _ask(wire.text(), wire, stream=True)
    assert (got.status, got.text, got.error) == (200, "".join(PIECES), None)
    assert _terminal(wire, got)
    assert sum(bool(_text(event)) for event in got.events) == len(PIECES)


async def test_openai_document():
    got = await _ask(
        openai_chat.text("Hi", tokens=Tokens(input=9, output=4, cache_read=3)), openai_chat.WIRE, stream=False
    )
    document = json.loads(got.body)
    assert document["choices"][0]["message"]["content"] == "Hi"
    assert document["choices"][0]["finish_reason"] == "stop"
    assert document["usage"]["prompt_tokens"] == 9
    assert document["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_anthropic_document_counts_cached_tokens_apart():
    tokens = Tokens(input=12307, output=550, cache_write_5m=12304)
    got = await _ask(anthropic_messages.text("Hi", tokens=tokens), anthropic_messages.WIRE, stream=False)
    document = json.loads(got.body)
    assert (document["content"], document["stop_reason"]) == ([{"type": "text", "text": "Hi"}], "end_turn")
    usage = document["usage"]
    assert (usage["input_tokens"], usage["cache_creation_input_tokens"], usage["output_tokens"]) == (3, 12304, 550)


@pytest.mark.parametrize("stream", [True, False])
async def test_openai_reports_usage_only_when_asked(stream: bool):
    async with FaultServer() as server, aiohttp.ClientSession() as client:
        server.on("POST", openai_chat.PATH, openai_chat.text("Hi"))
        async with client.post(server.url + openai_chat.PATH, json={"model": "m", "stream": stream}) as response:
            assert (b'"usage"' in await response.read()) is not stream


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("fragment", [0, 1, 7])
async def test_openai_tool_calls_reassemble(interleaved: bool, fragment: int):
    reply = openai_chat.tools(*CALLS, text="Let me see.", interleaved=interleaved, fragment=fragment)
    got = await _ask(reply, openai_chat.WIRE, stream=True)
    calls: dict[int, dict[str, str]] = {}
    order: list[int] = []
    reason = None
    for event in got.events[:-1]:
        for choice in json.loads(event.data)["choices"]:
            reason = choice["finish_reason"] or reason
            for delta in choice["delta"].get("tool_calls", ()):
                order.append(delta["index"])
                call = calls.setdefault(delta["index"], {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.get("id", "")
                call["name"] += delta["function"].get("name", "")
                call["arguments"] += delta["function"]["arguments"]
    expected = {
        index: {"id": call.call_id, "name": call.name, "arguments": call.text} for index, call in enumerate(CALLS)
    }
    assert (calls, reason, got.text) == (expected, "tool_calls", "Let me see.")
    assert (order[:2] == [0, 1]) is (interleaved or fragment == 0)


@pytest.mark.parametrize("interleaved", [True, False])
async def test_anthropic_tool_calls_reassemble(interleaved: bool):
    reply = anthropic_messages.tools(*CALLS, text="Let me see.", interleaved=interleaved)
    got = await _ask(reply, anthropic_messages.WIRE, stream=True)
    blocks: dict[int, list[str]] = {}
    stopped: list[int] = []
    for event in got.events:
        data = json.loads(event.data)
        match event.name:
            case b"content_block_start" if data["content_block"]["type"] == "tool_use":
                blocks[data["index"]] = [data["content_block"]["id"], data["content_block"]["name"], ""]
            case b"content_block_delta" if data["delta"]["type"] == "input_json_delta":
                blocks[data["index"]][2] += data["delta"]["partial_json"]
            case b"content_block_stop":
                stopped.append(data["index"])
            case _:
                pass
    assert blocks == {1: ["c1", "add", CALLS[0].text], 2: ["c2", "find", CALLS[1].text]}
    assert stopped == [0, 1, 2]
    assert json.loads(got.events[-2].data)["delta"]["stop_reason"] == "tool_use"


async def test_anthropic_thinking_has_its_signature_in_both_forms():
    answer = Answer(pieces=("Yes.",), thoughts=("Let", " me think"), signature="c2lnbmF0dXJl")
    streamed = await _ask(anthropic_messages.answer(answer), anthropic_messages.WIRE, stream=True)
    deltas = [json.loads(event.data)["delta"] for event in streamed.events if event.name == b"content_block_delta"]
    assert [delta["type"] for delta in deltas] == ["thinking_delta", "thinking_delta", "signature_delta", "text_delta"]
    document = await _ask(anthropic_messages.answer(answer), anthropic_messages.WIRE, stream=False)
    thinking = json.loads(document.body)["content"][0]
    assert thinking == {"type": "thinking", "thinking": "Let me think", "signature": "c2lnbmF0dXJl"}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("stream", [True, False])
async def test_refusals_carry_status_headers_and_kind(wire: Wire, stream: bool):
    limited = await _ask(wire.rate_limited(7), wire, stream=stream)
    assert (limited.status, limited.headers["retry-after"]) == (429, "7")
    assert json.loads(limited.body)["error"]["type"] == "rate_limit_error"
    special = await _ask(wire.error(400, "odd_kind", "no such thing"), wire, stream=stream)
    assert special.status == 400
    error = json.loads(special.body)["error"]
    assert error["message"] == "no such thing"
    assert "odd_kind" in (error.get("code"), error["type"])


@pytest.mark.parametrize("wire", WIRES)
async def test_stream_faults(wire: Wire):
    """One table: how much text arrives, whether the terminal event does, how the reading ends."""
    two, all_of_it = "".join(PIECES[:2]), "".join(PIECES)
    table: dict[str, tuple[Reply, str, bool, type[BaseException] | None]] = {
        "cut_before_headers": (wire.cut_before_headers(), "", False, aiohttp.ServerDisconnectedError),
        "cut_before_content": (wire.cut_before_content(), "", False, aiohttp.ClientPayloadError),
        "cut_after": (wire.cut_after(2), two, False, aiohttp.ClientPayloadError),
        "stall_after": (wire.stall_after(2), two, False, TimeoutError),
        "silent_end": (wire.silent_end(), all_of_it, False, None),
        "silent_end early": (wire.silent_end(2), two, False, None),
        "in_band_error": (wire.in_band_error(2), two, False, None),
        "malformed_json": (wire.malformed_json(2), all_of_it, True, None),
        "slow_first_token": (wire.slow_first_token(0.01), all_of_it, True, None),
    }
    asked = await asyncio.gather(*(_ask(row[0], wire, stream=True, timeout=0.3) for row in table.values()))
    for (name, (_, text, terminal, ending)), got in zip(table.items(), asked, strict=True):
        assert (name, got.text, _terminal(wire, got)) == (name, text, terminal)
        assert isinstance(got.error, ending) if ending else got.error is None, (name, got.error)


@pytest.mark.parametrize("wire", WIRES)
async def test_unary_faults(wire: Wire):
    table: dict[str, tuple[Reply, type[BaseException] | None]] = {
        "cut_before_headers": (wire.cut_before_headers(), aiohttp.ServerDisconnectedError),
        "cut_before_content": (wire.cut_before_content(), aiohttp.ClientPayloadError),
        "cut_after": (wire.cut_after(2), aiohttp.ClientPayloadError),
        "stall_after": (wire.stall_after(2), TimeoutError),
        "malformed_json": (wire.malformed_json(), None),
        "silent_end": (wire.silent_end(), None),
        "in_band_error": (wire.in_band_error(), None),
    }
    asked = await asyncio.gather(*(_ask(row[0], wire, stream=False, timeout=0.3) for row in table.values()))
    got = dict(zip(table, asked, strict=True))
    for name, (_, ending) in table.items():
        assert isinstance(got[name].error, ending) if ending else got[name].error is None, (name, got[name].error)
    with pytest.raises(json.JSONDecodeError):
        json.loads(got["malformed_json"].body)
    assert b'"end_turn"' not in got["silent_end"].body
    assert b'"finish_reason":"stop"' not in got["silent_end"].body
    assert got["in_band_error"].status == 200
    assert "error" in json.loads(got["in_band_error"].body)


@pytest.mark.parametrize("wire", WIRES)
async def test_errors_inside_a_stream_are_the_wires_own(wire: Wire):
    got = await _ask(wire.in_band_error(1, "kind_x", "it broke"), wire, stream=True)
    last = json.loads(got.events[-1].data)
    assert last["error"]["message"] == "it broke"
    assert "kind_x" in (last["error"].get("code"), last["error"]["type"])
    assert got.events[-1].name == (b"error" if wire is anthropic_messages.WIRE else b"")


@pytest.mark.parametrize("wire", WIRES)
async def test_held_answer_goes_on_when_the_test_says(wire: Wire):
    gate = asyncio.Event()
    asking = asyncio.create_task(_ask(wire.hold_after(2, gate), wire, stream=True))
    done, _ = await asyncio.wait([asking], timeout=0.1)
    assert not done
    gate.set()
    got = await asking
    assert got.text == "".join(PIECES)
    assert _terminal(wire, got)


@pytest.mark.parametrize("wire", WIRES)
async def test_paced_answer_keeps_its_pace(wire: Wire):
    loop = asyncio.get_running_loop()
    begun = loop.time()
    got = await _ask(wire.text(PIECES, pace=0.03), wire, stream=True)
    assert got.text == "".join(PIECES)
    assert loop.time() - begun >= 0.03 * (len(PIECES) - 1)


def test_both_modules_offer_the_same_scripts():
    names = {name for name, _ in itertools.chain(vars(Wire).items()) if not name.startswith("_")}
    scripts = names - {
        "path",
        "streams",
        "opening",
        "content",
        "closing",
        "document",
        "refusal",
        "broken_event",
        "error_event",
    }
    for module in (openai_chat, anthropic_messages):
        assert scripts <= set(vars(module))
