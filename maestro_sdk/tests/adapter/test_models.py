"""Models as data: entries become messages, wrong entries are named, and prices become exact costs."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_sdk.adapter.models import (
    cost_of,
    format_usd,
    join_prices,
    load_models,
    nano_usd,
    read_model,
    support_of,
    supports,
)
from maestro_sdk.prices import price_of

TODAY = datetime.date(2026, 6, 15)
SONNET = Price(
    effective_date="2025-02-24",
    input="3.00",
    output="15.00",
    cache_read="0.30",
    cache_write_5m="3.75",
    cache_write_1h="6.00",
)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        # Anthropic reports 3 input tokens and 12304 written to the cache; inclusive counting gives 12307. Counting the
        # cached ones twice would give 0.091311: 3 x 3.00 + 12304 x 3.75 + 550 x 15.00 is 54399 millionths.
        (Usage(input_tokens=12307, cache_write_5m_tokens=12304, output_tokens=550), "0.054399"),
        (Usage(input_tokens=1_000_000, output_tokens=1_000_000), "18.000000"),
        (Usage(input_tokens=1_000_000, cache_read_tokens=1_000_000), "0.300000"),
        (Usage(input_tokens=1_000_000, cache_write_1h_tokens=1_000_000), "6.000000"),
        (Usage(input_tokens=100, cache_read_tokens=100), "0.000030"),
        (Usage(output_tokens=10, reasoning_tokens=10), "0.000150"),
        (Usage(), "0.000000"),
    ],
)
def test_costs_to_the_millionth(usage: Usage, usd: str):
    cost = cost_of(usage, SONNET)
    assert (cost.usd, cost.price_date, cost.estimated) == (usd, "2025-02-24", False)


def test_prices_that_are_not_listed_follow_the_listed_ones():
    plain = Price(input="2", output="8")
    assert cost_of(Usage(input_tokens=10, cache_read_tokens=4, cache_write_1h_tokens=6), plain).usd == "0.000020"
    assert cost_of(Usage(output_tokens=10, reasoning_tokens=5), plain).usd == "0.000080"
    dear = Price(input="2", output="8", cache_write_5m="4", reasoning="16")
    assert cost_of(Usage(input_tokens=10, cache_write_1h_tokens=10), dear).usd == "0.000040"
    assert cost_of(Usage(output_tokens=10, reasoning_tokens=5), dear).usd == "0.000120"


def test_minimum_charge_holds():
    price = Price(input="1", output="1", minimum_charge="0.01")
    assert cost_of(Usage(input_tokens=1), price).usd == "0.010000"
    assert cost_of(Usage(input_tokens=100_000), price).usd == "0.100000"


def test_cost_of_estimated_usage_is_marked():
    assert cost_of(Usage(input_tokens=1, estimated=True), SONNET).estimated


def test_fractions_of_a_nano_dollar_are_rounded_half_up_once():
    assert nano_usd(Usage(input_tokens=1), Price(input="0.0005", output="0")) == 1
    assert nano_usd(Usage(input_tokens=1), Price(input="0.0004", output="0")) == 0
    assert nano_usd(Usage(input_tokens=1, output_tokens=1), Price(input="0.0004", output="0.0004")) == 1


COUNT = st.integers(0, 10_000_000)
RATE = st.decimals(0, 100, places=4).map(str)


@given(COUNT, COUNT, COUNT, RATE, RATE, RATE)
def test_cost_is_the_exact_sum(fresh: int, cached: int, out: int, rate_in: str, rate_cache: str, rate_out: str):
    usage = Usage(input_tokens=fresh + cached, cache_read_tokens=cached, output_tokens=out)
    price = Price(input=rate_in, output=rate_out, cache_read=rate_cache)
    exact = (fresh * Decimal(rate_in) + cached * Decimal(rate_cache) + out * Decimal(rate_out)) / 1_000_000
    assert abs(Decimal(cost_of(usage, price).usd) - exact) <= Decimal("0.0000000005")


@given(COUNT, COUNT, COUNT)
def test_cost_is_never_negative_even_when_a_provider_miscounts(total: int, cached: int, reasoning: int):
    usage = Usage(input_tokens=total, cache_read_tokens=cached, output_tokens=total, reasoning_tokens=reasoning)
    assert nano_usd(usage, SONNET) >= 0


@given(st.integers(0, 10**15))
def test_formatted_dollars_say_the_same_number(nano: int):
    text = format_usd(nano)
    assert Decimal(text) * 10**9 == nano
    assert len(text.partition(".")[2]) >= 6


ENTRY: dict[str, Any] = {
    "name": "m-1",
    "family": "m",
    "context_window": 1000,
    "max_output_tokens": 100,
    "native": ["CHAT", "STREAMING"],
    "polyfilled": ["JSON_SCHEMA"],
    "retires": datetime.date(2027, 1, 14),
    "tags": ["fast"],
    "prices": [
        {"from": datetime.date(2026, 1, 1), "input": "2", "output": "8"},
        {"from": datetime.date(2026, 6, 1), "input": 1.25, "cache_read": "0.125", "output": "10.00"},
        {"from": datetime.date(2026, 7, 1), "input": "1", "output": "4"},
    ],
}


def test_an_entry_becomes_a_model():
    model = read_model(ENTRY, "acme", TODAY)
    assert (model.id, model.provider, model.name, model.family) == ("acme/m-1", "acme", "m-1", "m")
    assert (model.context_window, model.max_output_tokens, model.retires) == (1000, 100, "2027-01-14")
    assert support_of(model, Feature.FEATURE_CHAT) == Support.SUPPORT_NATIVE
    assert support_of(model, Feature.FEATURE_JSON_SCHEMA) == Support.SUPPORT_POLYFILLED
    assert support_of(model, Feature.FEATURE_VISION) == Support.SUPPORT_NONE
    assert supports(model, Feature.FEATURE_JSON_SCHEMA)
    assert not supports(model, Feature.FEATURE_VISION)


@pytest.mark.parametrize(
    ("day", "start", "rate"),
    [("2026-05-31", "2026-01-01", "2"), ("2026-06-01", "2026-06-01", "1.25"), ("2026-12-31", "2026-07-01", "1")],
)
def test_the_latest_price_that_has_begun_holds(day: str, start: str, rate: str):
    price = read_model(ENTRY, "acme", datetime.date.fromisoformat(day)).price
    assert (price.effective_date, price.input) == (start, rate)


def test_before_the_first_price_the_cost_is_unknown():
    assert not read_model(ENTRY, "acme", datetime.date(2025, 12, 31)).HasField("price")
    assert not read_model({"name": "free"}, "acme", TODAY).HasField("price")


def test_announced_prices_come_into_force_by_themselves():
    """A process that was started before their day reads nothing anew."""
    model = read_model(ENTRY, "acme", datetime.date(2026, 5, 31))
    assert [price.effective_date for price in model.announced_prices] == ["2026-06-01", "2026-07-01"]
    last_moment = datetime.datetime(2026, 5, 31, 23, 59, 59, tzinfo=datetime.UTC).timestamp()
    rates = {seconds: price_of(model, last_moment + seconds) for seconds in (0, 1, 30 * 86400 + 1)}
    assert {seconds: price.input for seconds, price in rates.items() if price} == {0: "2", 1: "1.25", 2592001: "1"}
    future = read_model(ENTRY, "acme", datetime.date(2025, 12, 31))
    assert price_of(future, last_moment - 365 * 86400) is None
    begun = price_of(future, last_moment)
    assert begun is not None
    assert cost_of(Usage(input_tokens=1_000_000), begun).price_date == "2026-01-01"


def test_own_prices_leave_no_gap():
    known = ENTRY["prices"]
    own = [{"from": "2026-06-15", "input": "0.5", "output": "1"}]
    joined = read_model({**ENTRY, "prices": join_prices("m-1", known, own)}, "acme", datetime.date(2026, 6, 14))
    assert (joined.price.input, [price.input for price in joined.announced_prices]) == ("1.25", ["0.5"])
    assert join_prices("m-1", known, ()) == known
    with pytest.raises(ValueError, match=r"model m-1: prices\[1\]: another price begins on 2026-06-15"):
        join_prices("m-1", known, own * 2)


def test_a_wrong_price_is_told_with_its_line(tmp_path: Path):
    path = tmp_path / "models.yaml"
    path.write_text(
        "models:\n"
        "  - name: good\n"
        "  - name: bad\n"
        "    prices:\n"
        '      - {from: 2026-01-01, input: "1", output: "2"}\n'
        '      - {from: 2026-01-01, input: "1", output: "2"}\n'
    )
    with pytest.raises(ValueError, match=r"models\.yaml:6: model bad: prices\[1\]: another price begins on 2026-01-01"):
        load_models(path, "acme", TODAY)


def test_unset_limits_stay_unset():
    model = read_model({"name": "m"}, "acme", TODAY)
    assert not model.HasField("context_window")
    assert not model.HasField("max_output_tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "missing fields: name"),
        ({"contxt_window": 1}, "model m-1: unknown or missing fields: contxt_window"),
        ({"native": ["CHATTING"]}, "model m-1: unknown feature 'CHATTING'"),
        (
            {"prices": [{"from": "2026-01-01", "input": "1"}]},
            r"model m-1: prices\[0\]: a price needs from, input and output",
        ),
        ({"prices": [{"input": "1", "output": "1"}]}, r"model m-1: prices\[0\]: a price needs from, input and output"),
        ({"prices": [{"from": "2026-01-01", "input": "1", "output": "1", "inptu": 1}]}, "unknown: inptu"),
        ({"prices": [{"from": "soon", "input": "1", "output": "1"}]}, r"model m-1: prices\[0\]: a price begins 'soon'"),
        ({"prices": [{"from": "2026-01-01", "input": "cheap", "output": "1"}]}, r"prices\[0\]: input is 'cheap'"),
        ({"prices": [{"from": "2026-01-01", "input": "-1", "output": "1"}]}, r"prices\[0\]: input is '-1'"),
        ({"prices": [{"from": "2026-01-01", "input": "1", "output": True}]}, r"prices\[0\]: output is 'True'"),
        ({"prices": [{"from": "2026-01-01", "input": "1", "output": float("nan")}]}, r"prices\[0\]: output is 'nan'"),
        ({"prices": [{"from": "20260101", "input": "1", "output": "1"}]}, r"prices\[0\]: a price begins '20260101'"),
        ({"prices": [ENTRY["prices"][1], ENTRY["prices"][1]]}, r"prices\[1\]: another price begins on 2026-06-01, too"),
    ],
)
def test_wrong_entries_are_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        read_model({**ENTRY, **change}, "acme", TODAY)


def test_a_file_is_read_in_order_of_ids(tmp_path: Path):
    path = tmp_path / "models.yaml"
    path.write_text('models:\n  - {name: b}\n  - name: a\n    prices: [{from: 2026-01-01, input: "1", output: "2"}]\n')
    models = load_models(path, "acme", TODAY)
    assert [model.id for model in models] == ["acme/a", "acme/b"]
    assert models[0].price.effective_date == "2026-01-01"
