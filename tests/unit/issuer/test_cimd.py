"""Clients that a document describes: fetched from public places only, and what it says it is (attacks 39 to 41)."""

import asyncio
import json
import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.fixtures.issuer import MCP, challenge_of, claims_of, issuing, new_key, signed

from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.issuer.cimd import Documents, document_flaw
from tollhouse.issuer.spec import RegistrationSpec
from tollhouse.net.client import Client
from tollhouse.net.egress import Egress
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer
from tollhouse.wire.oauth import ASSERTION_TYPE, OAuthError

pytestmark = pytest.mark.anyio
HOST = "client.example.com"


class Site:
    """A web site with documents. url: where it is. asked: how often."""

    def __init__(self, port: int) -> None:
        self.url = f"https://{HOST}:{port}"
        self.answers: dict[str, Callable[[], Response]] = {}
        self.asked = 0
        self.delay = 0.0

    def put(self, path: str, content: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> str:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kinds = () if any(name == b"content-type" for name, _ in headers) else ((b"content-type", b"application/json"),)
        self.answers[path] = lambda: Response(status, [*kinds, *headers], body)
        return self.url + path

    def client(self, path: str = "/client.json", *headers: tuple[bytes, bytes], **changed: Any) -> str:
        document = {
            "client_id": self.url + path,
            "client_name": "A Client",
            "redirect_uris": ["http://127.0.0.1/cb", f"{self.url}/cb"],
            "grant_types": ["authorization_code", "refresh_token"],
            **changed,
        }
        return self.put(path, {k: v for k, v in document.items() if v is not None}, 200, *headers)

    async def handle(self, request: Request) -> Response:
        self.asked += 1
        await asyncio.sleep(self.delay)
        answer = self.answers.get(request.path.decode())
        return answer() if answer is not None else Response(404, [])


@asynccontextmanager
async def site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: tuple[str, ...] = (HOST,)
) -> AsyncIterator[tuple[Site, Client]]:
    """A site with a certificate that the system trusts, and a client to which its name is this machine's."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    sockets = bind(Address("127.0.0.1", 0))
    found = Site(sockets[0].getsockname()[1])
    clock = Clock()
    timer = Timer(clock)
    timer.start()

    async def lookup(_: str, __: int) -> list[tuple[int, str]]:
        return [(2, "127.0.0.1")]

    server = Server(found.handle, clock, scheme="https")
    listener = Listener(server, sockets, context)
    await listener.start()
    client = Client(clock, egress=Egress(allow), lookup=lookup)
    try:
        yield found, client
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()
        await client.close()
        timer.stop()


def refused(error: pytest.ExceptionInfo[OAuthError]) -> str:
    assert error.value.error == "invalid_client"
    return error.value.description


async def test_a_client_is_what_its_document_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher), issuing(fetcher=fetcher) as node:
        id = there.client()
        client = await node.parts.clients.find(id)
        assert client is not None
        assert (client.name, client.host, client.verified, client.public) == ("A Client", HOST, False, True)
        verifier = secrets.token_urlsafe(32)
        code = await node.code(verifier, client_id=id, redirect_uri="http://127.0.0.1:5/cb", scopes=("mcp",),
                               resources=(MCP,), challenge=challenge_of(verifier))  # fmt: skip
        answer = await node.redeem(code, verifier, "", client_id=id)
        assert answer.status_code == 200, answer.text
        assert claims_of(answer.json()["access_token"])["client_id"] == id


async def test_one_document_is_fetched_once_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        now = [1000.0]
        documents = Documents(RegistrationSpec(), fetcher, lambda: now[0])
        there.delay = 0.05
        id = there.client("/c", (b"cache-control", b"max-age=900"))
        await asyncio.gather(*(documents.get(id) for _ in range(5)))
        assert there.asked == 1
        now[0] += 899
        await documents.get(id)
        assert there.asked == 1
        now[0] += 2
        await documents.get(id)
        assert there.asked == 2


@pytest.mark.parametrize(
    ("control", "seconds"), [(b"max-age=1", 300), (b"no-store", 300), (b"max-age=99999999", 86400), (b"x", 300)]
)
async def test_freshness_has_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, control: bytes, seconds: int
) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        now = [1000.0]
        documents = Documents(RegistrationSpec(), fetcher, lambda: now[0])
        id = there.client("/c", (b"cache-control", control))
        await documents.get(id)
        now[0] += seconds - 1
        await documents.get(id)
        assert there.asked == 1
        now[0] += 2
        await documents.get(id)
        assert there.asked == 2


async def test_what_was_wrong_is_not_asked_for_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        now = [1000.0]
        documents = Documents(RegistrationSpec(), fetcher, lambda: now[0])
        for _ in range(3):
            with pytest.raises(OAuthError):
                await documents.get(f"{there.url}/gone")
        assert there.asked == 1
        now[0] += 31
        with pytest.raises(OAuthError):
            await documents.get(f"{there.url}/gone")
        assert there.asked == 2


@pytest.mark.parametrize("allow", [(), ("10.0.0.0/8",)])
async def test_a_document_that_is_not_in_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: tuple[str, ...]
) -> None:
    """Attack 39: a name that leads to an address of ours."""
    async with site(tmp_path, monkeypatch, allow) as (there, fetcher):
        documents = Documents(RegistrationSpec(), fetcher, lambda: 1000.0)
        with pytest.raises(OAuthError) as error:
            await documents.get(there.client())
        assert "not public" in refused(error)
        assert there.asked == 0


@pytest.mark.parametrize(
    "place",
    ["169.254.169.254", "[::ffff:10.0.0.1]", "[::1]", "127.0.0.1", "0x7f.1", "2130706433", "localhost", "10.1.2.3"],
)
async def test_addresses_of_this_machine_and_its_cloud(place: str) -> None:
    """Attack 39."""
    client = Client(Clock())
    documents = Documents(RegistrationSpec(), client, lambda: 1000.0)
    with pytest.raises(OAuthError) as error:
        await documents.get(f"https://{place}/latest/meta-data")
    assert "metadata document" in refused(error)
    await client.close()


async def test_a_redirect_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        documents = Documents(RegistrationSpec(), fetcher, lambda: 1000.0)
        good = there.client("/good")
        for status in (301, 302, 307):
            there.put(f"/{status}", b"", status, (b"location", good.encode()))
            with pytest.raises(OAuthError):
                await documents.get(f"{there.url}/{status}")


async def test_a_document_of_another_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 40: the id is the URL, letter by letter."""
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        documents = Documents(RegistrationSpec(), fetcher, lambda: 1000.0)
        there.client("/client.json")
        for path in ("/client.json/", "/client.json?", "/other"):
            there.answers[path.partition("?")[0]] = there.answers["/client.json"]
            with pytest.raises(OAuthError) as error:
                await documents.get(there.url + path)
            assert "client_id" in refused(error)


@pytest.mark.parametrize(
    "changed",
    [
        {"client_secret": "x"},
        {"client_secret_expires_at": 0},
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"token_endpoint_auth_method": "private_key_jwt"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "http://client.example.com/jwks"},
        {"token_endpoint_auth_method": "private_key_jwt", "jwks": {"keys": []}},
        {"redirect_uris": None},
        {"redirect_uris": []},
        {"redirect_uris": ["https://evil.example.com/cb"]},
        {"redirect_uris": ["https://client.example.com.evil.example/cb"]},
        {"redirect_uris": ["javascript:alert(1)"]},
        {"post_logout_redirect_uris": ["https://evil.example.com/bye"]},
        {"redirect_uris": ["myapp:/cb"]},
        {"client_name": None},
        {"client_name": "x" * 300},
        {"grant_types": ["client_credentials"]},
        {"client_name": "x", "padding": "y" * 11000},
    ],
)
async def test_a_document_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        documents = Documents(RegistrationSpec(), fetcher, lambda: 1000.0)
        with pytest.raises(OAuthError) as error:
            await documents.get(there.client(**changed))
        assert "evil" not in refused(error)


async def test_a_document_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        documents = Documents(RegistrationSpec(), fetcher, lambda: 1000.0)
        for n, (content, status, kind) in enumerate(
            ((b"<html>", 200, b"text/html"), (b"{", 200, b"application/json"), (b"[]", 200, b"application/json"),
             (b"{}", 500, b"application/json"), (b"{}", 206, b"application/json"))
        ):  # fmt: skip
            url = there.put(f"/{n}", content, status, (b"content-type", kind))
            with pytest.raises(OAuthError) as error:
                await documents.get(url)
            refused(error)


async def test_hosts_that_the_operator_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(tmp_path, monkeypatch) as (there, fetcher):
        spec = RegistrationSpec(redirect_hosts=("app.example.com",), document_hosts=("*.example.com",))
        documents = Documents(spec, fetcher, lambda: 1000.0)
        metadata = await documents.get(
            there.client(redirect_uris=["https://app.example.com/cb", "com.example.app:/cb"])
        )
        assert metadata.client_name == "A Client"
        with pytest.raises(OAuthError) as error:
            await documents.get("https://example.org/client.json")
        assert "host" in refused(error)


@pytest.mark.parametrize(
    "url",
    [
        "https://client.example.com",
        "https://client.example.com/",
        "http://client.example.com/c",
        "https://user@client.example.com/c",
        "https://client.example.com/c#x",
        "https://client.example.com/a/../c",
        "https://client.example.com/a/%2e%2E/c",
        "https://client.example.com/./c",
        "https://client.example.com/c\\d",
        "https://client.example.com/c d",
        "https://client.example.com:99999/c",
        "https:///c",
        "https://client.example.com/" + "c" * 1100,
    ],
)
def test_an_id_that_is_no_url_of_a_document(url: str) -> None:
    assert document_flaw(url, RegistrationSpec())


async def test_a_document_may_have_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, idp = new_key(), new_key("idp")
    trusted = [{"issuer": "https://idp.example.com", "jwks": {"keys": [idp.jwk]}, "grants": ["id_jag"]}]
    async with site(tmp_path, monkeypatch) as (there, fetcher), issuing(fetcher=fetcher, trusted=trusted) as node:
        keys = there.put("/jwks", {"keys": [key.jwk]})
        grants = ["urn:ietf:params:oauth:grant-type:jwt-bearer", "client_credentials"]
        id = there.client(
            grant_types=grants, token_endpoint_auth_method="private_key_jwt", jwks_uri=keys, redirect_uris=None
        )
        now = int(node.parts.now())
        proof = {"iss": id, "sub": id, "aud": node.url, "exp": now + 60, "jti": secrets.token_hex(8)}
        said = {
            "iss": "https://idp.example.com", "sub": "eve", "aud": node.url, "client_id": id, "resource": MCP,
            "exp": now + 60, "jti": secrets.token_hex(8),
        }  # fmt: skip
        form = {
            "grant_type": grants[0],
            "assertion": signed(idp, said, "oauth-id-jag+jwt"),
            "client_assertion": signed(key, proof),
            "client_assertion_type": ASSERTION_TYPE,
        }
        answer = await node.token("", **form)
        assert answer.status_code == 200, answer.text
        other = {**form, "client_assertion": signed(new_key(), {**proof, "jti": "x"})}
        assert (await node.token("", **other)).status_code == 401


async def test_documents_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = {"metadata_documents": "off"}
    async with site(tmp_path, monkeypatch) as (there, fetcher), issuing(fetcher=fetcher, registration=off) as node:
        assert await node.parts.clients.find(there.client()) is None
        assert there.asked == 0
        assert node.issuer.metadata["client_id_metadata_document_supported"] is False


async def test_keys_are_fetched_like_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 39: not from where it is not public, and not from where a redirect leads."""
    key = new_key()
    heard: list[asyncio.StreamWriter] = []

    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(writer)
        writer.close()

    inside = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with site(tmp_path, monkeypatch) as (there, fetcher), issuing(fetcher=fetcher) as node:
        keys = there.put("/jwks", {"keys": [key.jwk]})
        moved = there.put("/moved", b"", 302, (b"location", keys.encode()))
        port = inside.sockets[0].getsockname()[1]
        for n, (place, status) in enumerate(((keys, 400), (moved, 503), (f"https://127.0.0.1:{port}/jwks", 503))):
            id = there.client(f"/{n}.json", token_endpoint_auth_method="private_key_jwt", jwks_uri=place)
            now = int(node.parts.now())
            proof = {"iss": id, "sub": id, "aud": node.url, "exp": now + 60, "jti": secrets.token_hex(8)}
            form = {"client_assertion": signed(key, proof), "client_assertion_type": ASSERTION_TYPE}
            answer = await node.token("", grant_type="refresh_token", refresh_token="thr_x", **form)
            assert answer.status_code == status, answer.text
    inside.close()
    assert not heard


async def test_slow_documents_of_one_leave_others_theirs() -> None:
    """By host, and by the address of who asks."""
    gate = asyncio.Event()

    async def lookup(_: str, __: int) -> list[tuple[int, str]]:
        await gate.wait()
        return [(2, "10.0.0.1")]

    client = Client(Clock(), lookup=lookup)
    documents = Documents(RegistrationSpec(), client, lambda: 1000.0)

    def ask(host: str, address: str, n: int) -> asyncio.Future[Any]:
        return asyncio.ensure_future(documents.get(f"https://{host}/{n}", address))

    async def waiting(asked: list[asyncio.Future[Any]]) -> list[asyncio.Future[Any]]:
        for _ in range(10):
            await asyncio.sleep(0)
        refused = [one.exception() for one in asked if one.done()]
        assert all(isinstance(one, OAuthError) and one.status == 503 for one in refused)
        return [one for one in asked if not one.done()]

    of_host = await waiting([ask("slow.example.com", f"192.0.2.{n}", n) for n in range(20)])
    assert len(of_host) == 4
    assert await waiting([ask("slow.example.com", "203.0.113.1", 20)]) == []
    mean = await waiting([ask("victim.example.com", "198.51.100.2", n) for n in range(9)])
    assert len(mean) == 2  # who would keep others from a host leaves them half of its places
    fair = await waiting([ask("victim.example.com", f"203.0.113.{n}", 100 + n) for n in range(2, 5)])
    assert len(fair) == 2
    of_address = await waiting([ask(f"h{n}.example.com", "198.51.100.1", n) for n in range(40)])
    assert len(of_host) + len(mean) + len(fair) + len(of_address) == 16  # half of all there is
    others = await waiting([ask(f"o{n}.example.com", "203.0.113.9", n) for n in range(10)])
    assert len(others) == 8
    gate.set()
    done = await asyncio.gather(*of_host, *mean, *fair, *of_address, *others, return_exceptions=True)
    assert all(isinstance(one, OAuthError) and one.error == "invalid_client" for one in done)
    gate.clear()
    again = await waiting([ask("slower.example.com", f"192.0.2.{n}", n) for n in range(10)])
    assert len(again) == 4
    await documents.close()
    await asyncio.gather(*again, return_exceptions=True)
    await client.close()


async def test_the_address_of_who_asks_is_known_where_strangers_ask() -> None:
    """At the authorization endpoint and the token endpoint."""
    gate, sought = asyncio.Event(), set()

    async def lookup(host: str, _: int) -> list[tuple[int, str]]:
        sought.add(host)
        await gate.wait()
        return [(2, "10.0.0.1")]

    fetcher = Client(Clock(), lookup=lookup)
    async with issuing(fetcher=fetcher) as node:

        def authorize(host: str) -> Any:
            return node.http.get(f"{node.url}/oauth/authorize", params={"client_id": f"https://{host}/c"})

        def token(host: str) -> Any:
            return node.token(client_id=f"https://{host}/c", grant_type="refresh_token", refresh_token="x")

        asked = [
            asyncio.ensure_future(ask(f"{ask.__name__}{n}.example.com")) for n in range(8) for ask in (authorize, token)
        ]
        async with asyncio.timeout(10):
            while len(sought) < 16:  # of the 32 that one who is no stranger could have
                await asyncio.sleep(0.005)
        assert (await authorize("a.example.com")).status_code == 503
        assert [(await token("b.example.com")).status_code for _ in range(12)] == [503] * 12  # nobody has failed
        gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*asked)} <= {400, 401}
        assert len(sought) == 16
    await fetcher.close()
