"""Routes that nothing reaches, policies that can't count, tenants without a place: each refused with line and path."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from maestro_sdk.service.settings import ConfigError, load

NOTHING = "so nothing would ever be chosen"
NOT_A_NAME = "is no name that a request can give"
UNNAMED = "a request for 'default' is one that names no model: leave `models` out to match those"
NOT_A_TENANT = "is not a tenant: letters, digits, - and _, 64 at most"
TWINS = "adapters: {a: {address: 'h:1', module: m}, b: {address: 'h:2', module: m}}\n"


def problems(tmp_path: Path, text: str) -> list[str]:
    """What `load` complains of; empty when nothing is wrong."""
    path = tmp_path / "maestro.yaml"
    path.write_text(dedent(text))
    try:
        load(path, {})
    except ConfigError as error:
        return [str(problem).removeprefix(f"{path}:") for problem in error.problems]
    return []


def matches(*described: str) -> str:
    """Routes r0, r1, … with these matches, from line 2 on."""
    return "routes:\n" + "".join(f"  r{n}: {{targets: [p/m], match: {match}}}\n" for n, match in enumerate(described))


@pytest.mark.parametrize(
    ("earlier", "later", "taken"),
    [
        ("{tenants: [x, y]}", "{tenants: [x]}", True),
        ("{tenants: [x, y]}", "{tenants: [x, y]}", True),
        ("{tenants: [x]}", "{tenants: [x, y]}", False),
        ("{tenants: [x]}", "{personas: [dev]}", False),  # requests of other tenants are left
        ("{tenants: [x]}", "{tenants: [x], personas: [dev], labels: {a: b}, required: [TOOLS]}", True),
        ("{tenants: [x], personas: [dev]}", "{tenants: [x]}", False),
        ("{personas: [dev, qa]}", "{personas: [qa], skills: [review]}", True),
        ("{skills: [review]}", "{skills: [review, test]}", False),
        ("{labels: {a: b}}", "{labels: {a: b, c: d}}", True),
        ("{labels: {a: b, c: d}}", "{labels: {a: b}}", False),
        ("{labels: {a: b}}", "{labels: {a: c}}", False),
        ("{required: [TOOLS]}", "{required: [TOOLS, VISION]}", True),
        ("{required: [TOOLS, VISION]}", "{required: [TOOLS]}", False),
        ("{required: [CHAT]}", "{tenants: [x]}", True),  # every request needs CHAT
        ("{required: [CHAT]}", "{tenants: [x], models: [fast]}", False),  # but those that name something are apart
        ("{models: [fast, slow]}", "{models: [fast]}", True),
        ("{models: [fast]}", "{models: [fast, slow]}", False),
        ("{models: [fast]}", "{tenants: [x]}", False),
        ("{tenants: [x]}", "{models: [fast], tenants: [x]}", False),
        ("{models: [fast], tenants: [x]}", "{models: [fast]}", False),
    ],
)
def test_a_match_that_an_earlier_one_covers(tmp_path: Path, earlier: str, later: str, taken: bool) -> None:
    reason = "3: routes.r1.match: can never match: routes.r0 takes every such request before it"
    assert problems(tmp_path, matches(earlier, later)) == ([reason] if taken else [])


def test_several_routes_together_leave_nothing(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        matches("{tenants: [x]}", "{tenants: [y], personas: [dev]}", "{tenants: [x, y], personas: [dev]}")
        + "  r3: {targets: [p/m], match: {tenants: [x, y], personas: [dev, qa]}}\n",
    )
    assert found == [
        "4: routes.r2.match: can never match: routes.r0 and routes.r1 together take every such request before it"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (matches("{models: [default]}"), [f"2: routes.r0.match.models[0]: {UNNAMED}"]),
        (matches("{models: [fast, '']}"), [f"2: routes.r0.match.models[1]: '' {NOT_A_NAME}"]),
        (matches("{models: [' x']}"), [f"2: routes.r0.match.models[0]: ' x' {NOT_A_NAME}"]),
        (matches("{models: [gpt-4, openai/gpt-4]}"), []),  # a name that callers have fixed may be taken over
        (matches("{tenants: [a.b]}"), [f"2: routes.r0.match.tenants[0]: 'a.b' {NOT_A_TENANT}"]),
        (
            matches("{models: [fast]}") + "aliases: {fast: p/m}",
            ["3: aliases.fast: is never reached: routes.r0 takes every request for fast"],
        ),
        (
            matches("{models: [r1]}") + "  r1: {targets: [p/m]}\n",
            ["3: routes.r1: is never reached: routes.r0 takes every request for r1"],
        ),
        (matches("{models: [r1]}") + "  r1: {targets: [p/m]}\naliases: {one: r1}", []),  # still reached as `one`
        (matches("{models: [fast], tenants: [x]}") + "aliases: {fast: p/m}", []),
    ],
)
def test_names_that_are_never_asked_for(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def route(text: str) -> str:
    """One route `r` with these settings in line 3 beside two targets in two tiers."""
    return f"routes:\n  r:\n    {text}\n    targets: [p/a, {{model: p/b, tier: 1, weight: 0}}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (route("strategy: weighted"), [f"4: routes.r.targets: the weights of tier 1 are all 0, {NOTHING}"]),
        (
            route("tier_strategies: {1: weighted}"),
            [f"4: routes.r.targets: the weights of tier 1 are all 0, {NOTHING}"],
        ),
        (route("strategy: weighted\n    tier_strategies: {1: cost}"), []),
        (
            route("tier_strategies: {2: cost}"),
            ["3: routes.r.tier_strategies.2: no target stands in tier 2; there are: 0, 1"],
        ),
        (
            route("tier_strategies: {1: luck}"),
            [
                (
                    "3: routes.r.tier_strategies.1: 'luck' is not one of fallback, weighted, round_robin, cost, "
                    "performance, headroom, capability"
                )
            ],
        ),
        (
            "routes:\n  r:\n    targets: [p/a]\n    hedge: {}",
            ["4: routes.r.hedge: asks a second backend, but the route has one target, p/a"],
        ),
        (TWINS + "routes: {r: {targets: [p/a], hedge: {}}}", []),  # both adapters may offer it
        ("router: {admission: verified}\nroutes: {r: {targets: [p/a], hedge: {}}}", []),
        (
            (
                "routes:\n  r:\n    targets: [p/a, p/b]\n    hedge: {after: 1s}\n"
                "    experiment: {name: e, variants: {one: {share: 5, targets: [p/c]}}}"
            ),
            ["4: routes.r.hedge: asks a second backend, but a variant of its experiment has one target, p/c"],
        ),
        (
            route("hedge: {}\n    max_attempts: 1\n    resume: continue"),
            [
                "3: routes.r.hedge: asks a second backend, but max_attempts is 1",
                "5: routes.r.resume: needs a second attempt, but max_attempts is 1",
            ],
        ),
        (
            route("hedge: {after: 2m}"),
            [
                (
                    "3: routes.r.hedge.after: 120 s is not before first_event_timeout, 120 s: "
                    "the first attempt would be over"
                )
            ],
        ),
        (route("total_timeout: 30s"), []),  # nobody set the other timeouts, they are only defaults
        (
            route("idle_timeout: 15m"),
            ["3: routes.r.idle_timeout: 900 s is longer than total_timeout, 600 s"],
        ),
        (
            route("retry: {longest_back_off: 10ms}"),
            ["3: routes.r.retry.back_off: 0.05 s is longer than longest_back_off, 0.01 s"],
        ),
        (
            route("router_loss_after: 5s"),
            ["3: routes.r.router_loss_after: has no effect while on_router_loss is serve"],
        ),
        (
            route("failover: {on: [TIMEOUT], off: [TIMEOUT]}"),
            ["3: routes.r.failover: TIMEOUT stands under `on` and `off`"],
        ),
        (
            route("failover: {on: [INVALID_REQUEST]}"),
            [
                (
                    "3: routes.r.failover.on[0]: 'INVALID_REQUEST' is not one of CONTEXT_TOO_LONG, PROVIDER_AUTH, "
                    "NOT_FOUND, RATE_LIMITED, PROVIDER_QUOTA, OVERLOADED, UPSTREAM_ERROR, TIMEOUT, STREAM_BROKEN, "
                    "CONTENT_POLICY, OUTPUT_INVALID"
                )
            ],
        ),
        (
            "adapters: {a: {address: 'h:1', enabled: false}}\nrouter:\n  pin: a-only",
            ["3: router.pin: pins to a, which is not enabled: nothing could answer"],
        ),
        (
            "adapters: {claude: {address: 'h:1'}}\nrouter:\n  pin: home-only",
            ["3: router.pin: 'home-only' is not an adapter; there are: claude"],
        ),
        # It may join by announcement; what is nearly the name of a configured one is a slip all the same.
        ("adapters: {claude: {address: 'h:1'}}\nrouter: {admission: verified, pin: home-only}", []),
        (
            "adapters: {claude: {address: 'h:1'}}\nrouter:\n  admission: verified\n  pins: {dev: cluade}",
            ["4: router.pins.dev: 'cluade' is not an adapter; did you mean claude?"],
        ),
        (
            "adapters: {claude: {address: 'h:1'}}\nrouter:\n  admission: verified\n  pin: a b",
            ["4: router.pin: 'a b' is not an adapter; there are: claude"],
        ),
    ],
)
def test_policies_that_can_not_count(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_an_experiment_of_two_routes_deals_alike(tmp_path: Path) -> None:
    side = "experiment: {name: e, variants: {new: {share: %s, targets: [p/n]}}}"
    text = "routes:\n  one: {targets: [p/a], %s}\n  two: {targets: [p/b], %s}\n"
    assert problems(tmp_path, text % (side % 10, side % 10)) == []
    assert problems(tmp_path, text % (side % 10, side % 20)) == [
        "3: routes.two.experiment.name: e is an experiment of routes.one too, with other variants or shares"
    ]


EU = "adapters: {a: {address: 'h:1', regions: [eu]}, b: {address: 'h:2', regions: [eu, us]}}\n"
KEYS = "gateway: {keys: [{tenant: acme, key: {env: K}}]}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EU + "tenants:\n  x: {regions: [eu]}", []),
        (
            EU + "tenants:\n  x: {regions: [us]}",
            ["3: tenants.x.regions: no adapter answers only in us; by adapters.*.regions: a in eu, b in eu, us"],
        ),
        (EU + "router: {admission: announced}\ntenants:\n  x: {regions: [us]}", []),  # one may still join
        (
            "routes:\n  r: {targets: [p/a, q/b], match: {tenants: [x, y]}}\ntenants: {x: {providers: [o]}}",
            [
                (
                    "2: routes.r.match.tenants[0]: tenants.x.providers allows only o, but the route has only targets "
                    "of p, q"
                )
            ],
        ),
        ("routes:\n  r: {targets: [p/a, q/b], match: {tenants: [x]}}\ntenants: {x: {providers: [q]}}", []),
        (
            (
                "routes:\n  r: {targets: [p/a], match: {tenants: [x]}, "
                "experiment: {name: e, variants: {v: {share: 1, targets: [q/b]}}}}\ntenants: {x: {providers: [p]}}"
            ),
            [
                (
                    "2: routes.r.match.tenants[0]: tenants.x.providers allows only p, but a variant of its experiment "
                    "has only targets of q"
                )
            ],
        ),
        (
            KEYS + "tenants:\n  acmee: {providers: [p]}",
            ["3: tenants.acmee: no key belongs to 'acmee', so this would bind nobody; did you mean acme?"],
        ),
        (KEYS + "tenants:\n  acme: {providers: [p]}\n  acmee: {providers: [p]}", []),
        (
            KEYS + "tenants:\n  amce: {providers: [p]}",
            ["3: tenants.amce: no key belongs to 'amce', so this would bind nobody; did you mean acme?"],
        ),
        # These may get a key later, or come with a token of an identity provider.
        (KEYS + "tenants: {acme2: {providers: [p]}, acne: {providers: [p]}, acme-eu: {providers: [p]}}", []),
        (KEYS + "tenants:\n  batch: {providers: [p]}", []),  # a caller of the router may say any tenant
        (
            KEYS + "routes:\n  r: {targets: [p/a], match: {tenants: [acmee, batch]}}",
            ["3: routes.r.match.tenants[0]: no key belongs to 'acmee', so nobody would match; did you mean acme?"],
        ),
        (KEYS + "tenants: {acmee: {}}\nroutes:\n  r: {targets: [p/a], match: {tenants: [acmee]}}", []),
        ("tenants:\n  a.b: {}", [f"2: tenants.a.b: 'a.b' {NOT_A_TENANT}"]),
    ],
)
def test_tenants_without_a_place(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_a_default_alias_gives_way_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "maestro.yaml"
    for routes in ("{fast: {targets: [p/m]}}", "{r: {targets: [p/m], match: {models: [fast]}}}"):
        path.write_text(f"routes: {routes}")
        assert load(path, {}).aliases == {}
    path.write_text("routes: {r: {targets: [p/m]}}")
    assert load(path, {}).aliases == {"fast": "local/offline"}


def test_all_contradictions_are_told_at_once(tmp_path: Path) -> None:
    text = """\
        routes:
          a: {targets: [p/m], match: {tenants: [x]}}
          b: {targets: [p/m, p/m], match: {tenants: [x], skills: [s]}}
          c: {targets: [{model: p/m, weight: 0}], strategy: weighted, resume: continue, max_attempts: 1}
          d: {targets: [p/m], strategy: chance}
        aliases: {one: two, two: one}
        router: {pin: nobody}
        tenants: {x: {providers: [q]}}
    """
    assert [line.split(": ")[:2] for line in problems(tmp_path, text)] == [
        ["2", "routes.a.match.tenants[0]"],
        ["3", "routes.b.targets"],
        ["3", "routes.b.match"],
        ["3", "routes.b.match.tenants[0]"],
        ["4", "routes.c.targets"],
        ["4", "routes.c.resume"],
        ["5", "routes.d.strategy"],
        ["6", "aliases.one"],
        ["6", "aliases.two"],
        ["7", "router.pin"],
    ]
