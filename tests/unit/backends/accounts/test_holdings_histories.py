"""Accounts through histories that nobody thought of: two users, two workers, an issuer that fails now and then."""

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.third_party import Third, third_party, user

from tollhouse.core.errors import Failure
from tollhouse.core.identity import ACCOUNT_NEEDED

WHO = st.sampled_from(("ada", "bob"))
NODE = st.sampled_from((0, 1))
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from((1.0, 11.0, 31.0, 400.0, 3550.0, 4000.0))),
    st.tuples(st.just("call"), WHO, NODE),
    st.tuples(st.just("call"), WHO, NODE),
    st.tuples(st.just("refuse"), WHO, NODE),
    st.tuples(st.just("all"), WHO),
    st.tuples(st.just("connect"), WHO, NODE),
    st.tuples(st.just("disconnect"), WHO, NODE),
    st.tuples(st.just("fails"), st.booleans()),
    st.tuples(st.just("ends"), WHO),
)


class Watched(Third):
    """owners: whose each refresh token is, by the login that it came from. replayed: those that came twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.connecting = ""
        self.owners: dict[str, str] = {}
        self.tokens_of: dict[str, set[str]] = {"ada": set(), "bob": set()}
        self.used: set[str] = set()
        self.replayed: list[str] = []
        self.says["/token"] = self.answer

    def answer(self, asked: Any) -> Any:
        if self.fails:
            return 503, {}, {}
        sent = asked.form.get("refresh_token", "")
        if sent in self.used:
            self.replayed.append(sent)
        status, said, fields = self._token(asked)
        if status == 200:
            owner = self.owners[sent] if sent else self.connecting
            if sent and self.rotates:
                self.used.add(sent)
            self.owners[said["refresh_token"]] = owner
            self.tokens_of[owner].add(said["access_token"])
        return status, said, fields


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, min_size=5, max_size=25), st.booleans())
def test_each_user_has_a_token_of_his_own_account_or_is_told(steps: list[Any], rotates: bool) -> None:
    asyncio.run(history(steps, rotates))


async def history(steps: list[Any], rotates: bool) -> None:
    third = Watched()
    third.rotates = rotates
    connected: set[str] = set()
    ended: set[str] = set()  # at the issuer, which we may not know yet
    async with third_party(third=third) as side:
        nodes = [side.party, side.node()]

        async def call(who: str, node: int) -> str:
            try:
                token = await side.token(who, nodes[node])
            except Failure as failure:
                is_needed = failure.code == ACCOUNT_NEEDED
                known = (who not in connected or who in ended) if is_needed else (third.fails or (who, node) in failed)
                assert known, f"{failure.status} {failure.code}"  # noqa: PT017 - either outcome is one of several
                if is_needed:
                    connected.discard(who)
                else:
                    failed.add((who, node))
                return ""
            assert who in connected
            assert token in third.tokens_of[who]
            failed.discard((who, node))
            return token

        failed: set[tuple[str, int]] = set()  # for whom the issuer failed a moment ago: it is left alone for a while
        for step, *what in steps:
            if step == "wait":
                side.now.value += what[0]
                if what[0] > 30 and not third.fails:
                    failed.clear()
            elif step == "call":
                await call(*what)
            elif step == "all":
                await asyncio.gather(*(call(what[0], node) for node in (0, 1, 0, 1)))
            elif step == "refuse":
                token = await call(*what)
                if token:
                    nodes[what[1]].refused(user(what[0]), token.encode())
            elif step == "connect" and not third.fails:
                third.connecting = what[0]
                await side.connect(what[0], nodes[what[1]])
                connected.add(what[0])
                ended.discard(what[0])
                failed -= {(what[0], 0), (what[0], 1)}
            elif step == "disconnect":
                assert await nodes[what[1]].disconnect(what[0]) or what[0] not in connected or what[0] in ended
                connected.discard(what[0])
            elif step == "fails":
                third.fails = what[0]
                if third.fails:
                    failed |= {(who, node) for who in connected for node in (0, 1)}
            elif step == "ends":
                third.grants -= {token for token, owner in third.owners.items() if owner == what[0]}
                ended.add(what[0])
        assert third.replayed == []
