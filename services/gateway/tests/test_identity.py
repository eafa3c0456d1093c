"""Keys and tenants."""

from __future__ import annotations

import pytest

from maestro.gateway.v1 import anthropic_pb2, http_pb2, key_pb2, openai_pb2
from maestro.llm.v1 import batch_pb2, chat_pb2, embedding_pb2, file_pb2, model_pb2
from maestro.llm.v1.chat_pb2 import ChatRequest, Routing
from maestro_gateway.identity import Keys, Principal, admitted, enter, key_in, permit
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_gateway.identity.record import KeyRecord
from maestro_gateway.identity.scopes import scope_of_method
from maestro_gateway.identity.secret import LENGTH, digest, is_whole, new_secret
from maestro_sdk.errors import PermissionDenied, Unauthenticated
from maestro_sdk.service.telemetry import redacted

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
    assert KEYS.authenticate(headers).tenant == tenant


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
    assert (admitted().tenant, admitted().key_id[:7]) == ("acme", "config_")
    assert authenticate((), "/maestro.gateway.v1.HttpService/Chat") == ""
    with pytest.raises(Unauthenticated, match="the key is missing"):
        admitted()
    for method in ("/maestro.llm.v1.ChatService/Chat", "/maestro.gateway.v1.KeyService/ListKeys"):
        with pytest.raises(Unauthenticated):
            authenticate((), method)


def test_who_lacks_a_scope_is_told_which_one() -> None:
    authenticate = authenticator(Keys([configured("acme", "mk-1", ["files"])]))
    metadata = (("x-api-key", "mk-1"),)
    with pytest.raises(
        PermissionDenied, match=r"needs the scope 'chat', which the key config_\w+ .* \(it has: files\)"
    ):
        authenticate(metadata, "/maestro.llm.v1.ChatService/Chat")
    assert authenticate(metadata, "/maestro.gateway.v1.OpenAIService/CreateChatCompletion") == ""
    with pytest.raises(PermissionDenied, match="'chat'"):
        admitted()


def test_every_method_of_the_contract_has_a_scope_on_purpose() -> None:
    files = (chat_pb2, embedding_pb2, model_pb2, file_pb2, batch_pb2, http_pb2, openai_pb2, anthropic_pb2, key_pb2)
    methods = [
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) > 20
    assert [method for method in methods if scope_of_method(method) == "operator"] == []
    # What nobody thought of is not open.
    assert scope_of_method("/maestro.gateway.v1.HttpService/New") == "operator"
    assert scope_of_method("/foreign.v1.Service/Method") == "operator"


def test_secrets_are_random_whole_and_hidden_in_logs() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    for secret in made:
        assert (len(secret), is_whole(secret), is_whole(secret[:-1])) == (LENGTH, True, False)
        assert secret not in redacted(f"the key {secret} is here")
    changed = sum(is_whole(secret[:20] + ("A" if secret[20] != "A" else "B") + secret[21:]) for secret in made)
    assert changed == 0
    cut = next(iter(made))[:-3]
    with pytest.raises(Unauthenticated, match="the key is not whole: it was cut"):
        KEYS.principal_of(cut)


def record(**fields: object) -> KeyRecord:
    known: dict[str, object] = {
        "key_id": "key_1",
        "tenant": "acme",
        "digest": digest("old").hex(),
        "hint": "mk_live_0000",
        "scopes": ("chat",),
        "created": 1.0,
    }
    return KeyRecord(**(known | fields))  # pyright: ignore[reportArgumentType] - fields of a test


def test_a_record_keeps_everything_but_the_secret() -> None:
    made = record(expires=50.0, personas=("clerk",))
    changed, secret = made.rotate(10.0, 5.0, "asked")
    assert KeyRecord.decode(changed.encode()) == changed
    assert secret.encode() not in changed.encode()
    assert KeyRecord.decode(b'{"unknown": 1, ' + made.encode()[1:]) == made
    for wrong in (b"", b"7", b"{}", b'{"key_id": "key_1"}', made.encode().replace(digest("old").hex().encode(), b"zz")):
        with pytest.raises(ValueError, match=r"\S"):
            KeyRecord.decode(wrong)


def test_the_old_secret_is_good_in_grace_only_and_never_longer_than_its_key() -> None:
    changed, secret = record(expires=50.0).rotate(10.0, 5.0, "")
    assert {key: found.expires for key, found in changed.principals(11.0).items()} == {
        digest("old"): 15.0,
        digest(secret): 50.0,
    }
    assert set(changed.principals(15.0)) == {digest(secret)}
    assert {found.expires for found in record(expires=12.0).rotate(10.0, 5.0, "")[0].principals(11.0).values()} == {
        12.0
    }
    assert digest("old") not in record().rotate(10.0, 0.0, "")[0].principals(10.0)
    assert record(revoked=9.0).principals(9.0) == {}


@pytest.mark.parametrize(
    ("routing", "field"),
    [
        (Routing(persona="clerk", skill="translate"), ""),
        (Routing(persona="chief", skill="translate"), "routing.persona"),
        (Routing(skill="translate"), "routing.persona"),
        (Routing(persona="clerk"), "routing.skill"),
        (None, "routing.persona"),
    ],
)
def test_a_key_is_bound_to_personas_and_skills(routing: Routing | None, field: str) -> None:
    bound = Principal(
        "acme", "key_1", frozenset(), "key", personas=frozenset({"clerk"}), skills=frozenset({"translate"})
    )
    enter(bound)
    request = ChatRequest(routing=routing)
    if field:
        with pytest.raises(PermissionDenied) as caught:
            permit(request)
        assert [violation.field for violation in caught.value.violations] == [field]
    else:
        permit(request)
    enter(None)
    permit(request)
