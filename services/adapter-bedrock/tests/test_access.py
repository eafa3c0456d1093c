"""The way in: signatures as botocore makes them, keys and chains, and what is said where there is none."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from maestro_adapter_bedrock import access as access_module
from maestro_adapter_bedrock.access import Access
from maestro_adapter_bedrock.models import path_of
from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_adapter_bedrock.signature import Keys, sign
from maestro_sdk.errors import ProviderAuth
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Stall, Wait

URL = "https://bedrock-runtime.us-east-1.amazonaws.com/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
PROFILE = (
    "[profile work]\nregion = eu-central-1\naws_access_key_id = AKPROFILE\naws_secret_access_key = profile-secret\n"
)


def settings(**fields: Any) -> BedrockSettings:
    return BedrockSettings.model_validate(fields)


async def test_the_signature_is_botocores(keys: dict[str, Any]) -> None:
    """The same call, signed by botocore with the time of ours."""
    body = b'{"messages":[]}'
    ours = await Access(settings(region="us-east-1", **keys)).headers(URL, body)
    signer = botocore.auth.SigV4Auth(
        Credentials("AKIDEXAMPLE", "a/secret+key", "a-session-token"), "bedrock", "us-east-1"
    )
    theirs = AWSRequest(
        "POST",
        URL,
        headers={
            "Content-Type": "application/json",
            "X-Amz-Date": ours["x-amz-date"],
            "X-Amz-Security-Token": "a-session-token",
        },
        data=body,
    )
    theirs.context["timestamp"] = ours["x-amz-date"]
    canonical = signer.canonical_request(theirs)
    # The path is encoded twice: as it goes over the wire, and once more for the signature.
    assert "\n/model/anthropic.claude-sonnet-4-5-20250929-v1%253A0/converse\n" in canonical
    signature = signer.signature(signer.string_to_sign(theirs, canonical), theirs)
    assert ours["authorization"].endswith(f"Signature={signature}")
    assert "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token" in ours["authorization"]


@given(
    st.text(max_size=20),
    # An id of dots alone would be no segment of a path.
    st.text("abc-.:/%~ é", min_size=1, max_size=20).filter(lambda text: set(text) != {"."}),
    st.binary(max_size=40),
    st.one_of(st.none(), st.text("ab+/=", min_size=1, max_size=9)),
    st.datetimes(timezones=st.just(datetime.UTC)),
    st.sampled_from(["https://host.example", "http://127.0.0.1:8080", "https://HOST.example:443/prefix"]),
)
def test_any_signature_is_botocores(
    secret: str, model_id: str, body: bytes, token: str | None, moment: datetime.datetime, base_url: str
) -> None:
    url = f"{base_url}{path_of(model_id)}/converse"
    ours = sign(url, body, Keys("AKID", secret, token), "eu-west-1", moment)
    signer = botocore.auth.SigV4Auth(Credentials("AKID", secret, token), "bedrock", "eu-west-1")
    theirs = AWSRequest("POST", url, headers={"Content-Type": "application/json"}, data=body)
    theirs.headers["X-Amz-Date"] = theirs.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
    if token:
        theirs.headers["X-Amz-Security-Token"] = token
    signature = signer.signature(signer.string_to_sign(theirs, signer.canonical_request(theirs)), theirs)
    assert ours["authorization"].endswith(f"Signature={signature}")
    assert f"SignedHeaders={signer.signed_headers(signer.headers_to_sign(theirs))}," in ours["authorization"]


async def test_what_was_signed_is_what_goes_over_the_wire(ask: Any, provider_at: Any) -> None:
    """A server that checks signatures as AWS does: out of the request that arrived."""
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a b"
    async with FaultServer() as server, provider_at(server.url, models=[{"name": "mine", "model_id": arn}]) as provider:
        server.on("POST", wire.PATH, wire.text())
        for model in ("bedrock/mine", "bedrock/amazon.nova-lite-v1:0"):
            await provider.complete(ask("hi — é", model=model))
        for seen in server.requests:
            request = AWSRequest("POST", f"http://{seen.headers['host']}{seen.path}", data=seen.body)
            for name in ("content-type", "x-amz-date", "x-amz-security-token"):
                request.headers[name] = seen.headers[name]
            request.context["timestamp"] = seen.headers["x-amz-date"]
            signer = botocore.auth.SigV4Auth(Credentials("AKIDEXAMPLE", "a/secret+key"), "bedrock", "us-east-1")
            signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
            assert seen.headers["authorization"].endswith(f"Signature={signature}")


async def test_an_api_key_needs_no_signature(ask: Any, provider_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "bedrock-api-key-1")
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.text())
        await provider.complete(ask())
        headers = server.requests[0].headers
    assert headers["authorization"] == "Bearer bedrock-api-key-1"
    assert "x-amz-date" not in headers


async def test_without_region_or_credentials_it_says_what_to_do(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = BedrockProvider(settings())
    assert "AWS_REGION" in await provider.check()
    with pytest.raises(ProviderAuth, match="there is no region"):
        await provider.complete(ask())
    with pytest.raises(ProviderAuth, match="there is no region"):
        async for _ in provider.stream(ask()):
            pass
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    provider = BedrockProvider(settings())
    assert "AWS_BEARER_TOKEN_BEDROCK" in await provider.check()
    with pytest.raises(ProviderAuth, match="there are no credentials") as caught:
        await provider.complete(ask())
    assert caught.value.metadata["model"].startswith("bedrock/anthropic")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKLATE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "late-secret")
    assert await provider.check() == ""
    await provider.close()


async def test_a_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(PROFILE)
    monkeypatch.setenv("AWS_PROFILE", "work")
    access = Access(settings())
    assert await access.region() == "eu-central-1"
    assert await access.check() == ""
    headers = await access.headers(URL, b"{}")
    assert "Credential=AKPROFILE/" in headers["authorization"]
    assert "/eu-central-1/bedrock/aws4_request" in headers["authorization"]


async def test_a_profile_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "gone")
    assert "gone" in await Access(settings(region="us-east-1")).check()
    assert "gone" in await Access(settings()).check()


async def test_a_role_of_the_machine_is_asked_for_once_and_again_when_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Credentials that expire, from the endpoint that containers have."""
    async with FaultServer() as server:
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        for number in (1, 2):
            role = {"AccessKeyId": f"AKROLE{number}", "SecretAccessKey": "s", "Token": "t", "Expiration": expires}
            server.on("GET", "/role", SendJson(role))
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/role")
        access = Access(settings(region="us-east-1"))
        found = [await access.headers(URL, b"{}") for _ in range(3)]
        assert all("Credential=AKROLE1/" in headers["authorization"] for headers in found)
        assert found[0]["x-amz-security-token"] == "t"
        assert len(server.requests) == 1
        access.forget()
        assert "Credential=AKROLE2/" in (await access.headers(URL, b"{}"))["authorization"]


async def test_a_metadata_service_that_never_answers_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "PATIENCE", 0.3)
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    async with FaultServer() as server:
        server.on("PUT", "/latest/api/token", Stall())
        server.on("GET", "*", Stall())
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        access = Access(settings(region="us-east-1"))
        await access.session()
        begun = time.monotonic()
        said = await asyncio.wait_for(access.check(), 5)
        assert "there are no credentials" in said
        # The next question is answered out of memory: health is asked often.
        assert "there are no credentials" in await access.check()
        assert time.monotonic() - begun < 3
        assert len(server.requests) == 1


def role_at(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys AKROLE1, AKROLE2, … of a role, from the endpoint that containers have."""
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    for number in range(1, 5):
        role = {"AccessKeyId": f"AKROLE{number}", "SecretAccessKey": "s", "Token": "t", "Expiration": expires}
        server.on("GET", "/role", SendJson(role))
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/role")


def refuse_first_role(server: FaultServer, code: str) -> None:
    """Refuses calls that AKROLE1 signed."""

    def reply(seen: Seen) -> Any:
        if "Credential=AKROLE1/" in seen.headers["authorization"]:
            return Wait(0.05), Headers(403, {"x-amzn-errortype": code}), SendJson({"message": "no"})
        return wire.text()(seen)

    server.on("POST", wire.PATH, reply)


@pytest.mark.parametrize("streams", [True, False])
async def test_expired_keys_are_replaced_once_for_all_calls(
    streams: bool, ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FaultServer() as server:
        role_at(server, monkeypatch)
        refuse_first_role(server, "ExpiredTokenException")
        provider = BedrockProvider(settings(base_url=server.url, region="us-east-1"))

        async def call() -> Any:
            if streams:
                return [event async for events in provider.stream(ask()) for event in events]
            return await provider.complete(ask())

        answers = await asyncio.gather(*(call() for _ in range(6)))
        await provider.close()
        assert all(events[-1].HasField("finish") for events in answers)
        assert sum(seen.path == "/role" for seen in server.requests) == 2
        assert len(server.requests) == 2 + 12


async def test_what_keys_may_not_do_is_no_reason_to_replace_them(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer() as server:
        role_at(server, monkeypatch)
        refuse_first_role(server, "AccessDeniedException")
        provider = BedrockProvider(settings(base_url=server.url, region="us-east-1"))
        for _ in range(2):
            with pytest.raises(ProviderAuth, match="access to the model"):
                await provider.complete(ask())
        await provider.close()
        assert [seen.method for seen in server.requests] == ["GET", "POST", "POST"]


async def test_refused_keys_without_others_are_tried_once(
    ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(PROFILE)
    monkeypatch.setenv("AWS_PROFILE", "work")
    async with FaultServer() as server:
        body = SendJson({"message": "expired"})
        server.on("POST", wire.PATH, Headers(403, {"x-amzn-errortype": "ExpiredTokenException"}), body)
        provider = BedrockProvider(settings(base_url=server.url))
        with pytest.raises(ProviderAuth):
            await provider.complete(ask())
        with pytest.raises(ProviderAuth):
            await provider.complete(ask())
        assert len(server.requests) == 2
        await provider.close()
