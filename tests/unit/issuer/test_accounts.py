"""The pages on which users connect accounts: who is let connect what, and what others can do about it.

The services behind them are told of here; what a real one does is in tests/unit/backends/accounts and in tests/e2e.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Provider, providing
from tests.fixtures.services import AUTHORIZE, Files, Kept, Link, Two

pytestmark = pytest.mark.anyio


class House:
    def __init__(self, provider: Provider, services: Two) -> None:
        self.provider = provider
        self.services = services
        self.files = services.files

    def link(self, sub: str = "ada", agent: str = "app", service: Files | None = None) -> str:
        token = secrets.token_urlsafe(24)
        self.services.links[token] = (service or self.files, Link(sub, agent))
        return f"{self.provider.url}/oauth/upstream/start?{urlencode({'l': token})}"

    def callback(self, server: str = "files", **query: str) -> str:
        return f"{self.provider.url}/oauth/upstream/callback/{server}?{urlencode(query)}"


@asynccontextmanager
async def house(path: str = "") -> AsyncIterator[tuple[House, Browser]]:
    services = Two()
    async with providing(services=services, path=path) as provider, Browser(provider) as browser:
        yield House(provider, services), browser


async def logged_in(house: House, browser: Browser, name: str = "ada") -> None:
    await browser.get(f"{house.provider.url}/oauth/grants")
    await browser.login(name)


def state_of(browser: Browser) -> str:
    (state,) = parse_qs(urlsplit(browser.left).query)["state"]
    return state


# ---- what it is for


async def test_a_user_connects_sees_and_ends_an_account() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        text = browser.page.text
        for words in ("login.example.com", "files", "The App", "ada@example.com", "files.read", "files.write"):
            assert words in text
        assert there.files.began == {}
        await browser.submit(do="connect")
        assert browser.left.startswith(AUTHORIZE)
        assert browser.hops == [200]  # a page: what follows a form is held against `form-action`
        await browser.get(there.callback(state=state_of(browser), code="c-1"))
        assert browser.hops == [303, 200]
        assert "code" not in str(browser.response.url)
        assert "Your account at files is connected" in browser.page.text
        assert "Since 15 June 2025, at login.example.com" in browser.page.text
        assert list(there.files.kept) == ["ada"]
        action, fields = next(form for form in browser.page.forms if form[1].get("server") == "files")
        await browser.post(action, {**fields, "do": "disconnect"})
        assert browser.hops == [303, 200]
        assert "It is disconnected." in browser.page.text
        assert "Connected accounts" not in browser.page.text
        assert there.files.kept == {}


async def test_an_issuer_below_a_path_has_its_pages_there() -> None:
    async with house("/tenant") as (there, browser):
        await browser.get(there.link())
        await browser.login()
        assert browser.page.action == "/tenant/oauth/upstream/start"
        await browser.submit(do="connect")
        await browser.get(there.callback(state=state_of(browser), code="c-1"))
        assert browser.response.url.path == "/tenant/oauth/grants"
        assert "is connected" in browser.page.text


async def test_who_does_not_want_to_connects_nothing() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="cancel")
        assert "Nothing was connected" in browser.page.text
        assert there.files.began == {}


async def test_an_account_that_is_there_is_told_of_and_can_be_replaced() -> None:
    """A link that is followed twice does no harm."""
    async with house() as (there, browser):
        there.files.kept["ada"] = Kept("login.example.com")
        link = there.link()
        await browser.get(link)
        await browser.login()
        for _ in range(2):
            await browser.get(link)
            assert "You have connected an account since 15 June 2025" in browser.page.text
            await browser.submit(do="connect")
            assert browser.left.startswith(AUTHORIZE)


async def test_scopes_that_only_the_service_knows_are_not_made_up() -> None:
    async with house() as (there, browser):
        there.files.scopes = ()
        await browser.get(there.link(agent=""))
        await browser.login()
        assert "login.example.com tells you before you agree" in browser.page.text
        assert "An agent of yours" in browser.page.text


async def test_an_agent_that_nobody_has_checked_is_called_so() -> None:
    async with house() as (there, browser):
        await browser.get(there.link(agent="<b>Best Agent</b>"))
        await browser.login()
        assert "<b>Best Agent</b>" in browser.page.text
        assert "<b>" not in browser.response.text
        assert "unverified" in browser.page.text


async def test_the_page_of_grants_has_only_ones_own_accounts() -> None:
    async with house() as (there, browser):
        there.files.kept["bob"] = Kept("login.example.com")
        await logged_in(there, browser)
        assert "Connected accounts" not in browser.page.text
        there.files.kept["ada"] = Kept("login.example.com")
        await browser.get(f"{there.provider.url}/oauth/grants")
        action, fields = next(form for form in browser.page.forms if form[1].get("server") == "files")
        for server in ("notes", "nothing", "files"):
            await browser.post(action, {**fields, "server": server, "do": "disconnect"})
            assert browser.response.status_code == 200
        assert list(there.files.kept) == ["bob"]


async def test_the_notice_says_only_what_is_so() -> None:
    async with house() as (there, browser):
        await logged_in(there, browser)
        for server in ("files", "<script>", "evil.example"):
            await browser.get(f"{there.provider.url}/oauth/grants?connected={quote(server)}")
            assert server not in browser.page.text


async def test_our_metadata_document_is_for_everybody_and_may_be_kept() -> None:
    async with house() as (there, _), httpx.AsyncClient() as http:
        response = await http.get(f"{there.provider.url}/oauth/upstream/client")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers.get_list("cache-control") == ["public, max-age=3600"]
        assert "pragma" not in response.headers
        assert response.json() == there.services.document


async def test_without_services_there_is_nothing_of_this() -> None:
    services = Two()
    services.document = None
    async with providing() as provider, providing(services=services) as other, httpx.AsyncClient() as http:
        for path in ("start", "client", "callback/files"):
            assert (await http.get(f"{provider.url}/oauth/upstream/{path}")).status_code == 404
        assert (await http.get(f"{other.url}/oauth/upstream/client")).status_code == 404


# ---- what others try


async def test_a_link_of_somebody_else_is_refused_and_does_not_say_whose_it_is() -> None:
    """Phishing: bob's agent asked, and bob sends ada the link, so that her account becomes his."""
    async with house() as (there, browser):
        link = there.link("bob", "other")
        await logged_in(there, browser)
        await browser.get(link)
        assert browser.response.status_code == 403
        text = browser.page.text
        assert "made for somebody else" in text
        assert "ada@example.com" in text
        assert "bob" not in browser.response.text
        assert "other" not in text.replace("another", "")
        assert browser.page.forms == []


async def test_nor_can_the_form_of_another_link_be_sent_with_it() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        action, fields = browser.page.action, browser.page.fields
        (foreign,) = parse_qs(urlsplit(there.link("bob")).query)["l"]
        (own,) = parse_qs(urlsplit(there.link("ada", service=there.services.notes)).query)["l"]
        for link in (foreign, own):
            await browser.post(action, {**fields, "l": link, "do": "connect"})
            assert browser.response.status_code == 403
        assert there.files.began == there.services.notes.began == {}


async def test_who_is_not_logged_in_logs_in_first_and_comes_back_to_the_link() -> None:
    async with house() as (there, browser):
        link = there.link()
        await browser.get(link)
        assert "Password" in browser.page.text
        assert "login.example.com" not in browser.page.text
        await browser.login()
        assert str(browser.response.url) == link
        assert "Connect your account at login.example.com" in browser.page.text


async def test_who_logs_in_as_somebody_else_than_the_link_is_for_is_refused_too() -> None:
    async with house() as (there, browser):
        await browser.get(there.link("bob"))
        await browser.login("ada")
        assert browser.response.status_code == 403
        assert "bob" not in browser.response.text


@pytest.mark.parametrize("attack", ["no token", "another token", "another site", "another origin", "another session"])
async def test_a_forged_form_begins_nothing(attack: str) -> None:
    async with house() as (there, browser), Browser(there.provider) as another:
        link = there.link()
        await browser.get(link)
        await browser.login()
        action, fields = browser.page.action, {**browser.page.fields, "do": "connect"}
        headers = None
        if attack == "no token":
            del fields["csrf"]
        elif attack == "another token":
            fields["csrf"] = "0" * 64
        elif attack == "another site":
            headers = {"sec-fetch-site": "cross-site"}
        elif attack == "another origin":
            headers = {"origin": "https://evil.example"}
        else:
            await another.get(link)
            await another.login()
            fields["csrf"] = another.page.fields["csrf"]
        await browser.post(action, fields, headers)
        assert browser.response.status_code == 403
        assert there.files.began == {}


async def test_a_forged_form_disconnects_nothing() -> None:
    async with house() as (there, browser):
        there.files.kept["ada"] = Kept("login.example.com")
        await logged_in(there, browser)
        action, fields = browser.page.action, {**browser.page.fields, "do": "disconnect"}
        assert (await browser.post(action, {**fields, "csrf": "0" * 64})).status_code == 403
        assert (await browser.post(action, fields, {"origin": "https://evil.example"})).status_code == 403
        assert list(there.files.kept) == ["ada"]


async def test_no_page_can_be_framed_or_has_a_script() -> None:
    async with house() as (there, browser):
        pages = []
        await browser.get(there.link())
        await browser.login()
        pages.append(browser.response)
        pages.append(await browser.submit(do="connect"))
        pages.append(await browser.get(there.link("bob")))
        pages.append(await browser.get(there.callback(state="x", code="y")))
        for response in pages:
            policy = response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "default-src 'none'" in policy
            assert "script-src" not in policy
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["cache-control"] == "no-store"
            assert "<script" not in response.text


async def test_an_answer_without_a_login_is_not_looked_at() -> None:
    async with house() as (there, browser), Browser(there.provider) as nobody:
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        state = state_of(browser)
        await nobody.get(there.callback(state=state, code="c-1"))
        assert nobody.response.status_code == 403
        assert "not signed in" in nobody.page.text
        assert state in there.files.began
        assert there.files.kept == {}


@pytest.mark.parametrize("who", ["ada", "bob"])
async def test_an_answer_counts_only_in_the_session_that_was_sent_there(who: str) -> None:
    """Also not in another session of the same user."""
    async with house() as (there, browser), Browser(there.provider) as another:
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        state = state_of(browser)
        await logged_in(there, another, who)
        await another.get(there.callback(state=state, code="c-1"))
        assert another.response.status_code == 400
        assert "begun elsewhere" in another.page.text
        assert there.files.kept == {}


async def test_an_answer_at_the_address_of_another_service_is_refused() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        await browser.get(there.callback("notes", state=state_of(browser), code="c-1"))
        assert browser.response.status_code == 400
        assert there.files.kept == there.services.notes.kept == {}


async def test_an_answer_counts_once() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        state = state_of(browser)
        await browser.get(there.callback(state=state, code="c-1"))
        assert browser.response.status_code == 200
        await browser.get(there.callback(state=state, code="c-1"))
        assert browser.response.status_code == 400


async def test_whoever_does_not_agree_there_is_told_that_nothing_was_connected() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        await browser.get(
            there.callback(state=state_of(browser), error="access_denied", error_description="<b>call 555-1234</b>")
        )
        assert browser.response.status_code == 400
        assert "You did not agree there." in browser.page.text
        assert "555-1234" not in browser.response.text
        assert "access_denied" not in browser.response.text
        assert there.files.kept == {}


async def test_a_service_that_is_down_is_said_to_be_and_no_more() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        there.files.is_down = True
        await browser.submit(do="connect")
        assert browser.response.status_code == 400
        assert "It does not answer" in browser.page.text
        await browser.get(there.callback(state="x", code="y"))
        assert browser.response.status_code == 503
        assert "secret-detail" not in browser.response.text


async def test_a_service_sends_nobody_to_a_script() -> None:
    async with house() as (there, browser):
        there.files.authorize = "javascript:alert(1)//"
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        assert browser.response.status_code == 400
        assert "javascript" not in browser.response.text


async def test_nothing_in_a_query_says_where_the_browser_goes() -> None:
    """Open redirect."""
    more = dict.fromkeys(("redirect_uri", "next", "return_to", "url", "iss", "connected", "i"), "https://evil.example/")
    async with house() as (there, browser):
        link = f"{there.link()}&{urlencode(more)}"
        await browser.get(link)
        await browser.login()
        assert "evil.example" not in browser.response.text
        await browser.submit(do="connect", **more)
        assert browser.left.startswith(AUTHORIZE)
        await browser.get(there.callback(state=state_of(browser), code="c-1", **more))
        assert browser.left == ""
        assert "evil.example" not in browser.response.text


async def test_a_host_header_changes_no_address() -> None:
    async with house() as (there, browser):
        await browser.get(there.link(), headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
        await browser.login()
        assert "evil.example" not in browser.response.text
        await browser.submit(do="connect")
        state = state_of(browser)
        headers = {"host": "evil.example"}
        response = await browser.get(there.callback(state=state, code="c-1"), headers=headers)
        assert browser.left == ""
        assert "evil.example" not in response.text


@pytest.mark.parametrize("link", ["", "x", "a" * 5000, "é", "%2e%2e", "up1.AAAA"])
async def test_what_is_no_link_of_ours_gets_a_page_that_says_so(link: str) -> None:
    async with house() as (there, browser):
        response = await browser.get(f"{there.provider.url}/oauth/upstream/start?{urlencode({'l': link})}")
        assert response.status_code == 400
        assert "have your agent ask again" in browser.page.text
        response = await browser.get(f"{there.provider.url}/oauth/upstream/start")
        assert response.status_code == 400


async def test_other_methods_do_nothing() -> None:
    async with house() as (there, browser), httpx.AsyncClient() as http:
        await browser.get(there.link())
        await browser.login()
        await browser.submit(do="connect")
        for url in (there.link(), there.callback(state=state_of(browser), code="c-1")):
            for method in ("HEAD", "PUT", "DELETE", "PATCH"):
                sent = {"cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
                assert (await http.request(method, url, headers=sent)).status_code in (404, 405)
        posted = await browser.post(there.callback(), {"state": state_of(browser), "code": "c-1"})
        assert posted.status_code in (404, 405)
        assert there.files.kept == {}


async def test_nobody_fills_the_state_with_links() -> None:
    async with house() as (there, browser):
        link = there.link()
        for _ in range(50):
            await there.provider.exhaust()
            if (await browser.get(link)).status_code != 200:
                break
        assert browser.response.status_code == 429
        assert int(browser.response.headers["retry-after"]) >= 1


async def test_a_user_who_is_taken_out_connects_nothing_any_more() -> None:
    """The login is looked at in each request."""
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        revocations = there.provider.parts.revocations
        there.provider.wait(1)
        await revocations.revoke("sub", "ada", there.provider.parts.now() + 3600, there.provider.url)
        await browser.submit(do="connect")
        assert there.files.began == {}
        assert "Password" in browser.page.text


async def test_no_secret_of_an_application_is_on_a_page() -> None:
    async with house() as (there, browser):
        await browser.get(there.link())
        await browser.login()
        assert str(APP["secret"]) not in browser.response.text
