"""The field of a request that the provider's refusal is about: its own paths as the contract's.

    "messages.0.content.1.image.source.base64.data: image exceeds 5 MB maximum" -> `messages[2].parts[1].image`

Messages are joined on the wire and empty parts dropped, so the numbers differ. Only a refusal pays for finding out.
"""

from __future__ import annotations

import re

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude.conversation import find_places
from maestro_adapter_claude.models import PROVIDER
from maestro_adapter_claude.request import Outgoing
from maestro_sdk.adapter.parts import Place, path_of
from maestro_sdk.errors import InvalidRequest, Violation

_PATH = re.compile(r"\b([a-z_]+(?:\.[a-z0-9_]+)*)(?=:| )")
_MESSAGE = re.compile(
    r"messages\.(?P<message>\d+)(?:\.content\.(?P<block>\d+)(?:(?:\.tool_result)?\.content\.(?P<inner>\d+))?)?"
)
_TOOL = re.compile(r"tools\.(?P<tool>\d+)(?:\.custom)?(?:\.(?P<field>name|description|input_schema|strict))?")
_FIELDS = (
    ("max_tokens", "max_tokens"),
    ("model", "model"),
    ("output_config.effort", "reasoning.effort"),
    ("output_config.format", "response_format.json_schema.schema"),
    ("stop_sequences", "stop"),
    ("system", "system"),
    ("thinking.enabled.budget_tokens", "reasoning.budget_tokens"),
    ("thinking", "reasoning"),
    ("tool_choice", "tool_choice"),
)
"""The wire's fields and the contract's; the longest come first."""
# What is said of an address that can't be loaded names no place.
_ABOUT_ADDRESSES = re.compile(r"download|fetch|url", re.IGNORECASE)


def locate(error: InvalidRequest, request: ChatRequest, outgoing: Outgoing) -> None:
    """Adds the violations that the provider's words tell, when it has none. The words stay as they are."""
    if error.violations or "upstream_status" not in error.metadata:
        return
    paths = error.metadata.get("upstream_paths", "").split(", ") if "upstream_paths" in error.metadata else []
    if not paths:
        told = _PATH.search(error.message.removeprefix("Anthropic: "))
        paths = [told.group(1)] if told else []
    fields = [found for path in paths if (found := _field(path, request, outgoing))]
    if not fields and _ABOUT_ADDRESSES.search(error.message) and len(addresses := _addresses(request)) == 1:
        fields = addresses
    error.violations = tuple(Violation(field, error.message) for field in dict.fromkeys(fields))


def _field(path: str, request: ChatRequest, outgoing: Outgoing) -> str:
    """The contract's path, empty when there is none."""
    if found := _MESSAGE.match(path):
        return _part(found, request, outgoing)
    if found := _TOOL.match(path):
        number = int(found["tool"])
        offered = outgoing.body.get("tools", ())
        if number >= len(offered):
            return ""
        name = outgoing.tool_names.get(offered[number]["name"], offered[number]["name"])
        place = [tool.name for tool in request.tools].index(name)
        return f"tools[{place}].{found['field']}" if found["field"] else f"tools[{place}]"
    for wire, field in _FIELDS:
        if path == wire or path.startswith(f"{wire}."):
            return field
    name = path.partition(".")[0]
    if PROVIDER in request.provider_options and name in request.provider_options[PROVIDER].fields:
        return f"provider_options.{PROVIDER}.{path}"
    return ""


def _part(found: re.Match[str], request: ChatRequest, outgoing: Outgoing) -> str:
    places = find_places(request, outgoing.model)
    number = int(found["message"])
    if number >= len(places):
        return ""
    if found["block"] is None:
        return f"messages[{places[number][0][0]}]"
    if int(found["block"]) >= len(places[number]):
        return ""
    place = places[number][int(found["block"])]
    part = request.messages[place[0]].parts[place[1]]
    if found["inner"] is not None and part.WhichOneof("kind") == "tool_result":
        parts = part.tool_result.parts
        sent = [at for at, inner in enumerate(parts) if inner.WhichOneof("kind") != "text" or inner.text.text.strip()]
        if int(found["inner"]) < len(sent):
            place = (*place, sent[int(found["inner"])])
            part = parts[place[2]]
    return f"{path_of(place)}.{part.WhichOneof('kind')}"


def _addresses(request: ChatRequest) -> list[str]:
    """The parts that stand at an address."""
    found: list[str] = []
    for number, message in enumerate(request.messages):
        for position, part in enumerate(message.parts):
            place: Place = (number, position)
            inner = [((*place, at), below) for at, below in enumerate(part.tool_result.parts)]
            for where, each in ((place, part), *inner):
                kind = each.WhichOneof("kind")
                if kind in {"image", "document"} and getattr(each, kind).WhichOneof("source") == "url":
                    found.append(f"{path_of(where)}.{kind}.url")
    return found
