"""Keys and tenants."""

from __future__ import annotations

import pytest

from maestro_gateway.identity import Keys, key_in
from maestro_gateway.service import authenticator
from maestro_sdk.errors import Unauthenticated

KEYS = Keys([("acme", "mk-1"), ("globex", "mk-2"), ("acme", "mk-3")])


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({"authorization": "Bearer mk-1"}, "acme"),
        ({"authorization": "bearer  mk-2 "}, "globex"),
        ({"x-api-key": "mk-3"}, "acme"),
        ({"authorization": "Bearer mk-2", "x-api-key": "mk-1"}, "globex"),
        ({"authorization": "Basic dXNlcg==", "x-api-key": "mk-1"}, "acme"),
    ],
)
def test_a_key_names_its_tenant(headers: dict[str, str], tenant: str) -> None:
    assert KEYS.authenticate(headers) == tenant


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "the key is missing; send `authorization: Bearer KEY`"),
        ({"authorization": "Bearer "}, "the key is missing"),
        ({"authorization": "mk-1"}, "the key is missing"),
        ({"authorization": "Bearer mk-4"}, "the key is not known here"),
        ({"x-api-key": "\udcff"}, "the key is not known here"),
        ({"authorization": "Bearer MK-1"}, "the key is not known here"),
    ],
)
def test_anything_else_is_refused_with_what_to_do(headers: dict[str, str], message: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        KEYS.authenticate(headers)
    assert caught.value.message.startswith(message)
    assert "mk-4" not in caught.value.message


def test_a_mesh_without_keys_says_so() -> None:
    with pytest.raises(Unauthenticated, match="this mesh has no key yet"):
        Keys([]).authenticate({"x-api-key": "mk-1"})


def test_no_key_stands_in_the_object() -> None:
    assert not any("mk-" in repr(value) for value in vars(KEYS).values())
    assert key_in({"x-api-key": " mk-9 "}) == "mk-9"


def test_rest_calls_pass_without_a_tenant_and_others_do_not() -> None:
    authenticate = authenticator(KEYS)
    metadata = (("authorization", "Bearer mk-1"), ("grpc-trace-bin", b"\x00"))
    assert authenticate(metadata, "/maestro.llm.v1.ChatService/Chat") == "acme"
    assert authenticate((), "/maestro.gateway.v1.HttpService/Chat") == ""
    with pytest.raises(Unauthenticated):
        authenticate((), "/maestro.llm.v1.ChatService/Chat")
