"""An auth provider with its state in memory loses neither keys nor revocations when it is killed."""

import base64
import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, free_port

SECRET = "0123456789abcdef0123456789abcdef"
RESOURCE = "https://api.example.com"
CONFIG = """
server: {{listen: "127.0.0.1:{port}", metrics: null}}
{state}
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: https://api.example.com}}]
  clients:
    - {{id: robot, secret: {secret}, grants: [client_credentials], serves: [https://api.example.com]}}
"""


def post(gateway: Gateway, name: str, **form: str) -> Any:
    basic = base64.b64encode(f"robot:{SECRET}".encode()).decode()
    request = urllib.request.Request(
        f"{gateway.url}/oauth/{name}",
        urllib.parse.urlencode(form).encode(),
        {"authorization": f"Basic {basic}", "content-type": "application/x-www-form-urlencoded"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        body = answer.read()
    return json.loads(body) if body else None


def kids(gateway: Gateway) -> list[str]:
    with urllib.request.urlopen(f"{gateway.url}/oauth/jwks", timeout=30) as answer:
        return [key["kid"] for key in json.load(answer)["keys"]]


@pytest.mark.parametrize(
    ("state", "file"),
    [
        ("", "tollhouse.state"),
        ('state: {url: "file:kept.state", encryption_key: ' + "k" * 32 + "}", "kept.state"),
        ("ledger: sqlite:usage.db", "usage.db.state"),
    ],
)
def test_what_was_promised_is_there_after_kill_9(tmp_path: Path, state: str, file: str) -> None:
    config = CONFIG.format(port=free_port(), secret=SECRET, state=state)
    with Gateway(config, tmp_path) as gateway:
        published = kids(gateway)
        tokens = [
            post(gateway, "token", grant_type="client_credentials", resource=RESOURCE)["access_token"] for _ in range(2)
        ]
        post(gateway, "revoke", token=tokens[0])
        gateway.stop(signal.SIGKILL)
        gateway.start()
        assert kids(gateway) == published
        assert post(gateway, "introspect", token=tokens[0]) == {"active": False}
        assert post(gateway, "introspect", token=tokens[1])["active"] is True
        kept = tmp_path / file
        assert kept.stat().st_mode & 0o777 == 0o600
        assert b"iss:keys" in kept.read_bytes()
        second = subprocess.run(
            [sys.executable, "-m", "tollhouse.cli", "serve", str(gateway.config)],
            check=False,
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            text=True,
        )
        assert second.returncode == 2
        assert f"another process has the state in {kept}; each needs a file of its own" in second.stderr + second.stdout
