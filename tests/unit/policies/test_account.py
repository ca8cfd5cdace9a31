"""The policy that asks for accounts, as one of a chain. For what agents see of it see those of endpoints/mcp."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.fixtures.accounts import Connected
from tests.unit.policies.floor import Time, answer, counted, layer, parts, tool, who

from tollhouse.core.call import ACCOUNT, APPROVAL, CONNECTING, Call, Consent
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.core.reply import Reply
from tollhouse.policies.account import ACCOUNTS
from tollhouse.policies.base import Parts
from tollhouse.policies.oauth_spec import OauthSpec
from tollhouse.wire.mcp.capabilities import ELICIT_URL

pytestmark = pytest.mark.anyio

OAUTH = layer(OauthSpec(), "server", "shop")
NEEDED = Failure(403, Reason.AUTHORIZATION, "no account", code=ACCOUNT_NEEDED)


class Floor:
    """A chain whose end does what it is told. came: the calls that reached it."""

    def __init__(self, *users: str, **more: Any) -> None:
        self.accounts = Connected(*users)
        self.parts: Parts = replace(parts(Time(), entrance="mcp"), accounts={"shop": self.accounts}.get, **more)
        self.fails: list[Failure] = []
        self.came: list[Call] = []
        policy = ACCOUNTS.make((OAUTH,), self.parts)
        assert policy is not None
        self.handle: Handler[Call, Reply] = compose((policy,), self._end)

    async def _end(self, call: Call) -> Reply:
        self.came.append(call)
        if self.fails:
            raise self.fails.pop(0)
        return await answer(call)


def result(reply: Reply) -> Any:
    return msgspec.json.decode(reply.first)["result"]


async def test_what_needs_no_account_is_let_through() -> None:
    floor = Floor()
    reply = await floor.handle(tool())
    assert reply.first == b"{}"
    assert floor.accounts.links == []
    assert counted(floor.parts, "accounts_total") == {}


@pytest.mark.parametrize(
    "failure",
    [
        Failure(403, Reason.AUTHORIZATION, "no account", code=ACCOUNT_NEEDED, sent=True),
        Failure(403, Reason.AUTHORIZATION, "no", code="permission_denied"),
        Failure(503, Reason.UPSTREAM_FAILURE, "later", code="temporarily_unavailable"),
    ],
)
async def test_other_failures_are_what_they_are(failure: Failure) -> None:
    """One that was sent among them: it may have been carried out."""
    floor = Floor()
    floor.fails = [failure]
    with pytest.raises(Failure) as raised:
        await floor.handle(tool())
    assert raised.value is failure
    assert floor.accounts.links == []


async def test_the_link_is_of_who_calls() -> None:
    floor = Floor()
    floor.fails = [NEEDED.copy(), NEEDED.copy()]
    for id in ("ada", "bob"):
        call = tool(principal=who(id=id))
        told = result(await floor.handle(call))
        assert told["isError"] is True
        assert f"l=jwt:{id}-" in told["content"][0]["text"]
        assert (call.context.rule, call.context.decision) == ("account", "")
        assert "https://" not in call.context.error
    assert counted(floor.parts, "accounts_total") == {("shop", "asked"): 2}


@pytest.mark.parametrize("method", ["prompts/get", "resources/read", "completion/complete", "resources/subscribe"])
async def test_an_error_has_the_link_beside_its_words(method: str) -> None:
    floor = Floor()
    floor.fails = [NEEDED.copy()]
    with pytest.raises(Failure) as raised:
        await floor.handle(tool(method=method))
    failure = raised.value
    assert (failure.status, failure.code, failure.url) == (403, ACCOUNT_NEEDED, floor.accounts.links[0])
    assert "https://" not in f"{failure.message} {failure.detail} {failure!r}"
    assert failure.copy().url == failure.url


async def test_who_has_an_account_and_is_to_agree_to_more_is_told_that() -> None:
    """In words, and by what his agent shows him."""

    async def claim() -> bool:
        return True

    floor = Floor("jwt:ada")
    lacks = Failure(403, Reason.AUTHORIZATION, "no account", code=ACCOUNT_NEEDED, scopes=("write",))
    floor.fails = [lacks.copy(), lacks.copy()]
    text = result(await floor.handle(tool()))["content"][0]["text"]
    assert "needs more of the user's account at login.example.com than was agreed" in text
    assert floor.accounts.links[0] in text
    assert "not connected" not in text
    question = tool()
    question.profile = ELICIT_URL
    reply = await floor.handle(question)
    (asked,) = result(reply)["inputRequests"].values()
    said = "shop needs more of your account at login.example.com than you agreed to: agree, and "
    assert asked["params"]["message"].startswith(said)
    # His agent comes again, and he does not agree.
    call = tool()
    call.consent, call.round = Consent(ACCOUNT, "decline", claim, 60.0), 1
    text = result(await floor.handle(call))["content"][0]["text"]
    assert "did not agree to let shop use more of his account at login.example.com" in text
    call = tool()
    call.consent, call.round = Consent(ACCOUNT, "decline", claim, 60.0), 1
    text = result(await Floor().handle(call))["content"][0]["text"]
    assert "did not agree to connect an account at login.example.com" in text


async def test_a_later_round_is_not_asked_about() -> None:
    floor = Floor()
    floor.fails = [NEEDED.copy()]
    call = tool()
    call.profile, call.round = ELICIT_URL, 2
    assert result(await floor.handle(call))["isError"] is True
    assert call.asks is None


@pytest.mark.parametrize("about", [ACCOUNT, CONNECTING, APPROVAL])
async def test_consent_is_taken_for_what_it_is_about(about: str) -> None:
    async def claim() -> bool:
        return True

    floor = Floor("jwt:ada")
    call = tool()
    call.consent, call.round = Consent(about, "decline", claim, 60.0), 1
    reply = await floor.handle(call)
    assert call.consent is None
    if about == APPROVAL:  # nobody asks for that any more
        assert reply.first == b"{}"
    else:
        assert "did not agree" in result(reply)["content"][0]["text"]
        assert floor.came == []


async def test_a_call_of_nobody() -> None:
    floor = Floor()
    call = tool("connect")
    call.principal, call.connects = None, True
    with pytest.raises(Failure, match="a user who can log in"):
        await floor.handle(call)


def test_where_it_is_of_use() -> None:
    p = parts(Time(), entrance="mcp")
    with pytest.raises(ConfigError, match="`issuer`"):
        ACCOUNTS.make((OAUTH,), p)
    with pytest.raises(ConfigError, match="`issuer`"):
        ACCOUNTS.make((OAUTH,), replace(p, accounts=lambda server: None))
    assert ACCOUNTS.make((), p) is None
    assert ACCOUNTS.make((OAUTH,), replace(p, entrance="llm")) is None
