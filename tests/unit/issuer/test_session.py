"""Sessions: they live while they are used, and not longer than they may."""

import pytest

from tollhouse.core.clock import Clock
from tollhouse.core.http import Headers, Request
from tollhouse.issuer.cookies import Cookies
from tollhouse.issuer.records import Session, UserInfo
from tollhouse.issuer.session import Sessions
from tollhouse.issuer.spec import TtlSpec
from tollhouse.store.memory import MemoryState
from tollhouse.store.table import Table

pytestmark = pytest.mark.anyio


class Rig:
    def __init__(self, **ttl: str) -> None:
        self.now = 1_000_000.0
        self.good = True
        self.revoked: list[str] = []
        self.cookies = Cookies("http://127.0.0.1", "tollhouse_session")
        values = MemoryState(Clock()).values
        self.table = Table(values, "iss:s:", Session, hashed=True)
        spec = TtlSpec.model_validate(ttl)
        self.sessions = Sessions(self.table, self.cookies, spec, lambda: self.now, lambda _: self.good, self.revoke)
        self.cookie = ""
        self.browser = "B" * 43

    @property
    def request(self) -> Request:
        sent = [(b"cookie", f"tollhouse_session_browser={self.browser}".encode())] if self.browser else []
        if self.cookie:
            sent.append((b"cookie", f"tollhouse_session={self.cookie}".encode()))
        return Request(b"GET", b"/", Headers(sent))

    async def revoke(self, session: Session) -> None:
        self.revoked.append(session.sid)

    async def begin(self, sub: str = "ada") -> Session:
        _, field = await self.sessions.begin(self.request, Session(sub, UserInfo(), 0))
        self.cookie = field.decode().partition("=")[2].partition(";")[0]
        held = await self.table.get(self.cookie)
        assert held is not None
        return held.value


async def test_a_session_nobody_uses_ends_and_one_that_is_used_goes_on() -> None:
    rig = Rig(session_idle="1h", session="10h")
    await rig.begin()
    for _ in range(5):
        rig.now += 3000
        assert await rig.sessions.current(rig.request) is not None
    rig.now += 3601
    assert await rig.sessions.current(rig.request) is None


async def test_any_session_ends() -> None:
    rig = Rig(session_idle="1h", session="2h")
    await rig.begin()
    rig.now += 3500
    assert await rig.sessions.current(rig.request) is not None
    rig.now += 3500
    assert await rig.sessions.current(rig.request) is not None
    rig.now += 300
    assert await rig.sessions.current(rig.request) is None


async def test_use_is_written_now_and_then() -> None:
    rig = Rig()
    first = await rig.begin()
    rig.now += 30
    await rig.sessions.current(rig.request)
    held = await rig.table.get(rig.cookie)
    assert held is not None
    assert held.value.seen == first.seen
    rig.now += 40
    await rig.sessions.current(rig.request)
    held = await rig.table.get(rig.cookie)
    assert held is not None
    assert held.value.seen == rig.now


async def test_each_session_has_names_of_its_own_and_ends_the_one_before() -> None:
    rig = Rig()
    first, cookie = await rig.begin(), rig.cookie
    second = await rig.begin("bob")
    assert first.sid != second.sid
    assert rig.cookie != cookie
    assert await rig.table.get(cookie) is None
    assert rig.revoked == [first.sid]


async def test_who_logs_in_again_keeps_what_tokens_call_the_session() -> None:
    """So that logging out ends what was granted before, too."""
    rig = Rig()
    first, cookie = await rig.begin(), rig.cookie
    rig.now += 10
    second = await rig.begin()
    assert second.sid == first.sid
    assert second.began == rig.now
    assert rig.cookie != cookie
    assert await rig.table.get(cookie) is None
    assert rig.revoked == []
    held = await rig.sessions.current(rig.request)
    assert held is not None
    await rig.sessions.end(held)
    assert rig.revoked == [first.sid]


async def test_a_session_of_somebody_who_may_not_log_in_any_more_is_gone() -> None:
    rig = Rig()
    await rig.begin()
    rig.good = False
    assert await rig.sessions.current(rig.request) is None
    rig.good = True
    assert await rig.sessions.current(rig.request) is None


@pytest.mark.parametrize("browser", ["", "C" * 43])
async def test_a_session_counts_in_its_browser(browser: str) -> None:
    rig = Rig()
    await rig.begin()
    rig.browser = browser
    assert await rig.sessions.current(rig.request) is None
    rig.browser = "B" * 43
    assert await rig.sessions.current(rig.request) is not None


async def test_the_end_takes_the_cookie_away() -> None:
    rig = Rig()
    await rig.begin()
    held = await rig.sessions.current(rig.request)
    assert held is not None
    name, value = await rig.sessions.end(held)
    assert name == b"set-cookie"
    assert value.startswith(b"tollhouse_session=; ")
    assert value.endswith(b"Max-Age=0")
    assert await rig.sessions.current(rig.request) is None


async def test_a_login_after_the_session_was_revoked_is_not_called_the_same() -> None:
    rig = Rig()
    before = await rig.begin()
    rig.good = False
    after = await rig.begin()
    assert after.sid != before.sid
    assert rig.revoked == [before.sid]
