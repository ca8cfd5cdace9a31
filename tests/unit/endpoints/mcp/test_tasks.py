"""Tasks, of stateless agents: on servers that have the extension, and on servers of 2025-11-25; over real sockets."""

from typing import Any

import pytest
from tests.fixtures.mcp_gateway import NEW, gateway
from tests.fixtures.mcp_raw import Asked, Old, answer, result, upstream
from tests.unit.endpoints.mcp.test_bridge import ADA, Asks, needed, retry

from tollhouse.backends.mcp.http import HttpServerSpec

pytestmark = pytest.mark.anyio

TASKS = "io.modelcontextprotocol/tasks"
CAPABILITIES = {"extensions": {TASKS: {}}}
DECLARED = {"io.modelcontextprotocol/clientCapabilities": CAPABILITIES}
TASK = {"taskId": "inner", "status": "working", "createdAt": "x", "lastUpdatedAt": "x", "ttlMs": 1000}


def extension(asked: Asked) -> Any:
    """A stateless server with the extension."""
    if asked.method == "server/discover":
        capabilities = {"tools": {}, "extensions": {TASKS: {}}}
        return result(asked, {"supportedVersions": [NEW], "capabilities": capabilities, "resultType": "complete"})
    if asked.method == "tools/list":
        return result(asked, {"tools": [{"name": "slow", "inputSchema": {}}], "resultType": "complete", "ttlMs": 60000})
    params = asked.body["params"]
    if asked.method == "tools/call":
        declared = params["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        if TASKS not in declared.get("extensions", {}):
            return result(asked, {"resultType": "complete", "content": [{"type": "text", "text": "at once"}]})
        return result(asked, {"resultType": "task", **TASK})
    if params.get("taskId") != "inner":
        return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": {"code": -32602, "message": "no such task"}})
    if asked.method == "tasks/get":
        done = {"resultType": "complete", "content": []}
        return result(asked, {"resultType": "complete", **TASK, "status": "completed", "result": done})
    return result(asked, {"resultType": "complete"})


async def task(agent: Any, method: str, id: Any, **more: Any) -> Any:
    agent.headers["mcp-name"] = str(id)
    told = await agent.ask(method, {"taskId": id, "_meta": DECLARED, **more})
    del agent.headers["mcp-name"]
    return told


async def test_a_task_goes_by_an_id_of_its_callers_own() -> None:
    async with upstream(extension) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless(who="ada")
        await agent.ask("tools/list")
        discovered = (await agent.ask("server/discover")).message["result"]["capabilities"]
        assert discovered["extensions"] == {TASKS: {}}
        created = (await agent.call("slow", _meta=DECLARED)).message["result"]
        assert (created["resultType"], created["status"]) == ("task", "working")
        id = created["taskId"]
        assert id.startswith("t1.")
        found = (await task(agent, "tasks/get", id)).message["result"]
        assert (found["taskId"], found["status"]) == (id, "completed")
        told = server.calls("tasks/get")[-1]
        assert (told.headers["mcp-name"], told.body["params"]["taskId"]) == ("inner", "inner")
        answers = {"q": ADA}
        assert (await task(agent, "tasks/update", id, inputResponses=answers)).message["result"]["resultType"]
        assert server.calls("tasks/update")[-1].body["params"]["inputResponses"] == answers
        assert (await task(agent, "tasks/cancel", id)).status == 200
        for other in (running.stateless(who="bob"), running.stateless("/mcp/u", who="ada")):
            assert (await task(other, "tasks/get", id)).error == (400, -32602)
        for wrong in ("inner", id[:-1], "t1.", "", 7):
            assert (await task(agent, "tasks/get", wrong)).error[0] == 400


async def test_who_did_not_declare_tasks_has_none() -> None:
    async with upstream(extension) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        await agent.ask("tools/list")
        assert (await agent.call("slow")).text == "at once"
        agent.headers["mcp-name"] = "x"
        told = await agent.ask("tasks/get", {"taskId": "x"})
        assert told.error == (400, -32021)
        assert told.message["error"]["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        assert (await agent.ask("tasks/list")).error == (404, -32601)
        assert not server.calls("tasks/get")


class OnlyAsTask(Asks):
    """A server of 2025-11-25 whose tool must be called as a task, and asks within it."""

    def __init__(self) -> None:
        super().__init__(tools=[{"name": "echo", "inputSchema": {}, "execution": {"taskSupport": "required"}}])

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/call":
            if "task" not in asked.body["params"]:
                error = {"code": -32601, "message": "tasks are required here"}
                return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})
            return result(asked, {"task": {**TASK, "taskId": "old-task"}})
        if asked.method == "tasks/result":
            assert asked.body["params"]["taskId"] == "old-task"
            return self.run(asked)
        return super().__call__(asked)


async def test_a_tool_that_must_be_a_task_is_waited_for() -> None:
    script = OnlyAsTask()
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        await agent.ask("tools/list")
        told = await agent.call("echo")
        assert "-32601" in told.text  # nobody could be asked; the tool's own result
        script.told.clear()
        asked = needed(
            await agent.call("echo", _meta={"io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}})
        )
        answers = dict.fromkeys(asked["inputRequests"], ADA)
        told = await retry(agent, asked, answers)
        assert "ada" in told.text


async def test_a_stray_task_of_a_stateless_agent_goes_nowhere() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        assert (await running.stateless().call("echo", task={"ttl": 1})).text == "ok"
        assert "task" not in server.calls("tools/call")[-1].body["params"]
