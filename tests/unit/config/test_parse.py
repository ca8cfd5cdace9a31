"""Text -> Config: every mistake at once, each at its place, none with a secret in it."""

# ruff: noqa: E501 - problems are one line each

import copy
import gc
import hashlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.backends.providers import ProviderSpec
from tollhouse.config.parse import Loaded, LoadError, load, parse
from tollhouse.config.secrets import ABSENT, LIMIT, digest, digest_of
from tollhouse.core.errors import Problem

ENV = {"OPENAI_API_KEY": "sk-very-secret-1234", "SHORT": "x7"}

GOOD = """\
providers:
  openai: {kind: openai, api_key: "${OPENAI_API_KEY}"}
  local: {kind: local}
models:
  - name: smart
    targets: [{provider: openai, model: gpt-4o, weight: 3}, {provider: local}]
    fallback: [{provider: local, notice: true}]
    timeout: {total: 300s, first_event: 60s, idle: 1m}
  - {name: "openai/*", targets: [{provider: openai, model: "*"}]}
"""


def problems(text: str, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(LoadError) as error:
        parse(text, "t.yaml", ENV if env is None else env)
    return [str(problem) for problem in error.value.problems]


def test_a_configuration_is_read() -> None:
    config = parse(GOOD, "t.yaml", ENV).config
    openai: Any = config.providers["openai"]
    assert openai.api_key.get_secret_value() == "sk-very-secret-1234"
    smart = config.models[0]
    assert [(t.provider, t.model, t.weight) for t in smart.targets] == [("openai", "gpt-4o", 3), ("local", None, 1)]
    assert smart.fallback[0].notice
    assert (smart.timeout.total, smart.timeout.idle) == (300.0, 60.0)
    assert config.server.listen[0].address == "127.0.0.1:8080"
    assert config.state.is_memory
    assert config.ledger is None


EVERYTHING = """\
server:
  listen: 0.0.0.0:80
  workers: true
  admin: 15000
  metrics: 8080
  shutdown: {min: 10s, max: 5s}
  max_body: 10 monkeys
providrs: {}
providers:
  openai: {kind: opnai, api_key: "${OPENAI_API_KEY}"}
  gem: {kind: watson}
  ours: {kind: openai, base_url: 5, api_kye: x}
  nokey: {kind: openai, api_key: "${NOPE}"}
  none: {base_url: http://127.0.0.1:1}
budgets: []
models:
  - name: smart
    targets: [{provider: opena, model: x}, {provider: ours, model: "*"}]
    timeout: {total: 5, idle: 1.5}
  - nam: foo
    targets: []
  - name: smart
    targets: {provider: ours}
  - {name: "a*b*", targets: [{provider: nokey, wieght: 2}]}
  - name: 010
    targets: [{provider: ours}]
    cors: {}
mcp:
  servers:
    a: {comand: npx}
    b: {command: npx, args: x, env: {A: 1}}
    c__d: {url: http://x/mcp}
    e: {opnapi: x}
    f: {url: nonsense, timeout: "${OPENAI_API_KEY}", list_timeout: "${SHORT}"}
  search: sometimes
routes:
  - {name: r, path: /a/, to: http://127.0.0.1:1, retry: {on: [5xx, 5yy]}, match: {headers: {x: [1, {a: 2}]}}}
  - {name: r, path: /b, to: [http://127.0.0.1:1]}
  - {name: s, path: /b, to: [http://127.0.0.1:1]}
telemetry:
  metrics: {labels: {org: 'request.headers["x-org"', route: jwt.email, ok: jw.x}}
  access_log: {format: jsn}
  traces: {}
limits: [{per: user, requests: x}]
authorize: {rules: [{allow: "true"}], rego: {}}
authorize: {}
state: redis:/127.0.0.1
"""

SAID = """\
2:11: server.listen: everybody who reaches 0.0.0.0:80 could call; say who may with `authenticate` (`mode: optional` lets everybody in), or listen on 127.0.0.1
3:12: server.workers: should be a whole number, not true or false
4:10: server.admin: not an address; write host:port, like 127.0.0.1:15000, or {address, keys, hosts, tls}
5:12: server.metrics: should be text, not a number; put it in quotes
6:13: server.shutdown: `max` is shorter than `min`; it counts from the same moment
7:13: server.max_body: not a size: '10 monkeys'; write bytes or a number and a unit, like 64KiB or 10MiB
8:1: providrs: unknown key `providrs`; did you mean `providers`?
10:18: providers.openai.kind: should be one of KINDS, not `opnai`; did you mean `openai`?
11:15: providers.gem.kind: should be one of KINDS, not `watson`
12:34: providers.ours.base_url: should be text, not a number; put it in quotes
12:37: providers.ours.api_kye: unknown key `api_kye`; did you mean `api_key`?
13:34: providers.nokey.api_key: the environment variable `NOPE` is not set
14:9: providers.none.kind: required, but not there
15:10: budgets: should not be empty
18:26: models[0].targets[0].provider: there is no provider `opena`; did you mean `openai`?
18:68: models[0].targets[1].model: `*` stands for what a `*` in the name matched, and `smart` has none
19:22: models[0].timeout.total: not a duration; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d
19:31: models[0].timeout.idle: not a duration; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d
20:5: models[1].nam: unknown key `nam`; did you mean `name`?
21:14: models[1].targets: should not be empty
22:11: models[2].name: models[0] has the name `smart` already
23:14: models[2].targets: should be a list, not a mapping
24:12: models[3].name: the name of a model has at most one `*`
24:48: models[3].targets[0].wieght: unknown key `wieght`; did you mean `weight`?
25:11: models[4].name: should be text, not a number; put it in quotes
27:5: models[4].cors: `cors` cannot be set here; at the top it is set for everything
30:8: mcp.servers.a: needs `command` (a program to start), `url` (a server to reach), `openapi` (a document of an HTTP API) or `rest` (tools written here)
31:29: mcp.servers.b.args: should be a list, not text
31:41: mcp.servers.b.env.A: should be text, not a number; put it in quotes
32:5: mcp.servers.c__d: the name of a server has no `__` in it: that separates it from the names of its tools
33:8: mcp.servers.e: needs `command` (a program to start), `url` (a server to reach), `openapi` (a document of an HTTP API) or `rest` (tools written here)
34:14: mcp.servers.f.url: 'nonsense' is not a URL like https://host:port/path
34:33: mcp.servers.f.timeout: not a duration: '${OPENAI_API_KEY}'; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d
34:68: mcp.servers.f.list_timeout: not a duration: '${SHORT}'; write a number and a unit, like 250ms, 5s, 1m, 1h or 1d
35:11: mcp.search: not a way to search; write auto, on, off, or {tools: 60, ...}
37:68: routes[0].retry.on[1]: should be one of connect, reset, timeout, 429, 5xx, 500, 502, 503, 504, not `5yy`
37:100: routes[0].match.headers.x[1]: should be text, not a mapping
38:12: routes[1].name: routes[0] has the name `r` already
39:5: routes[2]: is for the same requests as routes[1], so it would never be reached
41:27: telemetry.metrics.labels.org: not a CEL expression: line 1, column 24: Syntax error: missing ']' at '<EOF>'
41:54: telemetry.metrics.labels.route: there is a label `route` already; choose another name
41:76: telemetry.metrics.labels.ok: unknown variable `jw`; there are: request, source, jwt, key, principal, llm, mcp
42:24: telemetry.access_log.format: should be one of json, text, not `jsn`; did you mean `json`?
43:3: telemetry.traces: traces are not available in this version; leave `traces` out
44:32: limits[0].requests: should be a whole number, not text
45:45: authorize.rego.file: required, but not there
46:1: authorize: the key `authorize` stands twice; keep one
47:8: state: not a place for state; write `memory`, file:PATH, redis://host:6379/0, rediss://host:6379/0 (TLS) or redis+cluster://host:6379,host:6379. What a password has of / @ ? # % is written as %2F %40 %3F %23 %25
"""


def test_every_mistake_is_found_in_one_pass_and_said_once() -> None:
    kinds = ", ".join(get_args(spec.model_fields["kind"].annotation)[0] for spec in get_args(get_args(ProviderSpec)[0]))
    assert problems(EVERYTHING) == [f"t.yaml:{line}" for line in SAID.replace("KINDS", kinds).splitlines()]


CROSS = """\
server:
  listen: [127.0.0.1:1, 127.0.0.1:1, 0.0.0.0:3]
  workers: 2
  metrics: null
limits: [{per: user, requests: 1, window: 1m}]
telemetry: {metrics: {}}
providers: {o: {kind: local}}
models:
  - {name: x, balance: weighted, targets: [{provider: o, model: 'a*'}]}
  - {name: x, targets: [{provider: p}], fallback: [{provider: q}], limits: [{per: org, calls: 1, window: 1s}]}
mcp: {servers: {a: {command: x, tools: {t: {limits: [{per: key, calls: 1, window: 1s}]}, u: {}}}}}
"""

CROSS_SAID = """\
2:25: server.listen[1]: 127.0.0.1:1 is listened on already
2:38: server.listen[2]: everybody who reaches 0.0.0.0:3 could call; say who may with `authenticate` (`mode: optional` lets everybody in), or listen on 127.0.0.1
3:12: server.workers: MCP servers have sessions, which several workers do not share in memory; name a server in `state`, set workers to 1, or leave `mcp` out
3:12: server.workers: limits are counts, which several workers do not share in memory; name a server in `state`, set workers to 1, or leave `limits`, `models[1].limits`, `mcp.servers.a.tools.t.limits` out
6:13: telemetry.metrics: has no effect, because `server.metrics` is null; name an address there, or leave this out
9:15: models[0].balance: has no effect with a single target; leave it out
9:65: models[0].targets[0].model: `*` stands for what a `*` in the name matched, and `x` has none
10:12: models[1].name: models[0] has the name `x` already
10:36: models[1].targets[0].provider: there is no provider `p`; there are: o
10:63: models[1].fallback[0].provider: there is no provider `q`; there are: o
11:93: mcp.servers.a.tools.u: nothing is set here; leave the tool out
"""


LEGACY = """\
server: {workers: 2}
state: redis://127.0.0.1:6379/0
mcp:
  legacy_sse: true
  servers: {sse: {command: x}, messages: {command: x}, other: {command: x}}
"""

LEGACY_SAID = """\
4:3: mcp.legacy_sse: needs `workers: 1`: a message of HTTP+SSE must come to the worker that has the agent's stream
5:13: mcp.servers.sse: `legacy_sse` serves at /mcp/sse; give the server another name, or leave that out
5:32: mcp.servers.messages: `legacy_sse` serves at /mcp/messages; give the server another name, or leave that out
"""


def test_http_sse_needs_one_worker_and_its_two_names() -> None:
    assert problems(LEGACY) == [f"t.yaml:{line}" for line in LEGACY_SAID.splitlines()]
    names = "sse: {command: x}, messages: {command: x}, "
    parse(LEGACY.replace("workers: 2", "workers: 1").replace(names, ""), "t.yaml", {})
    parse(LEGACY.replace("legacy_sse: true", "legacy_sse: false"), "t.yaml", {})


NAMES = """\
providers: {o: {kind: local}}
models:
  - {name: smart, targets: [{provider: o}]}
  - {name: smart, targets: []}
  - {name: smart, targets: [{provider: p, wieght: 1}], timeout: 5}
  - {targets: [{provider: q}]}
  - {name: a b, targets: [{provider: o, model: '*'}]}
  - {name: a b, targets: [{provider: o}]}
mcp:
  servers:
    "bad name": {url: nonsense}
    worse__name: {command: [x], limit: 5}
routes:
  - {name: r, path: /a, to: http://127.0.0.1:1}
  - {name: r, path: b, to: nonsense}
"""

NAMES_SAID = """\
4:12: models[1].name: models[0] has the name `smart` already
4:28: models[1].targets: should not be empty
5:12: models[2].name: models[0] has the name `smart` already
5:40: models[2].targets[0].provider: there is no provider `p`; there are: o
5:43: models[2].targets[0].wieght: unknown key `wieght`; did you mean `weight`?
5:65: models[2].timeout: should be a mapping, not a number
6:5: models[3].name: required, but not there
6:27: models[3].targets[0].provider: there is no provider `q`; there are: o
7:12: models[4].name: the name of a model has no spaces in it
8:12: models[5].name: the name of a model has no spaces in it
11:5: mcp.servers["bad name"]: the name of a server begins with a letter, ends with no _ and has letters, digits, - and _
11:23: mcp.servers["bad name"].url: 'nonsense' is not a URL like https://host:port/path
12:5: mcp.servers.worse__name: the name of a server has no `__` in it: that separates it from the names of its tools
12:28: mcp.servers.worse__name.command: should be text, not a list
12:33: mcp.servers.worse__name.limit: unknown key `limit`; did you mean `limits`?
15:12: routes[1].name: routes[0] has the name `r` already
15:21: routes[1].path: the path of the request cannot be used: it must begin with a slash
15:28: routes[1].to: 'nonsense' is not a URL like https://host:port/path
"""


def test_a_mistake_in_an_entry_hides_no_name() -> None:
    assert problems(NAMES) == [f"t.yaml:{line}" for line in NAMES_SAID.splitlines()]


JWT = "authenticate: {jwt: [{issuer: i, audiences: [a], jwks: 'https://127.0.0.1:1/jwks'}]}\n"
MCP = "mcp: {path: /tools, servers: {a: {command: x}}}\n"


@pytest.mark.parametrize(
    "listen,why",
    [
        ("0.0.0.0:8080", "and 0.0.0.0:8080 is none"),
        ("'[::]:8080'", "and [::]:8080 is none"),
        ("'[0:0::0]:8080'", "is none"),
        ("':8080'", "and :8080 is none"),
        ("[127.0.0.1:1, ':2']", "and :2 is none"),
        ("[127.0.0.1:1, 127.0.0.1:2]", "and there are several"),
    ],
)
def test_agents_must_be_able_to_trust_the_metadata_of_mcp(listen: str, why: str) -> None:
    server = f"server: {{metrics: null, listen: {listen}}}\n"
    (only,) = problems(server + JWT + MCP)
    assert only.startswith("t.yaml:1:9: server.public_url: required: agents trust the metadata of /tools")
    assert why in only
    for part in (JWT, MCP):  # either alone needs none
        parse(server.replace("{", "{public_url: 'https://a.example', ", 1) + JWT + MCP, "t.yaml", {})
        parse(server + part + ("authenticate: {mode: optional}\n" if part is MCP else ""), "t.yaml", {})
    parse("server: {listen: 10.0.0.1:8080}\n" + JWT + MCP, "t.yaml", {})


TWO_KEYS = """\
authenticate: {{keys: [{{name: other, key: 12345678}}, {{name: ci, key: first-key, user: alice}}]}}
routes:
  - {{name: a, path: /a, to: 'http://127.0.0.1:1', authenticate: {{mode: optional}}}}
  - name: b
    path: /b
    to: http://127.0.0.1:1
    authenticate:
      keys:
        - {}
"""


@pytest.mark.parametrize(
    "key,said",
    [
        ("{name: ci, key: other-key, user: alice}", "with another key"),
        ("{name: ci, key: first-key, user: mallory}", "with another user"),
        ("{name: ci, key: first-key}", "with another user"),
    ],
)
def test_a_key_name_is_one_caller_in_every_scope(key: str, said: str) -> None:
    (only,) = problems(TWO_KEYS.format(key).replace("12345678", "'12345678'"))
    where = "t.yaml:9:18: routes[1].authenticate.keys[0].name: authenticate.keys[1] has the name `ci`"
    assert only == f"{where} {said}; a name stands for one caller"


def test_the_same_key_may_stand_in_several_scopes() -> None:
    same = hashlib.sha256(b"first-key").hexdigest()
    for key in ("{name: ci, key: first-key, user: alice}", f"{{name: ci, key_hash: {same}, user: alice, org: b}}"):
        parse(TWO_KEYS.format(key).replace("12345678", "'12345678'"), "t.yaml", {})


def test_settings_are_checked_against_each_other() -> None:
    assert problems(CROSS) == [f"t.yaml:{line}" for line in CROSS_SAID.splitlines()]


@pytest.mark.parametrize(
    "text,said",
    [
        ("", "t.yaml:1:1: the file is empty"),
        ("server:\n", "t.yaml:1:8: server: is empty; it should be a mapping"),
        ("models:\n  - x\n", "t.yaml:2:5: models[0]: should be a mapping, not text"),
        ("models: [{name: '', targets: [{provider: p}]}]\nproviders: {p: {kind: local}}", "name: should not be empty"),
        ("mcp: {servers: {}}", "t.yaml:1:16: mcp.servers: should not be empty"),
        ("authenticate: {keys: [{name: a, key: short}]}", "keys[0].key: should have at least 8 characters"),
        (
            f"authenticate: {{keys: [{{name: {'a' * 65}, key: long-enough}}]}}",
            "name: should have at most 64 characters",
        ),
        (f"mcp: {{servers: {{{'a' * 65}: {{command: x}}}}}}", ": the name should have at most 64 characters"),
        (
            "mcp: {servers: {'a.b': {command: x}}}",
            "the name of a server begins with a letter, ends with no _ and has letters, digits, - and _",
        ),
        ("mcp: {path: /mcp/, servers: {a: {command: x}}}", "mcp.path: not a path to serve on; write it like /mcp"),
        ("mcp: {path: mcp, servers: {a: {command: x}}}", "mcp.path:"),
        ("server: {listen: 8080}", "server.listen: not an address; write host:port"),
        ("server: {listen: []}", "server.listen: should not be empty"),
        ("server: {listen: nowhere}", "not an address: 'nowhere'; write host:port"),
        ("server: {listen: 127.0.0.1:1, metrics: 127.0.0.1:1}", "server.metrics: 127.0.0.1:1 is listened on already"),
        ("server: {trusted_proxies: [10.0.0.1/8]}", "you may mean 10.0.0.0/8"),
        ("server: {public_url: ftp://x}", "not a URL of a server"),
        ("server: {max_head: 2KiB, max_target: 4KiB}", "`max_target` is more than `max_head`"),
        ("server: {workers: 0}", "server.workers: should be at least 1"),
        ("ledger: postgresql://db", "not a place for the ledger; write postgresql://user:password@host:5432/database"),
        ("ledger: postgresql://ada:hunter2@db/usage?sslmode=off", "what would follow a `?` has settings here"),
        ("ledger: {url: 'postgresql://a:b@db/usage', tls: off}", "write {ca: FILE}, or false for a line that is not"),
        ("ledger: {url: 'sqlite:l.db', schema: s}", "`schema` has no effect with sqlite:; leave it out"),
        ("ledger: {url: 'postgresql://a:b@db/usage', schema: 'A b'}", "should look like the regular expression"),
        ("ledger: 7", "not a place for the ledger; write sqlite:tollhouse.db, a URL of PostgreSQL, or {url: ...}"),
        ("ledger: tollhouse.db", "not a ledger; write `sqlite:` and the name of a file"),
        ("egress: {allow: ['not a host']}", "egress.allow[0]:"),
        ("telemetry: {metrics: {namespace: 1up}}", "not a namespace of metrics; use letters"),
        ("telemetry: {metrics: {labels: {'a-b': jwt.sub}}}", "`a-b` cannot be the name of a label"),
        ("authorize:\n", "t.yaml:1:1: authorize: `authorize` is empty; say what it should be, or leave it out"),
        ("server: {listen: '0.0.0.0:1'}\nauthenticate: ~\n", "authenticate: `authenticate` is empty"),
        ("mcp: {servers: {a: {command: x, limits: }}}", "mcp.servers.a.limits: `limits` is empty"),
        ("retry: {attempts: 1, backoff: 1s}", "retry.backoff: has no effect with `attempts: 1`"),
        ("authenticate: {keys: []}", "authenticate: nobody could call"),
        ("limits: [{per: user, requests: 1, tokens: 2, window: 1m}]", "exactly one of"),
        (
            "mcp: {servers: {a: {command: x, url: http://127.0.0.1:1/mcp}}}",
            "1:33: mcp.servers.a.url: `url` cannot stand beside `command`; give one of the two",
        ),
        (
            "mcp: {servers: {a: {command: x, headers: {a: b}}}}",
            "mcp.servers.a.headers: `headers` goes with `url`, and here is `command`; leave it out",
        ),
        (
            "mcp: {servers: {a: {url: http://127.0.0.1:1/mcp, args: [b]}}}",
            "mcp.servers.a.args: `args` goes with `command`, and here is `url`; leave it out",
        ),
        ("providers: {a: {kind: local, api_key: b}}", "providers.a.api_key: unknown key `api_key`"),
    ],
)
def test_one_mistake(text: str, said: str) -> None:
    (only,) = problems(text)
    assert said in only


@pytest.mark.parametrize(
    "text",
    [
        "providers: {p: {kind: '${S}'}}",
        "providers: {p: {kind: openai, base_url: '${S}'}}",
        "models: [{name: a, targets: [{provider: '${S}'}]}]",
        "mcp: {prefix: '${S}', servers: {a: {url: '${S}', headers: {'x y': '${S}'}}}}",
        "server: {listen: '${S}', workers: '${S}', max_body: '${S}', public_url: '${S}', trusted_proxies: ['${S}']}",
        "ledger: '${S}'\nstate: '${S}'\negress: {allow: ['${S}']}",
        "authorize: {rules: [{allow: '${S}'}]}",
        "telemetry: {metrics: {labels: {a: '${S}'}}, access_log: {format: '${S}'}}",
        "limits: [{per: '${S}', requests: '${S}', window: '${S}'}]",
        "authenticate: {keys: [{name: '${S}', key_hash: '${S}'}], jwt: [{issuer: x, audiences: [y], jwks: '${S}'}]}",
        "routes: [{name: '${S}', path: '${S}', to: '${S}', host: '${S}', methods: ['${S}']}]",
    ],
)
@pytest.mark.parametrize("secret", ["pa ss/w0rd*", "hunter2\\'\"\n", "s3~", "ключ"])
def test_secrets_are_in_no_message(text: str, secret: str) -> None:
    with pytest.raises(LoadError) as error:
        parse(text, "t.yaml", {"S": secret})
    shown = "\n".join([str(error.value), repr(error.value), *map(str, error.value.problems)])
    for form in (secret, repr(secret)[1:-1], ascii(secret)[1:-1]):
        assert form not in shown


def test_secrets_are_in_no_repr() -> None:
    loaded = parse(GOOD, "t.yaml", ENV)
    config = loaded.config
    for shown in (loaded, loaded.positions, config, config.providers, config.models, list(config.providers.values())):
        assert "very-secret" not in repr(shown)
        assert "very-secret" not in str(shown)


def test_files_are_followed_whether_they_are_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    path = tmp_path / "tollhouse.yaml"
    path.write_text("providers: {o: {kind: openai, api_key: '${file:key}'}}\n")
    loaded = load(str(path), {})
    openai: Any = loaded.config.providers["o"]
    assert openai.api_key.get_secret_value() == "sk-from-file"
    assert loaded.files == {str(path): digest(path.read_bytes()), str(tmp_path / "key"): digest(b"sk-from-file\n")}
    path.write_text(
        "providers: {o: {kind: openai, api_key: '${file:key}', headers: {x: '${file:gone}'}}}\n"
        "server: {listen: [{address: 127.0.0.1:0, tls: {cert: c.pem, key: k.pem}}]}\n"
    )
    with pytest.raises(LoadError) as error:
        load(str(path), {})
    assert len(error.value.problems) == 3
    assert error.value.files == {
        str(path): digest(path.read_bytes()),
        str(tmp_path / "key"): digest(b"sk-from-file\n"),
        str(tmp_path / "gone"): ABSENT,
        str(tmp_path / "c.pem"): ABSENT,
        str(tmp_path / "k.pem"): ABSENT,
    }


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    with pytest.raises(LoadError, match="cannot be read: No such file or directory") as error:
        load(str(path), {})
    assert error.value.files == {str(path): ABSENT}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(LoadError) as error:
        load(str(path), {})
    assert str(error.value) == f"{path}:2:4: not UTF-8 text"


def test_a_file_that_is_too_large_has_the_digest_that_everybody_sees(tmp_path: Path) -> None:
    path = tmp_path / "tollhouse.yaml"
    path.write_bytes(b"#" * (LIMIT + 100))
    with pytest.raises(LoadError, match="larger than 32 MiB") as error:
        load(str(path), {})
    assert error.value.files == {str(path): digest_of(str(path))}


def test_a_pipe_is_read_once_and_not_followed(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("ledger: sqlite:x.db\n",))
    writer.start()
    loaded = load(str(pipe), {})
    writer.join()
    assert loaded.config.ledger is not None
    assert loaded.files == {}
    assert digest_of(str(pipe)) == ABSENT  # at once, although nobody writes


def test_settings_may_be_references() -> None:
    text = "server: {listen: '127.0.0.1:${PORT}', workers: '${N}', max_body: '${SIZE}'}\nroutes: []\n"
    server = parse(text, "t.yaml", {"PORT": "0", "N": "2", "SIZE": "1MiB"}).config.server
    assert (server.listen[0].address, server.workers, server.max_body) == ("127.0.0.1:0", 2, 1 << 20)
    python = parse("mcp: {servers: {a: {command: '${TOLLHOUSE_PYTHON}'}}}", "t.yaml", {}).config.mcp
    assert python is not None
    server_a: Any = python.servers["a"]
    assert server_a.command == sys.executable


def test_null_switches_off() -> None:
    config = parse("server: {admin: null, metrics: null}\nledger: ~\ntelemetry: {access_log: null}\n", "t", {}).config
    assert (config.server.admin, config.server.metrics, config.ledger, config.telemetry.access_log) == (None,) * 4


def test_several_listeners_in_both_forms() -> None:
    text = "server: {listen: [127.0.0.1:1, {address: '[::1]:2'}]}\n"
    assert [one.address for one in parse(text, "t.yaml", {}).config.server.listen] == ["127.0.0.1:1", "[::1]:2"]


def test_models_that_did_not_change_are_the_same_objects() -> None:
    first = parse(GOOD, "t.yaml", ENV)
    second = parse("# moved down\n" + GOOD.replace("weight: 3", "weight: 4"), "t.yaml", ENV, first)
    assert second.config.models[0] is not first.config.models[0]
    assert second.config.models[0].targets[0].weight == 4
    assert second.config.models[1] is first.config.models[1]
    again = parse(GOOD, "t.yaml", ENV, second)
    assert again.config == first.config
    assert again.config.models[1] is first.config.models[1]


def test_a_model_that_names_a_file_is_read_again(tmp_path: Path) -> None:
    """The file may have changed although the model is written as before; and only what is read is watched."""
    file = tmp_path / "words.txt"
    file.write_text("rose\n")
    guarded = "{name: a, targets: [{provider: p}], guardrails: {request: [{keywords: {file: ./words.txt}}]}}"
    plain = "{name: b, targets: [{provider: p}]}"
    text = f"providers: {{p: {{kind: openai, api_key: k}}}}\nmodels:\n  - {guarded}\n  - {plain}\n"
    loaded = [parse(text, str(tmp_path / "t.yaml"), {})]
    for words in ("rose\n", "tulip\n", "lily\n"):
        file.write_text(words)
        loaded.append(parse(text, str(tmp_path / "t.yaml"), {}, loaded[-1]))
        assert loaded[-1].files == {str(file): digest_of(str(file))}
    models = [one.config.models for one in loaded]
    assert models[0][0] == models[1][0] != models[2][0] != models[3][0]
    assert all(one[1] is models[0][1] for one in models)


def test_reuse_hides_no_mistake() -> None:
    first = parse(GOOD, "t.yaml", ENV)
    with pytest.raises(LoadError) as error:
        parse(GOOD.replace("local: {kind", "loca: {kind"), "t.yaml", ENV, first)
    assert [problem.path for problem in error.value.problems] == [
        "models[0].targets[1].provider",
        "models[0].fallback[0].provider",
    ]


def test_problems_found_later_get_their_place() -> None:
    loaded = parse(GOOD, "t.yaml", ENV)
    found = [
        Problem("b", path="model openai/*: targets[0].provider"),
        Problem("not sk-very-secret-1234", path="providers.openai.api_key"),
        Problem("c", path="top: models"),
        Problem("f", path="models.openai/*"),
        Problem("e", path="somewhere else"),
        Problem("d", file="other.yaml", line=3, column=1, path="x"),
    ]
    assert [str(problem) for problem in loaded.complete(found)] == [
        "t.yaml:1:1: somewhere: e",
        "t.yaml:2:35: providers.openai.api_key: not ${OPENAI_API_KEY}",
        "other.yaml:3:1: x: d",
        "t.yaml:5:3: models: c",
        "t.yaml:9:5: models[1]: f",
        "t.yaml:9:45: models[1].targets[0].provider: b",
    ]
    assert str(loaded.positions.problem("models[0].name", "x")) == "t.yaml:5:11: models[0].name: x"


def five_thousand(extra: str = "") -> str:
    lines = ["providers: {local: {kind: local}}\nmodels:\n"]
    lines += [
        f"  - name: team-{n}/smart\n    targets:\n      - {{provider: local, model: m-{n}, weight: 3}}\n"
        f"      - {{provider: local}}\n    timeout: {{total: 300s}}\n"
        for n in range(5000)
    ]
    return "".join(lines) + extra


def test_five_thousand_models() -> None:
    loaded = parse(five_thousand(), "t.yaml", {})
    changed = parse(five_thousand().replace("m-7,", "m-x,"), "t.yaml", {}, loaded)
    same = sum(a is b for a, b in zip(loaded.config.models, changed.config.models, strict=True))
    assert same == 4999
    said = problems(five_thousand("  - {name: team-1/smart, targets: [{provider: loca}]}\n"))
    assert said == [
        "t.yaml:25003:12: models[5000].name: models[1] has the name `team-1/smart` already",
        "t.yaml:25003:47: models[5000].targets[0].provider: there is no provider `loca`; did you mean `local`?",
    ]


def test_nothing_of_the_text_is_kept_alive_in_cycles() -> None:
    loaded: Loaded | None = parse(GOOD, "t.yaml", ENV)
    gc.collect()
    loaded = parse(GOOD, "t.yaml", ENV, loaded)
    assert loaded is not None
    del loaded
    assert gc.collect() == 0


BASE: dict[str, Any] = yaml.safe_load(GOOD) | {
    "server": {
        "listen": [{"address": "127.0.0.1:0"}],
        "workers": 1,
        "shutdown": {"min": "1s"},
        "trusted_proxies": ["::1"],
    },
    "mcp": {
        "servers": {"a": {"command": "x", "args": ["y"], "env": {"k": "v"}}, "b": {"url": "http://127.0.0.1:1/mcp"}}
    },
    "routes": [
        {
            "name": "r",
            "path": "/r",
            "to": [{"url": "http://127.0.0.1:1", "weight": 2}],
            "match": {"query": {"q": ["a"]}},
        }
    ],
    "authenticate": {"jwt": [{"issuer": "i", "audiences": ["a"], "jwks": "https://idp.example.com/jwks"}]},
    "authorize": {"rules": [{"allow": "jwt.sub == 'x'"}]},
    "limits": [{"per": "user", "tokens": 10, "window": "1m"}],
    "cors": {"origins": ["https://example.com"]},
    "headers": {"response": {"set": {"x-a": "b"}}},
    "retry": {"attempts": 2, "on": ["429"]},
    "telemetry": {"metrics": {"labels": {"org": "jwt.org"}}, "access_log": {"fields": {"user": "jwt.email"}}},
}

strange = st.sampled_from(
    [None, True, 0, -1, 7, 1.5, 10**17, "", " ", "*", "a*b*", "1m", "http://", "http://[", "://", "[::1", "\\", "ü", "x" * 300,
     "jwt.", "%00", [], [[]], [None], {}, {"": ""}, {"kind": []}, {"model": {}}, [{"provider": 1}]]
)  # fmt: skip


@st.composite
def disturbed(draw: st.DrawFn) -> dict[str, Any]:
    document = copy.deepcopy(BASE)
    for _ in range(draw(st.integers(1, 4))):
        at: Any = document
        while True:
            steps = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not steps:
                break
            step = draw(st.sampled_from(steps))
            if isinstance(at[step], (dict, list)) and draw(st.booleans()):
                at = at[step]
                continue
            how = draw(st.sampled_from(["replace", "rename", "drop", "twice"]))
            if how == "drop":
                del at[step]
            elif how == "replace":
                at[step] = copy.deepcopy(draw(strange))
            elif isinstance(at, list):
                at.append(copy.deepcopy(at[step]))
            else:
                at[draw(st.sampled_from(["nam", "budgets", "cors", "", "a b", "models", "kind"]))] = copy.deepcopy(
                    at[step]
                )
            break
    return document


def test_the_undisturbed_is_right() -> None:
    parse(json.dumps(BASE), "t.yaml", ENV)


@given(disturbed())
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_is_taken_or_refused_with_a_place(document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=1)
    lines = text.splitlines()
    found: list[Problem] = []
    try:
        parse(text, "t.yaml", ENV)
    except LoadError as error:
        found = error.problems or [Problem("refused, and nobody knows why")]
    for problem in found:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1])
        assert problem.message


ROUTED = """\
providers: {o: {kind: openai, base_url: "http://127.0.0.1:1/v1"}, l: {kind: local}}
models:
  - {name: one, aliases: [uno, two, uno], targets: [{provider: o}], sticky: user, hedge: {after: 2s}}
  - {name: two, targets: [{provider: o, when: llm.tool}, {provider: l}]}
  - {name: "x/*", aliases: [x], targets: [{provider: o}]}
  - {name: loc, targets: [{provider: l}], health: {check: {}}}
  - {name: both, targets: [{provider: o}, {provider: l}], sticky: user, balance: round_robin}
  - {name: star, aliases: ["a*"], targets: [{provider: o}], fallback: [{provider: l, on: [refusal]}]}
"""


def test_what_is_wrong_with_targets_is_said() -> None:
    assert [one.split(": ", 1)[1] for one in problems(ROUTED)] == [
        "models[0].aliases[1]: models[1] has the name `two` already",
        "models[0].aliases[2]: models[0] has the name `uno` already",
        "models[0].sticky: has no effect with a single target; leave it out",
        "models[0].hedge: has no effect with a single target; leave it out",
        "models[1].targets[0].when: unknown field `llm.tool`; there are: llm.model, llm.dialect, llm.operation, llm.stream, llm.tokens, llm.tools, llm.metadata",
        "models[2]: `aliases` are for a model of one name: what would the `*` stand for?",
        "models[3].health.check: has no effect: the local model runs in a process of our own, which is looked after; leave it out",
        "models[4]: balance has no effect with sticky, which shares callers out by weight; leave it out",
        "models[5].aliases[0]: an alias is one exact name, without `*` and spaces",
        "models[5].fallback[0].on[0]: should be one of failure, context_window, content_policy, not `refusal`",
    ]


CHECKED = """\
providers:
  o: {kind: openai, base_url: "http://127.0.0.1:1/v1"}
  v: {kind: vertex, project: p, api_key: k}
  b: {kind: bedrock, region: eu-central-1, api_key: k}
models:
  - {name: one, targets: [{provider: v}, {provider: b}, {provider: o}], health: {check: {}}}
  - {name: two, targets: [{provider: v}], health: {check: {model_call: chat}}}
  - {name: three, targets: [{provider: v}], health: {check: {path: /v1/x}}}
  - {name: "x/*", targets: [{provider: o, model: "*"}], health: {check: {model_call: chat}}}
  - {name: "y/*", targets: [{provider: o, model: m}], health: {check: {model_call: embeddings}}}
  - {name: four, targets: [{provider: o}], health: {check: {path: /a, model_call: chat}}}
  - {name: five, targets: [{provider: o}], health: {check: {model_call: true}}}
headers:
  request: {set: {x-a: {cel: llm.model}, x-b: {cel: "1 +"}, host: a}}
  response: [{when: llm.tools, set: {x-a: "é"}}]
transform: {set: {/model/a: 1, /user: 2}, remove: [/a/-], defaults: {"/b/~": 1}}
"""


def test_what_is_wrong_with_checks_headers_and_pointers_is_said() -> None:
    assert [one.split(": ", 1)[1] for one in problems(CHECKED)] == [
        "models[0].health.check: a provider of kind bedrock has no list of models to look at; say `model_call`, or a `path`",
        "models[0].health.check: a provider of kind vertex has no list of models to look at; say `model_call`, or a `path`",
        "models[3].health.check.model_call: asks for one model, and what `x/*` stands for is not known; name targets' models",
        "models[5].health.check: `path` has no effect with `model_call`; leave one of them out",
        "models[6].health.check.model_call: should be one of chat, embeddings, not true",
        "headers.request.set.x-a.cel: unknown variable `llm` here; there are: request, source, jwt, key, principal",
        "headers.request.set.x-b.cel: not a CEL expression: line 1, column 4: Syntax error: mismatched input '<EOF>'",
        "headers.request.set.host: the header `host` frames the message or belongs to one connection; no rule can change it",
        "headers.response[0].when: unknown field `llm.tools`; there are: llm.model, llm.dialect, llm.operation, llm.stream, llm.tokens, llm.provider",
        "headers.response[0].set.x-a: a header's value has no line breaks and other control characters, and only ASCII",
        'transform.set["/model/a"]: `/model/a` cannot be changed: targets name the model, and the caller says whether to stream',
        "transform.set[\"/user\"]: `/user` is a field of the top level: write 'user'",
        "transform.remove[0]: `/a/-`: `-` is the place behind a list's last element, where nothing is; use it in `set`",
        'transform.defaults["/b/~"]: in a JSON Pointer `~` stands before 0 or 1: ~0 is a tilde, ~1 a slash (RFC 6901)',
    ]
