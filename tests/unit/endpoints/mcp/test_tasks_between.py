"""Tasks between agents and servers of every era: the fixture's server in a process of its own, real sockets."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, New, Old, gateway
from tests.fixtures.mcp_suite import FIXTURE, ROOT, fixture_server

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.stdio import StdioServerSpec
from tollhouse.core.clock import Clock
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

TASKS = "io.modelcontextprotocol/tasks"
RELATED = "io.modelcontextprotocol/related-task"
CAN = {"elicitation": {}, "extensions": {TASKS: {}}}
DECLARED = {"io.modelcontextprotocol/clientCapabilities": CAN}
YES = {"action": "accept", "content": {"confirm": True, "name": "ada"}}


@pytest.fixture(scope="module", params=["old", "new"])
def era(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A server's era and URL."""
    with fixture_server("--era", request.param) as url:
        yield request.param, url


@pytest.fixture(scope="module")
def old_server() -> Iterator[str]:
    with fixture_server("--era", "old") as url:
        yield url


@asynccontextmanager
async def running(url: str, **more: Any) -> AsyncIterator[Gateway]:
    async with gateway({"u": HttpServerSpec(url=url)}, **more) as found:
        await found.stateless().ask("tools/list")
        yield found


async def begun(agent: Old, name: str, **arguments: Any) -> Any:
    """The task that a call of an agent with a session became."""
    return (await agent.call(name, arguments, task={"ttl": 60000})).message["result"]["task"]


async def settled(agent: Old, id: str, *wanted: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            task = (await agent.ask("tasks/get", {"taskId": id})).message["result"]
            if task["status"] in wanted:
                return task
            await asyncio.sleep(0.02)


# ---- an agent with a session
async def test_an_agent_with_a_session_has_tasks_at_a_server_of_either_era(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent()
        assert agent.opening["capabilities"]["tasks"] == {
            "list": {}, "cancel": {}, "requests": {"tools": {"call": {}}},
        }  # fmt: skip
        listed = (await agent.ask("tools/list")).message["result"]["tools"]
        slow = next(tool for tool in listed if tool["name"] == "slow_compute")
        assert slow["execution"] == {"taskSupport": "optional"}
        task = await begun(agent, "slow_compute", seconds=0.1, label="it")
        id = task["taskId"]
        assert id.startswith("t1.")
        assert (task["status"], task["ttl"], task["pollInterval"]) == ("working", 60000, 100)
        assert not {"ttlMs", "pollIntervalMs", "resultType"} & task.keys()
        done = (await agent.ask("tasks/result", {"taskId": id})).message["result"]
        assert done["content"][0]["text"] == "Computed it"
        assert done["_meta"] == {RELATED: {"taskId": id}}
        seen = await settled(agent, id, "completed")
        assert seen.keys() == task.keys()
        assert (await agent.ask("tasks/list")).message["result"] == {"tasks": [seen]}
        assert (await agent.ask("tasks/cancel", {"taskId": id})).error == (200, -32602)


async def test_a_tool_that_fails_is_a_task_that_failed(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent()
        id = (await begun(agent, "failing_job"))["taskId"]
        done = (await agent.ask("tasks/result", {"taskId": id})).message["result"]
        assert done["isError"] is True
        # The fixture says "completed" of it in the old era, as many servers do.
        assert (await settled(agent, id, "completed", "failed"))["status"] == (
            "completed" if era[0] == "old" else "failed"
        )
        broken = (await begun(agent, "protocol_error_job"))["taskId"]
        assert (await agent.ask("tasks/result", {"taskId": broken})).error == (200, -32603)
        assert (await settled(agent, broken, "failed"))["taskId"] == broken


async def test_a_cancelled_task_is_cancelled_from_then_on(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent()
        id = (await begun(agent, "slow_compute", seconds=30))["taskId"]
        told = (await agent.ask("tasks/cancel", {"taskId": id})).message["result"]
        assert (told["taskId"], told["status"]) == (id, "cancelled")
        assert (await agent.ask("tasks/get", {"taskId": id})).message["result"]["status"] == "cancelled"
        assert (await agent.ask("tasks/result", {"taskId": id})).error == (200, -32603)
        assert (await agent.ask("tasks/cancel", {"taskId": id})).error == (200, -32602)


async def test_a_task_asks_its_agent_on_the_stream_of_its_result(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent({"elicitation": {}})
        id = (await begun(agent, "multi_input"))["taskId"]
        await settled(agent, id, "input_required")
        stream = await agent.start("tasks/result", {"taskId": id})
        await stream.head()
        asked = 0
        while True:
            message = await stream.next()
            if "method" not in message:
                break
            assert message["method"] == "elicitation/create"
            assert message["params"]["_meta"] == {RELATED: {"taskId": id}}
            asked += 1
            assert (await agent.answer(message["id"], YES)).status == 202
        await stream.close()
        assert asked == 2
        assert "ada" in message["result"]["content"][0]["text"]
        assert message["result"]["_meta"] == {RELATED: {"taskId": id}}


async def test_a_task_is_its_callers_at_its_endpoint(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent(who="ada")
        id = (await begun(agent, "slow_compute"))["taskId"]
        for other in (await found.agent(who="bob"), await found.agent(who="ada", path="/mcp/u")):
            for method in ("tasks/get", "tasks/result", "tasks/cancel"):
                assert (await other.ask(method, {"taskId": id})).error == (200, -32602)
            assert (await other.ask("tasks/list")).message["result"] == {"tasks": []}
        for wrong in ("x", id[:-1], 7, None):
            assert (await agent.ask("tasks/get", {"taskId": wrong})).error == (200, -32602)
        assert (await agent.ask("tasks/list", {"cursor": "x"})).error == (200, -32602)


async def test_revisions_without_tasks_have_none(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = await found.agent(revision="2025-06-18")
        assert "tasks" not in agent.opening["capabilities"]
        assert (await agent.call("echo", {"message": "hi"}, task={})).text == "hi"
        for method in ("tasks/get", "tasks/list", "tasks/update"):
            assert (await agent.ask(method, {"taskId": "x"})).error == (200, -32601)


async def test_what_is_answered_at_once_is_a_finished_task() -> None:
    with fixture_server("--era", "new") as url:
        async with running(url) as found:
            agent = await found.agent()
            task = await begun(agent, "echo", message="hi")
            id = task["taskId"]
            assert (task["status"], task["ttl"]) == ("completed", 300_000)
            done = (await agent.ask("tasks/result", {"taskId": id})).message["result"]
            assert done == {"content": [{"type": "text", "text": "hi"}], "_meta": {RELATED: {"taskId": id}}}
            assert (await agent.ask("tasks/get", {"taskId": id})).message["result"] == task
            assert (await agent.ask("tasks/list")).message["result"] == {"tasks": [task]}
            assert (await agent.ask("tasks/cancel", {"taskId": id})).error == (200, -32602)


async def test_changes_of_a_task_are_told_under_its_id(old_server: str) -> None:
    async with running(old_server) as found:
        agent = await found.agent()
        stream = await agent.listen()
        await agent.ask("tasks/list")
        id = (await begun(agent, "slow_compute", seconds=0.2))["taskId"]
        message = await stream.next()
        assert message["method"] == "notifications/tasks/status"
        assert (message["params"]["taskId"], message["params"]["status"]) == (id, "completed")
        await stream.close()


async def test_a_tool_that_runs_only_as_a_task_is_waited_for_when_no_task_is_wanted() -> None:
    """By a stateless server; at one of 2025-11-25 its agents of that revision are told to ask for a task."""
    with fixture_server("--era", "new") as url:
        async with running(url) as found:
            for revision in ("2025-11-25", "2025-06-18"):
                agent = await found.agent(revision=revision)
                assert (await agent.call("failing_job")).text == "The job failed"


async def test_a_revision_without_tasks_has_them_waited_for(old_server: str) -> None:
    async with running(old_server) as found:
        agent = await found.agent(revision="2025-06-18")
        assert (await agent.call("failing_job")).text == "The job failed"
        assert (await (await found.agent()).call("failing_job")).error == (200, -32601)


# ---- a stateless agent
async def about(agent: New, method: str, id: str, **more: Any) -> Any:
    agent.headers["mcp-name"] = id
    try:
        return (await agent.ask(method, {"taskId": id, "_meta": DECLARED, **more})).message["result"]
    finally:
        del agent.headers["mcp-name"]


async def becomes(agent: New, id: str, *wanted: str) -> Any:
    async with asyncio.timeout(10):
        while (task := await about(agent, "tasks/get", id))["status"] not in wanted:
            await asyncio.sleep(0.02)
    return task


async def test_a_stateless_agent_answers_a_task_of_an_old_server(old_server: str) -> None:
    async with running(old_server) as found:
        agent = found.stateless(who="ada")
        created = (await agent.call("multi_input", _meta=DECLARED)).message["result"]
        assert (created["resultType"], created["ttlMs"], created["pollIntervalMs"]) == ("task", 60000, 100)
        id = created["taskId"]
        task = await becomes(agent, id, "input_required")
        one, two = task["inputRequests"]
        assert task["inputRequests"][one]["method"] == "elicitation/create"
        assert len(found.bridge.tasks.old.inputs) == 1
        assert await about(agent, "tasks/update", id, inputResponses={one: YES, "x": YES}) == _ack(created)
        left = await becomes(agent, id, "input_required")
        assert list(left["inputRequests"]) == [two]
        await about(agent, "tasks/update", id, inputResponses={two: YES})
        task = await becomes(agent, id, "completed")
        assert "ada" in task["result"]["content"][0]["text"]
        assert task["result"]["resultType"] == "complete"
        assert "_meta" not in task["result"]
        async with asyncio.timeout(5):
            while len(found.bridge.tasks.old.inputs):
                await asyncio.sleep(0.01)
        assert (await about(agent, "tasks/cancel", id)) == _ack(created)


async def test_a_task_is_asked_about_in_the_child_that_runs_it() -> None:
    """Each call of an agent that can be asked things has a child to itself, and other children do not know its task;
    what a task asks goes to who waits for its result, whatever else runs in that child."""
    spec = StdioServerSpec(
        command=FIXTURE[0], args=(*FIXTURE[1:], "--era", "old", "--stdio"), env={"PYTHONPATH": str(ROOT)}
    )
    async with gateway({"u": spec}) as found:
        await found.stateless(who="ada").ask("tools/list")

        async def answered(name: str) -> str:
            agent = found.stateless(who="ada")
            created = (await agent.call("confirm_delete", {"filename": name}, _meta=DECLARED)).message["result"]
            (key,) = (await becomes(agent, created["taskId"], "input_required"))["inputRequests"]
            asking = await agent.call("test_input_required_result_elicitation", _meta=DECLARED)
            assert asking.message["result"]["resultType"] == "input_required"
            await about(agent, "tasks/update", created["taskId"], inputResponses={key: YES})
            done = await becomes(agent, created["taskId"], "completed")
            return str(done["result"]["content"][0]["text"])

        assert all("accept" in text for text in await asyncio.gather(*map(answered, "abc")))


async def test_a_child_that_runs_a_task_gives_way_last() -> None:
    arguments = (*FIXTURE[1:], "--era", "old", "--stdio")
    spec = StdioServerSpec(command=FIXTURE[0], args=arguments, env={"PYTHONPATH": str(ROOT)}, max_children=2)
    async with gateway({"u": spec}) as found:
        await found.stateless(who="ada").ask("tools/list")
        ada = found.stateless(who="ada")
        id = (await ada.call("slow_compute", {"seconds": 30}, _meta=DECLARED)).message["result"]["taskId"]
        for who in ("bob", "eve", "pat"):
            other = found.stateless(who=who)
            assert "result" in (await other.call("test_simple_text", _meta=DECLARED)).message
        assert (await about(ada, "tasks/get", id))["status"] == "working"


def _ack(like: Any) -> Any:
    return {"resultType": "complete", "_meta": like["_meta"]}


class Node:
    """One worker's State, of several who share `of`."""

    def __init__(self, of: MemoryState, node: str) -> None:
        self.values = of.values
        self.bus = of.bus
        self.counter = of.counter
        self.keys = of.keys
        self.node = node
        self.shared = True

    async def close(self) -> None:
        pass


async def test_a_task_is_answered_on_another_worker(old_server: str) -> None:
    """The session with the server, and the stream with its questions, are the first worker's."""
    state = MemoryState(Clock(), (b"k" * 32,))
    async with running(old_server, bridging={"state": Node(state, "b")}) as other:
        async with running(old_server, bridging={"state": Node(state, "a")}) as first:
            agent, same = first.stateless(who="ada"), other.stateless(who="ada")
            id = (await agent.call("confirm_delete", {"filename": "f"}, _meta=DECLARED)).message["result"]["taskId"]
            (key,) = (await becomes(same, id, "input_required"))["inputRequests"]
            assert (await about(agent, "tasks/get", id))["inputRequests"].keys() == {key}
            assert (len(first.bridge.tasks.old.inputs), len(other.bridge.tasks.old.inputs)) == (1, 0)
            assert (await about(same, "tasks/update", id, inputResponses={key: YES}))["resultType"] == "complete"
            assert "accept" in (await becomes(same, id, "completed"))["result"]["content"][0]["text"]
            id = (await agent.call("slow_compute", {"seconds": 30}, _meta=DECLARED)).message["result"]["taskId"]
            await about(same, "tasks/cancel", id)
            assert (await about(same, "tasks/get", id))["status"] == "cancelled"
        # The first is gone, and its session with it: this server does not know the task in another one.
        same.headers["mcp-name"] = id
        assert (await same.ask("tasks/get", {"taskId": id, "_meta": DECLARED})).error == (400, -32602)


async def test_a_listener_hears_of_its_tasks(era: tuple[str, str]) -> None:
    async with running(era[1]) as found:
        agent = found.stateless()
        id = (await agent.call("slow_compute", {"seconds": 0.5}, _meta=DECLARED)).message["result"]["taskId"]
        stream = await agent.start(
            "subscriptions/listen", {"notifications": {"taskIds": [id, "t1.forged"]}, "_meta": DECLARED}
        )
        await stream.head()
        acknowledged = await stream.next()
        assert acknowledged["params"]["notifications"] == {"taskIds": [id]}
        seen = []
        while not seen or seen[-1] != "completed":
            message = await stream.next()
            assert message["method"] == "notifications/tasks"
            assert message["params"]["taskId"] == id
            seen.append(message["params"]["status"])
        assert seen == ["working", "completed"]
        assert message["params"]["result"]["content"]
        await stream.close()
        refused = await agent.ask("subscriptions/listen", {"notifications": {"taskIds": [id]}})
        assert refused.error == (400, -32021)
        assert refused.message["error"]["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
