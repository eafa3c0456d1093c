"""Requests that nobody may answer: refused at every door with what each candidate lacks, before anything is called."""

import pytest
from drill_doors import DOORS, Stand, ask
from drill_stage import PATHS, Stage, prompt
from drill_table import WIRES

FOREIGN = ("openai",)
"""Providers outside of the home tenant's region."""


@pytest.fixture
def case(stage: Stage, request: pytest.FixtureRequest) -> str:
    """A case in which every provider would answer, if it were asked."""
    name = request.node.name
    for provider in PATHS:
        stage.script(name, provider, WIRES.get(provider, WIRES["openai"]).text(f"from {provider}"))
    return name


def calls(stage: Stage, case: str) -> int:
    return sum(len(stage.seen(case, provider)) for provider in PATHS)


@pytest.mark.parametrize("door", DOORS)
async def test_what_is_missing_is_told_for_each_candidate(stand: Stand, stage: Stage, case: str, door: str):
    routing = {"required": ["vision", "seed"]}
    got = await ask(stand, door, prompt(case), model="blind", routing=routing)
    assert (got.status, got.reason, got.ended, got.began) == (412, "CAPABILITY_UNAVAILABLE", 1, 0)
    assert got.error["retryable"] is False
    for candidate in ("openai/blind", "anthropic/blind"):
        assert candidate in got.error["message"]
    for missing in ("VISION", "SEED"):
        assert missing in got.error["message"]
    assert calls(stage, case) == 0


@pytest.mark.parametrize("door", DOORS)
async def test_a_name_that_nobody_has(stand: Stand, stage: Stage, case: str, door: str):
    got = await ask(stand, door, prompt(case), model="openai/nobody")
    assert (got.status, got.reason, got.ended) == (404, "NOT_FOUND", 1)
    assert calls(stage, case) == 0


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("model", "routing"),
    [
        pytest.param("openai/third", {}, id="the model's name"),
        pytest.param("yankee", {}, id="an alias of the model"),
        pytest.param("abroad", {}, id="a route"),
        pytest.param("voyage", {}, id="an alias of the route"),
        pytest.param("abroad", {"prefer_providers": ["openai"]}, id="preferred"),
        pytest.param("mixed", {"persona": "american"}, id="pinned"),
        pytest.param("", {"persona": "american"}, id="pinned, by default"),
    ],
)
async def test_a_tenant_never_leaves_its_region(
    home: Stand, stage: Stage, case: str, door: str, model: str, routing: dict[str, object]
):
    got = await ask(home, door, prompt(case), model=model, routing=routing)
    assert got.ended == 1
    assert got.reason in ("NO_BACKEND", "CAPABILITY_UNAVAILABLE"), got
    assert got.error["retryable"] is False
    assert "answers in us; the tenant allows only eu" in got.error["message"]
    assert calls(stage, case) == 0


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("routing", [{}, {"prefer_providers": ["openai"]}], ids=["plain", "preferred"])
async def test_inside_its_region_it_is_answered(
    home: Stand, stage: Stage, case: str, door: str, routing: dict[str, object]
):
    got = await ask(home, door, prompt(case), model="mixed", routing=routing)
    assert (got.status, got.text, got.provider) == (200, "from anthropic", "anthropic")
    assert [len(stage.seen(case, provider)) for provider in FOREIGN] == [0]


async def test_it_stays_inside_when_its_region_fails(home: Stand, stage: Stage, case: str):
    stage.script(case, "anthropic", WIRES["anthropic"].error(500))
    got = await ask(home, "sse", prompt(case), model="mixed")
    assert got.reason == "UPSTREAM_ERROR"
    assert len(stage.seen(case, "openai")) == 0


async def test_others_may_go_there(stand: Stand, stage: Stage, case: str):
    got = await ask(stand, "rest", prompt(case), model="yankee")
    assert (got.status, got.provider) == (200, "openai")
    assert len(stage.seen(case, "openai")) == 1
