"""The section of a configuration for streams that outlive the connections of their readers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from maestro_sdk.service.event_kinds import DUPLICATE_WINDOW
from maestro_sdk.service.values import Duration, Settings, Size


class ResumeConfig(Settings):
    """Streamed chats that were asked with `resumable`.

    `keep` is how long their frames can be read again, `room` the bytes of all that are kept, the oldest go first.
    `window` is how long one goes on without a reader. `most` is the number of them at one gateway: further ones are
    answered as streams that end with their connection.
    """

    # How a stream ended is told again by whoever finds that its gateway died with the news: as long as the stream of
    # events knows an event again.
    keep: Annotated[Duration, Field(ge=60, le=DUPLICATE_WINDOW)] = DUPLICATE_WINDOW
    window: Annotated[Duration, Field(ge=1, le=300)] = 30.0
    most: Annotated[int, Field(ge=1, le=100_000)] = 1000
    room: Annotated[Size, Field(ge=2**20)] = 512 * 2**20
