"""`tollhouse explain` and policy tests: what the rules of a configuration say of a request."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.explain import Explained, cases_of, explain, failing, request_of

DOCS = Path(__file__).resolve().parents[3] / "docs" / "guide" / "authorization.md"
CONFIG = """
ledger: sqlite:t.db
providers: {local: {kind: local}}
models:
  - {name: smart, aliases: [clever], targets: [{provider: local}]}
  - name: dear/*
    targets: [{provider: local, model: "*"}]
    authorize: {rules: [{require: '"rich" in principal.groups', name: rich}]}
mcp:
  prefix: always
  servers:
    shop:
      url: http://127.0.0.1:1/mcp
      authorize: {rules: [{deny: 'has(mcp.arguments.amount) && mcp.arguments.amount > 100', name: big}]}
      tools:
        pay: {name: pay_now, authorize: {rules: [{approve: "true", name: ask}]}}
    bank: {url: http://127.0.0.1:2/mcp}
  endpoints:
    - path: /support
      servers: [shop]
      tools: {deny: ["*delete*"]}
      authorize: {rules: [{name: calm, deny: 'mcp.tool.name == "shout" || mcp.method == "prompts/list"'}]}
routes:
  - name: svc
    path: /svc/
    to: http://127.0.0.1:3
    authorize: {rules: [{allow: 'request.method == "GET"', name: read}]}
authorize:
  rules:
    - {allow: 'jwt.email.endsWith("@example.com")', name: example}
    - {deny: 'mcp.tool.name == "delete_repo" && !("admin" in principal.groups)', name: only-admins}
    - {deny: 'mcp.tool.annotations.readOnlyHint', name: later, shadow: true}
"""
BIG = "server shop: big"
CALM = "endpoint /support: calm"
MCP, CHAT = "/mcp", "/v1/chat/completions"
ADA = {"user": "ada", "groups": ["dev"], "claims": {"email": "ada@example.com"}}


def ask(text: str = CONFIG, principal: Any = ADA, **request: Any) -> Explained:
    said = json.dumps({"principal": principal, **request} if principal else request)
    return explain(parse(text, "t.yaml", {}).config, request_of(said, "r.json"))


@pytest.mark.parametrize(
    "request_, decision, rule, route, about",
    [
        ({"path": MCP, "tool": "shop__search"}, "allow", "", "mcp", "tool shop/search"),
        ({"path": "/mcp/shop", "tool": "search"}, "allow", "", "mcp/shop", "tool shop/search"),
        ({"path": MCP, "server": "shop", "tool": "search"}, "allow", "", "mcp", "tool shop/search"),
        ({"path": MCP, "tool": "bank__delete_repo"}, "deny", "top: only-admins", "mcp", "tool bank/delete_repo"),
        ({"path": MCP, "tool": "shop__x", "arguments": {"amount": 500}}, "deny", BIG, "mcp", "tool shop/x"),
        ({"path": MCP, "tool": "shop__x", "arguments": {"amount": 5}}, "allow", "", "mcp", "tool shop/x"),
        ({"path": MCP, "tool": "bank__x", "arguments": {"amount": 500}}, "allow", "", "mcp", "tool bank/x"),
        ({"path": MCP, "tool": "shop__x"}, "allow", "", "mcp", "tool shop/x"),
        ({"path": "/mcp/shop", "tool": "pay_now"}, "approve", "tool shop/pay: ask", "mcp/shop", "tool shop/pay"),
        ({"path": MCP, "tool": "shop__pay_now", "arguments": {"amount": 500}}, "deny", BIG, "mcp", "tool shop/pay"),
        ({"path": "/support", "tool": "shop__search"}, "allow", "", "support", "tool shop/search"),
        ({"path": "/support", "tool": "shop__shout"}, "deny", CALM, "support", "tool shop/shout"),
        ({"path": "/support", "mcp_method": "prompts/list"}, "deny", CALM, "support", "prompts/list"),
        ({"path": MCP, "tool": "shop__shout"}, "allow", "", "mcp", "tool shop/shout"),
        ({"path": MCP, "mcp_method": "tools/list"}, "allow", "", "mcp", "tools/list"),
        ({"path": MCP, "resource": "file:///x", "server": "bank"}, "allow", "", "mcp", "resource bank/file:///x"),
        ({"path": CHAT, "model": "smart"}, "allow", "", "chat", "model smart"),
        ({"path": CHAT, "model": "clever"}, "allow", "", "chat", "model smart"),
        ({"path": CHAT, "model": "dear/x"}, "deny", "model dear/*: rich (required)", "chat", "model dear/x"),
        ({"path": "/svc/x", "method": "GET"}, "allow", "", "svc", ""),
        ({"path": "/svc/x"}, "deny", "route svc: no allow rule matches", "svc", ""),
    ],
)  # fmt: skip
def test_decisions(request_: Any, decision: str, rule: str, route: str, about: str) -> None:
    said = ask(**request_)
    assert (said.decision, said.rule, said.route, said.about) == (decision, rule, route, about)
    assert said.status == (403 if decision == "deny" else 0)


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"path": "/nowhere"}, "no route matches"),
        ({"path": CHAT, "method": "GET"}, "does not take that method"),
        ({"path": CHAT, "model": "none"}, "there is no model 'none'"),
        ({"path": MCP, "tool": "none__x"}, "no server is known that has the tool"),
        ({"path": MCP, "tool": "x", "server": "none"}, "there is no server 'none'"),
        ({"path": "/support", "tool": "shop__delete_x"}, "/support has no tool 'delete_x' of shop"),
        ({"path": "/support", "tool": "bank__x"}, "/support has no tool 'x' of bank"),
    ],
)
def test_what_is_not_there(request_: Any, message: str) -> None:
    said = ask(**request_)
    assert said.decision == "deny"
    assert said.status in (404, 405)
    assert message in said.message


def test_nobody_and_other_callers() -> None:
    assert ask(principal=None, path="/mcp", tool="bank__x").rule == "top: no allow rule matches"
    admin = {"groups": ["admin"], "claims": {"email": "eve@example.com"}}
    assert ask(principal=admin, path="/mcp", tool="bank__delete_repo").decision == "allow"


def test_every_rule_says_something_in_order() -> None:
    said = ask(path="/mcp", tool="shop__pay_now", arguments={"amount": 500}, annotations={"readOnlyHint": True})
    steps = [(step.rule, step.effect, step.said, step.refuses, step.shadow) for step in said.steps]
    assert steps == [
        ("top: example", "allow", "yes", False, False),
        ("top: only-admins", "deny", "no", False, False),
        ("top: later", "deny", "yes", False, True),
        ("server shop: big", "deny", "yes", True, False),
        ("tool shop/pay: ask", "approve", "yes", False, False),
    ]
    text = said.text()
    assert text.startswith("route: mcp\nasks for: tool shop/pay\n")
    assert "\n! server shop: big" in text
    assert "\n~ top: later" in text
    assert text.endswith(
        "denied by server shop: big: 403 you are not permitted to do this; ask the operator of this gateway"
    )
    assert said.json()["steps"][3]["refuses"] is True
    assert json.loads(json.dumps(said.json()))["decision"] == "deny"


def test_a_policy_in_rego_is_asked(tmp_path: Path) -> None:
    if find_spec("regopy") is None:
        pytest.skip("the extra `rego` is not installed")
    (tmp_path / "p.rego").write_text('package tollhouse\nallow if input.mcp.tool.name == "x"\n')
    text = "mcp: {servers: {a: {url: 'http://127.0.0.1:1/'}}}\n"
    text += f"authorize: {{rego: {{file: {tmp_path / 'p.rego'}}}}}\n"
    assert ask(text, path="/mcp", tool="x").decision == "allow"
    said = ask(text, path="/mcp", tool="y")
    assert (said.decision, said.rule) == ("deny", "top: data.tollhouse.allow (undefined)")
    assert [(step.effect, step.said, step.refuses) for step in said.steps] == [("rego", "deny", True)]


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("{}", "path: Field required"),
        ('{"path": "/x", "model": "a", "tool": "b"}', "asks for one thing"),
        ('{"path": "/x", "colour": 1}', "colour: Extra inputs"),
        ("[1]", "mapping"),
        ("path: [", "r.yaml"),
    ],
)
def test_a_request_that_cannot_be_read(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong) as caught:
        request_of(text, "r.yaml")
    assert all(problem.file == "r.yaml" for problem in caught.value.problems)


def test_cases() -> None:
    config = parse(CONFIG, "t.yaml", {}).config
    text = """
cases:
  - {name: fine, request: {path: /mcp, tool: shop__search, principal: {claims: {email: a@example.com}}}, expect: allow}
  - {name: wrong, request: {path: /mcp, tool: shop__search}, expect: allow}
  - {name: other rule, request: {path: /mcp, tool: shop__search}, expect: deny, rule: "top: only-admins"}
  - {name: right rule, request: {path: /mcp, tool: shop__search}, expect: deny, rule: "top: no allow rule matches"}
"""
    assert [case.name for case, _ in failing(config, cases_of(text, "c.yaml"))] == ["wrong", "other rule"]
    with pytest.raises(ConfigError):
        cases_of("cases: []", "c.yaml")


# ---- the commands
@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(CONFIG)
    return tmp_path


def test_explain_prints(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "r.yaml").write_text("path: /mcp\ntool: bank__x\n")
    assert main(["explain", "t.yaml", "r.yaml"]) == 0
    assert "denied by top: no allow rule matches" in capsys.readouterr().out
    assert main(["explain", "t.yaml", "r.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"] == "top: no allow rule matches"
    assert main(["explain", "t.yaml", "none.yaml"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    (there / "bad.yaml").write_text("colour: 1\n")
    assert main(["explain", "bad.yaml", "r.yaml"]) == 2


def blocks() -> list[str]:
    return re.findall(r"^```json\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)


def test_the_documentation_says_what_is_so(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request, cases = blocks()
    (there / "request.json").write_text(request)
    (there / "cases.json").write_text(cases)
    assert main(["explain", "t.yaml", "request.json"]) == 0
    told = capsys.readouterr().out.splitlines()
    shown = re.search(r"^\$ tollhouse explain .*?\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert shown is not None

    def words(lines: list[str]) -> list[list[str]]:
        return [line.split() for line in lines if "later" not in line and "shadow" not in line and " big " not in line]

    assert words(told) == words(shown[1].splitlines())
    assert main(["check", "t.yaml", "--policy-tests", "cases.json"]) == 0
    assert capsys.readouterr().out.endswith("cases.json: 2 of 2 as expected\n")
    (there / "cases.json").write_text(cases.replace('"expect": "allow"', '"expect": "deny"'))
    assert main(["check", "t.yaml", "--policy-tests", "cases.json"]) == 1
    said = capsys.readouterr()
    assert "admins do: expected deny" in said.err
    assert "  allowed" in said.err
    assert said.out.endswith("1 of 2 as expected\n")
