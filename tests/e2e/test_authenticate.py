"""Who may call, at a gateway that runs: keys that are made and ended while it does, tokens for one endpoint and no
other, and the step up to more scopes, as agents of MCP see them."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from tests.fixtures.gateway import Gateway, within
from tests.unit.policies.authenticate.door import idp

from tollhouse.cli import main

KEY = ECKey.generate_key("P-256", {"kid": "one"})
ISSUER = "https://idp.example.com"
PUBLIC = "https://gw.example.com"

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null, public_url: {public}}}
ledger: sqlite:keys.db
authenticate:
  issued: true
  jwt: [{{issuer: {issuer}, jwks: jwks.json}}]
  resource_metadata: {{scopes: [mcp]}}
providers: {{ours: {{kind: openai, base_url: "http://127.0.0.1:1/v1"}}}}
models:
  - {{name: smart, targets: [{{provider: ours, model: a}}]}}
  - {{name: plain, targets: [{{provider: ours, model: b}}]}}
mcp:
  servers:
    shop:
      base_url: http://127.0.0.1:1
      rest: [{{name: buy, path: /buy, description: b}}, {{name: look, path: /look, description: l}}]
      requires: [shop]
      tools: {{buy: {{requires: ["shop:buy"]}}}}
    files:
      base_url: http://127.0.0.1:1
      rest: [{{name: read, path: /read, description: r}}]
  endpoints: [{{path: /mcp/support, servers: [files], requires: [support]}}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    where = tmp_path_factory.mktemp("gateway")
    (where / "jwks.json").write_text(json.dumps({"keys": [KEY.as_dict(private=False)]}))
    with Gateway(CONFIG.format(public=PUBLIC, issuer=ISSUER), where) as running:
        yield running


def token(path: str = "/mcp", scope: str = "", **claims: Any) -> str:
    values = {"iss": ISSUER, "aud": PUBLIC + path, "sub": "ada", "exp": int(time.time()) + 600, "scope": scope} | claims
    return jwt.encode({"alg": "ES256", "kid": "one", "typ": "at+jwt"}, values, KEY)


Answer = tuple[int, dict[str, str], Any]


def send(gateway: Gateway, path: str, credential: str = "", body: Any = None, **headers: str) -> Answer:
    fields = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if credential:
        fields["authorization"] = f"Bearer {credential}"
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(gateway.url + path, data, fields)
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            content = answer.read()
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, json.loads(content or b"null")
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, {k.lower(): v for k, v in error.headers.items()}, json.loads(content or b"null")


def rpc(gateway: Gateway, path: str, credential: str, method: str, **params: Any) -> Answer:
    """One request of a stateless agent."""
    about = "io.modelcontextprotocol/"
    meta = {f"{about}protocolVersion": "2026-07-28", f"{about}clientCapabilities": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    named = {"mcp_name": params["name"]} if "name" in params else {}
    return send(
        gateway, path, credential, body, accept="application/json, text/event-stream",
        mcp_protocol_version="2026-07-28", mcp_method=method, **named,
    )  # fmt: skip


def tools(answer: Answer) -> list[str]:
    status, _, body = answer
    assert status == 200, body
    return sorted(tool["name"] for tool in body["result"]["tools"])


# ---- keys


def make(gateway: Gateway, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["keys", *arguments, "--config", str(gateway.config)]) == 0
    return capsys.readouterr().out.strip()


@pytest.fixture
def here(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Gateway:
    monkeypatch.chdir(gateway.where)
    return gateway


def test_a_key_counts_within_a_second_and_ends_within_one(
    here: Gateway, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Another gateway on the same ledger.
    (tmp_path / "jwks.json").write_text((here.where / "jwks.json").read_text())
    config = CONFIG.format(public=PUBLIC, issuer=ISSUER).replace("sqlite:keys.db", f"sqlite:{here.where}/keys.db")
    with Gateway(config, tmp_path) as other:
        secret = make(here, capsys, "create", "ci", "--user", "bob", "--expires", "30d")
        for one in (here, other):
            within(1.5, lambda one=one: send(one, "/v1/models", secret)[0] == 200)  # type: ignore[misc]
        assert "ci" in make(here, capsys, "list")
        [shown] = [json.loads(line) for line in make(here, capsys, "list", "--json").splitlines()]
        assert (shown["name"], shown["user"], shown["state"]) == ("ci", "bob", "good")
        assert secret not in json.dumps(shown)
        assert make(here, capsys, "revoke", "ci") == f"ended {secret[:12]}"
        for one in (here, other):
            within(1.5, lambda one=one: send(one, "/v1/models", secret)[0] == 401)  # type: ignore[misc]
        for log in (here.log, other.log):
            assert secret not in log.read_text()
    assert main(["keys", "revoke", "ci", "--config", str(here.config)]) == 1


def test_a_key_is_for_what_it_says_and_sees_nothing_else(here: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    models = make(here, capsys, "create", "m", "--model", "sm*")
    shop = make(here, capsys, "create", "s", "--server", "shop", "--scope", "shop", "--scope", "shop:buy")
    look = make(here, capsys, "create", "l", "--tool", "look", "--scope", "shop")
    within(1.5, lambda: send(here, "/v1/models", look)[0] != 401)
    status, _, body = send(here, "/v1/models", models)
    assert [model["id"] for model in body["data"]] == ["smart"]
    assert send(here, "/v1/models", shop)[0] == 403
    chat = {"model": "plain", "messages": [{"role": "user", "content": "hi"}]}
    status, _, body = send(here, "/v1/chat/completions", models, chat)
    assert status == 403
    assert send(here, "/v1/chat/completions", models, chat | {"model": "smart"})[0] in (502, 503)  # nobody runs it here
    assert rpc(here, "/mcp", models, "tools/list")[2]["error"]["data"]["reason"] == "permission_denied"
    assert tools(rpc(here, "/mcp", shop, "tools/list")) == ["shop__buy", "shop__look"]
    assert tools(rpc(here, "/mcp", look, "tools/list")) == ["shop__look"]
    _, _, body = rpc(here, "/mcp", look, "tools/call", name="shop__buy", arguments={})
    assert "error" in body
    _, _, body = rpc(here, "/mcp", shop, "tools/call", name="shop__buy", arguments={})
    assert body["result"]["isError"] is True  # it came as far as the server, which is not there


def test_what_the_command_refuses(here: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(here.config)]
    assert main(["keys", "create", *config]) == 2
    assert main(["keys", "create", "a b", *config]) == 2
    assert main(["keys", "create", "x", "--expires", "yesterday", *config]) == 2
    assert main(["keys", "revoke", "nobody", *config]) == 1
    without = here.where / "without.yaml"
    without.write_text("ledger: sqlite:keys.db\n")
    assert main(["keys", "create", "x", "--config", str(without)]) == 2
    assert "issued: true" in capsys.readouterr().err


# ---- tokens


def challenge(answer: Answer) -> str:
    return answer[1]["www-authenticate"]


def test_each_endpoint_has_its_metadata_and_its_audience(gateway: Gateway) -> None:
    for path, scopes in (("/mcp", ["mcp"]), ("/mcp/shop", ["mcp"]), ("/mcp/support", ["mcp", "support"])):
        refused = rpc(gateway, path, "", "tools/list")
        assert refused[0] == 401
        where = f"/.well-known/oauth-protected-resource{path}"
        assert challenge(refused) == f'Bearer scope="{" ".join(scopes)}", resource_metadata="{PUBLIC}{where}"'
        status, _, document = send(gateway, where)
        assert status == 200
        assert document["resource"] == PUBLIC + path
        assert document["authorization_servers"] == [ISSUER]
        assert document["scopes_supported"] == scopes
        assert rpc(gateway, path, token(path, "mcp support"), "tools/list")[0] == 200
        for other in ("/mcp", "/mcp/shop", "/mcp/files", "/mcp/support", ""):
            if other != path:
                assert rpc(gateway, path, token(other, "mcp support"), "tools/list")[0] == 401
    assert send(gateway, "/v1/models", token(""))[0] == 200
    assert send(gateway, "/v1/models", token("/mcp"))[0] == 401


def test_a_step_up_is_told_all_at_once(gateway: Gateway) -> None:
    refused = rpc(gateway, "/mcp", token(scope="mcp"), "tools/call", name="shop__buy", arguments={})
    assert refused[0] == 403
    assert 'error="insufficient_scope", scope="shop shop:buy"' in challenge(refused)
    assert f'resource_metadata="{PUBLIC}/.well-known/oauth-protected-resource/mcp"' in challenge(refused)
    refused = rpc(gateway, "/mcp", token(scope="shop"), "tools/call", name="shop__buy", arguments={})
    assert 'scope="shop shop:buy"' in challenge(refused)
    assert rpc(gateway, "/mcp", token(scope="shop"), "tools/call", name="shop__look", arguments={})[0] == 200
    assert rpc(gateway, "/mcp", token(scope="shop shop:buy"), "tools/call", name="shop__buy", arguments={})[0] == 200
    # What needs more is listed: how else would an agent know what to ask for?
    assert "shop__buy" in tools(rpc(gateway, "/mcp", token(), "tools/list"))
    refused = rpc(gateway, "/mcp/support", token("/mcp/support", "mcp"), "tools/list")
    assert refused[0] == 403
    assert 'scope="support"' in challenge(refused)


def test_nothing_of_a_token_is_in_the_log(gateway: Gateway) -> None:
    credential = token("/mcp/elsewhere")
    assert rpc(gateway, "/mcp", credential, "tools/list")[0] == 401
    assert send(gateway, f"/v1/models?access_token={credential}")[0] == 400
    assert credential not in gateway.log.read_text()
    assert credential.split(".")[2] not in gateway.log.read_text()


@pytest.mark.anyio
async def test_what_a_caller_sends_goes_to_no_server(tmp_path: Path) -> None:
    """Attack 31, token passthrough: neither a tool's server nor a plain service ever sees the caller's token."""
    async with idp() as (it, _):
        it.documents = {"/look": {"seen": True}, "/plain": {"seen": True}, "/mcp-there": (404, "", b"")}
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [KEY.as_dict(private=False)]}))
        config = f"""
server: {{listen: 127.0.0.1:0, metrics: null, public_url: {PUBLIC}}}
authenticate: {{jwt: [{{issuer: {ISSUER}, jwks: jwks.json}}]}}
mcp:
  servers:
    shop: {{base_url: "{it.url}", rest: [{{name: look, path: /look, description: l}}]}}
    there: {{url: "{it.url}/mcp-there"}}
routes: [{{name: plain, path: /plain, to: "{it.url}"}}]
"""
        with Gateway(config, tmp_path) as running:
            credential = token()
            call = partial(rpc, running, "/mcp", credential, "tools/call", arguments={})
            answer = await asyncio.to_thread(call, name="shop__look")
            assert answer[2]["result"].get("isError", False) is False
            await asyncio.to_thread(call, name="there__anything")
            plain = token("")
            assert (await asyncio.to_thread(send, running, "/plain", plain))[0] == 200
        assert {target for target, _, _ in it.requests} >= {"/look", "/plain", "/mcp-there"}
        for _, head, body in it.requests:
            for secret in (credential, plain):
                assert secret.encode() not in head + body
