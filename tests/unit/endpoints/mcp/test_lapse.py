"""What ends when a principal is no longer good: streams, sessions and calls, over real sockets."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, until
from tests.fixtures.mcp_raw import upstream
from tests.unit.endpoints.mcp.test_carried import Slow, specs

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.holders import Held, Holders
from tollhouse.core.reply import Reply

pytestmark = pytest.mark.anyio

REVOKED = Failure(401, Reason.JWT_AUTH, "it was revoked", code="credential_revoked")
CAN: dict[str, Any] = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
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


# ---- runs
STOPPED = Failure(403, Reason.AUTHORIZATION, "the run was stopped", code="run_stopped")
SLOW = {"name": "slow", "arguments": {}}


def of_run(call: ToolCall, next: Handler[ToolCall, Reply]) -> Awaitable[Reply]:
    call.context.run_id = (call.request.header(b"x-run") or b"").decode()
    return next(call)


def stop(running: Gateway, run: str) -> None:
    """As a process does it for its one endpoint."""
    running.sessions.holders.end_run(run, STOPPED)
    running.http.stop(lambda request, _: request.context.run_id == run, STOPPED)


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"])
async def test_a_call_that_waits_ends_with_its_run(revision: str) -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url), policies=(of_run,)) as running:
        new = revision == "2026-07-28"
        agent = running.stateless() if new else await running.agent(revision=revision)
        agent.headers["x-run"] = "one"
        waiting = await agent.start("tools/call", SLOW)
        agent.headers["x-run"] = "other"
        goes_on = await agent.start("tools/call", SLOW)
        await until(lambda: slow.asked == 2)
        stop(running, "one")  # before its agent was told anything
        async with asyncio.timeout(5):
            await waiting.head()
            assert "the run was stopped" in (await waiting.body()).decode()
        assert waiting.status == 403
        await until(lambda: server.calls("notifications/cancelled"))
        slow.go.set()
        await goes_on.head()
        assert "done" in (await goes_on.body()).decode()
        for each in (waiting, goes_on):
            await each.close()
        await until(lambda: not any(session.calls for session in running.sessions._open.values()))
        assert len(running.sessions.holders) == (0 if new else 1)


@pytest.mark.parametrize("late", [False, True])
async def test_a_call_whose_agent_has_left_ends_with_its_run(late: bool) -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url), policies=(of_run,)) as running:
        agent = await running.agent()
        agent.headers["x-run"] = "one"
        stream = await agent.start("tools/call", SLOW)
        await until(lambda: slow.asked)
        if late:
            await stream.head()
        await stream.close()
        (session,) = running.sessions._open.values()
        await until(lambda: session.tracks)
        stop(running, "one")
        await until(lambda: server.calls("notifications/cancelled"))
        await until(lambda: not session.calls)
        assert len(running.sessions.holders) == 1


async def test_of_a_batch_what_is_of_the_run_ends() -> None:
    slow = Slow()

    def by_argument(call: ToolCall, next: Handler[ToolCall, Reply]) -> Awaitable[Reply]:
        call.context.run_id = json.loads(bytes(call.params["arguments"]))["run"]
        return next(call)

    async with upstream(slow) as server, gateway(specs(server.url), policies=(by_argument,)) as running:
        agent = await running.agent(revision="2025-03-26")
        batch = [agent.request("tools/call", {"name": "slow", "arguments": {"run": run}}) for run in ("one", "other")]
        stream = await running.open(batch, agent.headers)
        await until(lambda: slow.asked == 2)
        stop(running, "one")
        await until(lambda: server.calls("notifications/cancelled"))
        slow.go.set()
        async with asyncio.timeout(5):
            await stream.head()
            messages: dict[int, Any] = {one["id"]: one for one in json.loads(await stream.body())}
        first, second = (messages[one["id"]] for one in batch)
        assert first["error"]["message"] == "the run was stopped"
        assert second["result"]["content"][0]["text"] == "done"
        await stream.close()
        await until(lambda: len(running.sessions.holders) == 1)
