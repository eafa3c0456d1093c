"""Files that conversations name: their bytes reach the provider, and only those of the caller's own tenant."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import openai

from .conftest import KEY, MODEL, OTHER, Mesh

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
WORDS = b"words of a document"


async def kept(mesh: Mesh, name: str, content: bytes, key: str = KEY, purpose: str = "content") -> str:
    status, file = await mesh.rest(
        "POST", f"/v1/files?purpose={purpose}&filename={name}", key, data=io.BytesIO(content)
    )
    assert status == 200, file
    return file["file_id"]


async def ask(mesh: Mesh, *parts: dict[str, Any], key: str = KEY) -> tuple[int, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}]}
    return await mesh.rest("POST", "/v1/chat", key, data=json.dumps(body))


async def test_the_bytes_reach_the_provider(mesh: Mesh) -> None:
    image, document = await kept(mesh, "a.png", PNG), await kept(mesh, "a.txt", WORDS)
    status, answer = await ask(
        mesh,
        {"type": "text", "text": "look"},
        {"type": "image", "file_id": image},
        {"type": "document", "file_id": document, "title": "A title"},
        {"type": "document", "file_id": "file-of-the-provider"},
    )
    assert status == 200, answer
    _, seen, titled, foreign = mesh.provider.requests[-1].messages[0].parts
    assert (seen.image.data, seen.image.mime_type) == (PNG, "image/png")
    assert (titled.document.data, titled.document.mime_type, titled.document.title) == (WORDS, "text/plain", "A title")
    assert foreign.document.file_id == "file-of-the-provider"


async def test_a_client_of_openai_names_a_file(mesh: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=f"{mesh.process.url}/v1", api_key=KEY, max_retries=0) as client:
        made = await client.files.create(file=("a.txt", WORDS), purpose="user_data")
        content: Any = [{"type": "text", "text": "read"}, {"type": "file", "file": {"file_id": made.id}}]
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": content}], stream=True
        )
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
    assert mesh.provider.requests[-1].messages[0].parts[1].document.data == WORDS


async def test_what_is_not_there_is_told_before_anything_is_asked(mesh: Mesh) -> None:
    large = await kept(mesh, "large.txt", bytes(21 * 2**20))
    half = await kept(mesh, "half.txt", bytes(11 * 2**20))
    lines, foreign = await kept(mesh, "a.jsonl", b"{}", purpose="job_input"), await kept(mesh, "a.txt", WORDS, OTHER)
    asked = len(mesh.provider.requests)
    for names in ([foreign], ["mfile-c" + "0" * 30], [lines], [large], [half, half]):
        parts = [{"type": "document", "file_id": name} for name in names]
        status, told = await ask(mesh, {"type": "text", "text": "look"}, *parts)
        assert (status, told["error"]["reason"]) == (400, "INVALID_REQUEST"), names
        field = f"messages[0].parts[{len(names)}].document.file_id"
        assert [each["field"] for each in told["error"]["details"]] == [field]
    assert len(mesh.provider.requests) == asked
    data = base64.b64encode(WORDS).decode()
    assert (await ask(mesh, {"type": "document", "data": data, "mime_type": "text/plain"}))[0] == 200
