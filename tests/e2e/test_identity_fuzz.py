"""Every address of the auth provider under requests that nobody meant: known parameters with other values, twice, huge,
in other alphabets, under other fields and cookies, at a running `tollhouse serve`.

What must hold for every answer: no 5xx, nothing of what was sent unescaped in it, kept by no cache unless it is public,
and a redirect only to ourselves or to where an application has registered. Afterwards the log has no traceback.
"""

import base64
import http.client
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fixtures.auth_provider import HASH, PASSWORD, Page
from tests.fixtures.gateway import Gateway, free_port
from tests.fixtures.issuer import challenge_of

SECRET = "a-secret-of-more-than-thirty-two-characters"
REDIRECT = "https://app.example.com/cb?tenant=1"
API = "https://api.example.com"
SHOP = "https://shop.example.com/authorize"
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null, trusted_proxies: [127.0.0.1/32], shutdown: {{min: 0s, max: 5s}}}}
telemetry: {{access_log: null}}
authenticate: {{}}
mcp:
  servers:
    shop:
      url: http://127.0.0.1:{closed}/mcp
      oauth:
        issuer: https://shop.example.com
        authorization_endpoint: {shop}
        token_endpoint: http://127.0.0.1:{closed}/token
        client_id: us
        scopes: [read]
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{hash}", email: ada@example.com}}]
  upstream: [{{issuer: "http://127.0.0.1:{closed}", client_id: us, name: idp}}]
  registration: {{dynamic: on, per_address: 10000, rate: 10000, limit: 100000}}
  resources: [{{uri: {api}, scopes: {{read: Read all}}}}]
  clients:
    - id: app
      secret: {secret}
      redirect_uris: ["{redirect}", "http://127.0.0.1/cb"]
      post_logout_redirect_uris: [https://app.example.com/bye]
      grants: [authorization_code, refresh_token, client_credentials, token_exchange, device_code]
      serves: [{api}]
    - {{id: native, redirect_uris: ["http://127.0.0.1/cb", "com.example.app:/cb"]}}
"""
MARK = "zq\"'><zq>&zq"
"""What must come back nowhere as it is."""
PUBLIC = ("/.well-known/", "/oauth/jwks", "/oauth/style.css")
NAMES = (
    "token", "authorize", "par", "login", "consent", "grants", "logout", "verify", "userinfo", "jwks", "style.css",
    "register", "introspect", "revoke", "device", "callback/idp", "login/idp", "upstream/start",
    "upstream/callback/shop", "upstream/client", "nothing",
)  # fmt: skip
GETS = ("jwks", "style.css", "callback/idp", "login/idp", "upstream/callback/shop", "upstream/client")
BOTH = ("authorize", "login", "consent", "grants", "logout", "verify", "userinfo", "upstream/start")
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"]
GRANTS = [
    "authorization_code", "refresh_token", "client_credentials", "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:jwt-bearer",
]  # fmt: skip


class House:
    """A provider that runs, and what somebody who is logged in there has."""

    def __init__(self, gateway: Gateway) -> None:
        self.url = gateway.url
        self.turn = 0
        self.verifier = "v" * 43
        challenge = challenge_of(self.verifier)
        self.request = {
            "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "code_challenge": challenge,
            "code_challenge_method": "S256", "scope": "openid email read", "resource": API, "state": "s-1",
        }  # fmt: skip
        self.browser = httpx.Client(base_url=self.url, follow_redirects=True)
        page = Page(self.browser.get("/oauth/authorize", params=self.request).text)
        form = {**page.fields, "username": "ada", "password": PASSWORD, "do": "login"}
        consent = self.browser.post(page.action, data=form)
        assert consent.status_code == 200, consent.text
        self.consent = Page(consent.text).fields
        self.cookies = dict(self.browser.cookies)
        self.fresh = self.cookies
        self.interaction = self.consent["i"]
        tokens = self.post("token", grant_type="client_credentials", resource=API)
        self.access_token = tokens["access_token"]
        device = self.post("device", scope="openid read", resource=API)
        self.pushed = self.post("par", **self.request)["request_uri"]
        self.refresh_token = self.redeemed()["refresh_token"]
        del self.request["resource"]
        self.own_token = self.redeemed()["access_token"]
        self.link = self.linked()
        self.request |= {"resource": API, "scope": "openid email read"}
        self.known = {
            "l": [self.link, "account1.x", "x"], "server": ["shop", "x"],
            "client_id": ["app", "native", "https://127.0.0.1:1/client.json", "https://localhost/x", "dyn_x"],
            "client_secret": [SECRET],
            "redirect_uri": [
                REDIRECT, "http://127.0.0.1/cb", "http://127.0.0.1:99999/cb", "http://127.0.0.1:8/cb#x",
                "com.example.app:/cb", REDIRECT + "&x", "https://app.example.com@evil.example/cb", "//evil.example",
                "javascript:alert(1)", "https://evil.example/", "http://[::1", "http://127.0.0.1:\u0661/cb",
            ],
            "response_type": ["code", "token"], "response_mode": ["query", "form_post", "fragment"],
            "code_challenge": [challenge], "code_challenge_method": ["S256", "plain"],
            "code_verifier": [self.verifier],
            "scope": ["openid read", "offline_access", "openid profile email groups"],
            "resource": [API, API + "#tool", "http://[::1", self.url, "https://[v1.x]/", "HTTPS://API.example.com:443/"],
            "audience": [API, API + "#tool", "x"],
            "prompt": ["none", "login", "consent", "select_account", "none login"],
            "max_age": ["0", "1", "-1", "999999999", "1e3", "\u0661"],
            "request_uri": [self.pushed, "urn:ietf:params:oauth:request_uri:x", "https://evil.example/r"],
            "request": ["a.b.c"], "state": ["s", "s" * 9000], "nonce": ["n"], "login_hint": ["ada"],
            "id_token_hint": [self.access_token, "a.b.c"], "dpop_jkt": [challenge], "acr_values": ["1 2"],
            "grant_type": GRANTS, "code": [secrets.token_urlsafe(32)], "refresh_token": ["thr_a.1.b", "thr_..", "thr_"],
            "subject_token": [self.access_token, "a.b.c"], "actor_token": [self.access_token],
            "subject_token_type": ["urn:ietf:params:oauth:token-type:access_token"],
            "actor_token_type": ["urn:ietf:params:oauth:token-type:jwt"],
            "requested_token_type": ["urn:ietf:params:oauth:token-type:jwt"],
            "requested_ttl": ["1", "-1", "x", "1e400"],
            "assertion": [self.access_token, "a.b.c"], "client_assertion": [self.access_token, "a.b.c", ".."],
            "client_assertion_type": ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"],
            "device_code": [device["device_code"], "BCDFGHJK.x"], "user_code": [device["user_code"], "bcdf-ghjk"],
            "token": [self.access_token, "thr_a.1.b"], "token_type_hint": ["access_token", "refresh_token"],
            "password": [PASSWORD], "access_token": [self.access_token], "i": [self.interaction, "x" * 43],
            "csrf": [self.consent["csrf"], "0" * 64],
            "do": ["connect", "disconnect", "login", "allow", "deny", "find", "logout", "keep", "revoke"],
            "username": ["ada", "nobody"], "switch": ["1"], "again": ["1"], "error": ["upstream"],
            "post_logout_redirect_uri": ["https://app.example.com/bye", "https://evil.example/"], "client": ["app"],
        }  # fmt: skip

    def begun(self, cookies: dict[str, str]) -> dict[str, str]:
        """The fields of the first page that a browser with these cookies gets, which knows it from then on."""
        self.turn += 1
        address = {"x-forwarded-for": f"10.{self.turn >> 16}.{self.turn >> 8 & 255}.{self.turn & 255}"}
        with httpx.Client(base_url=self.url, cookies=cookies, headers=address, follow_redirects=True) as browser:
            page = Page(browser.get("/oauth/authorize", params={**self.request, "prompt": "consent"}).text)
            self.fresh = dict(browser.cookies)
            return page.fields

    def linked(self) -> str:
        """The token of the link at which an account is connected, as an agent of who is logged in gets it."""
        self.request |= {"resource": f"{self.url}/mcp", "scope": "openid"}
        name = "io.modelcontextprotocol/"
        meta = {f"{name}protocolVersion": "2026-07-28", f"{name}clientCapabilities": {}}
        headers = {
            "authorization": f"Bearer {self.redeemed()['access_token']}",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "buy",
        }  # fmt: skip
        params = {"name": "buy", "arguments": {}, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        said = httpx.post(f"{self.url}/mcp", headers=headers, json=body).text
        found = re.search(r"/oauth/upstream/start\?l=([\w.-]+)", said)
        assert found, said
        return found[1]

    def asked_to_connect(self) -> dict[str, str]:
        """The fields of the page behind that link."""
        self.turn += 1
        address = {"x-forwarded-for": f"10.{self.turn >> 16}.{self.turn >> 8 & 255}.{self.turn & 255}"}
        with httpx.Client(base_url=self.url, cookies=self.cookies, headers=address, follow_redirects=True) as browser:
            page = Page(browser.get("/oauth/upstream/start", params={"l": self.link}).text)
            self.fresh = dict(browser.cookies)
            return {**page.fields, "do": "connect"} if page.forms else {"l": self.link}

    def walked(self) -> str:
        """Where somebody who is logged in and allows everything is sent."""
        fields = self.begun(self.cookies)
        page = Page(self.browser.post("/oauth/consent", data={**fields, "do": "allow"}).text)
        assert page.refresh
        return page.refresh

    def redeemed(self) -> dict[str, Any]:
        code = dict(parse_qsl(urlsplit(self.walked()).query))["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
        return self.post("token", code_verifier=self.verifier, **form)

    def post(self, name: str, **form: str) -> dict[str, Any]:
        answer = self.browser.post(f"/oauth/{name}", data=form, auth=("app", SECRET))
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    where = tmp_path_factory.mktemp("fuzz")
    values = {"hash": HASH, "api": API, "secret": SECRET, "redirect": REDIRECT, "shop": SHOP}
    with Gateway(CONFIG.format(port=free_port(), closed=free_port(), **values), where) as gateway:
        yield House(gateway)
        text = gateway.text()
        assert "Traceback" not in text
        assert " ERROR " not in text
        for secret in (SECRET, PASSWORD):
            assert secret not in text


TEXT = st.one_of(
    st.text(max_size=30),
    st.just(MARK),
    st.sampled_from(
        ["", "\x00", "\r\nset-cookie: zq=1", "%", "%zz", "\ud800", "\u202e", "a" * 5000, "a" * 70000, "..", "\u0130"]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(MARK)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
REGISTRATION = [
    "client_name", "redirect_uris", "token_endpoint_auth_method", "grant_types", "response_types", "jwks", "jwks_uri",
    "application_type", "scope", "client_uri", "logo_uri", "contacts", "client_id", "software_statement",
    "post_logout_redirect_uris", "dpop_bound_access_tokens",
]  # fmt: skip
GOOD: dict[str, Any] = {"redirect_uris": ["https://a.example.com/cb"], "client_name": "A"}
FIELDS = {
    "dpop": ["x", "a.b.c", "e30.e30.e30"], "origin": ["null", "https://evil.example", MARK],
    "sec-fetch-site": ["cross-site", "same-origin"], "accept": ["*/*", MARK], "accept-encoding": ["gzip"],
    "if-none-match": ["*", MARK, '"x", W/"y"'], "user-agent": [MARK], "accept-language": ["de"],
    "access-control-request-method": ["POST"], "referer": [MARK], "x-forwarded-host": ["evil.example"],
    "x-forwarded-proto": ["https", "zq"], "content-encoding": ["gzip", "identity"],
}  # fmt: skip


def base_for(draw: Any, house: House, name: str) -> dict[str, str]:
    """A request of which nothing is wrong."""
    match name:
        case "authorize" | "par":
            return dict(house.request)
        case "token":
            grant = draw(st.sampled_from(GRANTS))
            known = {
                "authorization_code": {"code": "x" * 43, "code_verifier": house.verifier, "redirect_uri": REDIRECT},
                "refresh_token": {"refresh_token": house.refresh_token},
                "client_credentials": {"resource": API, "scope": "read"},
                GRANTS[3]: {"device_code": house.known["device_code"][0]},
                GRANTS[4]: {
                    "subject_token": house.access_token, "audience": API,
                    "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
                },
                GRANTS[5]: {"assertion": house.access_token},
            }  # fmt: skip
            return {"grant_type": grant, **known[grant]}
        case "consent":
            return house.begun(house.cookies)
        case "login":
            return {**house.begun({}), "username": "ada", "password": PASSWORD, "do": "login"}
        case "device":
            return {"scope": "openid read", "resource": API}
        case "introspect" | "revoke":
            return {"token": draw(st.sampled_from([house.access_token, house.refresh_token, "x"]))}
        case "verify":
            return {"user_code": house.known["user_code"][0]}
        case "logout":
            return {"client_id": "app", "post_logout_redirect_uri": "https://app.example.com/bye", "state": "s"}
        case "login/idp" | "callback/idp":
            return {"i": house.interaction, "state": f"{house.interaction}.x", "code": "c", "iss": house.url}
        case "upstream/start":
            return house.asked_to_connect()
        case "upstream/callback/shop":
            return {"state": "x" * 43, "code": "c", "iss": "https://shop.example.com"}
    return {}


def form_for(draw: Any, house: House, name: str) -> list[tuple[str, str]]:
    """A request that could be right, with some of it changed."""
    pairs = list(base_for(draw, house, name).items()) if draw(st.integers(0, 7)) else []
    own = sorted({key for key, _ in pairs} & set(house.known)) or ["client_id"]
    for _ in range(draw(st.integers(0, 3))):
        key = draw(st.one_of(st.sampled_from(own), st.sampled_from(sorted(house.known))))
        value = draw(st.sampled_from(house.known[key])) if draw(st.integers(0, 2)) else draw(TEXT)
        if draw(st.integers(0, 9)):  # seldom twice
            pairs = [pair for pair in pairs if pair[0] != key]
        pairs.append((key, value))
    if draw(st.integers(0, 9)) == 0:
        pairs.append((draw(TEXT), draw(TEXT)))
    if draw(st.integers(0, 5)) == 0 and pairs:
        pairs.pop(draw(st.integers(0, len(pairs) - 1)))
    return pairs


def encoded(pairs: list[tuple[str, str]]) -> bytes:
    return urlencode(pairs, errors="surrogatepass").encode()


class Asked:
    def __init__(self, method: str, path: str, headers: list[tuple[str, bytes]], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"{self.method} {self.path[:300]} {self.headers!r:.600} {self.body[:600]!r}"


def request_for(draw: Any, house: House) -> Asked:
    name = draw(st.sampled_from(NAMES))
    path = f"/oauth/{name}"
    if name == "jwks":
        path = draw(
            st.sampled_from([path, "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"])
        )
    usual = ["GET"] if name in GETS else ["GET", "POST", "POST"] if name in BOTH else ["POST"]
    method = draw(st.sampled_from(usual)) if draw(st.integers(0, 9)) else draw(st.sampled_from(METHODS))
    house.fresh = house.cookies
    body, kind = b"", ""
    pairs = form_for(draw, house, name)
    query = encoded(pairs)[:6000] if method in ("GET", "HEAD") or draw(st.integers(0, 19)) == 0 else b""
    if method == "POST":
        kind = "application/x-www-form-urlencoded"
        body = encoded(pairs)
        if name == "register" or draw(st.integers(0, 24)) == 0:
            kind = "application/json"
            told = dict(GOOD)
            for _ in range(draw(st.integers(0, 4))):
                told[draw(st.sampled_from(REGISTRATION))] = draw(
                    st.one_of(
                        JSON,
                        st.lists(st.sampled_from(house.known["redirect_uri"]), max_size=3),
                        st.sampled_from(GRANTS),
                    )
                )
            body = json.dumps(told).encode()
        if draw(st.integers(0, 24)) == 0:
            body = draw(st.binary(max_size=200))
        if draw(st.integers(0, 24)) == 0:
            kind = draw(st.sampled_from(["", "text/plain", "multipart/form-data; boundary=x", kind + "; charset=zq"]))
    headers = [("x-forwarded-for", draw(st.ip_addresses(v=4)).exploded.encode())]
    if kind:
        headers.append(("content-type", kind.encode()))
    more = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2))
    headers += [(field, draw(st.sampled_from(FIELDS[field])).encode()) for field in more]
    way = draw(st.integers(0, 9))
    if name in ("token", "par", "device", "introspect", "revoke") and way > 3:
        headers.append(("authorization", b"Basic " + base64.b64encode(f"app:{SECRET}".encode())))
    elif way == 1:
        shown = draw(
            st.one_of(st.binary(max_size=30), st.sampled_from([b"app", b":", b"%ff:%00", quote_plus(MARK).encode()]))
        )
        headers.append(("authorization", b"Basic " + base64.b64encode(shown)))
    elif way == 2 or (name == "userinfo" and way > 3):
        scheme = draw(st.sampled_from([b"Bearer ", b"DPoP ", b"Basic ", b"bearer", b"\xff "]))
        own = house.own_token.encode()
        token = draw(
            st.sampled_from(
                [own, own, own, house.access_token.encode(), b"a.b.c", b"a.b.c.d.e", b"\xff\xfe", b"x" * 9000]
            )
        )
        headers.append(("authorization", scheme + token))
    if draw(st.integers(0, 5)):
        jar = dict(house.fresh)
        if draw(st.integers(0, 7)) == 0:
            jar[draw(st.sampled_from(sorted(jar)))] = draw(
                st.sampled_from(["", "x", "x" * 43, 'zq"', "\xff", "x" * 5000])
            )
        line = "; ".join(f"{key}={value}" for key, value in jar.items())
        headers.append(("cookie", (line if draw(st.integers(0, 9)) else f"{line}; {line}").encode("latin-1")))
    target = path + ("?" + query.decode("ascii") if query else "")
    return Asked(method, target, headers, body)


def exchanged(house: House, asked: Asked) -> tuple[int, list[tuple[str, str]], bytes]:
    where = urlsplit(house.url)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=20)
    try:
        connection.putrequest(asked.method, asked.path, skip_accept_encoding=True)
        for name, value in asked.headers:
            connection.putheader(name, value)
        if asked.method == "POST":
            connection.putheader("content-length", str(len(asked.body)))
        connection.endheaders()
        try:
            connection.send(asked.body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered already
        answer = connection.getresponse()
        return answer.status, [(name.lower(), value) for name, value in answer.getheaders()], answer.read()
    finally:
        connection.close()


def is_ours(house: House, location: str) -> bool:
    if location.startswith(("/oauth/", f"{house.url}/oauth/")):
        return True
    where, _, _ = location.partition("?")
    return (
        location.startswith(f"{REDIRECT}&")
        or re.fullmatch(r"http://127\.0\.0\.1(:[1-9][0-9]{0,4})?/cb", where) is not None
        or where == "com.example.app:/cb"
        or where == "https://app.example.com/bye"
        or where in ("https://a.example.com/cb", SHOP)
    )


def checked(house: House, asked: Asked) -> None:
    status, headers, body = exchanged(house, asked)
    fields = dict(headers)
    assert status < 500 or (status == 503 and "retry-after" in fields), (status, body)
    is_public = urlsplit(asked.path).path.startswith(PUBLIC)
    if asked.path.startswith("/oauth/") and not is_public and status not in (204, 404, 405, 431, 414):
        assert fields.get("cache-control") == "no-store", headers
    for name, value in headers:
        assert name != "set-cookie" or "HttpOnly; SameSite=Lax" in value
        assert not (name == "set-cookie" and value.startswith("zq")), headers
    if "location" in fields:
        assert is_ours(house, fields["location"]), fields["location"]
        assert not [pair for pair in parse_qsl(fields["location"]) if pair[0] == "code"] or "consent" not in asked.path
    kind = fields.get("content-type", "")
    if kind.startswith("text/html"):
        assert b"<zq" not in body
        assert b"zq\"'" not in body
        assert "frame-ancestors 'none'" in fields["content-security-policy"]
        for target in [*Page(body.decode()).links, Page(body.decode()).refresh]:
            assert not target or is_ours(house, target), target
    elif kind.startswith("application/json") and body:
        said = json.loads(body)
        if status >= 400:
            assert "zq" not in json.dumps(said), said
    if asked.method == "HEAD":
        assert not body


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_that_is_sent_does_harm(house: House, data: st.DataObject) -> None:
    checked(house, request_for(data.draw, house))


@pytest.mark.soak
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_that_is_sent_for_long_does_harm(house: House, data: st.DataObject) -> None:
    checked(house, request_for(data.draw, house))
