"""What ends when a principal is no longer good: streams, sessions and calls, over real sockets."""

import asyncio

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, until

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held, Holders

pytestmark = pytest.mark.anyio

REVOKED = Failure(401, Reason.JWT_AUTH, "it was revoked", code="credential_revoked")
CAN = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
NEVER = {"name": "never", "arguments": {}}


def held(running: Gateway, who: str) -> list[Held]:
    return list(running.sessions.holders._of.get(who, ()))


async def test_a_session_ends_with_all_that_is_open_in_it() -> None:
    async with gateway({"c": child()}) as running:
        ada, bob = await running.agent(who="ada"), await running.agent(who="bob")
        stream, others = await ada.listen(), await bob.listen()
        call = await ada.start("tools/call", NEVER)
        await call.head()  # which begins before there is an answer
        await call.event()
        waiting = await ada.start("tools/call", NEVER)
        await until(lambda: sum(len(session.calls) for session in running.sessions._open.values()) == 2)
        running.sessions.holders.end("ada", REVOKED)
        error = (await call.next())["error"]
        assert (error["message"], error["data"]["reason"]) == ("it was revoked", "credential_revoked")
        assert await call.event() is None
        await waiting.head()
        assert b"it was revoked" in await waiting.body()
        assert await stream.event() is None
        assert (await ada.ask("ping")).status == 404
        assert "result" in (await bob.ask("ping")).message
        for each in (stream, others, call, waiting):
            await each.close()
        await until(lambda: not held(running, "ada") and len(held(running, "bob")) == 1)


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18"])
async def test_a_call_of_an_older_revision_is_told(revision: str) -> None:
    async with gateway({"c": child()}) as running:
        ada = await running.agent(who="ada", revision=revision)
        waiting = await ada.start("tools/call", NEVER)
        await until(lambda: any(session.calls for session in running.sessions._open.values()))
        running.sessions.holders.end("ada", REVOKED)
        await waiting.head()
        assert b"it was revoked" in await waiting.body()
        await waiting.close()
        assert (await ada.ask("ping")).status == 404


async def test_streams_end_with_their_credential_and_sessions_do_not() -> None:
    async with gateway({"c": child()}) as running:
        ada = await running.agent(who="ada")
        stream = await ada.listen()
        call = await ada.start("tools/call", NEVER)
        await call.head()
        first = (await call.chunk()).decode()
        session, get, post = held(running, "ada")
        assert session.deadline > 1e17
        get.expire()
        post.expire()
        assert await stream.event() is None
        assert await call.event() == b""  # when to come back
        assert await call.event() is None
        assert "result" in (await ada.ask("ping")).message
        (known,) = running.sessions._open.values()
        assert len(known.calls) == 1  # it goes on, and who has another token by then reads on
        last = first.split("\n")[0].removeprefix("id: ")
        again = await running.open(None, ada.headers | {"last-event-id": last}, method="GET")
        await again.head()
        await ada.tell("notifications/cancelled", {"requestId": ada.ids - 1})
        assert await again.body() is not None
        for each in (stream, call, again):
            await each.close()


async def test_subscriptions_end_in_good_order() -> None:
    async with gateway({"c": child()}) as running:
        ada = running.stateless(who="ada")
        stream = await ada.start("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await stream.head()
        await stream.next()
        (one,) = held(running, "ada")
        one.expire()
        assert (await stream.next())["result"]["resultType"] == "complete"
        assert await stream.event() is None
        await stream.close()
        assert not running.sessions.subscriptions


async def test_who_is_seen_with_another_token_is_asked_about_by_that() -> None:
    async with gateway({"c": child()}) as running:
        ada = await running.agent(who="ada")
        (session,) = held(running, "ada")
        before = session.principal
        await ada.ask("ping")
        assert session.principal is not before
        running.sessions.holders.review(lambda who: who is not before, REVOKED)
        assert len(running.sessions) == 1


async def test_subscriptions_have_shares() -> None:
    async with gateway({"c": child()}) as running:
        subscriptions = running.sessions.subscriptions
        subscriptions.limit_each = 2
        ada = Principal("ada", source="key")
        first = subscriptions.add(b"1", {}, frozenset(), principal=ada)
        subscriptions.add(b"2", {}, frozenset(), principal=ada)
        with pytest.raises(Failure) as caught:
            subscriptions.add(b"3", {}, frozenset(), principal=ada)
        assert caught.value.status == 429
        for n in range(2):
            for address in ("10.0.0.1", "10.0.0.2"):
                subscriptions.add(b"%d" % n, {}, frozenset(), address=address)
        first.outlet.finish()
        subscriptions.add(b"3", {}, frozenset(), principal=ada)
        subscriptions.finish()
        assert (len(subscriptions), subscriptions._of) == (0, {})
        await asyncio.sleep(0)


async def test_a_call_that_waits_for_an_answer_is_given_up() -> None:
    """Its server hears that nobody answers, and not only when the time for it is over."""
    holders = Holders(Clock())
    async with gateway({"c": child()}, bridging={"holders": holders}) as running:
        ada = running.stateless(who="ada")
        await ada.call("echo", {"message": "x"}, _meta=CAN)
        asks = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {"type": "object"}}}
        asked = (await ada.call("ask", asks, _meta=CAN)).message["result"]
        assert asked["resultType"] == "input_required"
        assert (len(holders), len(running.bridge)) == (1, 1)
        holders.end("ada", REVOKED)
        assert (len(holders), len(running.bridge)) == (0, 0)
        answers = {key: {"action": "decline"} for key in asked["inputRequests"]}
        more = {"requestState": asked["requestState"], "inputResponses": answers}
        assert (await ada.call("ask", asks, _meta=CAN, **more)).message["error"]["data"]["reason"] == "call_lost"
