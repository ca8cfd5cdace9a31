"""The auth provider's routes, and what its tokens are for in a configuration."""

import pytest

from tollhouse.config.parse import parse
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.assembly import Assembly, Fixtures
from tollhouse.gateway.build import validate
from tollhouse.gateway.issuer_routes import resources_of
from tollhouse.gateway.keep import Keep
from tollhouse.gateway.operate import Operations
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.net.client import Client
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.memory import MemoryState

SECRET = "0123456789abcdef0123456789abcdef"
HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21l$AAAAAAAAAAAAAAAAAAAAAA"
URL = "https://gateway.example.com"
HEAD = f"""
server: {{public_url: {URL}, metrics: null}}
authenticate: {{resource_metadata: {{scopes: [mcp], name: Tools}}}}
requires: [gateway]
mcp:
  servers:
    one: {{command: x, requires: [one], tools: {{drop: {{requires: ["one:drop"]}}}}}}
    two: {{command: x}}
  endpoints: [{{path: /mcp/chosen, servers: [two], requires: [chosen]}}]
  rest: true
"""
ISSUER = f"""
issuer:
  url: {URL}
  scopes: {{mcp: Use tools}}
  resources: [{{uri: https://api.example.com, name: API, scopes: {{read: Read all}}}}]
  clients: [{{id: robot, secret: {SECRET}, grants: [client_credentials]}}]
"""


def problems(text: str) -> list[str]:
    try:
        validate(parse(text, "t.yaml", {}).config)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_every_endpoint_is_a_resource_with_the_scopes_that_its_calls_need() -> None:
    found = {one.uri: one for one in resources_of(parse(HEAD + ISSUER, "t.yaml", {}).config, URL)}
    assert {uri.removeprefix(URL) for uri in found} == {
        "/mcp", "/mcp/one", "/mcp/two", "/mcp/chosen", "/tools", "https://api.example.com",
    }  # fmt: skip
    assert set(found[f"{URL}/mcp"].scopes) == {"mcp", "gateway", "one", "one:drop"}
    assert set(found[f"{URL}/mcp/two"].scopes) == {"mcp", "gateway"}
    assert set(found[f"{URL}/mcp/chosen"].scopes) == {"mcp", "gateway", "chosen"}
    assert found[f"{URL}/mcp"].baseline == ("gateway", "mcp")
    assert found[f"{URL}/mcp/chosen"].baseline == ("chosen", "gateway", "mcp")
    assert found[f"{URL}/mcp"].scopes["mcp"] == "Use tools"
    assert found[f"{URL}/mcp"].name == "Tools"
    assert found["https://api.example.com"].scopes == {"read": "Read all"}


@pytest.mark.parametrize(
    ("url", "listener"), [("https://GATEWAY.example.com:443/ai", "127.0.0.1:1"), (None, "[::1]:80"), (None, ":8080")]
)
def test_what_an_endpoint_asks_for_is_what_is_issued(url: str | None, listener: str) -> None:
    public = HEAD.replace(URL, url) if url else HEAD.replace(f"public_url: {URL}, ", "")
    config = parse(public + ISSUER, "t.yaml", {}).config
    clock, families = Clock(), Families(Metrics())
    operations = Operations(families.metrics)
    fixtures = Fixtures(clock, families, Client(clock), MemoryState(clock), operations, listeners=((listener, "http"),))
    assembly = Assembly(fixtures, config, Keep().tenure(), [], Catalogue.load)
    issued = {one.uri for one in resources_of(config, assembly.public_url)}
    for path in ("/mcp", "/mcp/one", "/mcp/chosen", "/tools"):
        assert assembly.resource("mcp", path, assembly.top).resource in issued


def test_it_is_built_beside_the_rest() -> None:
    assert problems(HEAD + ISSUER) == []


def test_a_resource_that_is_one_already() -> None:
    [problem] = problems(HEAD + ISSUER.replace("https://api.example.com", f"{URL}/mcp"))
    assert "issuer.resources[0].uri" in problem
    [problem] = problems(HEAD + ISSUER.replace("https://api.example.com", URL))
    assert "issuer.resources[0].uri" in problem


@pytest.mark.parametrize("path", ["/oauth/token", "/.well-known/openid-configuration"])
def test_its_paths_are_its_own(path: str) -> None:
    route = f"routes: [{{name: mine, exact: {path}, to: 'http://127.0.0.1:1'}}]\n"
    found = problems(HEAD + route + ISSUER)
    assert len(found) == 1
    assert "would never be reached" in found[0]


def test_upstreams_that_cannot_be_told_apart() -> None:
    upstream = "{issuer: https://login.example.com, client_id: x}"
    found = problems(HEAD + ISSUER + f"  upstream: [{upstream}, {upstream}]\n")
    assert len(found) == 1
    assert "two upstreams" in found[0]


@pytest.mark.parametrize(
    ("dynamic", "url", "server", "warned"),
    [
        ("loopback", URL, "", True),
        ("loopback", URL, "trusted_proxies: [127.0.0.1]", False),
        ("loopback", "http://127.0.0.1:8000", "", False),
        ("on", URL, "", False),
    ],
)
def test_registration_on_this_machine_behind_a_proxy_of_this_machine(
    dynamic: str, url: str, server: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"""
server: {{public_url: {url}, metrics: null{", " + server if server else ""}}}
authenticate: {{}}
mcp: {{servers: {{one: {{command: x}}}}}}
issuer:
  url: {url}
  users: [{{name: ada, password_hash: "{HASH}"}}]
  registration: {{dynamic: {dynamic}}}
"""
    assert problems(text) == []
    assert ("trusted_proxies" in caplog.text) is warned
