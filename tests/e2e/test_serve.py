"""Starting: what cannot be served is said whole, with status 2; what serves answers for itself."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from tests.fixtures.gateway import free_port, gateway

ROUTE = "routes: [{name: a, path: /, to: http://127.0.0.1:9}]\n"


def serve(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tollhouse.cli", *arguments]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=30, check=False)


def test_status_readiness_and_metrics_of_both_listeners(tmp_path: Path) -> None:
    with gateway("server: {listen: 127.0.0.1:0, metrics: 127.0.0.1:0}\n" + ROUTE, tmp_path) as running:
        for base in (running.url, running.metrics_url):
            status, headers, body = running.exchange("GET", base + "/status")
            assert (status, json.loads(body)) == (200, {"status": "ok"})
            assert headers["content-type"] == "application/json"
            assert headers["cache-control"] == "no-store"
            status, body = running.get(base + "/ready")
            assert (status, json.loads(body)) == (200, {"status": "ready"})
        assert running.ask("POST", "/status")[0] == 405
        assert running.ask("POST", running.metrics_url + "/metrics")[0] == 405
        assert running.get(running.metrics_url + "/other")[0] == 404
        status, headers, body = running.exchange("GET", running.metrics_url + "/metrics")
        assert (status, headers["content-type"].split(";")[0]) == (200, "text/plain")
        assert b"tollhouse_requests_total{" in body
        assert b"tollhouse_build_info{" in body
        # The port is taken: whoever comes second is told so, and the first one is not disturbed.
        address = running.url.removeprefix("http://")
        for workers in (1, 2):
            (tmp_path / "second.yaml").write_text(
                f"server: {{listen: {address}, metrics: null, workers: {workers}}}\n{ROUTE}"
            )
            second = serve(tmp_path, "serve", "second.yaml")
            assert second.returncode == 2, second.stderr
            assert "second.yaml:1:" in second.stderr
            assert f"cannot listen on {address}: Address already in use" in second.stderr
            assert "Traceback" not in second.stderr
        assert running.get("/status")[0] == 200


def test_the_metrics_port_in_use_is_said_as_well(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "a.yaml").write_text(f"server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:{port}}}\n{ROUTE}")
        refused = serve(tmp_path, "serve", "a.yaml")
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr
    assert "server.metrics" in refused.stderr
    assert "Traceback" not in refused.stderr


BAD = """
server:
  listen: 127.0.0.1:0
  max_body: 10 monkeys
  shutdown: {min: 10s, max: 5s}
providers:
  one: {kind: openai, api_key: "${NOT_SET_ANYWHERE}"}
models:
  - {name: a, targets: [{provider: nobody}]}
  - {name: a, targets: [{provider: one}]}
routs: []
"""


@pytest.mark.parametrize("command", ["serve", "check"])
def test_every_error_is_listed_with_its_place(tmp_path: Path, command: str) -> None:
    (tmp_path / "bad.yaml").write_text(BAD)
    refused = serve(tmp_path, command, "bad.yaml")
    assert refused.returncode == 2
    lines = [line for line in refused.stderr.splitlines() if line.startswith("bad.yaml:")]
    assert {int(line.split(":")[1]) for line in lines} == {4, 5, 7, 9, 10, 11}
    assert "routes" in lines[-1]
    assert f"{len(lines)} problems in the configuration" in refused.stderr
    assert "Traceback" not in refused.stderr + refused.stdout


def test_what_only_building_finds_has_its_place_too(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "server: {listen: 127.0.0.1:0, metrics: null}\nroutes:\n- {name: own, exact: /status, to: http://127.0.0.1:9}\n"
    )
    for command in ("serve", "check"):
        refused = serve(tmp_path, command, "a.yaml")
        assert refused.returncode == 2
        assert "\na.yaml:3:" in f"\n{refused.stderr}", refused.stderr
        assert "never be reached" in refused.stderr


TLS = """
server:
  metrics: null
  listen:
    - address: 127.0.0.1:0
      tls:
        cert: cert.pem
        key: other.pem
    - {address: 127.0.0.1:0, tls: {cert: nonsense.pem, key: key.pem}}
    - address: 127.0.0.1:0
      tls: {cert: cert.pem, key: key.pem,
            client_ca: nonsense.pem}
providers:
  one:
    kind: openai
    base_url: https://127.0.0.1:9/v1
    tls: {ca: nonsense.pem}
models: [{name: a, targets: [{provider: one}]}]
"""
ONE_TLS = """
server:
  metrics: null
  workers: %d
  listen:
    address: 127.0.0.1:0
    tls: {cert: cert.pem, key: other.pem}
"""


def test_certificates_and_authorities_are_tried(tmp_path: Path) -> None:
    issued, other = trustme.CA().issue_cert("gateway.test"), trustme.CA().issue_cert("gateway.test")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    (tmp_path / "nonsense.pem").write_text("nonsense")
    (tmp_path / "a.yaml").write_text(TLS)
    refused = serve(tmp_path, "check", "a.yaml")
    assert refused.returncode == 2
    lines = refused.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [
        ["a.yaml:8:14", "server.listen[0].tls.key"],
        ["a.yaml:9:42", "server.listen[1].tls.cert"],
        ["a.yaml:12:24", "server.listen[2].tls.client_ca"],
        ["a.yaml:15:5", "providers.one"],
    ], refused.stderr
    assert "the key is not that of the certificate" in lines[0]
    for command, workers in (("check", 1), ("serve", 1), ("serve", 2)):
        (tmp_path / "a.yaml").write_text(ONE_TLS % workers + ROUTE)
        refused = serve(tmp_path, command, "a.yaml")
        assert refused.stderr.count("a.yaml:7:32: server.listen[0].tls.key: cannot load the certificate") == 1
        assert refused.returncode == 2


def test_a_ledger_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "a.yaml").write_text(
        f"server: {{listen: 127.0.0.1:0, metrics: null}}\nledger: sqlite:{tmp_path}/file/x.db\n{ROUTE}"
    )
    refused = serve(tmp_path, "serve", "a.yaml")
    assert refused.returncode == 2
    assert "a.yaml:2:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    refused = serve(tmp_path, "serve", "nowhere.yaml")
    assert refused.returncode == 2
    assert "nowhere.yaml: cannot be read: No such file or directory" in refused.stderr


LIMITS = """
server: {listen: "127.0.0.1:%d", metrics: null, workers: 2}
providers: {one: {kind: openai, base_url: "http://127.0.0.1:9/v1"}}
models: [{name: a, targets: [{provider: one}], limits: [{per: ip, requests: 1, window: 1m}]}]
mcp: {servers: {x: {url: "http://127.0.0.1:9/mcp"}}}
"""


def test_several_workers_are_refused_with_the_reason_where_state_would_be_shared(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(LIMITS % free_port())
    refused = serve(tmp_path, "check", "a.yaml")
    assert refused.returncode == 2
    assert "MCP servers have sessions, which several workers do not share" in refused.stderr
    assert "limits are counts, which several workers do not share" in refused.stderr
    assert "models[0].limits" in refused.stderr
