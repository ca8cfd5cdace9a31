"""npm `oauth4webapi` and `openid-client` at the token side of an issuer, where nobody need be at a browser: they refuse
what is not as the RFCs say."""

import json
import subprocess
from collections.abc import Iterator

import pytest
from tests.fixtures.gateway import Gateway, free_port
from tests.fixtures.issuer import ADA
from tests.fixtures.mcp_suite import NODE, NODE_FILES, needs_node

SECRET = "0123456789abcdef0123456789abcdef"
API = "https://api.example.com"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    port = free_port()
    config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{ADA["password_hash"]}"}}]
  registration: {{dynamic: loopback}}
  resources: [{{uri: {API}, scopes: {{read: Read all}}}}]
  clients:
    - {{id: robot, secret: {SECRET}, grants: [client_credentials]}}
    - {{id: api, secret: {SECRET}, grants: [token_exchange], serves: [{API}]}}
    - id: app
      secret: {SECRET}
      redirect_uris: [https://app.example.com/cb]
      grants: [authorization_code, device_code]
"""
    with Gateway(config, tmp_path_factory.mktemp("issuer")) as gateway:
        yield gateway


@needs_node
def test_libraries_for_relying_parties(issuer: Gateway) -> None:
    command = [str(NODE), "token_side.mjs", issuer.url, SECRET, API]
    done = subprocess.run(command, check=False, cwd=NODE_FILES, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {
        "bearer": "bearer",
        "bound": "dpop",
        "introspected": [True, "robot", API],
        "validated": ["robot", "read"],
        "revoked": False,
        "device": "authorization_pending",
        "pushed": 60,
        "post": "bearer",
        "registered": "dyn_",
        "exchanged": [5, True, "read"],
    }
