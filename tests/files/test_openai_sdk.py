"""The official OpenAI SDK, unmodified: its files live at the mesh."""

from __future__ import annotations

import io

import openai
import pytest

from .conftest import KEY, OTHER, Mesh

LINES = b'{"custom_id": "a"}\n'


async def test_the_whole_life_of_a_file(mesh: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=f"{mesh.process.url}/v1", api_key=KEY, max_retries=0) as client:
        made = await client.files.create(
            file=("in.jsonl", io.BytesIO(LINES)),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (made.filename, made.bytes, made.object, made.status) == ("in.jsonl", len(LINES), "file", "processed")
        assert made.expires_at == made.created_at + 3600
        assert (await client.files.retrieve(made.id)).id == made.id
        other = await client.files.create(file=("a.txt", b"words"), purpose="user_data")
        assert [file.id for file in (await client.files.list(purpose="batch", limit=1)).data] == [made.id]
        seen = [file.id async for file in client.files.list(limit=1)]
        assert seen.index(other.id) < seen.index(made.id)
        assert (await client.files.content(made.id)).read() == LINES
        gone = await client.files.delete(made.id)
        assert (gone.id, gone.deleted) == (made.id, True)
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await client.files.create(file=("a.txt", b"words"), purpose="fine-tune")
    async with openai.AsyncOpenAI(base_url=f"{mesh.process.url}/v1", api_key=OTHER, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.files.content(other.id)
