"""Many tools in a whole gateway: searched, found by sense, and called by programs, each call with its record."""

import json
import lzma
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.test_mcp_endpoints import ask
from tests.fixtures.gateway import Gateway
from tests.fixtures.http_thread import in_thread

CHILD = str(Path(__file__).parents[1] / "fixtures/mcp_child.py")
SERVER = {"command": sys.executable, "args": [CHILD]}


class _Embeddings(BaseHTTPRequestHandler):
    """Two dimensions: how much a text is about `pid`, and how much about anything else."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        about = [any(word in text for word in ("pid", "number of the process")) for text in body["input"]]
        vectors = [[1.0, 0.0] if one else [0.0, 1.0] for one in about]
        found = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 3 * len(vectors), "total_tokens": 3 * len(vectors)}
        data = json.dumps({"object": "list", "model": "small", "data": found, "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def embeddings() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Embeddings)
    with in_thread(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def shown(url: str) -> list[str]:
    return [tool["name"] for tool in ask(url, "tools/list")["result"]["tools"]]


def find(url: str, query: str, limit: int = 1) -> list[str]:
    told = ask(url, "tools/call", {"name": "find_tools", "arguments": {"query": query, "limit": limit}})
    return [tool["name"] for tool in json.loads(told["result"]["content"][0]["text"])["tools"]]


def test_search(tmp_path: Path) -> None:
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "authorize": {"rules": [{"deny": 'mcp.tool.name == "die"'}]},
        "mcp": {
            "servers": {"a": SERVER, "b": SERVER},
            "search": "on",
            "endpoints": [
                {"path": "/mcp/all", "servers": ["a", "b"], "search": "off"},
                {"path": "/mcp/auto", "servers": ["a"], "search": {"mode": "auto", "tools": 3, "tokens": None}},
                {"path": "/mcp/much", "servers": ["a"], "search": {"tools": 1000, "tokens": 5}},
                {"path": "/mcp/few", "servers": ["a"], "search": "auto"},
                {"path": "/mcp/same", "servers": ["a"]},
            ],
        },
    }
    own = ["find_tools", "call_tool"]
    with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
        paths = {"": own, "/a": own, "/all": None, "/auto": own, "/much": own, "/few": None, "/same": own}
        for path, expected in paths.items():
            names = shown(f"{gateway.url}/mcp{path}")
            assert names == expected if expected is not None else {"find_tools", "call_tool"}.isdisjoint(names), path
        url = f"{gateway.url}/mcp"
        assert find(url, "echo") == ["a__echo"]
        assert find(url, "die", 20) == []
        call = {"name": "call_tool", "arguments": {"name": "b__echo", "arguments": {"message": "hi"}}}
        assert "hi" in json.dumps(ask(url, "tools/call", call)["result"])
        call["arguments"] = {"name": "a__die"}
        assert ask(url, "tools/call", call)["error"]["data"]["reason"] == "permission_denied"


def test_search_by_sense(tmp_path: Path) -> None:
    with embeddings() as base:
        config = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "ledger": "sqlite:tollhouse.db",
            "providers": {"p": {"kind": "openai", "base_url": base, "api_key": "k"}},
            "models": [{"name": "small", "targets": [{"provider": "p", "model": "small"}]}],
            "mcp": {"servers": {"a": SERVER, "b": SERVER}, "search": {"mode": "on", "embeddings": "small"}},
        }
        with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
            url = f"{gateway.url}/mcp"
            deadline = time.monotonic() + 15
            while not (names := find(url, "the number of the process", 2)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert names == ["a__pid", "b__pid"]
        with closing(sqlite3.connect(tmp_path / "tollhouse.db")) as ledger:
            assert ledger.execute("select count(*) from usage where model_asked = 'small'").fetchone()[0] >= 2


def test_a_large_public_api(tmp_path: Path) -> None:
    """1,222 operations of a document as it is published: too many to list, so they are searched; each is there."""
    document = Path(__file__).parents[1] / "fixtures/openapi/github.json.xz"
    (tmp_path / "github.json").write_bytes(lzma.decompress(document.read_bytes()))
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "mcp": {
            "search": "auto",
            "servers": {"github": {"openapi": "github.json", "base_url": "http://127.0.0.1:9"}},
            "endpoints": [{"path": "/mcp/all", "servers": ["github"], "search": "off"}],
        },
    }
    with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
        url = f"{gateway.url}/mcp"
        assert shown(url) == ["find_tools", "call_tool"]
        names, cursor = [], None
        while True:
            page = ask(f"{url}/all", "tools/list", {"cursor": cursor} if cursor else {})["result"]
            names += [tool["name"] for tool in page["tools"]]
            if (cursor := page.get("nextCursor")) is None:
                break
        assert len(set(names)) == len(names) == 1222
        for words, wanted in (
            ("create a gist", "gists_create"),
            ("rename a branch", "repos_rename-branch"),
            ("add labels to an issue", "issues_add-labels"),
        ):
            assert wanted in find(url, words, 5)
        call = {"name": "call_tool", "arguments": {"name": "gists_get", "arguments": {"gist_id": "a/../b?c"}}}
        assert ask(url, "tools/call", call)["result"]["isError"]  # nobody is there, and the model is told
        assert "/b?c" not in gateway.text()
        assert "Traceback" not in gateway.text()


def test_an_unknown_model_is_an_error(tmp_path: Path) -> None:
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "mcp": {"servers": {"a": SERVER}, "search": {"mode": "on", "embeddings": "nobody"}},
    }
    with pytest.raises(Exception, match="there is no model 'nobody'"), Gateway(yaml.safe_dump(config), tmp_path):
        pass


@pytest.mark.skipif(find_spec("pydantic_monty") is None, reason="the extra `code` is not installed")
def test_programs(tmp_path: Path) -> None:
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "ledger": "sqlite:tollhouse.db",
        "limits": [{"per": "tool", "calls": 3, "window": "1h"}],
        "mcp": {
            "servers": {"a": SERVER, "b": SERVER},
            "code_mode": {"calls": 20, "cpu": "1s", "wall": "20s", "memory": "16MiB", "output": 500},
            "endpoints": [
                {"path": "/mcp/plain", "servers": ["a", "b"], "code_mode": False},
                {"path": "/mcp/usual", "servers": ["a", "b"], "code_mode": True, "search": "on"},
            ],
        },
    }
    code = """
told = call_tools([('a__echo', {'message': str(n)}) for n in range(5)])
print(len([one for one in told if 'value' in one]), [one['error'] for one in told if 'error' in one][0])
print(call_tool('b__echo', message='x') is not None)
"""
    with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
        url = f"{gateway.url}/mcp"
        assert shown(url) == ["find_tools", "run_program"]
        assert shown(f"{url}/usual") == ["find_tools", "call_tool", "run_program"]
        assert "run_program" not in shown(f"{url}/plain")
        told = ask(url, "tools/call", {"name": "run_program", "arguments": {"code": code}})["result"]
        lines = told["content"][0]["text"].splitlines()
        assert lines[0].startswith("3 ")
        assert "limit" in lines[0]
        assert lines[1] == "True"
        cut = ask(url, "tools/call", {"name": "run_program", "arguments": {"code": "print('x' * 1000)"}})["result"]
        assert cut["content"][0]["text"].startswith("x" * 500 + "\n[cut")
    with closing(sqlite3.connect(tmp_path / "tollhouse.db")) as ledger:
        rows = ledger.execute("select server, tool, outcome, count(*) from usage group by 1, 2, 3 order by 1, 2, 3")
        found = rows.fetchall()
    assert ("a", "echo", "ok", 3) in found
    assert ("b", "echo", "ok", 1) in found
    assert sum(count for server, _, outcome, count in found if server == "a" and outcome != "ok") == 2
