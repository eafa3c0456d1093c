"""An adapter as a service: the whole main is `run("adapter-x", adapter("x", Provider.from_config))`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial

from maestro_sdk.adapter.announce import announcement_of, announcing
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.adapter.file_servicer import FileServicer
from maestro_sdk.adapter.provider import Batcher, Embedder, FileStore, Provider
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.adapter.standing_servicer import StandingCallServicer
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.replica import adapter_name
from maestro_sdk.service.run import Build, Service
from maestro_sdk.service.settings import AdapterConfig, Config


def adapter(name: str, build: Callable[[Config, AdapterConfig], Provider]) -> Build:
    """Serves the provider that `build` makes, as the adapter `name` of the configuration, or as `MAESTRO_ADAPTER` says.

    A provider that is also an `Embedder`, a `FileStore` or a `Batcher` serves those services too. With `announce` in
    its configuration the adapter announces itself to the mesh while it serves.
    """

    @asynccontextmanager
    async def build_service(config: Config) -> AsyncGenerator[Service]:
        section = adapter_name(name)
        found = config.adapters.get(section)
        if found is None:
            known = ", ".join(config.adapters) or "none"
            raise ConfigError([config.problem_at(f"adapters.{section}", f"is missing; there are: {known}")])
        announcement = announcement_of(config, section, found)
        provider = build(config, found)
        standing = StandingCalls(found.linger)
        try:
            catalogue = Catalogue(provider)
            servicers: list[object] = [
                ChatServicer(provider, catalogue, standing),
                ModelServicer(provider),
                StandingCallServicer(standing),
            ]
            if isinstance(provider, Embedder):
                servicers.append(EmbeddingServicer(provider, catalogue, standing))
            if isinstance(provider, FileStore):
                servicers.append(FileServicer(provider))
            if isinstance(provider, Batcher):
                servicers.append(BatchServicer(provider, catalogue))
            yield Service(
                address=found.address,
                servicers=servicers,
                ready=provider.check,
                drain=standing.drain,
                beside=nullcontext if announcement is None else partial(announcing, announcement, config.nats.url),
            )
        finally:
            await standing.close()
            await provider.close()

    return build_service
