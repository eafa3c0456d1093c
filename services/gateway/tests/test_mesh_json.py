"""How REST shows the condition of backends."""

from __future__ import annotations

from typing import Any

import orjson

from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.json_codec.mesh import RouterView, encode_backends, encode_health
from maestro_sdk.errors import ProviderAuth
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.testing.tables import backend, message, model

NOW = 1_700_000_000.0
VIEW = RouterView("127.0.0.1:1", "", degraded=False, table_age=0.0)
CLOSED = {"breaker": "closed", "reason": None, "seconds_left": None}


def shown(local: LocalState, *backends: pb.Backend) -> list[dict[str, Any]]:
    table = compile_table(message(backends, {}))
    return orjson.loads(encode_backends(backends, [], table, local, NOW, VIEW))["backends"]


def test_a_backend_tells_its_state_the_accounts_and_what_this_gateway_found() -> None:
    quarantined = pb.BACKEND_STATE_QUARANTINED
    bad = backend("a", model("p/bad"), state=quarantined, reason="events after finish", until=NOW + 600)
    bad.regions.append("eu")
    bad.headroom.requests.limit, bad.headroom.requests.remaining = 100, 40
    bad.headroom.tokens.remaining = 5
    bad.headroom.tokens.reset.FromMilliseconds(2500)
    bad.headroom_time.FromSeconds(int(NOW))
    wide = backend("a", model("p/wide"), state=pb.BACKEND_STATE_OPEN, reason="PROVIDER_AUTH", until=NOW + 300)
    wide.account_wide = True
    local = LocalState()
    table = compile_table(message([bad, wide], {}))
    local.adopt(table, NOW)
    first, second = shown(local, bad, wide)
    assert first == {
        "id": "a:p/bad",
        "adapter": "a",
        "model": "p/bad",
        "provider": "p",
        "state": "quarantined",
        "reason": "events after finish",
        "until": "2023-11-14T22:23:20Z",
        "account": "a:p",
        "account_wide": False,
        "regions": ["eu"],
        "tags": [],
        "headroom": {
            "told": "2023-11-14T22:13:20Z",
            "requests": {"remaining": 40, "limit": 100, "reset_seconds": None},
            "tokens": {"remaining": 5, "limit": None, "reset_seconds": 2.5},
        },
        "here": {
            **CLOSED,
            "account": {"breaker": "open", "reason": "PROVIDER_AUTH", "seconds_left": 300.0},
            "in_flight": 0,
        },
    }
    assert (second["state"], second["account_wide"], second["headroom"]) == ("open", True, None)


def test_what_only_this_gateway_knows_is_told_beside_the_routers_word() -> None:
    local, found = LocalState(), backend("a", model("p/one"))
    table = compile_table(message([found], {}))
    local.adopt(table, NOW)
    local.fail(table.backends["a:p/one"], ProviderAuth("who?", metadata={"upstream_status": "403"}), NOW - 1)
    (told,) = shown(local, found)
    assert told["state"] == "active"
    assert told["here"] == {
        "breaker": "open",
        "reason": "PROVIDER_AUTH",
        "seconds_left": 299.0,
        "account": CLOSED,
        "in_flight": 0,
    }
    health = orjson.loads(encode_health(table, [], local, NOW, (), VIEW))
    assert health["status"] == "down"
    assert health["providers"][0]["troubles"] == {"a:p/one": "breaker open here: PROVIDER_AUTH"}
