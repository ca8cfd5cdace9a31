"""A user's own account at somebody else's server, with nothing made up (`tests.fixtures.account_house`): from a call
that nobody has an account for to the link, the two logins and back; then it is taken back, and the next call asks
again."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest
from tests.fixtures.account_house import OPERATOR, OURS, agent, config_of, house
from tests.fixtures.auth_provider import PASSWORD
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.identity import Storage
from tests.fixtures.mcp_gateway import NEW
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_whole_life_of_an_account(tmp_path: Path, mode: str) -> None:
    async with asyncio.timeout(120), house(tmp_path) as there:
        ada = there.somebody("ada", "grace")
        async with agent(there, ada, mode=mode) as desk:
            # Nobody has an account: there is one tool, and nothing of the server's.
            assert await desk.tools() == {"connect"}
            # A call asks for it, and goes on when it is there.
            assert await desk.says("echo", message="hello") == (False, "hello")
            assert len(desk.links) == 1
            page = f"Connect your account at localhost:{there.notes.url.rpartition(':')[2]}"
            assert page in ada.seen
            # The page says what will be asked for, which nobody has configured: it was found out for it.
            asked = ada.read[ada.seen.index(page)]
            assert {"mcp", "offline_access"} <= set(asked.split())
            assert "echo" in await desk.tools()
            assert "connect" not in await desk.tools()
            # It was his account there, and nobody's else.
            assert {line["user"] for line in await there.theirs("/mcp", 2) if line["status"] == 200} == {"grace"}
            # The next call goes out with what is remembered.
            assert await desk.says("echo", message="again") == (False, "again")
            assert len(desk.links) == 1
            # Seen by its user, and by operators, without a token.
            text = await ada.press(f"{there.ours.url}/oauth/grants", "")
            assert "Connected accounts" in text
            assert "notes" in text
            status, listed = await there.operate("GET", "/api/accounts")
            assert status == 200
            (account,) = listed["accounts"]
            assert (account["server"], account["user"], listed["next"]) == ("notes", "ada", None)
            assert set(account) == {"id", "server", "user", "host", "scopes", "since", "agent"}
            # Taken back: the service is told, and the next call asks again.
            text = await ada.press(f"{there.ours.url}/oauth/grants", "Disconnect")
            assert "It is disconnected." in text
            assert "Connected accounts" not in text
            assert (await there.theirs("/oauth/revoke"))[0]["status"] == 200
            desk.action = "decline"
            failed, said = await desk.says("echo", message="once more")
            assert failed
            assert "did not agree" in said
            assert len(desk.links) == 2
            desk.action = "accept"
            assert await desk.says("echo", message="back") == (False, "back")
            assert len(desk.links) == 3
            # An operator ends it as well.
            _, listed = await there.operate("GET", "/api/accounts")
            id = listed["accounts"][0]["id"]
            assert (await there.operate("DELETE", f"/api/accounts/{id}"))[0] == 200
            assert (await there.operate("DELETE", f"/api/accounts/{id}"))[0] == 404
            assert (await there.operate("GET", "/api/accounts"))[1]["accounts"] == []
            desk.action = "cancel"
            assert (await desk.says("echo", message="no"))[0]
        metrics = there.ours.metrics()
        for outcome, count in (("asked", 4), ("connected", 2), ("disconnected", 2)):
            found = re.search(rf'tollhouse_accounts_total{{server="notes",outcome="{outcome}"}} (\d+)', metrics)
            assert found is not None, outcome
            assert int(found[1]) >= count
        log = there.ours.text() + "".join(json.dumps(line) for line in there.ours.lines())
        state = (tmp_path / "ours" / "tollhouse.state").read_bytes().decode("latin-1")
        assert [line["status"] for line in await there.theirs("/oauth/token", 2)] == [200, 200]
        for secret in (PASSWORD, "code_verifier=", OPERATOR):
            assert secret not in log
        assert not re.search(r"code=(?!\*\*\*)", log)
        for text in (log, state):
            assert not re.search(r"eyJ[\w-]{20,}\.eyJ", text)  # a token of theirs, or ours
        await asyncio.to_thread(there.ours.stop)
        records = [json.loads(line) for line in (await there.command("audit", "list", "--json")).splitlines()]
        operations = [record["operation"] for record in records]
        assert operations.count("account.connected") == 2
        assert operations.count("account.disconnected") == 1
        assert operations.count("admin.accounts.disconnect") == 2
        (connected, _) = [record for record in records if record["operation"] == "account.connected"]
        assert (connected["subject"], connected["audience"]) == ("ada", "notes")
        assert connected["session"]


async def test_an_agent_that_shows_no_urls_gets_the_link_in_words(tmp_path: Path) -> None:
    async with asyncio.timeout(120), house(tmp_path) as there:
        ada, bob = there.somebody("ada", "grace"), there.somebody("bob", "heidi")
        storage = Storage()
        async with agent(there, ada, asks=False, storage=storage) as desk:
            failed, said = await desk.says("echo", message="hello")
            assert failed
            link = re.search(r"http://\S+/oauth/upstream/start\?l=\S+", said)
            assert link is not None
            # Somebody else who opens it, logged in as himself, connects nothing.
            text = await there.connect(bob, link[0])
            assert "made for somebody else" in text
            assert "ada" not in text
            assert (await desk.says("echo", message="hello"))[0]
            # Its user does not agree there.
            ada.agrees = False
            text = await there.connect(ada, link[0])
            assert "Nothing was connected" in text
            assert (await desk.says("echo", message="hello"))[0]
            ada.agrees = True
            text = await there.connect(ada, link[0])
            assert "Your account at notes is connected" in text
            assert await desk.says("echo", message="hello") == (False, "hello")
            # Whoever else calls has an account of his own, or none.
            async with agent(there, bob, asks=False) as other:
                assert (await other.says("echo", message="mine"))[0]
                assert await other.tools() == {"connect"}
            # An HTTP API as tools is a service of its own, with accounts of its own.
            async with agent(there, ada, server="api") as third:
                failed, said = await third.says("say", message="by REST")
                assert not failed
                assert "by REST" in said
                assert len(third.links) == 1
            (asked,) = await there.theirs("/tools/one/echo")
            assert (asked["status"], asked["user"]) == (200, "grace")
            # It is there after a restart.
            await asyncio.to_thread(there.ours.stop)
            await asyncio.to_thread(there.ours.start)
        async with agent(there, ada, asks=False, storage=storage) as desk:
            assert await desk.says("echo", message="still") == (False, "still")
        await asyncio.to_thread(there.ours.stop)
        listed = [json.loads(line) for line in (await there.command("accounts", "list", "--json")).splitlines()]
        assert [(one["server"], one["user"]) for one in listed] == [("api", "ada"), ("notes", "ada")]
        assert await there.command("accounts", "disconnect", listed[1]["id"]) == "disconnected ada from notes\n"
        assert await there.theirs("/oauth/revoke")


async def asked(node: Gateway, token: str, message: str) -> str:
    """What a stateless agent is told that calls `echo` there."""
    name = "io.modelcontextprotocol/"
    meta = {f"{name}protocolVersion": NEW, f"{name}clientCapabilities": {}}
    params = {"name": "echo", "arguments": {"message": message}, "_meta": meta}
    headers = {
        "authorization": f"Bearer {token}",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": NEW,
        "mcp-method": "tools/call",
        "mcp-name": "echo",
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    async with httpx.AsyncClient(timeout=30) as http:
        return (await http.post(f"{node.url}/mcp/notes", headers=headers, json=body)).text


async def test_an_account_is_there_on_every_node_and_gone_on_every_node(tmp_path: Path) -> None:
    """Connected by way of one node, used at the other, and ended by an operator of that."""
    (tmp_path / "valkey").mkdir()
    (tmp_path / "other").mkdir()
    with valkey(tmp_path / "valkey") as store:
        config = OURS.replace("file:tollhouse.state", store.url)
        async with asyncio.timeout(120), house(tmp_path, config) as there:
            admin = free_port()
            text = config_of(there.notes, config, admin=admin, url=there.ours.url)
            async with serving(text, tmp_path / "other") as other:
                ada, storage = there.somebody("ada", "grace"), Storage()
                async with agent(there, ada, asks=False, storage=storage):
                    assert storage.tokens is not None
                    token = storage.tokens.access_token
                # The link is from one node, and is opened at the other.
                said = await asked(other, token, "hello")
                link = re.search(r"http://[^\s\"\\]+/oauth/upstream/start\?l=[\w.-]+", said)
                assert link is not None, said
                assert link[0].startswith(there.ours.url)
                assert "is connected" in await there.connect(ada, link[0])
                assert "hello" in await asked(there.ours, token, "hello")
                assert "hello again" in await asked(other, token, "hello again")
                there.admin = f"http://127.0.0.1:{admin}"
                (account,) = (await there.operate("GET", "/api/accounts"))[1]["accounts"]
                assert (await there.operate("DELETE", f"/api/accounts/{account['id']}"))[0] == 200
                assert "/oauth/upstream/start" in await asked(other, token, "gone")
                async with asyncio.timeout(5):  # it is told at once
                    while "/oauth/upstream/start" not in await asked(there.ours, token, "gone"):
                        pass
