"""Nothing that a client sends makes an answer of 5xx, a hang, or a file that is not whole."""

from __future__ import annotations

import gzip
import random
import string
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from .conftest import KEY, Mesh

ODD = (
    "",
    "0",
    "-1",
    "1e99",
    "null",
    "x" * 3000,
    "a\u0000b",
    "ü" * 300,
    "%",
    "[]",
    "{}",
    "\r\nx: y",
    "99999999999999999999",
)
FIELDS = (
    *("purpose", "filename", "mime_type", "expire_after", "size_bytes", "sha256", "request_id", "metadata"),
    *("expires_after[anchor]", "expires_after[seconds]", "metadata[a]", "metadata[]", "colour", "provider"),
)
GOOD = {"purpose": "content", "filename": "a.txt"}
GOOD_PATH = "/v1/files?purpose=content&filename=a.txt"


async def test_odd_fields_beside_a_raw_body(mesh: Mesh) -> None:
    tried = 0
    for field in FIELDS:
        for odd in ODD:
            async with mesh.http.post(
                f"{mesh.process.url}/v1/files", params={**GOOD, field: odd}, data=b"text", headers=_key()
            ) as response:
                assert response.status < 500, (field, odd)
                body = await response.json()
                assert response.status == 200 or body["error"]["message"], (field, odd)
            tried += 1
    assert tried == len(FIELDS) * len(ODD)


async def test_forms_that_are_none(mesh: Mesh) -> None:
    for kind, body, cut in _forms():
        async with mesh.http.post(
            f"{mesh.process.url}/v1/files", data=body, headers={**_key(), "content-type": kind}
        ) as response:
            assert response.status in {200, 400, 413}, (kind, body[:200])
            told = await response.json()
            assert response.status == 200 or told["error"]["reason"] in {"INVALID_REQUEST", "TOO_LARGE"}
            assert response.status != 200 or cut is False or told["bytes"] == len("words"), body


async def test_a_body_that_is_encoded_is_refused(mesh: Mesh) -> None:
    # Decoded here one that is cut would be a shorter file, one that is spoiled a fault of ours.
    packed = gzip.compress(random.randbytes(100_000))
    before = await mesh.listed()
    for body in (packed, packed[:50_000], packed + b"junk", packed[:500] + b"\0" * 500 + packed[1000:]):
        for encoding in ("gzip", "deflate", "br", "gzip, gzip", "odd"):
            status, answer = await mesh.rest("POST", GOOD_PATH, data=body, content_encoding=encoding)
            assert (status, [each["field"] for each in answer["error"]["details"]]) == (400, ["content-encoding"])
    assert await mesh.listed() == before
    status, kept = await mesh.rest("POST", GOOD_PATH, data=b"words", content_encoding="identity")
    assert (status, kept["bytes"]) == (200, 5)


@pytest.mark.parametrize(
    "name",
    ["a\x00b", "a\nb", "\x7f.txt", "\x85.txt", "a\u2028b", "\u202etxt.exe", "\u2066a", ".", "..", "   ", "a/b", "a\\b"],
)
async def test_names_that_mislead_are_refused(mesh: Mesh, name: str) -> None:
    status, answer = await mesh.rest("POST", f"/v1/files?purpose=content&filename={quote(name, safe='')}", data=b"x")
    assert (status, [each["field"] for each in answer["error"]["details"]]) == (400, ["filename"])


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("audio/x+xml", "attachment"),
        ("image/png+xml", "attachment"),
        ("video/a+xml", "attachment"),
        ("text/xml", "attachment"),
        ("TEXT/HTML", "attachment"),
        ("image/svg+xml", "attachment"),
        ("text/plain-x", "attachment"),
        ("text/plain; charset=utf-8", "inline"),
        ("Audio/OGG", "inline"),
        ("application/json", "inline"),
    ],
)
async def test_what_a_browser_might_run_is_only_saved(mesh: Mesh, kind: str, shown: str) -> None:
    path = f"/v1/files?purpose=content&filename=a&mime_type={quote(kind)}"
    status, kept = await mesh.rest("POST", path, data=b"<x xmlns='http://www.w3.org/1999/xhtml'/>")
    assert status == 200
    _, headers, _ = await mesh.download(kept["file_id"])
    found = headers["content-disposition"].partition(";")[0], headers["x-content-type-options"]
    assert found == (shown, "nosniff")


async def test_odd_questions(mesh: Mesh) -> None:
    for name in ("page_size", "page_token", "purpose", "limit", "after", "order", "colour"):
        for odd in ODD:
            async with mesh.http.get(f"{mesh.process.url}/v1/files", params={name: odd}, headers=_key()) as response:
                assert response.status in {200, 400}, (name, odd)
    for odd in ("x", "a%2Fb", "%00", "*", "%3E", "mfile-c", "." * 300, "%C3%BC"):
        for path, method in ((odd, "GET"), (odd, "DELETE"), (odd + "/content", "GET"), (odd + "/other", "GET")):
            url = f"{mesh.process.url}/v1/files/{path}"
            async with mesh.http.request(method, url, headers=_key()) as response:
                assert response.status in {400, 404}, (path, method)
    async with mesh.http.put(f"{mesh.process.url}/v1/files", data=b"x", headers=_key()) as response:
        assert response.status == 404


def _key() -> dict[str, str]:
    return {"authorization": f"Bearer {KEY}"}


def _forms() -> Iterator[tuple[str, bytes, bool]]:
    """Types, bodies, whether one is only cut: a good form that is cut at every place, and spoiled at many."""
    boundary = "b0undary"
    kind = f"multipart/form-data; boundary={boundary}"
    good = (
        f'--{boundary}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\ncontent\r\n'
        f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        f"words\r\n--{boundary}--\r\n"
    ).encode()
    for end in range(0, len(good), 3):
        yield kind, good[:end], True
    dice = random.Random(7)
    for _ in range(60):
        spoiled = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            spoiled[dice.randrange(len(spoiled))] = dice.choice(string.printable.encode())
        yield kind, bytes(spoiled), False
    coded = b"content-disposition: form-data; name=file\r\ncontent-transfer-encoding: base64\r\n\r\nQQ==\r\n"
    label = b'--b0undary\r\ncontent-disposition: form-data; name="metadata[%d]"\r\n\r\nx\r\n'
    for odd_kind, body in (
        ("multipart/form-data; boundary=" + "x" * 200, good),
        ("multipart/form-data; boundary=", good),
        ("multipart/form-data; boundary=\xfc", good),
        (kind, b"--b0undary\r\n" + b"x: y\r\n" * 500 + b"\r\n"),
        (kind, b"--b0undary\r\n" + coded),
        (kind, b"".join(label % number for number in range(200)) + b"--b0undary--\r\n"),
        (kind, b'--b0undary\r\ncontent-disposition: form-data; name="metadata"\r\n\r\n' + b"x" * 100_000),
    ):
        yield odd_kind, body, False
