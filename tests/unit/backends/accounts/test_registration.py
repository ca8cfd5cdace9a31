"""Who the gateway is for an issuer: configured, by its metadata document, or registered."""

import asyncio
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests.fixtures.third_party import BINDING, CALLBACK, DOCUMENT, START, third_party

from tollhouse.backends.accounts import AccountRefused, OurAddresses, ThirdParty

pytestmark = pytest.mark.anyio

OURS = OurAddresses(START, CALLBACK, DOCUMENT)


async def client_id(party: ThirdParty) -> str:
    url = await party.begin("ada", "", BINDING)
    return dict(parse_qsl(urlsplit(url).query))["client_id"]


async def refused(party: ThirdParty) -> str:
    with pytest.raises(AccountRefused) as caught:
        await party.begin("ada", "", BINDING)
    return str(caught.value)


async def test_a_document_comes_before_a_registration() -> None:
    async with third_party(ours=OURS) as side:
        side.third.metadata = {"client_id_metadata_document_supported": True}
        assert await client_id(side.party) == DOCUMENT
        assert side.third.registered == []
        await side.connect()
        [asked] = side.third.to("/token")
        assert asked.form["client_id"] == DOCUMENT
        assert "authorization" not in asked.headers
        assert await side.token() == "access-1"


async def test_a_document_that_nobody_outside_can_read_is_not_named() -> None:
    ours = OurAddresses(START, CALLBACK, "http://127.0.0.1:8080/oauth/upstream/client")
    async with third_party(ours=ours) as side:
        side.third.metadata = {"client_id_metadata_document_supported": True}
        assert await client_id(side.party) == "client-1"


async def test_it_is_registered_once_for_all_and_kept() -> None:
    async with third_party() as side:
        node = side.node()
        parties = [side.party, node, side.party, node]
        used = set(await asyncio.gather(*map(client_id, parties)))
        assert len(used) == 1  # one of those that raced counts, for all of them
        assert {await client_id(party) for party in parties} == used
        asked = side.third.registered[0]
        assert asked["redirect_uris"] == [CALLBACK]
        assert asked["grant_types"] == ["authorization_code", "refresh_token"]
        assert asked["token_endpoint_auth_method"] == "client_secret_basic"
        assert asked["application_type"] == "web"
        assert asked["scope"] == "read"


async def test_a_redirect_to_this_machine_is_a_native_applications() -> None:
    async with third_party(ours=OurAddresses(START, "http://127.0.0.1:8080/oauth/upstream/callback/files")) as side:
        side.third.metadata = {"grant_types_supported": ["authorization_code"]}
        await client_id(side.party)
        assert side.third.registered[0]["application_type"] == "native"
        assert side.third.registered[0]["grant_types"] == ["authorization_code"]


async def test_one_whose_secret_ends_is_made_anew() -> None:
    async with third_party() as side:
        ends = {"client_id": "short", "client_secret": "s", "client_secret_expires_at": int(side.now()) + 100}
        side.third.says["/register"] = 201, ends, {}
        assert await client_id(side.party) == "short"
        side.now.value += 101
        side.third.says["/register"] = (
            201,
            {"client_id": "next", "client_secret": "s", "client_secret_expires_at": 0},
            {},
        )
        assert await client_id(side.party) == "next"


@pytest.mark.parametrize("way", ["token", "callback"])
async def test_one_that_the_issuer_does_not_know_any_more_is_made_anew(way: str) -> None:
    async with third_party() as side:
        form = side.third.agreed(
            await side.party.begin("ada", "", BINDING), error="" if way == "token" else "invalid_client"
        )
        side.third.says["/token"] = 401, {"error": "invalid_client"}, {}
        with pytest.raises(AccountRefused):
            await side.party.finish("ada", BINDING, form)
        assert await client_id(side.party) == "client-2"


@pytest.mark.parametrize(
    "says",
    [
        (400, {"error": "invalid_redirect_uri"}, {}), (403, b"", {}), (302, b"", {"location": "/elsewhere"}),
        (201, b"<html>", {}),
        (201, [], {}), (201, {}, {}), (201, {"client_id": ""}, {}), (201, {"client_id": "a\nb"}, {}),
        (201, {"client_id": "a", "client_secret": "s\n"}, {}), (201, {"client_id": "a", "client_secret": 5}, {}),
        (201, {"client_id": "a", "token_endpoint_auth_method": "private_key_jwt"}, {}),
        (201, {"client_id": "a", "token_endpoint_auth_method": "client_secret_basic"}, {}),
        (201, {"client_id": "a", "client_secret": "s", "client_secret_expires_at": "never"}, {}), None,
    ],
)  # fmt: skip
async def test_a_registration_that_cannot_be_used_sends_nobody_anywhere(says: Any) -> None:
    async with third_party() as side:
        side.third.says["/register"] = lambda asked: says
        await refused(side.party)
        assert side.third.to("/elsewhere") == []
        del side.third.says["/register"]
        assert await client_id(side.party) == "client-1"


async def test_an_issuer_that_registers_nobody_needs_the_operator() -> None:
    async with third_party() as side:
        side.third.metadata = {"registration_endpoint": None}
        assert "client_id" in await refused(side.party)


@pytest.mark.parametrize(
    ("supported", "wanted"),
    [
        (["client_secret_post", "none"], "client_secret_post"), (["none"], "none"), (None, "client_secret_basic"),
        (["private_key_jwt"], "client_secret_basic"),
    ],
)  # fmt: skip
async def test_the_safest_way_to_authenticate_that_both_know_is_asked_for(supported: Any, wanted: str) -> None:
    async with third_party() as side:
        side.third.metadata = {"token_endpoint_auth_methods_supported": supported}
        await client_id(side.party)
        assert side.third.registered[0]["token_endpoint_auth_method"] == wanted


async def test_what_the_issuer_has_made_of_us_is_what_we_are() -> None:
    async with third_party() as side:
        made = {"client_id": "public", "token_endpoint_auth_method": "none", "client_secret": "of no use"}
        side.third.says["/register"] = 201, {**made, "client_secret_expires_at": 1}, {}
        await side.connect()
        await side.party.begin("ada", "", BINDING)
        assert len(side.third.to("/register")) == 1
        [asked] = side.third.to("/token")
        assert asked.form["client_id"] == "public"
        assert "client_secret" not in asked.form
        assert "authorization" not in asked.headers


@pytest.mark.parametrize(("supported", "by_basic"), [(["client_secret_post"], False), (None, True)])
async def test_a_secret_goes_as_the_issuer_takes_it(supported: Any, by_basic: bool) -> None:
    async with third_party(client_id="us", client_secret="our secret") as side:
        side.third.metadata = {"token_endpoint_auth_methods_supported": supported}
        await side.connect()
        [asked] = side.third.to("/token")
        assert ("authorization" in asked.headers) == by_basic
        assert ("client_secret" in asked.form) != by_basic
