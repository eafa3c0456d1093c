"""From the usage on a provider's wire to dollars, to the nano-dollar, at the prices that are on offer."""

from __future__ import annotations

from decimal import Decimal

import pytest
from matrix_streams import answered
from matrix_wires import NAMES, TODAY, conversation, wire

from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import cost_of, nano_usd
from maestro_sdk.testing.wire import Answer, Tokens

TOKENS = Tokens(input=10_007, output=1_003, cache_read=7_001, cache_write_5m=2_003, reasoning=401)

# Tokens and dollars per million of them. What a price list does not tell apart is charged as plain input or output.
CHARGES: dict[str, tuple[tuple[int, str], ...]] = {
    "anthropic": ((1_003, "2"), (7_001, "0.20"), (2_003, "2.50"), (1_003, "10")),
    "openai": ((1_003 + 2_003, "1.25"), (7_001, "0.125"), (1_003, "10")),
    "vertex": ((1_003 + 2_003, "1.50"), (7_001, "0.15"), (1_003, "9")),
    "bedrock": ((1_003, "3"), (7_001, "0.30"), (2_003, "3.75"), (1_003, "15")),
}
# Prices of Azure depend on the contract, those of other models on the region; nobody charges for one's own servers.
UNKNOWN = ("azure", "nova", "ollama", "vllm")


def nano(charges: tuple[tuple[int, str], ...]) -> Decimal:
    """Dollars per million tokens are thousandths of a nano-dollar per token, a thousand times."""
    return sum((count * Decimal(rate) * 1000 for count, rate in charges), Decimal(0))


def price_of(name: str) -> Price:
    if name != "bedrock":
        return wire(name).model.price
    # The price of a profile that lies within no single region.
    from maestro_adapter_bedrock import models

    found = models.load(today=TODAY)["bedrock/global.anthropic.claude-sonnet-4-5-20250929-v1:0"]
    return found.model.price


def usage_on(name: str) -> Usage:
    return fold(answered(name, wire(name).ask(conversation("plain")), Answer(tokens=TOKENS))).usage


@pytest.mark.parametrize("name", list(CHARGES))
def test_cost(name: str) -> None:
    assert nano_usd(usage_on(name), price_of(name)) == nano(CHARGES[name])


def test_cost_as_text() -> None:
    # 2006 + 1400.2 + 5007.5 + 10030 millionths of a dollar
    cost = cost_of(usage_on("anthropic"), price_of("anthropic"))
    assert (cost.usd, cost.price_date, cost.estimated) == ("0.0184437", "2026-06-30", False)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_counted(name: str) -> None:
    usage = usage_on(name)
    assert (usage.input_tokens, usage.output_tokens) == (TOKENS.input, TOKENS.output)
    # Ollama tells nothing apart, Bedrock not the reasoning, Gemini not what it keeps.
    assert usage.cache_read_tokens == (0 if name == "ollama" else TOKENS.cache_read)
    assert usage.cache_write_5m_tokens == (0 if name in {"ollama", "vertex"} else TOKENS.cache_write_5m)
    assert usage.reasoning_tokens == (0 if name in {"ollama", "bedrock", "nova"} else TOKENS.reasoning)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_knows_has_no_price(name: str) -> None:
    assert not wire(name).model.HasField("price")


def test_cached_tokens_are_not_charged_twice() -> None:
    """3 tokens, 12 304 written to the cache and 550 answered, at $3, $3.75 and $15: the sum that others get wrong."""
    tokens = Tokens(input=3 + 12_304, cache_write_5m=12_304, output=550)
    usage = fold(answered("anthropic", wire("anthropic").ask(conversation("plain")), Answer(tokens=tokens))).usage
    price = Price(effective_date="2025-02-24", input="3", cache_write_5m="3.75", cache_read="0.30", output="15")
    assert cost_of(usage, price).usd == "0.054399"
