"""Client certificates: of the connection, from a proxy that is trusted, and from nobody else."""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.policies.authenticate.door import Door, issuer, token
from tests.unit.policies.floor import layer, parts, request

from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import compose
from tollhouse.core.http import Request, Response
from tollhouse.net.server import Server
from tollhouse.net.tls import ClientAuth, ServerTLS
from tollhouse.policies.authenticate import AUTHENTICATE, AuthenticateSpec
from tollhouse.wire.oauth import certificate_thumbprint

pytestmark = pytest.mark.anyio

CA = trustme.CA(organization_name="Agents Ltd")


def certificate(*names: str, **more: Any) -> trustme.LeafCert:
    return CA.issue_cert(*names, **more)


def der(cert: trustme.LeafCert) -> bytes:
    return x509.load_pem_x509_certificate(cert.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


def proxied(cert: trustme.LeafCert, *, rfc9440: bool = True) -> tuple[bytes, bytes]:
    if rfc9440:
        return b"client-cert", b":" + b64encode(der(cert)) + b":"
    return b"client-cert", quote(cert.cert_chain_pems[0].bytes()).encode()


BEHIND: dict[str, Any] = {"forwarding": Forwarding(["10.0.0.0/8"])}  # where the requests of these tests come from
SPEC = {"mtls": {"header": "client-cert"}}


@pytest.mark.parametrize("rfc9440", [True, False])
async def test_a_trusted_proxy_says_which_certificate_it_was(rfc9440: bool) -> None:
    door = Door(SPEC, **BEHIND)
    shown = proxied(certificate("agent@example.com", common_name="agent-1", organization_name="Ops"), rfc9440=rfc9440)
    found = await door.enter(shown)
    assert (found.source, found.user, found.email, found.org) == (
        "mtls",
        "agent@example.com",
        "agent@example.com",
        "Ops",
    )
    assert found.id.endswith("|agent@example.com")
    assert await door.enter(shown) is found


@pytest.mark.parametrize(
    "headers",
    [
        [(b"client-cert", b"garbage")],
        [(b"client-cert", b":!!!:")],
        [(b"client-cert", b":" + b64encode(b"no certificate") + b":")],
        [(b"client-cert", b":" + b"A" * 100_000 + b":")],
        [],
    ],
)
async def test_what_is_no_certificate_is_nobodys(headers: list[tuple[bytes, bytes]]) -> None:
    assert (await Door(SPEC, **BEHIND).refused(*headers)).status == 401


async def test_two_certificates_are_none() -> None:
    shown = proxied(certificate("a.example.com"))
    assert (await Door(SPEC, **BEHIND).refused(shown, shown)).status == 401


async def test_anybody_else_who_sends_the_field_is_nobody() -> None:
    door = Door(SPEC, forwarding=Forwarding(["192.0.2.0/24"]))
    assert (await door.refused(proxied(certificate("a.example.com")))).status == 401
    with pytest.raises(ConfigError, match="trusted_proxies"):
        Door(SPEC)


@pytest.mark.parametrize(
    "more, expected",
    [
        ({"user": ["san_dns"]}, "a.example.com"),
        ({"user": ["subject_cn"]}, "agent-1"),
        ({"user": ["san_uri"]}, None),
        ({"user": ["san_uri", "subject_cn"]}, "agent-1"),
        ({"allow": ["*.example.com"]}, "a.example.com"),
        ({"allow": ["b.*"]}, None),
        ({"issuer": "nobody"}, None),
    ],
)
async def test_which_name_counts(more: dict[str, Any], expected: str | None) -> None:
    door = Door({"mtls": {"header": "client-cert"} | more}, **BEHIND)
    shown = proxied(certificate("a.example.com", common_name="agent-1"))
    if expected is None:
        assert (await door.refused(shown)).status == 401
    else:
        assert (await door.enter(shown)).user == expected


async def test_an_expired_certificate_is_nobodys() -> None:
    gone = certificate(
        "a.example.com", not_before=datetime(2001, 1, 1, tzinfo=UTC), not_after=datetime(2002, 1, 1, tzinfo=UTC)
    )
    assert (await Door(SPEC, **BEHIND).refused(proxied(gone))).status == 401


async def test_a_credential_in_a_header_goes_before_it() -> None:
    spec = SPEC | {"keys": [{"name": "ci", "key": "sk-0123456789"}]}
    door = Door(spec, **BEHIND)
    shown = proxied(certificate("a.example.com"))
    assert (await door.enter(shown, (b"x-api-key", b"sk-0123456789"))).source == "key"
    assert (await door.enter(shown)).source == "mtls"
    assert (await door.refused(shown, (b"x-api-key", b"wrong"))).status == 401


# ---- of the connection


@asynccontextmanager
async def served(spec: dict[str, Any], where: Path, **more: Any) -> AsyncIterator[tuple[int, list[Any]]]:
    """A TLS listener that asks for certificates, and the principals of its requests."""
    CA.cert_pem.write_to_path(str(where / "ca.pem"))
    own = CA.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(str(where / "cert.pem"))
    own.private_key_pem.write_to_path(str(where / "key.pem"))
    tls = ServerTLS(str(where / "cert.pem"), str(where / "key.pem"), str(where / "ca.pem"), ClientAuth.OPTIONAL)
    found: list[Any] = []

    async def answer(asked: Request) -> Response:
        found.append(asked.context.principal)
        return Response(200, [], b"ok")

    policy = AUTHENTICATE.make((layer(AuthenticateSpec.model_validate(spec)),), parts(**more))
    assert policy is not None
    server = Server(compose((policy,), answer), Clock(), scheme="https")
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: server.accept_tls(tls.context), "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], found
    finally:
        listener.close()
        server.abort()
        await server.wait_closed()


async def ask(port: int, cert: trustme.LeafCert | None, *headers: str) -> bytes:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    CA.configure_trust(context)
    if cert is not None:
        cert.configure_cert(context)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    lines = "".join(f"{line}\r\n" for line in headers)
    writer.write(f"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n".encode())
    head = await reader.readuntil(b"\r\n")
    writer.close()
    return head.split(b" ")[1]


async def test_the_certificate_of_the_connection(tmp_path: Path) -> None:
    async with served({"mtls": {}}, tmp_path) as (port, found):
        assert await ask(port, certificate("agent@example.com")) == b"200"
        assert await ask(port, None) == b"401"
        # What somebody says of a certificate does not count here.
        name, value = proxied(certificate("evil@example.com"))
        assert await ask(port, None, f"{name.decode()}: {value.decode()}") == b"401"
    assert [one.user for one in found] == ["agent@example.com"]


async def test_a_token_that_is_bound_to_a_certificate_needs_it(tmp_path: Path) -> None:
    cert, other = certificate("agent@example.com"), certificate("other@example.com")
    bound = token(cnf={"x5t#S256": certificate_thumbprint(der(cert))}).decode()
    async with served({"jwt": [issuer()]}, tmp_path) as (port, found):
        assert await ask(port, cert, f"authorization: Bearer {bound}") == b"200"
        assert await ask(port, cert, f"authorization: Bearer {bound}") == b"200"
        assert await ask(port, other, f"authorization: Bearer {bound}") == b"401"
        assert await ask(port, None, f"authorization: Bearer {bound}") == b"401"
        assert await ask(port, cert, f"authorization: DPoP {bound}") == b"401"
    assert [one.user for one in found] == ["ada", "ada"]


def test_a_request_of_no_connection_has_none() -> None:
    assert request().certificate == b""
