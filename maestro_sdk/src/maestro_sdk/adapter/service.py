"""An adapter as a service: the whole main is `run("adapter-x", adapter("x", Provider.from_config))`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from maestro_sdk.adapter.provider import Provider
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.registration import services_of
from maestro_sdk.service.run import Build, Service
from maestro_sdk.service.settings import AdapterConfig, Config


def adapter(name: str, build: Callable[[Config, AdapterConfig], Provider]) -> Build:
    """Serves the provider that `build` makes, as the adapter `name` of the configuration.

    A provider that is itself a servicer of further services (embeddings, files, batches) serves those too.
    """

    @asynccontextmanager
    async def build_service(config: Config) -> AsyncGenerator[Service]:
        found = config.adapters.get(name)
        if found is None:
            known = ", ".join(config.adapters) or "none"
            raise ConfigError([config.problem_at(f"adapters.{name}", f"is missing; there are: {known}")])
        provider = build(config, found)
        try:
            servicers: list[object] = [ChatServicer(provider), ModelServicer(provider)]
            if services_of(provider):
                servicers.append(provider)
            yield Service(address=found.address, servicers=servicers, ready=provider.check)
        finally:
            await provider.close()

    return build_service
