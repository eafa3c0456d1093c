"""AWS's event stream: messages of a prelude, headers, a payload and two checksums, out of bytes in pieces of any size.

    prelude   total length, length of the headers, CRC-32 of these eight bytes: three big-endian 32-bit numbers
    headers   each: length of the name, name, type of the value, value (texts carry a 16-bit length)
    payload   JSON
    CRC-32    of everything before it

botocore decodes the same; its buffer costs seven times as much per message, and more the more messages one read brings.
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Mapping
from struct import Struct
from struct import error as StructError  # noqa: N812 - the module names it in lower case

from maestro_sdk.errors import StreamBroken

MAX_HEADERS = 128 * 1024
MAX_MESSAGE = 24 * 1024 * 1024

_PRELUDE = Struct(">III")
_CRC = Struct(">I")
_LENGTH = Struct(">H")
_TEXT_TYPES = frozenset({6, 7})
# Bytes of the values whose length is fixed: true, false, byte, short, int, long, timestamp, UUID.
_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}

Message = tuple[Mapping[str, str], bytes]
"""The headers that are texts, and the payload."""


class Frames:
    """Cuts a stream into messages."""

    __slots__ = ("_headers", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        # A stream has a handful of different headers, and repeats them with every message.
        self._headers: dict[bytes, Mapping[str, str]] = {}

    @property
    def partial(self) -> bool:
        """Whether bytes of an unfinished message wait for more."""
        return bool(self._rest)

    def feed(self, raw: bytes) -> tuple[list[Message], StreamBroken | None]:
        """The messages that `raw` completes, and what is wrong with the bytes after them, None when nothing is.

        What was once wrong stays so: nothing more can be read then.
        """
        buffer = self._rest + raw if self._rest else raw
        messages: list[Message] = []
        position, size = 0, len(buffer)
        try:
            while size - position >= _PRELUDE.size:
                total, header_length, crc = _PRELUDE.unpack_from(buffer, position)
                if crc32(buffer[position : position + 8]) != crc:
                    raise StreamBroken("the provider's stream can't be read: a prelude's checksum is wrong")
                if header_length > MAX_HEADERS or not 16 + header_length <= total <= MAX_MESSAGE:
                    raise StreamBroken("the provider's stream can't be read: a message has impossible lengths")
                end = position + total
                if end > size:
                    break
                if crc32(buffer[position : end - 4]) != _CRC.unpack_from(buffer, end - 4)[0]:
                    raise StreamBroken("the provider's stream can't be read: a message's checksum is wrong")
                payload = position + 12 + header_length
                messages.append((self._read(buffer[position + 12 : payload]), buffer[payload : end - 4]))
                position = end
        except StreamBroken as error:
            return messages, error
        self._rest = buffer[position:] if position else buffer
        return messages, None

    def _read(self, raw: bytes) -> Mapping[str, str]:
        headers = self._headers.get(raw)
        if headers is None:
            headers = self._headers[raw] = _parse(raw)
        return headers


def _parse(raw: bytes) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    position = 0
    try:
        while position < len(raw):
            start = position + 1
            end = start + raw[position]
            name, kind = raw[start:end].decode(), raw[end]
            position = end + 1
            if kind in _FIXED:
                position += _FIXED[kind]
            elif kind in _TEXT_TYPES:
                begin = position + 2
                position = begin + _LENGTH.unpack_from(raw, position)[0]
                if kind == 7:
                    headers[name] = raw[begin:position].decode()
            else:
                raise StreamBroken(f"the provider's stream can't be read: a header has the unknown type {kind}")
    except (IndexError, ValueError, StructError) as error:
        raise StreamBroken(f"the provider's stream can't be read: broken headers: {error}") from error
    if position != len(raw):
        raise StreamBroken("the provider's stream can't be read: a header is cut")
    return headers
