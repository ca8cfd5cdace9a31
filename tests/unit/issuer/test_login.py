"""The login page: who gets in, who does not, and what neither of them learns."""

import asyncio
import statistics
from time import perf_counter
from typing import Literal
from urllib.parse import urlencode, urlsplit

import pytest
from argon2 import PasswordHasher
from msgspec.structs import replace
from tests.fixtures.auth_provider import ADA, PASSWORD, Browser, Flow, providing

from tollhouse.issuer.cookies import digest
from tollhouse.issuer.records import Session, UserInfo
from tollhouse.wire.password_hash import hash_password

pytestmark = pytest.mark.anyio
BOB_HASH = PasswordHasher(1, 64, 1).hash("another one")


async def test_a_wrong_password_and_an_unknown_user_look_the_same() -> None:
    """Attack 47: the same bytes, but for what was typed in."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        known = await browser.login("ada", "wrong")
        unknown = await browser.login("xyz", "wrong")
        assert (known.status_code, unknown.status_code) == (401, 401)
        assert known.text.replace('value="ada"', "") == unknown.text.replace('value="xyz"', "")
        assert sorted(known.headers) == sorted(unknown.headers)
        assert browser.cookie() == ""
        assert browser.page.fields["password"] == ""


async def test_an_unknown_user_costs_as_much_as_a_wrong_password() -> None:
    """Attack 47: the times overlap."""
    taken: dict[str, list[float]] = {"ada": [], "nobody": []}
    users = [{**ADA, "password_hash": hash_password(PASSWORD)}]
    for _ in range(2):
        async with providing(users=users) as provider, Browser(provider) as browser:
            await browser.get(Flow(provider).url)
            for _ in range(5):
                for who, times in taken.items():
                    began = perf_counter()
                    assert (await browser.login(who, "wrong")).status_code == 401
                    times.append(perf_counter() - began)
    known, unknown = (statistics.median(times) for times in taken.values())
    assert 0.4 < known / unknown < 2.5


async def test_a_login_has_a_new_session_and_the_old_one_is_dead() -> None:
    """Attack 15: session fixation."""
    async with providing() as provider, Browser(provider) as browser, Browser(provider) as attacker:
        await attacker.get(Flow(provider).url)
        await attacker.login()
        planted = attacker.cookie()
        browser.cookies.set("tollhouse_session", planted, domain="127.0.0.1")
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login("bob")
        assert browser.cookie() not in ("", planted)
        await attacker.get(f"{provider.url}/oauth/grants")
        assert "Password" in attacker.page.text
        await browser.get(f"{provider.url}/oauth/grants")
        assert "Signed in as bob" in browser.page.text


async def test_a_session_that_another_host_plants_logs_nobody_in() -> None:
    """A neighbour can set cookies for the whole domain, but not the one that the session is bound to."""
    async with providing() as provider, Browser(provider) as browser, Browser(provider) as attacker:
        await attacker.get(Flow(provider).url)
        await attacker.login()
        browser.cookies.set("tollhouse_session", attacker.cookie(), domain="127.0.0.1")
        for _ in range(2):  # without any other cookie, and with its own
            await browser.get(Flow(provider).url)
            assert "Password" in browser.page.text
        await attacker.get(f"{provider.url}/oauth/grants")
        assert "Signed in as" in attacker.page.text


async def test_a_session_that_was_made_up_is_no_session() -> None:
    async with providing() as provider, Browser(provider) as browser:
        browser.cookies.set("tollhouse_session", "A" * 43, domain="127.0.0.1")
        await browser.get(Flow(provider).url)
        await browser.login()
        assert browser.cookie() not in ("", "A" * 43)


async def test_another_browser_cannot_finish_what_one_has_begun() -> None:
    """Attack 11: login CSRF and session swap."""
    async with providing() as provider, Browser(provider) as browser, Browser(provider) as another:
        await browser.get(Flow(provider).url)
        fields, where = browser.page.fields, str(browser.response.url)
        assert (await another.get(where)).status_code == 400
        response = await another.post(browser.page.action, {**fields, "username": "ada", "password": PASSWORD})
        assert response.status_code == 400
        assert another.cookie() == ""
        # Nor when it has begun something of its own.
        await another.get(Flow(provider).url)
        assert (await another.get(where)).status_code == 400
        response = await another.post("/oauth/login", {**fields, "username": "ada", "password": PASSWORD})
        assert response.status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1"},
        {"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:1"},
    ],
)
async def test_a_form_that_another_page_sends_is_refused(headers: dict[str, str]) -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        fields = {**browser.page.fields, "username": "ada", "password": PASSWORD, "do": "login"}
        assert (await browser.post(browser.page.action, fields, headers)).status_code == 403
        assert browser.cookie() == ""


async def test_a_form_without_its_token_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        where, fields = browser.page.action, browser.page.fields
        for token in ("", "0" * 64, fields["csrf"][:-1], fields["csrf"].upper()):
            sent = {**fields, "csrf": token, "username": "ada", "password": PASSWORD, "do": "login"}
            assert (await browser.post(where, sent)).status_code == 403


async def test_the_sixth_guess_waits_and_nobody_is_locked_out() -> None:
    """Attack 48. What is right counts for nothing while one has to wait, and is given back where it is not."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        statuses = [(await browser.login("ada", "wrong")).status_code for _ in range(11)]
        assert statuses[:5] == [401] * 5
        assert statuses[-1] == 429
        slowed = await browser.login("ada", PASSWORD)
        assert slowed.status_code == 429
        assert int(slowed.headers["retry-after"]) >= 1
        assert "too many attempts" in browser.page.text
        # Others are not concerned.
        assert (await browser.login("bob", "wrong")).status_code == 401
        provider.wait(int(slowed.headers["retry-after"]))
        await browser.login()
        assert browser.cookie()


async def test_an_unknown_user_is_slowed_like_a_known_one() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        statuses = [(await browser.login("nobody", "wrong")).status_code for _ in range(11)]
    assert statuses[:5] == [401] * 5
    assert statuses[-1] == 429


async def test_right_passwords_are_never_slowed() -> None:
    async with providing() as provider:
        for _ in range(8):
            async with Browser(provider) as browser:
                await browser.get(Flow(provider).url)
                await browser.login()
                assert browser.cookie()


async def test_no_answer_repeats_the_password_and_none_is_a_307() -> None:
    """Attack 14."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        wrong = await browser.login("ada", "a-wrong-password")
        assert "a-wrong-password" not in wrong.text
        await browser.login()
        assert browser.hops == [303, 200]
        await browser.submit(do="allow")
        assert browser.hops == [200]


async def test_pages_can_neither_be_framed_nor_kept_nor_scripted() -> None:
    """Attack 13: clickjacking."""
    async with providing() as provider, Browser(provider) as browser:
        for response in (
            await browser.get(Flow(provider).url),
            await browser.login(),
            await browser.get(f"{provider.url}/oauth/grants"),
            await browser.get(f"{provider.url}/oauth/authorize"),
        ):
            policy = response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "default-src 'none'" in policy
            assert "script-src" not in policy
            assert response.headers["x-frame-options"] == "DENY"
            assert response.headers["cache-control"] == "no-store"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "same-origin"
            assert "<script" not in response.text


async def test_the_style_sheet_is_there() -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(f"{provider.url}/oauth/style.css")
        assert response.headers["content-type"] == "text/css; charset=utf-8"
        assert "prefers-color-scheme: dark" in response.text


async def test_the_cookies_are_for_nobody_else() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        names = {cookie.name for cookie in browser.cookies.jar}
        assert names == {"tollhouse_session", "tollhouse_session_browser"}
        for cookie in browser.cookies.jar:
            assert cookie.has_nonstandard_attr("HttpOnly")
            assert cookie.get_nonstandard_attr("SameSite") == "Lax"
            assert not cookie.domain_specified


async def test_a_browser_that_is_logged_in_is_not_asked_again_by_a_reload() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        where = str(browser.response.url)
        await browser.login()
        await browser.get(where)
        assert "wants access" in browser.page.text


async def test_somebody_else_can_log_in_instead() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        switch = next(link for link in browser.page.links if "switch" in link)
        await browser.get(switch)
        assert "Password" in browser.page.text
        await browser.login("bob")
        assert "Signed in as bob" in browser.page.text


@pytest.mark.parametrize("changed", [{"name": "eve"}, {"password_hash": BOB_HASH}])
async def test_a_user_who_is_gone_from_the_configuration_is_not_logged_in_any_more(changed: dict[str, str]) -> None:
    """Nor is one whose password was changed."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        cookies = {cookie.name: cookie.value or "" for cookie in browser.cookies.jar}
        cookie = browser.cookie()
        held = await provider.parts.tables.sessions.get(cookie)
    assert held is not None
    async with providing(users=[{**ADA, **changed}]) as provider, Browser(provider) as browser:
        await provider.parts.tables.sessions.put(cookie, held.value, 60)
        for name, value in cookies.items():
            browser.cookies.set(name, value, domain="127.0.0.1")
        await browser.get(f"{provider.url}/oauth/grants")
        assert "Password" in browser.page.text
        assert await provider.parts.tables.sessions.get(cookie) is None


async def test_names_are_taken_as_they_are_written_but_for_spaces_around() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        assert (await browser.login("ADA")).status_code == 401
        await browser.login(" ada ")
        assert browser.cookie()


async def test_a_login_without_an_interaction_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        assert (await browser.get(f"{provider.url}/oauth/login")).status_code == 400
        assert (await browser.get(f"{provider.url}/oauth/login?i={'A' * 43}")).status_code == 400


async def test_who_hangs_up_has_guessed_all_the_same() -> None:
    """Else a password could be checked, and our work be had, as often as anybody likes."""
    users = [{**ADA, "password_hash": hash_password(PASSWORD)}]
    async with providing(users=users) as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        address, fields = "127.0.0.1", {**browser.page.fields, "username": "ada", "password": "wrong", "do": "login"}
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        body = urlencode(fields)
        for _ in range(7):
            reader, writer = await asyncio.open_connection(address, urlsplit(provider.url).port)
            writer.write(
                f"POST /oauth/login HTTP/1.1\r\nhost: x\r\ncookie: {cookies}\r\norigin: {provider.url}\r\n"
                f"content-type: application/x-www-form-urlencoded\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
            )
            await writer.drain()
            writer.write_eof()
            await reader.read()
            writer.close()
        assert (await browser.login()).status_code == 429


@pytest.mark.parametrize("kind", ["sub", "sid"])
async def test_a_login_that_was_revoked_gets_nobody_new_tokens(kind: Literal["sub", "sid"]) -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        held = await provider.parts.tables.sessions.get(browser.cookie())
        assert held is not None
        provider.wait(1)
        id = "ada" if kind == "sub" else held.value.sid
        await provider.parts.revocations.revoke(kind, id, provider.parts.now() + 3600, provider.url)
        await browser.get(Flow(provider).url)
        assert "Password" in browser.page.text
        provider.wait(1)
        await browser.login()
        await browser.submit(do="allow")
        assert browser.answer["code"]


async def test_a_link_that_the_operator_has_cut_ends_the_logins_over_it() -> None:
    parts = Session("ada", UserInfo(), 0, upstream="https://idp.example")
    upstream = {"issuer": "https://idp.example", "client_id": "us"}
    for linked in (True, False):
        async with (
            providing(upstream=[{**upstream, "link_by_email": linked}]) as provider,
            Browser(provider) as browser,
        ):
            await browser.get(Flow(provider).url)
            now, bound = provider.parts.now(), digest(browser.cookies["tollhouse_session_browser"])
            session = replace(parts, began=now, seen=now, sid="s", browser=bound)
            await provider.parts.tables.sessions.put("c" * 43, session, 60.0)
            browser.cookies.set("tollhouse_session", "c" * 43, domain="127.0.0.1")
            await browser.get(Flow(provider).url)
            assert ("Password" in browser.page.text) is not linked
