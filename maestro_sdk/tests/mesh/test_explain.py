"""Decisions as a table: what is asked, what differs in the mesh, and next to it in golden/ what Explain says.

The mesh and the changes are those of `maestro_sdk.testing.decisions`: a route `default` over opus, gpt (at the adapters
"openai" and "east"), flash and tiny, in this order. Every explanation was read line by line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1.router_pb2 import Match
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.testing.decisions import (
    BROKEN,
    GONE,
    QUOTA,
    SLOW_DOWN,
    Change,
    asks,
    busy,
    experiment,
    explain,
    fails,
    gone,
    left,
    lost,
    paced,
    pins,
    resides,
    rolls,
    sets,
    state,
    targets,
    trying,
)
from maestro_sdk.testing.golden import check_text

GOLDEN = Path(__file__).parent / "golden"

Row = tuple[str, Needs, *tuple[Change, ...]]
"""What the case is about, what is asked, and what differs in the mesh."""

ANY = asks()
TOOLS = asks("", "TOOLS")
SCHEMA = asks("", "TOOLS JSON_SCHEMA")
SIGHT = asks("", "VISION")
SESSION = asks(session_key="one")
OTHER = asks(session_key="three")
WEIGHTS = "opus*1 gpt*3 flash*6 tiny*0"
TIERS = "opus gpt@1 haiku@1 flash@2"
ALIKE = paced(opus=(0.5, 100), gpt=(0.5, 100), flash=(0.5, 100), tiny=(0.5, 100))
QUICK = paced(**{"opus": (2.0, 40), "gpt": (0.4, 80), "gpt-eu": (0.9, 80), "flash": (0.2, 160)})
LIMITS = (left("opus", (45, 50)), left("gpt", (10, 50)), left("flash", (900, 1000), (1000, 100_000)))
EU = resides("acme", regions="eu")
ACME = asks(tenant="acme")

STRATEGIES: list[Row] = [
    ("fallback: as listed, the idler one of two adapters first", ANY, busy(gpt=2)),
    ("fallback: a session chooses among the adapters of one model only", SESSION),
    ("fallback: another session may choose the other", OTHER),
    ("weighted: drawn by weight, weight 0 never", ANY, targets(WEIGHTS, "weighted"), rolls(0.5, 0.5, 0.5, 0.5)),
    ("weighted: the small weight may win", ANY, targets(WEIGHTS, "weighted"), rolls(0.01, 0.9, 0.9, 0.9)),
    ("weighted: all of a tier at weight 0", ANY, targets("opus*0 flash*0", "weighted")),
    ("weighted: a session follows the weights", SESSION, targets(WEIGHTS, "weighted")),
    ("weighted: the same question, the same backend", Needs("", content_hash="a1"), targets(WEIGHTS, "weighted")),
    ("a weight of 0 counts under weighted only", ANY, targets("opus*0 flash*1", "fallback")),
    ("round robin: the first turn", ANY, targets("opus gpt flash", "round_robin")),
    ("round robin: a session has no turn", SESSION, targets("opus gpt flash", "round_robin")),
    ("cost: the cheapest first, who has no price last", ANY, targets("opus gpt flash haiku tiny", "cost")),
    ("cost: long answers cost what max_tokens says", asks(answer=4000), targets("opus haiku flash", "cost")),
    ("cost: nothing but the answer counts when the request is empty", asks(tokens=0), targets("opus haiku", "cost")),
    ("cost: a session stays, dear or not", SESSION, targets("opus haiku flash", "cost")),
    ("performance: the better of two drawn", ANY, targets("opus gpt flash", "performance"), QUICK, rolls(0.99, 0.5)),
    ("performance: the best is drawn", ANY, targets("opus gpt flash", "performance"), QUICK, rolls(0.0, 0.5)),
    ("performance: calls under way slow down", ANY, targets("gpt flash", "performance"), QUICK, busy(flash=5)),
    ("performance: who is not known is tried", ANY, targets("opus flash haiku", "performance"), QUICK, rolls(0.5, 0.9)),
    ("performance: nobody is known", ANY, targets("opus flash", "performance")),
    ("performance: equals keep their order", ANY, targets("opus flash", "performance"), ALIKE),
    ("capability: fewer polyfills first", SCHEMA, targets("tiny opus gpt flash", "capability")),
    ("capability: who can't at all is dropped", asks("", "VISION JSON_SCHEMA"),
     targets("tiny opus flash", "capability")),
    ("capability: equals keep their order", TOOLS, targets("opus gpt flash tiny", "capability")),
    ("capability: a session chooses among equals", asks("", "TOOLS", session_key="three"),
     targets("tiny opus gpt flash", "capability")),
    ("capability: nothing is asked", ANY, targets("tiny opus", "capability")),
    ("a request may choose", asks(strategy="cost")),
    ("a request may choose what the route allows", asks(strategy="weighted"), sets(strategies=["weighted"])),
    ("a request may always choose the route's own", asks(strategy="fallback"), sets(strategies=["cost"])),
    ("a request may not choose what the route does not allow", asks(strategy="cost"), sets(strategies=["weighted"])),
    ("a request may not choose what does not exist", asks(strategy="luck")),
]  # fmt: skip
HEADROOM: list[Row] = [
    ("the most left first, unknown counts as whole", ANY, targets("opus gpt flash tiny", "headroom"), *LIMITS),
    ("the tightest limit counts", ANY, targets("opus flash", "headroom"), left("opus", (50, 50), (20, 100)),
     left("flash", (30, 100), (100, 100))),
    ("calls under way take their share", ANY, targets("opus flash", "headroom"), left("opus", (45, 50)),
     left("flash", (45, 50)), busy(opus=20)),
    ("calls under way take tokens, too", ANY, targets("opus flash", "headroom"),
     left("opus", (), (9000, 10_000)), left("flash", (), (8000, 10_000)), busy(opus=2)),
    ("nothing known: the idler one", ANY, targets("opus flash", "headroom"), busy(opus=1)),
    ("nothing known of all: as listed", ANY, targets("opus flash", "headroom")),
    ("half of the reset has passed: half of what was used is back", ANY, targets("opus flash", "headroom"),
     left("opus", (0, 100), ago=30), left("flash", (40, 100))),
    ("the reset has passed: all is back", ANY, targets("opus flash", "headroom"), left("opus", (0, 100), ago=61),
     left("flash", (99, 100))),
    ("no reset told: a minute", ANY, targets("opus flash", "headroom"), left("opus", (20, 100), reset=None, ago=30),
     left("flash", (50, 100), reset=None, ago=59)),
    ("a limit of unknown size", ANY, targets("opus flash", "headroom"), left("opus", (3,)), left("flash", (99, 100))),
    ("told to the router only", ANY, targets("opus flash", "headroom"), left("opus", (5, 100), by_router=True)),
    ("told here later than to the router", ANY, targets("opus flash", "headroom"),
     left("opus", (5, 100), ago=20, by_router=True), left("opus", (90, 100), ago=5), left("flash", (80, 100))),
    ("told to the router later than here", ANY, targets("opus flash", "headroom"),
     left("opus", (5, 100), ago=5, by_router=True), left("opus", (90, 100), ago=20), left("flash", (80, 100))),
    ("nothing told at all by an empty message", ANY, targets("opus flash", "headroom"), left("opus")),
    ("a session stays while there is room", SESSION, targets("opus gpt flash", "headroom"), *LIMITS),
    ("used up: to the end under fallback", ANY, left("opus", (0, 50))),
    ("used up: to the end under cost", ANY, targets("opus flash haiku", "cost"), left("flash", (0, 50))),
    ("used up: to the end under weighted", ANY, targets("opus*1 flash*9", "weighted"), left("flash", (0, 50))),
    ("used up: to the end under round robin", ANY, targets("opus gpt flash", "round_robin"), left("opus", (0, 50))),
    ("used up: to the end under performance", ANY, targets("opus flash", "performance"), QUICK, left("flash", (0, 9))),
    ("used up: to the end under capability", SCHEMA, targets("flash opus tiny", "capability"), left("flash", (0, 50))),
    ("used up: to the end under headroom", ANY, targets("opus flash tiny", "headroom"), left("opus", (0, 50))),
    ("used up: a session has to move", SESSION, targets("opus flash", "cost"), left("flash", (0, 50)),
     left("opus", (0, 60), reset=5)),
    ("used up: a session moves", OTHER, targets("opus flash", "cost"), left("opus", (0, 50))),
    ("used up all: the order of the strategy", ANY, targets("opus flash", "cost"), left("opus", (0, 50)),
     left("flash", (0, 50))),
    ("used up: before the next tier all the same", ANY, targets("opus flash haiku@1"), left("opus", (0, 50))),
    ("used up a moment ago: one request is back", ANY, targets("opus flash"), left("opus", (0, 60), ago=1)),
    ("tokens too few for this request", asks(tokens=5000), targets("opus flash"), left("opus", (), (4000, 50_000))),
    ("tokens enough for a smaller one", asks(tokens=3000), targets("opus flash"), left("opus", (), (4000, 50_000))),
    ("a request above the whole limit waits for the whole", asks(tokens=9000), targets("opus flash"),
     left("opus", (), (4000, 5000))),
    ("a request above the whole limit when it is whole", asks(tokens=9000), targets("opus flash"),
     left("opus", (), (5000, 5000))),
    ("used up with a limit of unknown size: until the reset", ANY, targets("opus flash"), left("opus", (0,), reset=12)),
]  # fmt: skip
TIER: list[Row] = [
    ("tiers one after the other", ANY, targets(TIERS)),
    ("each tier with the route's strategy", ANY, targets("haiku opus gpt@1 flash@1", "cost")),
    ("a tier with a strategy of its own", ANY, targets(TIERS, t1="cost")),
    ("every tier with a strategy of its own", SCHEMA, targets("opus gpt flash@1 tiny@1", "weighted", t0="cost",
     t1="capability")),
    ("a request's strategy holds for all tiers", asks(strategy="fallback"), targets("haiku opus gpt@1 flash@1", "cost",
     t1="performance")),
    ("weight 0 counts in the weighted tier only", ANY, targets("opus*0 gpt*1 flash*0@1 haiku*1@1", t1="weighted")),
    ("a tier that is down is passed over", ANY, targets(TIERS), state("opus", "DOWN", "not reachable")),
    ("a session stays in each tier", OTHER, targets("haiku opus gpt@1 flash@1", "cost")),
    ("round robin takes turns in each tier", ANY, targets("haiku opus gpt@1 flash@1", "round_robin")),
    ("preferred providers go before tiers", asks(prefer_providers=["google"]), targets(TIERS)),
    ("headroom within a tier", ANY, targets("opus flash gpt@1", t0="headroom"), *LIMITS),
]  # fmt: skip
WISHES: list[Row] = [
    ("preferred in their order", asks(prefer_providers=["local", "google"])),
    ("preferred that nobody has", asks(prefer_providers=["mars"])),
    ("preferred under cost", asks(prefer_providers=["anthropic"]), targets("flash opus haiku", "cost")),
    ("preferred, though its limit is used up", asks(prefer_providers=["anthropic"]), targets("flash opus haiku"),
     left("opus", (0, 50))),
    ("excluded", asks(exclude_providers=["anthropic", "openai"])),
    ("excluded all", asks(exclude_providers=["anthropic", "openai", "google", "local"])),
    ("excluded and preferred", asks(exclude_providers=["google"], prefer_providers=["google", "local"])),
    ("a bound on the cost", asks(max_cost_usd="0.01")),
    ("a bound on the cost that nobody meets", asks(max_cost_usd="0.000001")),
    ("a bound on the cost counts max_tokens", asks(max_cost_usd="0.01", answer=4000), targets("gpt flash")),
    ("a bound under cost, with quality", asks(max_cost_usd="0.02"), targets("opus gpt flash", "cost"),
     sets(quality="frontier")),
    ("quality is a floor", ANY, targets("flash opus gpt", "cost"), sets(quality="frontier")),
    ("quality that nobody has", ANY, sets(quality="golden")),
    ("quality and a session", SESSION, targets("flash opus gpt", "cost"), sets(quality="frontier")),
]  # fmt: skip
FEATURES: list[Row] = [
    ("polyfills count", SCHEMA),
    ("native is demanded by the request", asks("", "TOOLS JSON_SCHEMA", require_native=True)),
    ("native is demanded by the route", SCHEMA, sets(require_native=True)),
    ("native is demanded by the route, the request says no", asks("", "TOOLS", require_native=False),
     sets(require_native=True)),
    ("native is demanded of a model that is named", asks("local/tiny", "TOOLS"), sets(require_native=True)),
    ("native is demanded and nobody has it", asks("", "REASONING", require_native=True)),
    ("required beyond what the request needs", asks(required="VISION JSON_SCHEMA")),
    ("nobody has it all", asks("", "VISION AUDIO")),
    ("some lack it and the others are down: waiting helps", SIGHT, state("opus", "DOWN", "gone"), gone("flash")),
    ("who lacks it is never waited for", asks("", "AUDIO"), state("opus", "DOWN", "gone")),
    ("lacking, and of no adapter", SIGHT, targets("tiny vertex/gemini")),
    ("lacking, and excluded", asks("", "AUDIO", exclude_providers=["google"]), targets("gpt flash")),
    ("too long for one", asks(tokens=17_000), targets("gpt opus")),
    ("a near miss is the provider's to judge", asks(tokens=16_000), targets("gpt opus")),
    ("too long for all", asks(tokens=500_000)),
    ("too long for all that could, the others lack a feature", asks("", "VISION", tokens=500_000)),
    ("too long for all that are allowed", asks(tokens=20_000, exclude_providers=["anthropic"]), targets("opus gpt")),
    ("too long, and pinned", asks(tokens=20_000), targets("opus gpt"), pins(everything="openai")),
    ("too long for one, the other is down: waiting helps", asks(tokens=20_000), targets("opus gpt"),
     state("opus", "DOWN", "gone")),
    ("too long for one that is down, too", asks(tokens=20_000), targets("gpt"), state("gpt", "DOWN", "gone"),
     gone("gpt-eu")),
    ("too long, and a route without adapters", asks(tokens=20_000), targets("gpt vertex/gemini")),
]  # fmt: skip
STATES: list[Row] = [
    ("down", ANY, state("opus", "DOWN", "not reachable")),
    ("draining", ANY, state("opus", "DRAINING")),
    ("disabled", ANY, state("opus", "DISABLED", "too dear")),
    ("open in the table", ANY, state("opus", "OPEN", "TIMEOUT, 5 failures in a row", 5)),
    ("open in the table until something changes", ANY, state("opus", "OPEN", "PROVIDER_AUTH")),
    ("open in the table, and over", ANY, state("opus", "OPEN", "TIMEOUT", -1)),
    ("half open in the table: a trial", ANY, state("opus", "HALF_OPEN", "TIMEOUT")),
    ("half open in the table: the trial is under way", ANY, state("opus", "HALF_OPEN", "TIMEOUT"), trying("opus")),
    ("quarantined", ANY, state("opus", "QUARANTINED", "events after finish, 3 times", 600)),
    ("quarantined until an operator says otherwise", ANY, state("opus", "QUARANTINED", "no finish")),
    ("quarantined, and over", ANY, state("opus", "QUARANTINED", "no finish", -1)),
    ("a state that a newer router knows", ANY, state("opus", "UNSPECIFIED")),
    ("open here", ANY, fails("opus", BROKEN, 5)),
    ("open here after its time: a trial", ANY, fails("opus", BROKEN, 5, ago=11)),
    ("open here after its time: the trial is under way", ANY, fails("opus", BROKEN, 5, ago=11), trying("opus")),
    ("four failures are not enough", ANY, fails("opus", BROKEN, 4)),
    ("credit used up", ANY, fails("opus", QUOTA)),
    ("slow down", ANY, fails("opus", SLOW_DOWN)),
    ("an account is open for all its models", ANY, targets("opus haiku gpt"), fails("opus", GONE, 5)),
    ("an account is open, another adapter with the same model is not", ANY, targets("gpt"), fails("gpt", GONE, 5)),
    ("all are open: again when the first may", ANY, targets("opus flash"), fails("opus", BROKEN, 5),
     state("flash", "OPEN", "TIMEOUT", 3)),
    ("all are down: nobody knows until when", ANY, targets("opus"), state("opus", "DOWN", "gone")),
    ("all in quarantine", ANY, targets("opus"), state("opus", "QUARANTINED", "no finish", 90)),
    ("open under a session: it moves, and only it", SESSION, targets("opus haiku flash", "cost"),
     fails("haiku", BROKEN, 5)),
    ("open under weighted", ANY, targets(WEIGHTS, "weighted"), fails("flash", BROKEN, 5)),
]  # fmt: skip
EXPERIMENTS: list[Row] = [
    ("no subject: as the route has it", ANY, experiment(100, "haiku")),
    ("everybody in the variant", SESSION, experiment(100, "haiku gpt")),
    ("the tenant is the subject", asks(tenant="t"), experiment(100, "haiku")),
    ("a label is the subject", asks(labels={"user": "u"}), experiment(100, "haiku", label="user")),
    ("the label is not there", SESSION, experiment(100, "haiku", label="user")),
    ("a subject outside the share", SESSION, experiment(1, "haiku")),
    ("a variant under the route's strategy", SESSION, targets("opus gpt", "cost"), experiment(100, "opus haiku flash")),
    ("a variant with tiers of the route's strategies", asks(tenant="t"), targets("opus gpt@1", t1="cost"),
     experiment(100, "haiku opus@1 flash@1")),
    ("a variant whose models are all down is no reason to leave it", SESSION, experiment(100, "haiku"),
     state("haiku", "DOWN", "gone")),
    ("a variant under quality", SESSION, experiment(100, "haiku opus"), sets(quality="frontier")),
    ("a variant of which the tenant may use a part", ACME, experiment(100, "opus gpt"), EU),
    ("a variant of which the tenant may use nothing: it takes no part", ACME, experiment(100, "opus haiku"), EU),
    ("a variant whose models nobody offers", ACME, experiment(100, "vertex/gemini")),
    ("a pin beside an experiment", SESSION, experiment(100, "haiku gpt"), pins(everything="claude")),
]  # fmt: skip
PINS: list[Row] = [
    ("everything", ANY, pins(everything="vertex")),
    ("everything, also what is named", asks("anthropic/opus"), pins(everything="vertex")),
    ("an adapter of no route: what it has", asks("openai/gpt"), targets("opus"), pins(everything="vertex")),
    ("an adapter of another route: what the default route has of it", asks("calm"), targets("flash", route="calm"),
     pins(everything="claude")),
    ("a persona", asks(persona="dev"), pins(dev="openai")),
    ("another persona", asks(persona="qa"), pins(dev="openai")),
    ("a persona before everything", asks(persona="dev"), pins(dev="openai", everything="claude")),
    ("everybody else", asks(persona="qa"), pins(dev="openai", everything="claude")),
    ("a pin does not pretend", asks("", "VISION"), pins(everything="openai")),
    ("a pin waits for what is down", ANY, pins(everything="openai"), state("gpt", "DOWN", "gone")),
    ("a pin to what is not there", ANY, pins(everything="nobody")),
    ("a pin and a strategy", ANY, targets("opus haiku gpt", "cost"), pins(everything="claude")),
    ("a pin and a wish for another provider", asks(prefer_providers=["openai"]), pins(everything="claude")),
    ("a pin and its exclusion", asks(exclude_providers=["anthropic"]), pins(everything="claude")),
]  # fmt: skip
RESIDENCY: list[Row] = [
    ("regions: who may be elsewhere is dropped", ACME, EU),
    ("regions: other tenants may go anywhere", asks(tenant="other"), EU),
    ("regions: two are allowed", ACME, resides("acme", regions="eu us")),
    ("regions: nobody is there", ACME, resides("acme", regions="ch")),
    ("providers", ACME, resides("acme", providers="openai local")),
    ("regions and providers", ACME, resides("acme", regions="eu", providers="openai google")),
    ("a model that is named", asks("anthropic/opus", tenant="acme"), EU),
    ("a model that is named by its bare name", asks("flash", tenant="acme"), EU),
    ("a pin never leads out", ACME, EU, pins(everything="claude")),
    ("a pin inside", ACME, EU, pins(everything="east")),
    ("a preferred provider never leads out", asks(tenant="acme", prefer_providers=["anthropic"]), EU),
    ("an alias", asks("quick", tenant="acme"), EU, targets("haiku tiny", route="quick")),
    ("the only one inside is down: waiting helps", ACME, targets("opus gpt"), EU, state("gpt-eu", "DOWN", "gone")),
    ("the only one inside lacks a feature", asks("", "VISION", tenant="acme"), EU),
    ("the only one inside is too small", asks(tenant="acme", tokens=20_000), targets("opus gpt"), EU),
    ("a session inside", asks(tenant="acme", session_key="one"), targets("opus gpt tiny", "cost"), EU),
]  # fmt: skip
LOSS: list[Row] = [
    ("a router was heard of in time", ANY, lost(60, 59)),
    ("no router for too long", ANY, lost(60, 75)),
    ("no router since the process began", ANY, lost(60, None)),
    ("no limit: the last table stays in force", ANY, lost(60, None), sets(on_router_loss=1)),
    ("a model that is named has the limits of the default route", asks("anthropic/opus"), lost(60, 75)),
    ("another route has none", asks("calm"), lost(60, 75), targets("flash", route="calm")),
]  # fmt: skip
NAMES: list[Row] = [
    ("a model", asks("google/flash")),
    ("a bare name", asks("flash")),
    ("a model at two adapters", asks("openai/gpt"), busy(gpt=1)),
    ("a model at two adapters, in a session", asks("openai/gpt", session_key="three")),
    ("a route", asks("cheap"), targets("haiku tiny", "cost", route="cheap")),
    ("default by name", asks("default")),
    ("nothing of the name", asks("googel/flash")),
    ("a bare name with two owners", asks("opus"), lambda world: world.backends["tiny"].model.MergeFrom(
        type(world.backends["tiny"].model)(id="local/opus", name="opus"))),
    ("a route of which nothing is offered", asks("gone"), targets("vertex/gemini mistral/large", route="gone")),
    ("a route of which something is not offered", ANY, targets("vertex/gemini opus")),
    ("a match by tenant", ACME, targets("haiku", route="own"), sets("own", match=Match(tenants=["acme"]))),
    ("a match by another tenant", ANY, targets("haiku", route="own"), sets("own", match=Match(tenants=["acme"]))),
    ("who names something is not matched", asks("flash", tenant="acme"), targets("haiku", route="own"),
     sets("own", match=Match(tenants=["acme"]))),
    ("a match takes a model's place", asks("google/flash"), targets("haiku", route="own"),
     sets("own", match=Match(models=["google/flash"]))),
    ("a match by persona, skill and label", asks(persona="dev", skill="review", labels={"team": "core", "more": "x"}),
     targets("haiku", route="own"), sets("own", match=Match(personas=["dev"], skills=["review"],
     labels={"team": "core"}))),
    ("a match by persona without the skill", asks(persona="dev"), targets("haiku", route="own"),
     sets("own", match=Match(personas=["dev"], skills=["review"]))),
    ("a match by features", TOOLS, targets("haiku", route="own"),
     sets("own", match=Match(required=[Feature.FEATURE_TOOLS]))),
    ("the first match counts", ACME, targets("haiku", route="one"), sets("one", match=Match(tenants=["acme"])),
     targets("opus", route="two"), sets("two", match=Match(tenants=["acme", "x"]))),
]  # fmt: skip
TABLE = {
    "strategies": STRATEGIES,
    "headroom": HEADROOM,
    "tiers": TIER,
    "wishes": WISHES,
    "features": FEATURES,
    "states": STATES,
    "experiments": EXPERIMENTS,
    "pins": PINS,
    "residency": RESIDENCY,
    "loss": LOSS,
    "names": NAMES,
}


@pytest.mark.parametrize("section", TABLE)
def test_explanations(section: str) -> None:
    blocks = [f"# {title}\n{explain(needs, changes)}\n" for title, needs, *changes in TABLE[section]]
    check_text(GOLDEN / f"{section}.txt", "\n".join(blocks))


def test_the_table_is_large_and_every_case_has_its_own_title() -> None:
    titles = [(section, row[0]) for section, rows in TABLE.items() for row in rows]
    assert len(set(titles)) == len(titles) >= 150
