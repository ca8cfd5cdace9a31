"""Accounts at a server of somebody else's: how one is connected, by whom alone, and the tokens that calls carry."""

import asyncio
import logging
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests.fixtures.third_party import BINDING, CALLBACK, START, TARGET, Side, credentials, robot, third_party, user

from tollhouse.backends.accounts import AccountRefused, ThirdParty
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.store.memory import MemoryState
from tollhouse.wire.oauth import Form

pytestmark = pytest.mark.anyio


async def refused(party: ThirdParty, sub: str, binding: str, form: Form) -> AccountRefused:
    with pytest.raises(AccountRefused) as caught:
        await party.finish(sub, binding, form)
    assert caught.value.said.endswith(".")
    return caught.value


async def failed(side: Side, sub: str = "ada", party: ThirdParty | None = None) -> Failure:
    with pytest.raises(Failure) as caught:
        await side.token(sub, party)
    return caught.value


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def changed(form: Form, **values: str) -> Form:
    fields = dict(form.items()) | {name: (value,) for name, value in values.items()}
    return Form({name: value for name, value in fields.items() if value[0]})


# ---- the whole way
async def test_a_user_connects_an_account_and_his_calls_carry_its_token() -> None:
    async with third_party() as side:
        party = side.party
        needed = await failed(side)
        assert (needed.status, needed.code, needed.sent) == (403, ACCOUNT_NEEDED, False)
        assert await party.account("ada") is None
        link = party.link(user())
        assert link.startswith(f"{START}?l=")
        opened = party.opened(query_of(link)["l"])
        assert opened is not None
        assert (opened.server, opened.sub, opened.agent) == ("files", "ada", "agent-1")
        url = await party.begin("ada", opened.agent, BINDING)
        sent = query_of(url)
        assert sent["response_type"] == "code"
        assert sent["code_challenge_method"] == "S256"
        assert sent["redirect_uri"] == CALLBACK
        assert sent["client_id"] == "client-1"
        assert sent["scope"] == "read"
        assert sent["resource"] == f"{side.third.url}/mcp"
        await party.finish("ada", BINDING, side.third.agreed(url))
        [asked] = side.third.to("/token")
        assert credentials(asked) == ("client-1", "secret of client-1")
        assert asked.form["resource"] == f"{side.third.url}/mcp"
        assert await side.token() == "access-1"
        assert isinstance(party.exchanged(user(), TARGET), tuple)  # at once from now on
        assert (await failed(side, "bob")).code == ACCOUNT_NEEDED
        account = await party.account("ada")
        assert account is not None
        assert (account.host, account.scopes, account.since) == (urlsplit(side.third.url).netloc, ("read",), side.now())
        assert [event.operation for event in side.events] == ["account.connected"]
        assert side.events[0].subject == "ada"
        assert side.counts == ["connected"]


async def test_what_is_asked_for_in_the_challenge_comes_before_what_metadata_say() -> None:
    async with third_party() as side:
        side.third.challenge = "write files"
        assert query_of(await side.party.begin("ada", "", BINDING))["scope"] == "files write"


async def test_offline_access_is_asked_for_where_the_issuer_has_it() -> None:
    async with third_party() as side:
        side.third.metadata = {"scopes_supported": ["read", "offline_access"]}
        sent = query_of(await side.party.begin("ada", "", BINDING))
        assert (sent["scope"], sent["prompt"]) == ("read offline_access", "consent")


async def test_the_configuration_comes_before_all_documents() -> None:
    settings: dict[str, Any] = {
        "client_id": "us at theirs", "client_secret": "s e/c", "client_auth": "post", "scopes": ("mine",),
        "resource": "none", "parameters": (("access_type", "offline"),),
    }  # fmt: skip
    async with third_party() as side:
        url = side.third.url
        party = side.node(issuer=url, authorization_endpoint=f"{url}/authorize", token_endpoint=f"{url}/t", **settings)
        side.third.says["/t"] = lambda asked: (200, side.third.fresh(), {})
        begun = await party.begin("ada", "", BINDING)
        sent = query_of(begun)
        assert (sent["client_id"], sent["scope"], sent["access_type"]) == ("us at theirs", "mine", "offline")
        assert "resource" not in sent
        await party.finish("ada", BINDING, side.third.agreed(begun))
        [asked] = side.third.asked  # nothing was looked up
        assert asked.path == "/t"
        assert (asked.form["client_id"], asked.form["client_secret"]) == ("us at theirs", "s e/c")
        assert "authorization" not in asked.headers
        assert "resource" not in asked.form
        assert await side.token(party=party) == "access-1"


async def test_who_waits_hears_of_the_account() -> None:
    async with third_party() as side:
        assert not await side.party.connected(user(), 0.0)
        waiting = asyncio.create_task(side.party.connected(user(), 30.0))
        other = asyncio.create_task(side.party.connected(user("bob"), 0.05))
        await asyncio.sleep(0)
        await side.connect()
        async with asyncio.timeout(1):
            assert await waiting
        assert not await other
        assert await side.party.connected(user(), 0.0)


async def test_a_change_is_told_with_who_it_is_about() -> None:
    heard: list[Any] = []
    async with third_party() as side:
        side.party.changed = heard.append
        await side.connect()
        await side.party.disconnect("ada")
    assert len(heard) == 2
    for is_theirs in heard:
        assert is_theirs(user())
        assert not is_theirs(user("bob"))
        assert not is_theirs(robot())


# ---- whose it is
async def test_who_has_no_user_has_no_account_and_no_link() -> None:
    async with third_party() as side:
        for ask in (lambda: side.party.exchanged(robot(), TARGET), lambda: side.party.link(robot())):
            with pytest.raises(Failure) as caught:
                ask()
            assert (caught.value.status, caught.value.code) == (403, "access_denied")
        with pytest.raises(Failure):
            await side.party.connected(robot(), 0.0)


async def test_a_link_opens_for_its_server_and_ten_minutes_only() -> None:
    async with third_party() as side:
        token = query_of(side.party.link(user()))["l"]
        assert side.node(server="others").opened(token) is None
        for altered in (
            token[:-2],
            token + "AA",
            token[:20] + ("A" if token[20] != "A" else "B") + token[21:],
            "",
            "x",
        ):
            assert side.party.opened(altered) is None
        side.now.value += 599
        assert side.party.opened(token) is not None
        side.now.value += 2
        assert side.party.opened(token) is None


# ---- more scopes
async def test_what_a_server_wants_besides_is_asked_for_with_what_there_is() -> None:
    async with third_party() as side:
        await side.connect()
        failure = await side.party.lacks(user(), ("admin", "write"))
        assert failure is not None
        assert (failure.status, failure.code, failure.scopes) == (403, ACCOUNT_NEEDED, ("admin", "write"))
        assert await side.token() == "access-1"  # which goes on for all else
        assert not await side.party.connected(user(), 0.0)
        node = side.node()
        url = await node.begin("ada", "", BINDING)
        assert query_of(url)["scope"] == "read admin write"
        assert await node.asks("ada") == ("read", "admin", "write")
        assert await node.asks("bob") == ("read",)
        assert query_of(await node.begin("bob", "", BINDING))["scope"] == "read"
        side.third.tokens = {"scope": "read admin"}
        waiting = asyncio.create_task(side.party.connected(user(), 30.0))
        await node.finish("ada", BINDING, side.third.agreed(url))
        async with asyncio.timeout(5):
            assert await waiting
        assert await side.token() == "access-2"
        assert await side.party.lacks(user(), ("admin",)) is None  # it has that, so asking again is of no use
        assert query_of(await node.begin("ada", "", BINDING))["scope"] == "read"


async def test_more_than_the_operator_has_written_is_not_asked_for() -> None:
    async with third_party(scopes=("read",)) as side:
        await side.connect()
        assert await side.party.lacks(user(), ("admin",)) is None
        assert await side.party.connected(user(), 0.0)


# ---- attacks on the answer
async def test_a_state_is_good_once() -> None:
    async with third_party() as side:
        url = await side.party.begin("ada", "", BINDING)
        form = side.third.agreed(url)
        await side.party.finish("ada", BINDING, form)
        replayed = side.third.agreed(url)
        assert "state" in str(await refused(side.party, "ada", BINDING, replayed))
        assert len(side.third.to("/token")) == 1


@pytest.mark.parametrize(
    ("sub", "binding"), [("bob", BINDING), ("ada", "of another login"), ("bob", "of another login"), ("", "")]
)
async def test_a_state_is_good_in_the_login_that_sent_it(sub: str, binding: str) -> None:
    """A victim's browser is brought back with an attacker's answer, or the other way round."""
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        assert "another login" in str(await refused(side.party, sub, binding, form))
        assert side.third.to("/token") == []
        await refused(side.party, "ada", BINDING, form)  # and never again
        assert await side.party.account("ada") is None
        assert await side.party.account("bob") is None


async def test_a_state_of_one_server_is_none_of_another() -> None:
    async with third_party() as side:
        other = side.node(server="others")
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        assert "state" in str(await refused(other, "ada", BINDING, form))
        assert side.third.to("/token") == []


async def test_a_state_that_was_never_given_out_is_none() -> None:
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        await refused(side.party, "ada", BINDING, changed(form, state="made-up"))
        await refused(side.party, "ada", BINDING, changed(form, state=""))
        await side.party.finish("ada", BINDING, form)


async def test_a_state_is_good_for_ten_minutes() -> None:
    seconds = [0.0]
    clock = Clock(source=lambda: seconds[0])
    async with third_party(states=lambda _: [MemoryState(clock)]) as side:
        for waited in (599, 602):
            form = side.third.agreed(await side.party.begin("ada", "", BINDING))
            seconds[0] += waited
            clock.turn()
            if waited < 600:
                await side.party.finish("ada", BINDING, form)
            else:
                await refused(side.party, "ada", BINDING, form)


@pytest.mark.parametrize("iss", ["https://evil.example.com", ""])
async def test_an_answer_of_another_issuer_is_refused(iss: str) -> None:
    """Mix-up (RFC 9207): the code goes to nobody."""
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING), iss=iss)
        assert "iss" in str(await refused(side.party, "ada", BINDING, form))
        assert side.third.to("/token") == []


async def test_iss_may_be_absent_where_nobody_promised_it_but_never_wrong() -> None:
    async with third_party() as side:
        side.third.metadata = {"authorization_response_iss_parameter_supported": False}
        form = side.third.agreed(await side.party.begin("ada", "", BINDING), iss=side.third.url + "/")
        await refused(side.party, "ada", BINDING, form)
        form = side.third.agreed(await side.party.begin("ada", "", BINDING), iss="")
        await side.party.finish("ada", BINDING, form)


async def test_a_code_of_another_request_is_worth_nothing() -> None:
    """Code injection: the verifier is of this request (RFC 7636)."""
    async with third_party() as side:
        foreign = side.third.agreed(await side.party.begin("eve", "", "eve's login"))
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        injected = changed(form, code=foreign.get("code"))
        assert "invalid_grant" in str(await refused(side.party, "ada", BINDING, injected))
        assert await side.party.account("ada") is None


@pytest.mark.parametrize(("error", "said"), [("access_denied", "did not agree"), ("server_error", "not connect")])
async def test_an_error_is_told_in_words_of_ours(error: str, said: str) -> None:
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        form = changed(form, error=error, error_description="<b>call 555</b>", code="")
        why = await refused(side.party, "ada", BINDING, form)
        assert said in why.said
        assert "555" not in why.said
        assert side.counts == ["refused"]


async def test_an_answer_without_a_code_is_refused() -> None:
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        await refused(side.party, "ada", BINDING, changed(form, code=""))


async def test_settings_that_changed_meanwhile_get_no_code() -> None:
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        other = side.node(url=f"{side.third.url}/elsewhere")
        assert "configuration" in str(await refused(other, "ada", BINDING, form))
        assert side.third.to("/token") == []


# ---- settings that are others
@pytest.mark.parametrize(
    "settings",
    [
        {"url": "https://elsewhere.example.com/mcp"},
        {"issuer": "https://login.example.com"},
        {"issuer": "https://login.example.com", "token_endpoint": "https://login.example.com/token"},
        {"client_id": "another"},
        {"resource": "https://api.example.com"},
        {"resource": "none"},
    ],
)
async def test_an_account_counts_for_the_place_that_it_was_made_for(settings: dict[str, Any]) -> None:
    async with third_party() as side:
        await side.connect()
        other = side.node(**settings)
        assert (await failed(side, party=other)).code == ACCOUNT_NEEDED
        assert await other.account("ada") is None
        assert not await other.connected(user(), 0.0)
        before = len(side.third.asked)
        await other.disconnect("ada")
        assert side.third.revoked == []  # nobody else is shown it
        assert len(side.third.asked) == before


async def test_tokens_go_to_no_other_endpoint_of_the_same_issuer() -> None:
    async with third_party() as side:
        await side.connect()
        same = side.node(issuer=side.third.url, token_endpoint=f"{side.third.url}/token")
        assert await side.token(party=same) == "access-1"
        other = side.node(issuer=side.third.url, token_endpoint=f"{side.third.url}/other")
        assert (await failed(side, party=other)).code == ACCOUNT_NEEDED


async def test_an_account_of_a_configured_client_ends_with_it() -> None:
    async with third_party(client_id="us", client_secret="s-1") as side:
        await side.connect()
        assert await side.token(party=side.node(client_id="us", client_secret="s-2")) == "access-1"
        assert (await failed(side, party=side.node())).code == ACCOUNT_NEEDED


# ---- disconnecting
async def test_who_disconnects_is_heard_at_once_and_at_the_issuer() -> None:
    async with third_party() as side:
        node = side.node()
        await side.connect()
        assert await side.token(party=node) == "access-1"
        version = node.version
        assert await side.party.disconnect("ada")
        assert side.third.revoked == ["refresh-1", "access-1"]
        [asked, _] = side.third.to("/revoke")
        assert credentials(asked) == ("client-1", "secret of client-1")
        assert node.version != version  # what was remembered is asked for anew
        assert (await failed(side, party=node)).code == ACCOUNT_NEEDED
        assert not await side.party.disconnect("ada")
        assert [event.operation for event in side.events] == ["account.connected", "account.disconnected"]
        assert side.counts == ["connected", "disconnected"]


@pytest.mark.parametrize("says", [(500, {}, {}), None, (400, {"error": "invalid_client"}, {})])
async def test_an_issuer_that_does_not_answer_keeps_no_account_alive(
    says: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with third_party() as side:
        await side.connect()
        side.third.says["/revoke"] = lambda asked: says
        assert await side.party.disconnect("ada")
        assert await side.party.account("ada") is None
    assert "may not know" in caplog.text
    assert "refresh-1" not in caplog.text


# ---- the token endpoint's answer
@pytest.mark.parametrize(
    "answer",
    [
        {"token_type": "mac"},
        {"token_type": None},
        {"access_token": "new\r\nx-evil: 1"},
        {"access_token": "caf\u00e9"},
        {"access_token": ""},
        {"access_token": None},
        {"access_token": 7},
        {"access_token": "a" * 8001},
        {"refresh_token": "new\nline"},
        {"refresh_token": ["list"]},
        {"expires_in": -1},
        {"expires_in": 0},
        {"expires_in": "soon"},
        {"expires_in": True},
        {"scope": 'quo"te'},
        {"scope": 5},
    ],
)
async def test_an_answer_that_cannot_be_used_connects_nothing(answer: dict[str, Any]) -> None:
    async with third_party() as side:
        url = await side.party.begin("ada", "", BINDING)
        form = side.third.agreed(url)
        said = side.third.fresh() | answer
        side.third.says["/token"] = 200, {name: value for name, value in said.items() if value is not None}, {}
        why = await refused(side.party, "ada", BINDING, form)
        assert "cannot be used" in str(why)
        assert "evil" not in f"{why}{why.said}"
        assert await side.party.account("ada") is None


@pytest.mark.parametrize(
    "says",
    [
        (200, b"<html>", {}),
        (200, b"[" * 5000, {}),
        (200, b"x" * (1 << 17), {}),
        (302, b"", {"location": "/token2"}),
        (307, b"", {"location": "/token2"}),
        (500, {}, {}),
        None,
    ],
)
async def test_an_answer_that_is_none_connects_nothing(says: Any) -> None:
    async with third_party() as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        side.third.says["/token"] = lambda asked: says
        await refused(side.party, "ada", BINDING, form)
        assert side.third.to("/token2") == []
        assert await side.party.account("ada") is None


async def test_an_issuer_that_never_answers_is_not_waited_for() -> None:
    async with third_party(timeout=0.2) as side:
        form = side.third.agreed(await side.party.begin("ada", "", BINDING))
        side.third.says["/token"] = lambda asked: asyncio.sleep(30)
        async with asyncio.timeout(5):
            assert "in time" in str(await refused(side.party, "ada", BINDING, form))
            del side.third.says["/token"]
            await side.connect()
            side.third.says["/revoke"] = lambda asked: asyncio.sleep(30)
            assert await side.party.disconnect("ada")


@pytest.mark.parametrize(
    ("said", "has"),
    [("read write admin", ("admin", "read", "write")), ("", ()), (None, ("read",)), ("a,b", ("a", "b"))],
)
async def test_an_account_has_the_scopes_that_were_given(said: str | None, has: tuple[str, ...]) -> None:
    """What the user has agreed to there is the issuer's to say; what it gave is what is shown."""
    async with third_party() as side:
        side.third.tokens = {"scope": said}
        await side.connect()
        account = await side.party.account("ada")
        assert account is not None
        assert account.scopes == has


@pytest.mark.parametrize("life", [1e18, 10**30, "1e400"])
async def test_a_life_without_end_is_ten_years(life: Any) -> None:
    async with third_party() as side:
        side.third.tokens = {"expires_in": life}
        await side.connect()
        made = side.party.exchanged(user(), TARGET)
        granted = made if isinstance(made, tuple) else await made
        assert granted.expires <= side.now() + 60  # others ask again after a minute at the latest


# ---- secrets
async def test_no_secret_is_in_a_repr_or_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with third_party(client_id="us", client_secret="a-secret-of-ours") as side:
        await side.connect()
        await side.token()
        made = side.party.exchanged(user(), TARGET)
        texts = [repr(made), str(made)]
        side.party.refused(user(), b"access-1")
        side.now.value += 60
        side.third.says["/token"] = 400, {"error": "invalid_grant", "error_description": "access-1-refresh-1-long"}, {}
        side.party.refused(user(), b"access-1")
        failure = await failed(side)
        texts += [repr(failure), failure.message, failure.detail, caplog.text, repr(side.party._settings)]
    for text in texts:
        for secret in ("access-1", "refresh-1", "a-secret-of-ours"):
            assert secret not in text
