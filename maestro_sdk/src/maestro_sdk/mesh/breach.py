"""What an adapter's error says here: whether it was told to this process, and whether it breaks the contract.

Who declares a feature may not refuse it.
"""

from __future__ import annotations

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.errors import (
    Cancelled,
    CapabilityUnavailable,
    MaestroError,
    ProviderAuth,
    Unauthenticated,
    Unimplemented,
    UpstreamError,
)
from maestro_sdk.mesh.needs import Needs, feature_names
from maestro_sdk.mesh.table import Backend

_CHAT, _STREAMING = 1 << Feature.FEATURE_CHAT, 1 << Feature.FEATURE_STREAMING
_BY_NAME = {name.removeprefix("FEATURE_"): 1 << number for name, number in Feature.items() if number}


def passed_on(error: MaestroError) -> MaestroError:
    """The error as the caller of this process is told it, who neither cancelled the call nor showed a wrong token."""
    match error:
        case Cancelled():
            # An adapter that goes down cancels its calls.
            return UpstreamError(f"the adapter cancelled the call: {error.message}", metadata=error.metadata)
        case Unauthenticated():
            # The caller was let in: it is this process that the adapter takes for no member of its mesh.
            return ProviderAuth(f"the adapter refuses this process: {error.message}", metadata=error.metadata)
        case _:
            return error


def find_breach(error: MaestroError, backend: Backend, needs: Needs) -> str:
    """What the adapter refuses though it declares it: "refuses TOOLS, which it declares"; empty when nothing.

    The error's metadata may name what is `missing`. Otherwise it is what the request needs beyond a plain chat; of a
    plain chat the last thing that it needs.
    """
    if not isinstance(error, CapabilityUnavailable | Unimplemented):
        return ""
    named = error.metadata.get("missing", "").replace(";", ",").split(",")
    refused = 0
    for name in named:
        refused |= _BY_NAME.get(name.strip(), 0)
    if not refused:
        plain = _STREAMING if needs.required & _STREAMING else _CHAT
        refused = needs.required & ~(_CHAT | _STREAMING) or plain
    refused &= backend.able
    return f"refuses {feature_names(refused)}, which it declares" if refused else ""
