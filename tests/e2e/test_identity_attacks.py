"""The attacks of RFC 9700 and of MCP's security pages, one test each, at a gateway that runs: each is refused with the
error that its specification names, what should work beside it still does, and nothing secret is in the log.

    attack                          test
    code injection                  test_a_stolen_code_is_of_no_use
    PKCE downgrade                  test_pkce_cannot_be_left_out
    mix-up                          test_an_answer_says_whose_it_is
    redirect tricks                 test_codes_go_where_the_client_said
    open redirect                   test_nobody_is_led_away
    code replay                     test_a_code_counts_once
    refresh replay                  test_a_refresh_token_counts_once
    audience confusion              tokens: test_a_token_is_for_one_place
    `none`, HS and RS confused      tokens: test_a_signature_is_one
    `kid`, `jku`, `x5u` injection   tokens: test_a_header_names_no_place
    embedded JWK                    tokens: test_a_token_brings_no_key
    huge tokens                     tokens: test_huge_tokens_cost_little
    clock skew                      tokens: test_clocks_may_differ_so_much_and_no_more
    expired and future tokens       tokens: test_a_token_has_its_time
    CSRF                            test_nobody_else_sends_a_form
    clickjacking                    test_no_page_can_be_framed
    confused deputy                 test_what_one_client_was_allowed_no_other_has
    SSRF by metadata                test_nothing_inside_is_fetched
    JWKS floods                     tokens: test_unknown_keys_are_not_looked_for_on_and_on
    token in the query              tokens: test_a_token_stands_in_no_address
    enumeration                     test_who_is_there_does_not_show
    brute force                     test_who_guesses_waits
    DPoP replay                     tokens: test_a_proof_counts_once_and_for_one_thing
    header injection by claims      tokens: test_a_claim_writes_no_field_and_no_line

Those with `tokens:` are in test_identity_attacks_tokens.py. More, with every variant, are where an attack is named in
tests/unit/issuer, and in tests/unit/policies/authenticate/test_attacks.py; races between nodes (one code, one proof) in
tests/unit/issuer/grants and test_identity_nodes.py. Token passthrough: test_authenticate.py. Sessions of MCP:
test_mcp_sessions.py.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.fixtures.auth_provider import PASSWORD, Browser, registered
from tests.fixtures.besieged import EC, SECRET, Besieged, Trap, besieged, is_bad, refused, signed, written
from tests.fixtures.issuer import claims_of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(tmp_path_factory.mktemp("besieged")) as it:
        yield it


@pytest.fixture
def it(house: Besieged) -> Iterator[Besieged]:
    """The gateway; afterwards its log is looked at."""
    house.begin()
    house.keep(PASSWORD, SECRET)
    yield house
    house.end()


# ---- codes


async def test_a_stolen_code_is_of_no_use(it: Besieged) -> None:
    """RFC 9700 4.5: whoever brings another's code has no verifier for it, and then nobody has one any more."""
    async with Browser(it) as ada:
        flow = it.flow()
        code = await it.code(ada, flow)
        async with Browser(it) as eve:
            of_eve = it.flow()
            await it.code(eve, of_eve, "bob")
        refused(await of_eve.redeem(code), "invalid_grant")
        refused(await flow.redeem(code), "invalid_grant")
        for changed in ({"client_id": "other"}, {"redirect_uri": "https://app.example.com/other"}):
            flow = it.flow()
            refused(await flow.redeem(await it.code(ada, flow), **changed), "invalid_grant")
        flow = it.flow()
        code = await it.code(ada, flow)
        refused(it.token(grant_type="authorization_code", client_id="native", code=code, code_verifier=flow.verifier,
                         redirect_uri="https://app.example.com/cb"), "invalid_grant")  # fmt: skip
        flow = it.flow()
        assert (await flow.redeem(await it.code(ada, flow))).status_code == 200


async def test_pkce_cannot_be_left_out(it: Besieged) -> None:
    """RFC 9700 4.8.2: not by the request, and not by who redeems a code, whether or not the client has a secret."""
    for client in ({"client_id": "app"}, {"client_id": "native", "redirect_uri": "http://127.0.0.1:5/cb"}):
        verifier = secrets.token_urlsafe(32)
        for changed in (
            {"code_challenge": None, "code_challenge_method": None},
            {"code_challenge": verifier, "code_challenge_method": "plain"},
            {"code_challenge": verifier, "code_challenge_method": None},
            {"code_challenge": "short"},
        ):
            async with Browser(it) as ada:
                await ada.get(it.flow(**client, **changed).url)
                assert ada.page.forms == []  # nobody is asked to log in for it
                assert "invalid_request" in (ada.left or ada.response.text)
                assert "code=" not in ada.left
        async with Browser(it) as ada:
            for form in ({"code_verifier": ""}, {"code_verifier": "x" * 43}):
                flow = it.flow(**client)
                refused(await flow.redeem(await it.code(ada, flow), **form), "invalid_grant")
    metadata = it.http.get("/.well-known/oauth-authorization-server").json()
    assert metadata["code_challenge_methods_supported"] == ["S256"]


async def test_a_code_counts_once(it: Besieged) -> None:
    """RFC 6749 4.1.2: of several at the same time one gets tokens; and the next time those end."""
    async with Browser(it) as ada:
        flow = it.flow()
        code = await it.code(ada, flow)
        answers = await asyncio.gather(*(flow.redeem(code) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    flow = it.flow()
    async with Browser(it) as ada:
        code = await it.code(ada, flow)
    told = (await flow.redeem(code)).json()
    assert it.mcp(told["access_token"]).status_code == 200
    refused(await flow.redeem(code), "invalid_grant")
    is_bad(it.mcp(told["access_token"]))
    refused(it.refresh(told["refresh_token"]), "invalid_grant")


async def test_a_refresh_token_counts_once(it: Besieged) -> None:
    """RFC 9700 4.14.2: where an old one comes, nobody knows who has the new one, and all of the grant ends."""
    first = await it.tokens()
    second = it.refresh(first["refresh_token"]).json()
    third = it.refresh(second["refresh_token"]).json()
    forged = first["refresh_token"].rsplit(".", 1)[0] + "." + secrets.token_urlsafe(32)
    refused(it.refresh(forged), "invalid_grant")
    assert it.mcp(third["access_token"]).status_code == 200  # who forges ends nothing
    refused(it.refresh(third["refresh_token"], "other"), "invalid_grant")
    refused(it.refresh(first["refresh_token"]), "invalid_grant")
    refused(it.refresh(third["refresh_token"]), "invalid_grant")
    for told in (first, second, third):
        is_bad(it.mcp(told["access_token"]))


# ---- where answers go


async def test_an_answer_says_whose_it_is(it: Besieged) -> None:
    """RFC 9700 4.4, RFC 9207: our answers say `iss`, errors too; and where we are the client, an answer counts for the
    provider that was asked, at its own address, and for no other."""
    async with Browser(it) as ada:
        await it.code(ada, it.flow())
        assert ada.answer["iss"] == it.url
        await ada.get(it.flow(scope="unknown").url)
        assert (ada.answer["error"], ada.answer["iss"]) == ("invalid_scope", it.url)
    honest, evil = (f"{it.there.url}/{name}" for name in ("honest", "evil"))
    code = it.kept(secrets.token_urlsafe(24))
    for asked, at, iss in (
        ("evil", "evil", honest),
        ("evil", "honest", honest),
        ("honest", "evil", evil),
        ("honest", "honest", evil),
        ("honest", "honest", ""),
    ):
        async with Browser(it) as ada:
            await ada.get(it.flow().url)
            await ada.get(next(link for link in ada.page.links if f"/login/{asked}" in link))
            state = httpx.URL(ada.left).params["state"]
            before = len(it.there.asked)
            params = {"code": code, "state": state, **({"iss": iss} if iss else {})}
            await ada.get(str(httpx.URL(f"{it.url}/oauth/callback/{at}", params=params)))
            assert not ada.cookie()
            assert [path for path, _, _ in it.there.asked[before:] if "token" in path] == []
    async with Browser(it) as ada:
        await ada.get(it.flow().url)
        await ada.get(next(link for link in ada.page.links if "/login/honest" in link))
        state = httpx.URL(ada.left).params["state"]
        params = {"code": code, "state": state, "iss": honest}
        await ada.get(str(httpx.URL(f"{it.url}/oauth/callback/honest", params=params)))
    assert it.there.count("/honest/token") == 1
    assert it.there.count("/evil/token") == 0


async def test_codes_go_where_the_client_said(it: Besieged) -> None:
    """RFC 9700 4.1: letter by letter, but for the port of a program on the user's machine."""
    good = "https://app.example.com/cb"
    for uri in (
        f"{good}/", f"{good}x", f"{good}?x=1", f"{good}#", f"{good}#x", f"{good}/../evil", f"{good};x", f"{good}%20",
        "https://app.example.com/CB", "https://APP.example.com/cb", "https://app.example.com:443/cb",
        "http://app.example.com/cb", "https://app.example.com.evil.example/cb", "https://app.example.com@evil.example/cb",
        "https://evil.example/cb", "https://evil.example/?u=https://app.example.com/cb", "//app.example.com/cb",
        "https://app.example.com\\@evil.example/cb", "https://app.example.com/c%62", "https://xapp.example.com/cb",
        "javascript:alert(1)", "data:text/html,x", f"{good}\r\nx-injected: 1", "",
    ):  # fmt: skip
        async with Browser(it) as ada:
            answer = await ada.get(it.flow(redirect_uri=uri).url)
            assert (answer.status_code, ada.left, ada.page.forms) == (400, "", []), uri
            assert "evil" not in answer.text
    for uri, fits in (
        ("http://127.0.0.1:41873/cb", True),
        ("http://127.0.0.1:41873/cb2", False),
        ("http://127.0.0.1:41873/cb?x=1", False),
        ("http://127.0.0.1:41873/cb#x", False),
        ("http://localhost:41873/cb", False),
        ("http://127.0.0.2:41873/cb", False),
        ("https://127.0.0.1:41873/cb", False),
        ("http://127.0.0.1:41873@evil.example/cb", False),
        ("http://127.0.0.1:70000/cb", False),
        ("com.example.app:/cb", True),
        ("com.example.app:/cb2", False),
        ("com.example.app://evil.example/cb", False),
    ):
        async with Browser(it) as ada:
            answer = await ada.get(it.flow(client_id="native", redirect_uri=uri).url)
            assert answer.status_code == (200 if fits else 400), uri
    for port, fits in ((5000, True), (5001, False)):
        async with Browser(it) as ada:
            answer = await ada.get(it.flow(client_id="web", redirect_uri=f"http://127.0.0.1:{port}/cb").url)
            assert answer.status_code == (200 if fits else 400)


async def test_nobody_is_led_away(it: Besieged) -> None:
    """RFC 9700 4.11: not by an error of a client that anybody can make, and not after logging out."""
    client = await registered(it, redirect_uris=["https://evil.example/cb"])
    for changed in ({"scope": "unknown"}, {"prompt": "none"}, {"response_type": "token"}, {"code_challenge": "short"}):
        flow = it.flow(**{"client_id": client, "redirect_uri": "https://evil.example/cb", **changed})
        async with Browser(it) as ada:
            answer = await ada.get(flow.url)
            assert (ada.left, ada.page.refresh) == ("", "")
            assert answer.status_code == 400
            assert "location" not in answer.headers
    evil = "https://evil.example/cb"
    other = await registered(it, redirect_uris=[evil], post_logout_redirect_uris=[evil])
    bye = "https://app.example.com/bye"
    for params, left in (
        ({"post_logout_redirect_uri": evil}, ""),
        ({"client_id": "app", "post_logout_redirect_uri": evil}, ""),
        ({"client_id": "app", "post_logout_redirect_uri": f"{bye}/../evil"}, ""),
        ({"client_id": other, "post_logout_redirect_uri": evil}, ""),
        ({"client_id": "app", "post_logout_redirect_uri": bye}, bye),
    ):
        async with Browser(it) as ada:
            await it.code(ada, it.flow())
            await ada.get(str(httpx.URL(f"{it.url}/oauth/logout", params=params)))
            assert (ada.left, ada.page.refresh) == ("", "")  # nobody has been asked yet
            await ada.submit(do="logout")
            assert (ada.left, ada.page.refresh) == (left, left)
            assert "evil.example" not in "".join(ada.page.links)


# ---- pages


async def test_nobody_else_sends_a_form(it: Besieged) -> None:
    """RFC 9700 4.7: a form counts with the token of its page, from our own origin, in the browser that has the page."""
    there = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    here = {"origin": it.url, "sec-fetch-site": "same-origin"}
    async with Browser(it) as ada, Browser(it) as eve:
        await eve.get(it.flow().url)
        await ada.get(it.flow().url)
        login = {**ada.page.fields, "username": "ada", "password": PASSWORD, "do": "login"}
        where = ada.page.action
        for form, headers in (
            ({**login, "csrf": ""}, here),
            ({**login, "csrf": eve.page.fields["csrf"]}, here),
            (login, there),
            (login, {"origin": "null"}),
            (login, {"origin": it.url, "sec-fetch-site": "same-site"}),
            ({**login, "i": eve.page.fields["i"]}, here),
        ):
            assert (await ada.post(where, form, headers)).status_code in (400, 403)
            assert not ada.cookie()
        assert (await eve.post(where, login, here)).status_code == 400  # what another browser has begun
        await ada.get(it.flow(prompt="consent").url)
        await ada.login()
        consent, where = {**ada.page.fields, "do": "allow"}, ada.page.action
        for form, headers in (
            ({**consent, "csrf": ""}, here),
            ({**consent, "csrf": "0" * len(consent["csrf"])}, here),
            (consent, there),
            (consent, {"origin": it.url, "sec-fetch-site": "cross-site"}),
        ):
            answer = await ada.post(where, form, headers)
            assert (answer.status_code, ada.left) == (403, "")
        await ada.get(f"{it.url}{where}?do=allow&i={consent['i']}&csrf={consent['csrf']}")
        assert not ada.left  # nothing is done by a link
        await ada.post(where, consent, here)
        assert "code" in ada.answer
        cookies = "; ".join(f"{name}={value}" for name, value in ada.cookies.items())
        assert it.call(signed(), cookie=f"{cookies}; theirs=1").status_code == 200
        assert dict(it.there.asked[-1][1])["cookie"] == "theirs=1"  # a service gets nothing to send in her name
        await ada.get("/oauth/grants")
        action, fields = ada.page.forms[0]
        for headers in (there, {"origin": "null"}):
            assert (await ada.post(action, {**fields, "do": "revoke"}, headers)).status_code == 403
        assert (await ada.post(action, {**fields, "csrf": "", "do": "revoke"}, here)).status_code == 403
        await ada.get("/oauth/logout")
        action, fields = ada.page.forms[0]
        assert (await ada.post(action, {**fields, "csrf": "", "do": "logout"}, here)).status_code == 403
        assert (await ada.post(action, {**fields, "do": "logout"}, there)).status_code == 403
        await ada.get(it.flow(prompt="none").url)
        assert "code" in ada.answer  # so she is logged in, and what she allowed is


async def test_no_page_can_be_framed(it: Besieged) -> None:
    """RFC 9700 4.16."""
    found = []
    async with Browser(it) as ada:
        found.append(await ada.get(it.flow(redirect_uri="https://evil.example/").url))
        found.append(await ada.get(it.flow(client_id="native", redirect_uri="http://127.0.0.1:9/cb").url))
        found.append(await ada.login())
        found.append(await ada.submit(do="allow"))
        found += [await ada.get(f"/oauth/{name}") for name in ("grants", "verify", "logout", "login", "consent")]
        found.append(await ada.post("/oauth/consent", {}))
    assert {answer.status_code for answer in found} >= {200, 400}
    for answer in found:
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy, answer.url
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert answer.headers["x-frame-options"].upper() == "DENY"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] in ("no-referrer", "same-origin")


async def test_what_one_client_was_allowed_no_other_has(it: Besieged) -> None:
    """MCP security, confused deputy: each client has an id of its own, so a user who has allowed one is asked for the
    next, although it has the same name; and cannot be passed by."""
    honest = await registered(it, client_name="Helper", redirect_uris=["https://helper.example/cb"])
    evil = await registered(it, client_name="Helper", redirect_uris=["https://evil.example/cb"])
    assert honest != evil
    async with Browser(it) as ada:
        first = it.flow(client_id=honest, redirect_uri="https://helper.example/cb")
        told = (await first.redeem(await it.code(ada, first))).json()
        assert claims_of(told["access_token"])["client_id"] == honest
        await ada.get(it.flow(client_id=honest, redirect_uri="https://helper.example/cb").url)
        assert ada.left.startswith("https://helper.example/cb?")  # remembered
        for prompt in (None, "none", "login none"):
            await ada.get(it.flow(client_id=evil, redirect_uri="https://evil.example/cb", prompt=prompt).url)
            assert "code=" not in ada.left + "".join(ada.page.links) + ada.page.refresh
        await ada.get(it.flow(client_id=evil, redirect_uri="https://evil.example/cb").url)
        assert not ada.left
        assert "evil.example" in ada.page.text
        await ada.get(it.flow(client_id=honest, redirect_uri="https://evil.example/cb").url)
        assert not ada.left


async def test_nothing_inside_is_fetched(it: Besieged) -> None:
    """MCP security, SSRF: what a client says of itself leads nowhere that is not public."""
    trap = Trap()
    for place in (
        f"127.0.0.1:{trap.port}", f"localhost:{trap.port}", f"[::1]:{trap.port}", f"[::ffff:127.0.0.1]:{trap.port}",
        f"2130706433:{trap.port}", f"0x7f.1:{trap.port}", f"0:{trap.port}", "169.254.169.254", "10.0.0.1",
        "[fd00:ec2::254]", f"127.0.0.1.:{trap.port}",
    ):  # fmt: skip
        for scheme in ("https", "http"):
            client = f"{scheme}://{place}/client.json"
            async with Browser(it) as ada:
                answer = await ada.get(it.flow(client_id=client).url)
                assert (answer.status_code, ada.left) == (400, ""), client
            form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": client}
            assert it.token(**form).json()["error"] == "invalid_client"
    inside = f"https://127.0.0.1:{trap.port}"
    places = ("jwks_uri", "logo_uri", "client_uri", "tos_uri", "policy_uri", "sector_identifier_uri")
    metadata = {
        "redirect_uris": ["https://agent.example/cb"],
        "token_endpoint_auth_method": "private_key_jwt",
        "request_uris": [f"{inside}/request"],
        **{name: f"{inside}/{name}" for name in places},
    }
    answer = it.http.post("/oauth/register", json=metadata)
    assert answer.status_code == 201, answer.text
    client = answer.json()["client_id"]
    now = int(time.time())
    said = {"iss": client, "sub": client, "aud": it.url, "jti": secrets.token_hex(8), "exp": now + 60, "iat": now}
    form = {
        "grant_type": "refresh_token", "refresh_token": "x", "client_id": client,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed(EC, {"typ": "JWT"}, written(said)),
    }  # fmt: skip
    assert it.token(**form).status_code in (401, 503)
    async with Browser(it) as ada:
        await ada.get(it.flow(client_id=client, redirect_uri="https://agent.example/cb").url)
        await ada.login()
    async with Browser(it) as ada:
        await ada.get(it.flow(request_uri=f"{inside}/request").url)
        assert not ada.left
    assert trap.close() == 0


# ---- guesses


async def test_who_is_there_does_not_show(it: Besieged) -> None:
    """The same words, the same status, about the same work, for who is there and who is not."""

    def forgotten(text: str) -> str:
        return re.sub(r'value="[^"]*"|[A-Za-z0-9_-]{43,}', "", text)

    spent: dict[str, list[float]] = {"bob": [], "nobody": []}
    words: dict[str, set[tuple[int, str]]] = {"bob": set(), "nobody": set()}
    for n in range(6):
        for name, times in spent.items():
            async with _from(it, f"10.1.{n}.1") as browser:
                await browser.get(it.flow().url)
                began = time.perf_counter()
                answer = await browser.login(name, "wrong " + secrets.token_hex(4))
                times.append(time.perf_counter() - began)
                words[name].add((answer.status_code, forgotten(answer.text)))
    assert words["bob"] == words["nobody"]
    assert len(words["bob"]) == 1
    assert min(spent["bob"]) < max(spent["nobody"])
    assert min(spent["nobody"]) < max(spent["bob"])
    for form in ({"client_id": "app"}, {"client_id": "nobody"}):
        form = {"grant_type": "refresh_token", "refresh_token": "x", "client_secret": "w" * 40, **form}
        answer = it.http.post("/oauth/token", data=form, headers={"x-forwarded-for": "10.2.0.1"})
        refused(answer, "invalid_client", 401)
        assert answer.json()["error_description"] == "the client is not known, or did not prove who it is"


async def test_who_guesses_waits(it: Besieged) -> None:
    """Passwords, secrets of clients and codes of devices; and it does not keep others out."""
    async with _from(it, "10.3.0.1") as eve:
        await eve.get(it.flow().url)
        found = [(await eve.login("ada", "wrong")).status_code for _ in range(12)]
        assert found[:5] == [401] * 5
        assert found[-1] == 429
        slowed = await eve.login("ada", PASSWORD)
        assert (slowed.status_code, eve.cookie()) == (429, "")
        assert int(slowed.headers["retry-after"]) > 0
    async with _from(it, "10.3.0.2") as ada:
        await ada.get(it.flow().url)
        await ada.login("ada")
        assert it.kept(ada.cookie())
    form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "app"}
    at = {"x-forwarded-for": "10.3.0.3"}
    tries = [it.http.post("/oauth/token", data={**form, "client_secret": f"{n}" * 33}, headers=at) for n in range(14)]
    assert [answer.status_code for answer in tries][:5] == [401] * 5
    assert tries[-1].status_code == 429
    assert it.http.post("/oauth/token", data={**form, "client_secret": SECRET}, headers=at).status_code == 429
    assert it.http.post("/oauth/token", data={**form, "client_secret": SECRET}).status_code == 400
    async with _from(it, "10.3.0.4") as bob:
        await it.code(bob, it.flow(), "bob")
        await bob.get("/oauth/verify")
        answers = [await bob.submit(user_code="BCDF-GHJ" + c, do="find") for c in "BCDFGHJKLMNP"]
        assert answers[-1].status_code == 429


def _from(it: Besieged, address: str) -> Browser:
    """A browser elsewhere, as a trusted proxy says."""
    return Browser(it, {"x-forwarded-for": address})
