"""Serves Gemini on Vertex AI: `python -m maestro_adapter_vertex`."""

from maestro_adapter_vertex.provider import VertexProvider
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run


def main() -> None:
    """Serves until SIGTERM."""
    run("adapter-vertex", adapter("vertex", VertexProvider.from_config))


if __name__ == "__main__":
    main()
