"""What the suite asks: prompts so plain that any model obeys, and what to look for in the answers."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Tool
from maestro_sdk.types import text_of, user

COUNT_TO = 60
BEGUN_TO = 9
WORD = "marigold"
CODEWORD = "PINEAPPLE"
FRUIT = "KIWI"
COLOUR = "red"

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
    "additionalProperties": False,
}
TIME_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "description": "Time zone such as Europe/Rome"}},
    "required": ["zone"],
    "additionalProperties": False,
}
CITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "country": {"type": "string"},
        "size": {"type": "string", "enum": ["small", "large"]},
        "districts": {"type": "integer"},
    },
    "required": ["name", "country", "size", "districts"],
    "additionalProperties": False,
}


def ask(text: str, **fields: Any) -> ChatRequest:
    """A request with one user turn; no model yet."""
    return ChatRequest(messages=[user(text)], **fields)


def say(word: str, **fields: Any) -> ChatRequest:
    """A request for exactly one word."""
    return ask(f"Reply with exactly: {word}", **fields)


def count(**fields: Any) -> ChatRequest:
    """A request for a long answer whose order can be checked."""
    return ask(f"Count from 1 to {COUNT_TO}, separated by commas. Write nothing else.", **fields)


def weather_tool() -> Tool:
    """A tool with one argument, `city`."""
    return Tool(name="get_weather", description="Tells the weather of a city.", input_schema=json.dumps(WEATHER_SCHEMA))


def time_tool() -> Tool:
    """A tool with one argument, `zone`."""
    return Tool(name="get_time", description="Tells the time in a zone.", input_schema=json.dumps(TIME_SCHEMA))


def weather(**fields: Any) -> ChatRequest:
    """A request that wants one call of get_weather."""
    return ask("Use the tool get_weather to find out the weather in Paris.", tools=[weather_tool()], **fields)


def said(answer: ChatResponse) -> str:
    """The text of an answer, for messages."""
    text = text_of(answer)
    return f"“{text[:120]}”" if len(text) <= 120 else f"“{text[:120]}…”"


def red_square() -> bytes:
    """A PNG of 32 by 32 red pixels."""
    side = 32
    rows = (b"\x00" + b"\xff\x00\x00" * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def silence() -> bytes:
    """A WAV of one second of silence."""
    rate = 8000
    samples = b"\x00\x00" * rate
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(body)) + body


def page() -> bytes:
    """A PDF of one page that names a fruit."""
    text = f"BT /F1 24 Tf 72 720 Td (The fruit of the day is {FRUIT}.) Tj ET".encode()
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    )
    data = b"%PDF-1.4\n"
    places: list[int] = []
    for number, content in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(data))
    return data + b"xref\n0 %d\n0000000000 65535 f \n%b" % (size, table) + end
