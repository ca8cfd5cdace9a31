"""Who issues tokens for a server: where that is read, and which documents are believed."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests.fixtures.foreign_issuer import Asked
from tests.fixtures.third_party import BINDING, WELL_KNOWN, Side, Third, third_party

from tollhouse.backends.accounts import AccountRefused, AccountSettings, ThirdParty
from tollhouse.backends.accounts.discovery import Places
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.net.connect import OriginError

pytestmark = pytest.mark.anyio

LOOPBACK = ("127.0.0.0/8",)


async def begun(side: Side, party: ThirdParty | None = None) -> dict[str, str]:
    url = await (party or side.party).begin("ada", "", BINDING)
    return {"at": url.partition("?")[0], **dict(parse_qsl(urlsplit(url).query))}


async def refused(side: Side, party: ThirdParty | None = None) -> str:
    with pytest.raises(AccountRefused) as caught:
        await (party or side.party).begin("ada", "", BINDING)
    assert "http" not in caught.value.said
    return str(caught.value)


# ---- the server's metadata
async def test_the_challenge_says_where_its_metadata_is() -> None:
    async with third_party() as side:

        def elsewhere(asked: Asked) -> Any:
            named = f'Basic realm="x", Bearer error="invalid_token", resource_metadata="{side.third.url}/meta"'
            return 401, {}, {"www-authenticate": named}

        side.third.says["/mcp"] = elsewhere
        side.third.says[WELL_KNOWN] = 500, {}, {}
        said = {"resource": f"{side.third.url}/mcp", "authorization_servers": [side.third.url]}
        side.third.says["/meta"] = 200, said, {}
        assert (await begun(side))["at"] == f"{side.third.url}/authorize"
        [asked] = side.third.to("/mcp")
        assert "authorization" not in asked.headers


async def test_without_a_challenge_it_is_at_the_well_known_places() -> None:
    async with third_party() as side:
        side.third.challenge = False
        assert (await begun(side))["scope"] == "read"
    async with third_party() as side:
        side.third.challenge = False
        side.third.says[WELL_KNOWN] = 404, {}, {}
        said = {"resource": side.third.url, "authorization_servers": [side.third.url]}
        side.third.says["/.well-known/oauth-protected-resource"] = 200, said, {}
        assert (await begun(side))["resource"] == side.third.url


async def test_a_server_without_metadata_is_its_own_issuer() -> None:
    """As of 2025-03-26."""
    async with third_party() as side:
        side.third.challenge = False
        side.third.says[WELL_KNOWN] = 404, {}, {}
        sent = await begun(side)
        assert (sent["at"], sent["resource"]) == (f"{side.third.url}/authorize", f"{side.third.url}/mcp")
        assert "scope" not in sent


@pytest.mark.parametrize(
    "resource",
    [
        "https://evil.example.com/mcp",
        "{url}/mcp2",
        "{url}/mcp/deeper",
        "{url}.evil.example.com/mcp",
        "not a url",
        "",
        None,
        7,
    ],
)
async def test_metadata_of_another_resource_are_not_believed(resource: Any) -> None:
    """They would have tokens made for it."""
    async with third_party() as side:
        said = resource.format(url=side.third.url) if isinstance(resource, str) else resource
        side.third.resource = {"resource": said}
        await refused(side)
        assert side.third.to("/register") == []


@pytest.mark.parametrize("said", [b"<html>", b"[]", b"[" * 4000, {"resource": "x", "authorization_servers": 1}])
async def test_garbled_metadata_are_none(said: Any) -> None:
    async with third_party() as side:
        side.third.says[WELL_KNOWN] = 200, said, {}
        await refused(side)


@pytest.mark.parametrize("said", ["javascript:alert(1)", "file:///etc/passwd", "https://a b/", "https://u:p@host/"])
async def test_an_issuer_must_be_a_url(said: str) -> None:
    async with third_party() as side:
        side.third.resource = {"authorization_servers": [said]}
        await refused(side)


# ---- where documents lead
async def test_documents_do_not_lead_to_this_network() -> None:
    """SSRF: the server is the operator's word, what it names is not."""
    async with third_party(apart=True) as side:
        assert "not public" in await refused(side)
        assert side.third.to("/.well-known/oauth-authorization-server") == []
    async with third_party(apart=True, allow=LOOPBACK) as side:
        assert (await begun(side))["at"] == f"{side.third.login}/authorize"
    async with third_party(apart=True) as side:  # and so is an issuer that the operator has named
        assert (await begun(side, side.node(issuer=side.third.login)))["at"] == f"{side.third.login}/authorize"


@pytest.mark.parametrize("host", ["10.0.0.7", "169.254.169.254", "[::1]", "127.1", "0x7f.1", "metadata.internal."])
@pytest.mark.parametrize(
    "named", ["resource_metadata", "authorization_servers", "registration_endpoint", "token_endpoint"]
)
async def test_no_document_names_a_private_address(host: str, named: str) -> None:
    async with third_party() as side:
        where = f"https://{host}/x"
        if named == "resource_metadata":
            side.third.says["/mcp"] = 401, {}, {"www-authenticate": f'Bearer resource_metadata="{where}"'}
        elif named == "authorization_servers":
            side.third.resource = {named: [where]}
        else:
            side.third.metadata = {named: where}
        if named != "token_endpoint":
            assert "refused" in await refused(side)
            return
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        with pytest.raises(AccountRefused):
            await side.party.finish("ada", BINDING, form)


async def test_metadata_stand_where_they_are_looked_for() -> None:
    async with third_party() as side:
        side.third.says[WELL_KNOWN] = 302, b"", {"location": "/elsewhere"}
        await refused(side)
        assert side.third.to("/elsewhere") == []


async def test_a_challenge_that_names_a_less_safe_place_is_passed_over() -> None:
    async with third_party() as side:
        named = 'Bearer resource_metadata="http://login.example.com/meta"'
        side.third.says["/mcp"] = 401, {}, {"www-authenticate": named}
        assert (await begun(side))["scope"] == "read"


@pytest.mark.parametrize(
    ("url", "than", "usable"),
    [
        ("https://login.example.com/token", "https://login.example.com", True),
        ("http://login.example.com/token", "https://login.example.com", False),
        ("http://127.0.0.1:9/token", "https://login.example.com", False),
        ("http://login.example.com/token", "http://login.example.com", False),
        ("http://127.0.0.1:9/token", "http://127.0.0.1:9", True),
        ("http://mcp.internal/token", "http://mcp.internal", True),  # the operator's own
    ],
)
async def test_nothing_is_less_safe_than_who_names_it(url: str, than: str, usable: bool) -> None:
    places = Places(AccountSettings("files", "http://mcp.internal/mcp"), Client(Clock()))
    assert (places.flaw(url, than) == "") == usable


async def test_metadata_are_those_of_the_issuer_that_was_named() -> None:
    """RFC 8414 section 3.3: else anybody could put his endpoints in another's place."""
    async with third_party() as side:
        side.third.metadata = {"issuer": "https://login.example.com"}
        assert "another issuer" in await refused(side)


async def test_a_lone_slash_makes_no_other_issuer() -> None:
    for named, says in (("", "/"), ("/", "")):
        async with third_party() as side:
            side.third.resource = {"authorization_servers": [side.third.url + named]}
            side.third.metadata = {"issuer": side.third.url + says}
            assert (await begun(side))["at"] == f"{side.third.url}/authorize"
    async with third_party() as side:
        side.third.resource = {"authorization_servers": [f"{side.third.url}/tenant"]}
        side.third.says["/.well-known/oauth-authorization-server/tenant"] = (
            200, side.third.document() | {"issuer": f"{side.third.url}/tenant/"}, {},
        )  # fmt: skip
        await refused(side)


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint"])
@pytest.mark.parametrize("said", [None, "", "http://login.example.com/x", "javascript:alert(1)", "/token", 7])
async def test_endpoints_are_usable_or_nobody_is_sent_there(name: str, said: Any) -> None:
    async with third_party() as side:
        side.third.metadata = {name: said}
        await refused(side)


@pytest.mark.parametrize(("said", "usable"), [(["S256"], True), (["plain"], False), ([], False), (None, False)])
async def test_who_cannot_do_pkce_gets_no_consent(said: Any, usable: bool) -> None:
    async with third_party() as side:
        side.third.metadata = {"code_challenge_methods_supported": said}
        if usable:
            await begun(side)
        else:
            assert "S256" in await refused(side)


async def test_an_issuer_that_the_operator_has_named_need_not_say_that_it_can() -> None:
    async with third_party() as side:
        side.third.metadata = {"code_challenge_methods_supported": None}
        assert (await begun(side, side.node(issuer=side.third.url)))["code_challenge_method"] == "S256"


# ---- how often
async def test_nothing_is_read_again_within_the_hour_and_failures_after_seconds() -> None:
    async with third_party() as side:
        side.third.says["/.well-known/oauth-authorization-server"] = 500, {}, {}
        side.third.says["/.well-known/openid-configuration"] = 500, {}, {}
        await refused(side)
        asked = len(side.third.asked)
        await refused(side)
        assert len(side.third.asked) == asked
        side.third.says.clear()
        side.now.value += 6
        await begun(side)
        asked = len(side.third.asked)
        await begun(side)
        assert len(side.third.asked) == asked
        side.now.value += 3601
        side.third.says["/.well-known/oauth-authorization-server"] = 500, {}, {}
        side.third.says["/.well-known/openid-configuration"] = 500, {}, {}
        await begun(side)  # what was known serves on


async def test_where_people_agree_is_known_better_and_better() -> None:
    async with third_party(apart=True, allow=LOOPBACK) as side:
        assert side.party.host == urlsplit(side.third.url).netloc
        await begun(side)
        assert side.party.host == urlsplit(side.third.login).netloc
        assert await side.party.asks("ada") == ("read",)


async def test_roots_that_cannot_be_used_are_a_mistake_at_once() -> None:
    async with third_party(third=Third()) as side:
        with pytest.raises(OriginError):
            side.node(ca="/nowhere/roots.pem")


async def test_what_will_be_asked_for_is_found_out_before_anything_is_begun() -> None:
    async with third_party() as side:
        side.third.metadata = {"authorization_endpoint": "https://login.example.com/authorize"}
        assert side.party.host != "login.example.com"
        assert await side.party.asks("ada") == ("read",)
        assert side.party.host == "login.example.com"
        assert side.third.registered == []
    async with third_party() as side:
        side.third.says["/.well-known/oauth-authorization-server"] = 503, {}, {}
        assert await side.party.asks("ada") == ()
    async with third_party(scopes=("mine",)) as side:
        assert await side.party.asks("ada") == ("mine",)
        assert side.third.asked == []
