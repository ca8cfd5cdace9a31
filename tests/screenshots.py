"""Pictures of the login pages as they are: python -m tests.screenshots DIRECTORY. scripts/screenshots calls it."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from urllib.parse import urlencode

from playwright.sync_api import Browser
from tests.fixtures.chromium import chromium
from tests.fixtures.gateway import gateway

from tollhouse.backends.accounts.records import Opened
from tollhouse.wire.mcp.sealed import Seals
from tollhouse.wire.password_hash import hash_password

PASSWORD = "correct horse battery staple"
KEY = "8yE2kq0c1nYtqkZfVnX0mJm6c2o5S1d9Qw3Gx7Lh4Ts="
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null}}
state: {{url: "file:tollhouse.state", encryption_key: {key}}}
authenticate: {{mode: strict}}
mcp:
  servers:
    notes:
      url: https://notes.example.com/mcp
      oauth: {{issuer: https://notes.example.com, client_id: tollhouse, scopes: [notes.read, notes.write]}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{hashed}", email: ada@example.com}}]
  upstream: [{{issuer: https://login.example.com, label: Example Login, client_id: x}}]
  clients: [{{id: desk, name: Research Desk, redirect_uris: ["https://desk.example.com/callback"]}}]
  resources:
    - uri: https://gateway.example.com/mcp
      name: Tools of the house
      scopes:
        "mcp:read": "Read with its tools: search, files, calendar"
        "mcp:write": Change things with its tools
"""


def take(browser: Browser, url: str, where: Path) -> None:
    """The login page, the consent page, and the one on which an account is connected."""
    asked = {
        "response_type": "code",
        "client_id": "desk",
        "redirect_uri": "https://desk.example.com/callback",
        "code_challenge": "a" * 43,
        "code_challenge_method": "S256",
        "scope": "openid email mcp:read mcp:write",
        "resource": "https://gateway.example.com/mcp",
    }
    context = browser.new_context(viewport={"width": 540, "height": 600}, color_scheme="light")
    page = context.new_page()
    page.goto(f"{url}/oauth/authorize?{urlencode(asked)}")
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=where / "login.png", full_page=True)
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Allow").wait_for()
    page.screenshot(path=where / "consent.png", full_page=True)
    link = Seals((KEY.encode(),)).seal("account", Opened("notes", "ada", "desk", time() + 600))
    page.goto(f"{url}/oauth/upstream/start?{urlencode({'l': link})}")
    page.screenshot(path=where / "connect.png", full_page=True)
    context.close()


def main(directory: str) -> None:
    port = 8080  # it stands on the pictures
    with TemporaryDirectory() as name:
        where = Path(name)
        (where / "browser").mkdir()
        config = CONFIG.format(port=port, hashed=hash_password(PASSWORD), key=KEY)
        with chromium(where / "browser") as browser, gateway(config, where) as provider:
            take(browser, provider.url, Path(directory))


if __name__ == "__main__":
    main(sys.argv[1])
