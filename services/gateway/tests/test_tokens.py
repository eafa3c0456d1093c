"""Tokens of an identity provider: what is taken, and what is refused with which reason."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from maestro_gateway.identity import Keys, admitted
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.key_set import KeySet, keys_of
from maestro_gateway.identity.tokens import TokenVerifier
from maestro_sdk.errors import PermissionDenied, Unauthenticated
from maestro_sdk.service.gateways import JwtConfig
from maestro_sdk.testing.servers import free_port

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE: dict[str, tuple[str, Any]] = {
    "r": ("RS256", RSA),
    "e": ("ES256", ec.generate_private_key(ec.SECP256R1())),
    "d": ("EdDSA", ed25519.Ed25519PrivateKey.generate()),
}
SECRET = {"kty": "oct", "kid": "s", "alg": "HS256", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}


def public(kid: str) -> dict[str, Any]:
    algorithm, key = PRIVATE[kid]
    made: Any = jwt.get_algorithm_by_name(algorithm)
    return {**json.loads(made.to_jwk(key.public_key())), "kid": kid, "use": "sig"}


def key_set(*kids: str) -> bytes:
    return json.dumps({"keys": [SECRET, *(public(kid) for kid in kids)]}).encode()


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    found: dict[str, Any] = {
        "iss": "https://issuer",
        "aud": "maestro",
        "exp": now + 60,
        "sub": "ada@example.org",
        "tenant": "acme",
    }
    found |= {"scope": "openid chat operator"} | more
    return {name: value for name, value in found.items() if value is not None}


def signed(kid: str = "r", **more: Any) -> str:
    algorithm, key = PRIVATE[kid]
    return jwt.encode(claims(**more), key, algorithm, headers={"kid": kid})


def forged(header: dict[str, Any], signature: bytes = b"") -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    return ".".join([part(json.dumps(header).encode()), part(json.dumps(claims()).encode()), part(signature)])


def hmac_with_the_public_key() -> str:
    # What a verifier takes that lets the token choose: the public key as the secret of an HMAC.
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    made: Any = jwt.get_algorithm_by_name("HS256")
    head, _, _ = forged({"alg": "HS256", "typ": "JWT", "kid": "r"}).rpartition(".")
    signature: bytes = made.sign(head.encode(), pem)
    return f"{head}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.fixture
async def verifier(tmp_path: Path) -> TokenVerifier:
    file = tmp_path / "jwks.json"
    file.write_bytes(key_set("r", "e", "d"))
    config = JwtConfig.model_validate({"issuer": "https://issuer", "audience": "maestro", "jwks_file": file})
    keys = KeySet(config, tmp_path / "kept.json")
    await keys.open()
    return TokenVerifier(config, keys)


@pytest.mark.parametrize("kid", ["r", "e", "d"])
def test_a_good_token_names_tenant_scopes_and_subject(verifier: TokenVerifier, kid: str) -> None:
    found = verifier.verify(signed(kid), time.time())
    # No provider makes an operator, and scopes of others mean nothing here.
    assert (found.tenant, found.scopes, found.source) == ("acme", frozenset({"chat"}), "jwt")
    assert (found.subject, found.key_id[:4], "ada" in found.key_id) == ("ada@example.org", "jwt_", False)
    assert 60 <= found.expires - time.time() <= 91


def test_a_token_is_verified_once(verifier: TokenVerifier) -> None:
    token, now = signed(), time.time()
    assert verifier.verify(token, now) is verifier.verify(token, now + 50)
    assert verifier.verify(token, now) is not verifier.verify(token, now + 61)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: signed(exp=int(time.time()) - 31), "it has expired"),
        (lambda: signed(nbf=int(time.time()) + 60), "it is not valid yet"),
        (lambda: signed(aud="others"), "it is not for the audience maestro"),
        (lambda: signed(iss="https://evil"), "it is not from the issuer https://issuer"),
        (lambda: signed(exp=None), "it lacks the claim 'exp'"),
        (lambda: signed(aud=None), "it lacks the claim 'aud'"),
        (lambda: signed(iss=None), "it lacks the claim 'iss'"),
        (lambda: signed(tenant=None), "it lacks the claim 'tenant', which names the tenant"),
        (lambda: signed(tenant="a/b"), "its claim 'tenant' names no tenant"),
        (lambda: signed(tenant=["acme"]), "its claim 'tenant' names no tenant"),
        (lambda: signed(exp="never"), "it is malformed"),
        (lambda: forged({"alg": "none", "kid": "r"}), "it has to be signed with RS256"),
        (lambda: forged({"alg": "ES256", "kid": "r"}), "it has to be signed with RS256"),
        (hmac_with_the_public_key, "it has to be signed with RS256"),
        (lambda: forged({"alg": "RS256", "kid": "r"}, b"x" * 256), "its signature is wrong"),
        (lambda: signed()[:-40] + "A" * 40, "its signature is wrong"),
        (lambda: forged({"alg": "RS256", "kid": 7}), ""),
        (lambda: "eyJ.x.y", "its header can't be read"),
        (lambda: "eyJ" + "x" * 9000 + "..", "it is longer than 8192 characters"),
    ],
)
def test_anything_else_is_refused_with_its_reason(
    verifier: TokenVerifier, make: Callable[[], str], message: str
) -> None:
    token = make()
    with pytest.raises(Unauthenticated) as caught:
        verifier.verify(token, time.time())
    assert message in caught.value.message
    assert token not in caught.value.message


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"keys": 1}', b'{"keys": [1, {}]}', json.dumps({"keys": [SECRET]}).encode()]
)
def test_a_set_without_a_usable_key_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        keys_of(data)


class Provider:
    """An identity provider: what it serves, piece by piece, and how often it was asked."""

    def __init__(self) -> None:
        self.served, self.asked = [key_set("r")], 0
        self.port = free_port()
        application = web.Application()
        application.router.add_get("/jwks", self._serve)
        self.runner = web.AppRunner(application)

    async def start(self) -> None:
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in self.served:
            await response.write(piece)
            # The reader gets this piece before the next one is there.
            await asyncio.sleep(0.01)
        await response.write_eof()
        return response


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    await made.start()
    yield made
    await made.runner.cleanup()


async def test_a_new_key_of_the_provider_is_learned_and_invented_ones_cause_no_storm(
    provider: Provider, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{provider.port}/jwks"
    config = JwtConfig.model_validate({"issuer": "https://issuer", "audience": "maestro", "jwks_url": url})
    found = KeySet(config, tmp_path / "jwks.json")
    authenticate = authenticator(Keys([], TokenVerifier(config, found)))

    async def ask(token: str, method: str = "/maestro.llm.v1.ChatService/Chat") -> str:
        answer = authenticate((("authorization", f"Bearer {token}"),), method)
        return answer if isinstance(answer, str) else await answer

    # The first token comes before the keys were ever read: they are read for it.
    assert await ask(signed("r")) == "acme"
    assert (provider.asked, admitted().source) == (1, "jwt")
    with pytest.raises(PermissionDenied, match="'jobs'"):
        await ask(signed("r"), "/maestro.job.v1.JobService/GetJob")
    for _ in range(50):
        with pytest.raises(Unauthenticated, match="is not known to have"):
            await ask(signed("e"))
    assert provider.asked == 1
    await provider.runner.cleanup()
    # The provider is away, and another gateway starts: what was read last stays in force.
    later = KeySet(config, tmp_path / "jwks.json")
    await later.open()
    assert "can't be read" in later.trouble
    verifier = TokenVerifier(config, later)
    assert verifier.verify(signed("r"), time.time()).tenant == "acme"
    # Where it is, and what is wrong there, is the operator's business.
    with pytest.raises(Unauthenticated, match=r"known to have \(they cannot be read now\)$"):
        verifier.verify(signed("e"), time.time())


async def test_keys_that_come_in_pieces_are_read_whole_and_endless_ones_not(provider: Provider, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{provider.port}/jwks"
    config = JwtConfig.model_validate({"issuer": "https://issuer", "audience": "maestro", "jwks_url": url})
    found, data = KeySet(config, tmp_path / "jwks.json"), key_set("r", "e", "d")
    provider.served = [data[:400], data[400:]]
    await found.open()
    assert (found.trouble, [kid for kid in "red" if found.find(kid)]) == ("", ["r", "e", "d"])
    provider.served = [b" " * 2**19] * 4
    await found.open()
    assert found.trouble == "its keys can't be read: more than 1048576 bytes"
    assert found.find("r") is not None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "either jwks_url or jwks_file"),
        ({"jwks_url": "https://i/k", "jwks_file": "/k"}, "either jwks_url or jwks_file"),
        ({"jwks_url": "http://issuer/keys"}, "has to be https"),
    ],
)
def test_a_provider_is_configured_safely(more: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JwtConfig.model_validate({"issuer": "https://issuer", "audience": "maestro", **more})
