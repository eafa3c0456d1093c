"""The obliging model behind Gemini's wire on Vertex AI, as strict as the provider: it refuses what that refuses.

Tool schemas have to be of the provider's dialect, function responses have to answer a call, and the first call of each
step in the current turn has to carry the thought signature that it was given, letter by letter.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    FinishReason,
    JsonSchemaFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import (
    DocumentPart,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Sse, Step, Wait
from maestro_sdk.testing.gemini_content import PATH, WIRE, model_of, problem
from maestro_sdk.testing.obliging import ObligingModel, count_tokens

PACE = 0.0005
"""Seconds between two pieces: a reader sees them one after the other."""
SKIP = "skip_thought_signature_validator"
"""The documented signature for calls that the model did not make."""

_BODY = frozenset(
    {"cachedContent", "contents", "generationConfig", "labels", "safetySettings", "systemInstruction", "toolConfig"}
    | {"tools"}
)
_GENERATION = frozenset(
    {"logprobs", "maxOutputTokens", "responseJsonSchema", "responseLogprobs", "responseMimeType", "seed"}
    | {"stopSequences", "temperature", "thinkingConfig", "topP"}
)
_PART = frozenset({"fileData", "functionCall", "functionResponse", "inlineData", "text", "thought", "thoughtSignature"})
_SCHEMA = frozenset(
    {"additionalProperties", "anyOf", "default", "description", "enum", "format", "items", "maxItems", "maxLength"}
    | {"maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "nullable", "pattern"}
    | {"properties", "propertyOrdering", "required", "title", "type"}
)
_KINDS = frozenset({"ARRAY", "BOOLEAN", "INTEGER", "NULL", "NUMBER", "OBJECT", "STRING"})
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
_MODES = {
    "AUTO": ToolChoiceMode.TOOL_CHOICE_MODE_AUTO,
    "ANY": ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
    "NONE": ToolChoiceMode.TOOL_CHOICE_MODE_NONE,
}
_STOPS = {FinishReason.FINISH_REASON_LENGTH: "MAX_TOKENS"}
_DIMENSIONS = {"gemini-embedding-001": 3072}

Json = Mapping[str, Any]


class RefusedError(Exception):
    """What the provider calls an invalid argument."""


def oblige_gemini(server: FaultServer) -> None:
    """Lets `server` answer `:generateContent`, its stream, `:countTokens`, `:predict` and `:embedContent`."""
    model = StrictGemini()
    server.on("POST", PATH, model.reply)
    server.on("POST", "/v1/projects/*/models/*:countTokens", _or_refuse(_count))
    server.on("POST", "/v1/projects/*/models/*:predict", _or_refuse(_predict))
    server.on("POST", "/v1/projects/*/models/*:embedContent", _or_refuse(_embed_content))


class StrictGemini:
    """Answers and remembers the signatures that it gave."""

    def __init__(self) -> None:
        self.signed: dict[str, str] = {}
        """Names of the calls by their signatures."""
        self._brain = ObligingModel()

    def reply(self, seen: Seen) -> Sequence[Step]:
        """The answer to a request, or its refusal."""
        body = seen.json()
        try:
            check_body(body)
            if model_of(seen).startswith("gemini-3"):
                self._check_signatures(body["contents"])
            request = read_request(body)
        except RefusedError as refused:
            return (Headers(400), SendJson(problem(400, str(refused))))
        obliged = self._brain.answer(request)
        # The provider gives no ids; the adapter has to find its own.
        calls = [replace(call, call_id="") for call in obliged.answer.calls]
        signature = self._sign(calls[0].name) if calls else ""
        answer = replace(obliged.answer, calls=calls, signature=signature, stop=_STOPS.get(obliged.reason))
        steps = WIRE.answer(answer, PACE)(seen)
        if request.HasField("logprobs"):
            steps = [_with_logprobs(step) for step in steps]
        return [Wait(PACE), *steps]

    def _sign(self, name: str) -> str:
        digest = hashlib.sha256(f"{len(self.signed)} {name}".encode()).digest()
        # With the characters in which kinds of base64 differ, and its padding.
        signature = base64.b64encode(b"\xfb\xff" + digest).decode()
        self.signed[signature] = name
        return signature

    def _check_signatures(self, contents: Sequence[Json]) -> None:
        """As the provider does: for the steps after the last turn of the user, in each for the first call only."""
        asked = [
            place
            for place, content in enumerate(contents)
            if content["role"] == "user" and not any("functionResponse" in part for part in content["parts"])
        ]
        for content in contents[asked[-1] if asked else 0 :]:
            calls = [part for part in content["parts"] if "functionCall" in part]
            if not calls:
                continue
            name, signature = calls[0]["functionCall"]["name"], calls[0].get("thoughtSignature")
            if signature is None:
                raise RefusedError(f"Function call `{name}` is missing a thought_signature in functionCall parts.")
            if signature != SKIP and self.signed.get(signature) != name:
                raise RefusedError("Corrupted thought signature.")


def check_body(body: Json) -> None:
    """Raises `RefusedError` for what the provider does not take."""
    _known(body, _BODY, "")
    _known(body.get("generationConfig", {}), _GENERATION, "generation_config")
    calls = 0
    for number, content in enumerate(body["contents"]):
        _need(content.get("role") in {"user", "model"}, "Please use a valid role: user, model.")
        _need(content.get("parts"), f"contents[{number}].parts: must not be empty.")
        for part in content["parts"]:
            _known(part, _PART, f"contents[{number}].parts")
        answers = sum("functionResponse" in part for part in content["parts"])
        message = "Please ensure that the number of function response parts is equal to the number of function calls."
        _need(not answers or answers == calls, message)
        calls = sum("functionCall" in part for part in content["parts"])
    for tool in body.get("tools", ()):
        for number, declared in enumerate(tool["functionDeclarations"]):
            where = f"tools[0].function_declarations[{number}]"
            _known(declared, frozenset({"description", "name", "parameters"}), where)
            _need(_NAME.fullmatch(declared["name"]), f"{where}.name: Invalid function name.")
            if "parameters" in declared:
                check_schema(declared["parameters"], f"{where}.parameters")
                _need(declared["parameters"].get("type") == "OBJECT", f"{where}.parameters: has to be an object.")


def check_schema(schema: Any, where: str) -> None:
    """Raises `RefusedError` for a schema that is not of the provider's dialect."""
    _need(isinstance(schema, dict), f"{where}: is no schema.")
    _known(schema, _SCHEMA, where)
    if "anyOf" in schema:
        _need(set(schema) == {"anyOf"}, f"{where}: when using any_of, it must be the only field set.")
        _need(len(schema["anyOf"]) > 1, f"{where}.any_of: has one alternative.")
        for number, inner in enumerate(schema["anyOf"]):
            check_schema(inner, f"{where}.any_of[{number}]")
        return
    kind = schema.get("type")
    _need(kind in _KINDS, f"{where}: schema didn't specify the schema type field, or a wrong one: {kind}.")
    _need(kind != "ARRAY" or "items" in schema, f"{where}.items: missing field.")
    _need("enum" not in schema or kind == "STRING", f"{where}.enum: only allowed for STRING type.")
    _need(all(isinstance(value, str) and value for value in schema.get("enum", ())), f"{where}.enum: cannot be empty.")
    properties: Json = schema.get("properties", {})
    _need(not properties or kind == "OBJECT", f"{where}.properties: only allowed for OBJECT type.")
    for name in schema.get("required", ()):
        _need(name in properties, f"{where}.required[]: property is not defined: {name}.")
    for name, inner in properties.items():
        check_schema(inner, f"{where}.properties[{name}]")
    if "items" in schema:
        check_schema(schema["items"], f"{where}.items")
    if isinstance(schema.get("additionalProperties"), dict):
        check_schema(schema["additionalProperties"], f"{where}.additional_properties")


def read_request(body: Json) -> ChatRequest:
    """What a request asks for."""
    config: Json = body.get("generationConfig", {})
    request = ChatRequest(stop=config.get("stopSequences", ()))
    request.system = "".join(part["text"] for part in body.get("systemInstruction", {}).get("parts", ()))
    if "maxOutputTokens" in config:
        request.max_tokens = config["maxOutputTokens"]
    if "seed" in config:
        request.seed = config["seed"]
    if config.get("responseLogprobs"):
        request.logprobs.CopyFrom(Logprobs(top=config.get("logprobs", 0)))
    if config.get("thinkingConfig", {}).get("includeThoughts"):
        request.reasoning.CopyFrom(Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))
    if "responseJsonSchema" in config:
        schema = json.dumps(config["responseJsonSchema"])
        request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=schema))
    for content in body["contents"]:
        parts = [found for part in content["parts"] for found in _part(part)]
        request.messages.append(Message(role=_role(content), parts=parts))
    for tool in body.get("tools", ()):
        for declared in tool["functionDeclarations"]:
            parameters = json.dumps(declared.get("parameters", {}))
            request.tools.append(Tool(name=declared["name"], input_schema=parameters))
    if calling := body.get("toolConfig", {}).get("functionCallingConfig"):
        names: Sequence[str] = calling.get("allowedFunctionNames", ())
        mode = ToolChoiceMode.TOOL_CHOICE_MODE_NAMED if len(names) == 1 else _MODES[calling["mode"]]
        request.tool_choice.CopyFrom(ToolChoice(mode=mode, names=names))
    return request


def _role(content: Json) -> Role.ValueType:
    if content["role"] == "model":
        return Role.ROLE_ASSISTANT
    answers = any("functionResponse" in part for part in content["parts"])
    return Role.ROLE_TOOL if answers else Role.ROLE_USER


def _part(part: Json) -> list[Part]:
    match part:
        case {"inlineData": {"mimeType": str(kind), "data": data}} if kind.startswith("image/"):
            return [Part(image=ImagePart(data=base64.b64decode(data)))]
        case {"inlineData": {"mimeType": "application/pdf", "data": data}}:
            return [Part(document=DocumentPart(data=base64.b64decode(data)))]
        case {"functionCall": {"name": name, "args": given}}:
            return [Part(tool_call=ToolCallPart(call_id=name, name=name, arguments_json=json.dumps(given)))]
        case {"functionResponse": {"name": name, "response": response}}:
            told = Part(text=TextPart(text=str(response.get("output", response.get("error")))))
            return [Part(tool_result=ToolResultPart(call_id=name, parts=[told]))]
        case {"text": str(text)} if text and not part.get("thought"):
            return [Part(text=TextPart(text=text))]
        case _:
            return []


def _with_logprobs(step: Step) -> Step:
    """The step with a probability for each piece of its text."""
    match step:
        case Sse(event, {"candidates": [candidate]} as frame):
            return Sse(event, {**frame, "candidates": [_probable(candidate)]})
        case SendJson({"candidates": [candidate]} as document):
            return SendJson({**document, "candidates": [_probable(candidate)]})
        case _:
            return step


def _probable(candidate: Json) -> Json:
    parts: Sequence[Json] = candidate["content"].get("parts", ())
    texts = [part["text"] for part in parts if part.get("text") and not part.get("thought")]
    if not texts:
        return candidate
    chosen = [{"token": text, "tokenId": 7, "logProbability": -0.25} for text in texts]
    top = [{"candidates": [one, {"token": "other", "tokenId": 8, "logProbability": -2.5}]} for one in chosen]
    return {**candidate, "logprobsResult": {"chosenCandidates": chosen, "topCandidates": top}}


def _or_refuse(answer: Any) -> Any:
    def reply(seen: Seen) -> Sequence[Step]:
        try:
            return (SendJson(answer(seen, seen.json())),)
        except RefusedError as refused:
            return (Headers(400), SendJson(problem(400, str(refused))))

    return reply


def _count(seen: Seen, body: Json) -> Any:
    _known(body, frozenset({"contents", "generationConfig", "systemInstruction", "tools"}), "")
    return {"totalTokens": count_tokens(read_request(body))}


def _predict(seen: Seen, body: Json) -> Any:
    _known(body, frozenset({"instances", "parameters"}), "")
    instances: Sequence[Json] = body["instances"]
    _need(len(instances) <= 250, f"250 instance(s) is allowed per prediction. Actual: {len(instances)}")
    size = _size(seen, body.get("parameters", {}))
    predictions: list[Any] = []
    for instance in instances:
        _known(instance, frozenset({"content", "task_type", "title"}), "instances")
        statistics = {"token_count": _tokens(instance["content"]), "truncated": False}
        predictions.append({"embeddings": {"values": vector(instance["content"], size), "statistics": statistics}})
    characters = sum(len(instance["content"]) for instance in instances)
    return {"predictions": predictions, "metadata": {"billableCharacterCount": characters}}


def _embed_content(seen: Seen, body: Json) -> Any:
    _known(body, frozenset({"content", "embedContentConfig"}), "")
    text = "".join(part["text"] for part in body["content"]["parts"])
    values = vector(text, _size(seen, body.get("embedContentConfig", {})))
    return {"embedding": {"values": values}, "usageMetadata": {"promptTokenCount": _tokens(text)}, "truncated": False}


def _size(seen: Seen, config: Json) -> int:
    _known(config, frozenset({"autoTruncate", "outputDimensionality", "taskType"}), "parameters")
    most = _DIMENSIONS.get(model_of(seen), 768)
    size = config.get("outputDimensionality", most)
    _need(1 <= size <= most, f"outputDimensionality must be between 1 and {most}.")
    return size


def vector(text: str, size: int) -> list[float]:
    """A vector that follows from the text alone."""
    source = random.Random(hashlib.sha256(text.encode()).digest())  # noqa: S311 - no secret
    return [round(source.uniform(-1, 1), 6) for _ in range(size)]


def _tokens(text: str) -> int:
    return 1 + len(text) // 4


def _known(found: Json, names: frozenset[str], where: str) -> None:
    for name in found:
        if name not in names:
            place = f" at '{where}'" if where else ""
            raise RefusedError(f'Invalid JSON payload received. Unknown name "{name}"{place}: Cannot find field.')


def _need(holds: Any, message: str) -> None:
    if not holds:
        raise RefusedError(f"Unable to submit request: {message}")
