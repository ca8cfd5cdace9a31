"""People at the login pages, in a real browser, with scripts and without: they log in, consent, and land where they
came from."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest
from authlib.integrations.httpx_client import OAuth2Client
from playwright.sync_api import Browser, Page, expect
from tests.fixtures.chromium import chromium
from tests.fixtures.gateway import Gateway, free_port, gateway
from tests.fixtures.http_thread import in_thread

from tollhouse.wire.password_hash import hash_password

SECRET = "a-secret-of-more-than-32-characters!"
PASSWORD = "correct horse battery staple"


class Application:
    """A web application that people log in to. answers: the parameters of each answer that came, in order."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        # Another origin, as applications have several: their own redirects lead there.
        self.home = f"http://localhost:{server.server_port}/home"
        self.answers: list[dict[str, str]] = []


@contextmanager
def application() -> Iterator[Application]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            if where.path == "/cb":
                app.answers.append(dict(parse_qsl(where.query)))
                self._redirect(app.home)
            elif where.path == "/home":
                self._say("<h1>Welcome back</h1>")
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            app.answers.append({name: value for name, (value,) in parse_qs(body).items()})
            self._redirect(app.home)

        def _redirect(self, where: str) -> None:
            self.send_response(303)
            self.send_header("location", where)
            self.send_header("content-length", "0")
            self.end_headers()

        def _say(self, html: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(html)))
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    app = Application(server)
    with in_thread(server):
        yield app


CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null}}
telemetry: {{access_log: {{path: "-"}}}}
issuer:
  url: http://127.0.0.1:{port}
  users:
    - {{name: ada, password_hash: "{hashed}", full_name: Ada Lovelace, email: ada@example.com, groups: [dev]}}
  clients:
    - id: shop
      name: The Shop
      secret: {secret}
      redirect_uris: ["{app}/cb"]
      grants: [authorization_code, refresh_token, device_code]
  resources:
    - {{uri: https://orders.example.com, name: Orders, scopes: {{orders: See your orders}}}}
"""


class House:
    """Everything that is there: the gateway, an application, a browser."""

    def __init__(self, provider: Gateway, app: Application, browser: Browser) -> None:
        self.provider = provider
        self.app = app
        self.browser = browser

    def client(self) -> OAuth2Client:
        return OAuth2Client(
            "shop",
            SECRET,
            redirect_uri=f"{self.app.url}/cb",
            scope="openid email orders",
            code_challenge_method="S256",
            token_endpoint_auth_method="client_secret_basic",
        )

    def url(self, client: OAuth2Client, verifier: str, **more: str) -> str:
        url, _ = client.create_authorization_url(
            f"{self.provider.url}/oauth/authorize",
            code_verifier=verifier,
            resource="https://orders.example.com",
            **more,
        )
        return str(url)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    where = tmp_path_factory.mktemp("login")
    port = free_port()
    (where / "browser").mkdir()
    with application() as app:
        config = CONFIG.format(port=port, hashed=hash_password(PASSWORD), secret=SECRET, app=app.url)
        with chromium(where / "browser") as browser, gateway(config, where) as provider:
            yield House(provider, app, browser)


@contextmanager
def page(house: House, *, script: bool = True, width: int = 1280) -> Iterator[tuple[Page, list[str]]]:
    """A browser of its own, and what it complains about."""
    context = house.browser.new_context(java_script_enabled=script, viewport={"width": width, "height": 800})
    complaints: list[str] = []
    found = context.new_page()
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    try:
        yield found, complaints
    finally:
        context.close()


def log_in(found: Page) -> None:
    found.get_by_label("User name").fill("ada")
    found.get_by_label("Password").fill(PASSWORD)
    found.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize("script", [True, False])
def test_somebody_logs_in_consents_and_lands_at_the_application(house: House, script: bool) -> None:
    with house.client() as client, page(house, script=script) as (found, complaints):
        verifier = "v" * 43
        found.goto(house.url(client, verifier, prompt="consent"))
        expect(found.get_by_role("heading", name="Sign in")).to_be_visible()
        found.get_by_label("User name").fill("ada")
        found.get_by_label("Password").fill("a wrong one")
        found.get_by_role("button", name="Sign in").click()
        expect(found.get_by_role("alert")).to_have_text("The user name or the password is not right.")
        log_in(found)
        expect(found.get_by_role("heading", name="The Shop wants access")).to_be_visible()
        for words in ("ada@example.com", "127.0.0.1", "See your orders", "See your email address"):
            expect(found.locator("main")).to_contain_text(words)
        found.get_by_role("button", name="Allow").click()
        found.wait_for_url(house.app.home)  # after a redirect of its own to another origin
        answer = house.app.answers[-1]
        assert answer["iss"] == house.provider.url
        tokens = client.fetch_token(
            f"{house.provider.url}/oauth/token",
            authorization_response=f"{house.app.url}/cb?{urlencode(answer)}",
            code_verifier=verifier,
        )
        assert tokens["id_token"]
        assert tokens["scope"] == "email openid orders"
        # The second time nobody is asked anything.
        found.goto(house.url(client, verifier))
        found.wait_for_url(house.app.home)
        assert not [text for text in complaints if "401" not in text and "favicon" not in text]


@pytest.mark.parametrize("script", [True, False])
def test_an_answer_may_come_as_a_form(house: House, script: bool) -> None:
    with house.client() as client, page(house, script=script) as (found, complaints):
        found.goto(house.url(client, "v" * 43, response_mode="form_post", prompt="consent", state="s-1"))
        log_in(found)
        found.get_by_role("button", name="Allow").click()
        if not script:
            found.get_by_role("button", name="Continue").click()
        found.wait_for_url(house.app.home)
        assert house.app.answers[-1]["state"] == "s-1"
        assert house.app.answers[-1]["code"]
        assert not [text for text in complaints if "favicon" not in text]


def test_it_can_be_done_with_the_keyboard_alone(house: House) -> None:
    with house.client() as client, page(house) as (found, _):
        found.goto(house.url(client, "v" * 43, prompt="consent"))
        expect(found.get_by_label("User name")).to_be_focused()
        found.keyboard.type("ada")
        found.keyboard.press("Tab")
        found.keyboard.type(PASSWORD)
        found.keyboard.press("Enter")
        expect(found.get_by_role("button", name="Deny")).to_be_visible()
        found.get_by_role("button", name="Deny").focus()
        found.keyboard.press("Enter")
        found.wait_for_url(house.app.home)
        assert house.app.answers[-1]["error"] == "access_denied"


def test_pages_fit_a_telephone_and_cannot_be_framed(house: House) -> None:
    with house.client() as client, page(house, width=320) as (found, _):
        found.goto(house.url(client, "v" * 43, prompt="consent"))
        for _ in range(2):
            wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            assert found.evaluate(wide) is False
            if found.get_by_label("Password").count():
                log_in(found)
        found.goto(house.app.home)
        with found.expect_console_message(lambda message: "frame" in message.text.lower()):
            found.evaluate(
                "url => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }",
                f"{house.provider.url}/oauth/grants",
            )


def test_what_was_allowed_is_seen_taken_back_and_left_by_signing_out(house: House) -> None:
    with house.client() as client, page(house) as (found, _):
        found.goto(house.url(client, "v" * 43, prompt="consent"))
        log_in(found)
        found.get_by_role("button", name="Allow").click()
        found.wait_for_url(house.app.home)
        found.goto(f"{house.provider.url}/oauth/grants")
        expect(found.get_by_role("heading", name="The Shop")).to_be_visible()
        found.get_by_role("button", name="Take it back").click()
        expect(found.locator("main")).to_contain_text("You have allowed no application anything.")
        found.get_by_role("link", name="Sign out").click()
        found.get_by_role("button", name="Sign out").click()
        expect(found.get_by_role("heading", name="You are signed out")).to_be_visible()
        found.goto(f"{house.provider.url}/oauth/grants")
        expect(found.get_by_label("Password")).to_be_visible()


def test_a_device_is_let_in(house: House) -> None:
    with house.client() as client, page(house) as (found, _):
        begun = httpx.post(
            f"{house.provider.url}/oauth/device",
            data={"scope": "openid orders", "resource": "https://orders.example.com"},
            auth=("shop", SECRET),
        ).json()
        found.goto(begun["verification_uri_complete"])
        log_in(found)
        expect(found.get_by_label("Code")).to_have_value(begun["user_code"])
        found.get_by_role("button", name="Continue").click()
        expect(found.locator("main")).to_contain_text("See your orders")
        found.get_by_role("button", name="Allow").click()
        expect(found.get_by_role("heading", name="All done here")).to_be_visible()
        tokens = client.fetch_token(
            f"{house.provider.url}/oauth/token",
            grant_type="urn:ietf:params:oauth:grant-type:device_code",
            device_code=begun["device_code"],
        )
        assert tokens["access_token"]


def test_nothing_that_proves_anything_stands_in_the_log(house: House) -> None:
    with house.client() as client, page(house) as (found, _):
        found.goto(house.url(client, "v" * 43, prompt="consent"))
        log_in(found)
        cookies = [cookie["value"] for cookie in found.context.cookies()]
        found.get_by_role("button", name="Allow").click()
        found.wait_for_url(house.app.home)
    text = house.provider.text()
    assert "/oauth/login" in text
    assert '"user:ada"' in text
    for secret in (PASSWORD, SECRET, house.app.answers[-1]["code"], *cookies):
        assert secret not in text
