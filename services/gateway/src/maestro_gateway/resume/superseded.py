"""The end of a generation at one gateway because it goes on at another one."""

from __future__ import annotations

from maestro_sdk.errors import UpstreamError


class Superseded(UpstreamError):
    """Another gateway goes on with the request, or may do so at once, and accounts for it: this one must not."""

    def __init__(self) -> None:
        super().__init__("another gateway goes on with this stream", retry_after=0.0)
