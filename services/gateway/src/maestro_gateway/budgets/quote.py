"""What a request may use and cost at most, before it is made. Pure.

Tokens are not counted here, they are bounded: no usual text has more than one for two bytes, pictures are charged by
their size in tiles, and what can't be known, such as a document that the provider loads, may fill the window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.mesh.plan import Plan
from maestro_sdk.mesh.table import Backend
from maestro_sdk.prices import nano_usd, price_of

_BYTES = 2
"""Bytes of text for which a token is reckoned with at most."""
_PICTURE = 4000
_SOUND_BYTES = 64
"""Bytes of sound for a token: fewer than the thriftiest codec has."""
_UNKNOWN = 50_000
"""Tokens of what nobody here sees."""
_OVERHEAD, _EACH = 64, 16
"""Tokens that a provider adds to a request, and to each message and tool."""
_POLYFILL = 1000
"""Tokens of the instructions by which an adapter makes up for a missing feature."""
_TOOLS, _SCHEMA = 1 << Feature.FEATURE_TOOLS, 1 << Feature.FEATURE_JSON_SCHEMA
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Size:
    """A request as far as its cost depends on it. `likely` tokens by rule of thumb, and the `most` that it may have.

    `answer` is the longest answer that it asks for, 0 when it does not say, None when there is none. An adapter may
    make so many `tries` where the model has no schemas of its own. `uses` is a bit mask of features that adapters may
    have to make up for.
    """

    likely: int
    most: int
    characters: int = 0
    answer: int | None = 0
    tries: int = 1
    uses: int = 0
    caches: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    """The most that a request costs at one backend. `nano_usd` is None where the price is unknown."""

    backend: Backend
    usage: Usage
    nano_usd: int | None
    price_date: str = ""

    @property
    def tokens(self) -> int:
        """Of the request and its answer."""
        return self.usage.input_tokens + self.usage.output_tokens


def size_of(request: ChatRequest | EmbedRequest) -> Size:
    """The size of a request."""
    if isinstance(request, EmbedRequest):
        inputs = [_input(given) for given in request.inputs]
        characters = sum(len(given.text) for given in request.inputs)
        most = sum(inputs) + _OVERHEAD + _EACH * len(inputs)
        return Size(max(1, sum(-(-size // 2) for size in inputs)), most, characters, None)
    parts = [part for message in request.messages for part in message.parts]
    tools = sum(tool.ByteSize() for tool in request.tools)
    texts = _length(request.system) + tools + request.response_format.ByteSize()
    most = texts // _BYTES + sum(map(_part, parts))
    most += _OVERHEAD + _EACH * (len(request.messages) + len(request.tools))
    characters = len(request.system) + sum(len(part.text.text) for part in parts)
    tries, uses = 1, _TOOLS if request.tools else 0
    if request.response_format.WhichOneof("kind") == "json_schema":
        schema = request.response_format.json_schema
        tries += schema.max_repairs if schema.HasField("max_repairs") else 1
        uses |= _SCHEMA
    likely = max(1, (characters + tools) // 4)
    return Size(likely, most, characters, request.max_tokens, tries, uses, request.HasField("cache"))


def quote_at(backend: Backend, size: Size, longest: int) -> Quote:
    """The most that a request costs at a backend; one that does not say how long is taken for `longest` tokens."""
    more = _POLYFILL if size.uses & ~backend.native else 0
    return _quote(backend, size, size.most + more, _answer(backend, size, longest))


def likely_at(backend: Backend, size: Size, longest: int) -> tuple[Quote, Quote]:
    """What a request of its likely length costs at a backend: without an answer, and with the longest one."""
    return _quote(backend, size, size.likely, 0), _quote(backend, size, size.likely, _answer(backend, size, longest))


def quotes_of(plan: Plan, size: Size, longest: int) -> Sequence[Quote]:
    """The quotes by which a request is held: the dearest of its plan, and the next one where a second may be asked."""
    quotes = [quote_at(ranked.choice.backend, size, longest) for ranked in plan.kept]
    # One without a price counts as free here; whether it may be asked is another question.
    quotes.sort(key=lambda quote: (quote.nano_usd or 0, quote.tokens), reverse=True)
    if not quotes:
        return ()
    most = max(quote.tokens for quote in quotes)
    kept = quotes[: 2 if plan.route.policy.hedge is not None else 1]
    if kept[0].tokens < most:
        # The dearest may have fewer tokens than another.
        usage = Usage()
        usage.CopyFrom(kept[0].usage)
        usage.output_tokens = min(_LARGEST, most - usage.input_tokens)
        kept[0] = replace(kept[0], usage=usage)
    return kept


def unpriced(plan: Plan) -> Iterator[str]:
    """The models of a plan whose price is unknown."""
    for ranked in plan.kept:
        if price_of(ranked.choice.backend.message.model) is None:
            yield ranked.choice.backend.model


def _quote(backend: Backend, size: Size, read: int, answer: int) -> Quote:
    if backend.window:
        read = min(read, backend.window)
    characters = size.characters
    if size.tries > 1 and not backend.native & _SCHEMA:
        read, answer, characters = (value * size.tries for value in (read, answer, characters))
    usage = Usage(
        input_tokens=min(read, _LARGEST),
        output_tokens=min(answer, _LARGEST),
        input_characters=min(characters, _LARGEST),
        estimated=True,
    )
    price = price_of(backend.message.model)
    if price is None:
        return Quote(backend, usage, None)
    return Quote(backend, usage, nano_usd(usage, _dearest(price, caches=size.caches)), price.effective_date)


def _dearest(price: Price, *, caches: bool) -> Price:
    """Prices by which nothing is charged less than it may cost."""
    inputs = [price.input, *((price.cache_write_5m, price.cache_write_1h) if caches else ())]
    return Price(
        effective_date=price.effective_date,
        input=_highest(inputs),
        output=_highest((price.output, price.reasoning)),
        minimum_charge=price.minimum_charge,
        input_character=price.input_character,
    )


def _highest(prices: Iterable[str]) -> str:
    return max((price for price in prices if price), key=float)


def _answer(backend: Backend, size: Size, longest: int) -> int:
    if size.answer is None:
        return 0
    return size.answer or (min(longest, backend.output_limit) if backend.output_limit else longest)


def _part(part: Part) -> int:
    """The most tokens of a part."""
    size = len(part.provider_state) // _BYTES + _EACH
    match part.WhichOneof("kind"):
        case "text":
            return size + _length(part.text.text) // _BYTES
        case "image":
            return size + _PICTURE
        case "audio" if part.audio.data:
            return size + len(part.audio.data) // _SOUND_BYTES
        case "document" if part.document.data:
            return size + len(part.document.data) // _BYTES
        case "audio" | "document":
            return size + _UNKNOWN
        case "tool_result":
            return size + sum(map(_part, part.tool_result.parts))
        case _:
            return size + part.ByteSize() // _BYTES


def _input(given: EmbedInput) -> int:
    match given.WhichOneof("kind"):
        case "text":
            return -(-_length(given.text) // _BYTES)
        case "tokens":
            return len(given.tokens.ids)
        case _:
            return _PICTURE


def _length(text: str) -> int:
    """Bytes of a text."""
    return len(text) if text.isascii() else len(text.encode())
