"""Clients that prove who they are by a certificate: at our own listener, and behind a proxy that tells of it."""

import json
import ssl
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fixtures.gateway import free_port, serving
from tests.fixtures.issuer import claims_of

from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError
from tollhouse.wire.oauth import certificate_thumbprint

pytestmark = pytest.mark.anyio

API = "https://api.example.com"
FORM = {"grant_type": "client_credentials", "resource": API}
CA = trustme.CA()


def certificate(name: str, ca: trustme.CA = CA) -> trustme.LeafCert:
    return ca.issue_cert(f"{name}.example.com", common_name=name, organization_name="acme")


def der(cert: trustme.LeafCert) -> bytes:
    return x509.load_pem_x509_certificate(cert.cert_chain_pems[0].bytes()).public_bytes(Encoding.DER)


def subject(cert: trustme.LeafCert) -> str:
    return x509.load_der_x509_certificate(der(cert)).subject.rfc4514_string()


def config(url: str, server: str, rack: trustme.LeafCert, lone: trustme.LeafCert, more: str = "") -> str:
    thumbprint = x509.load_der_x509_certificate(der(lone)).fingerprint(SHA256()).hex()
    clients = [
        {"id": "rack", "tls_subject": subject(rack), "grants": ["client_credentials"]},
        {"id": "lone", "tls_thumbprint": thumbprint, "grants": ["client_credentials"]},
    ]
    return f"""
server: {{{server}, shutdown: {{min: 0s, max: 5s}}}}
issuer:
  url: {url}
  resources: [{{uri: {API}}}]
  clients: {json.dumps(clients)}
{more}
"""


async def test_at_our_own_listener(tmp_path: Path) -> None:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    own = CA.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    own.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    rack, lone, other = certificate("rack"), certificate("lone"), certificate("other")
    port = free_port()
    tls = "{cert: cert.pem, key: key.pem, client_ca: ca.pem, client_auth: optional}"
    server = f"listen: {{address: '127.0.0.1:{port}', tls: {tls}}}, metrics: null"
    async with serving(config(f"https://127.0.0.1:{port}", server, rack, lone), tmp_path) as gateway:
        for client_id, shown, status in (
            ("rack", rack, 200), ("lone", lone, 200), ("rack", other, 401), ("lone", rack, 401), ("rack", None, 401),
        ):  # fmt: skip
            context = ssl.create_default_context()
            CA.configure_trust(context)
            if shown is not None:
                shown.configure_cert(context)
            async with httpx.AsyncClient(verify=context, base_url=gateway.url) as http:
                # A field counts from proxies alone, and there are none.
                field = {"client-cert": f":{b64encode(der(rack)).decode()}:"}
                answer = await http.post("/oauth/token", data=FORM | {"client_id": client_id}, headers=field)
            assert answer.status_code == status, (client_id, answer.text)
            if shown is not None and status == 200:
                bound = claims_of(answer.json()["access_token"])["cnf"]
                assert bound == {"x5t#S256": certificate_thumbprint(der(shown))}


@pytest.mark.parametrize(("proxies", "is_believed"), [("127.0.0.1", True), ("10.0.0.0/8", False)])
async def test_behind_a_proxy(tmp_path: Path, proxies: str, is_believed: bool) -> None:
    rack, lone = certificate("rack"), certificate("lone", trustme.CA())
    port = free_port()
    server = f"listen: 127.0.0.1:{port}, metrics: null, trusted_proxies: [{proxies}]"
    text = config(f"http://127.0.0.1:{port}", server, rack, lone, "  certificate_header: client-cert")
    by_rfc = {"client-cert": f":{b64encode(der(rack)).decode()}:"}
    by_nginx = {"client-cert": quote(lone.cert_chain_pems[0].bytes())}
    async with serving(text, tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        for client_id, fields, is_right in (
            ("rack", by_rfc, True), ("lone", by_nginx, True), ("lone", by_rfc, False), ("rack", {}, False),
            ("rack", {"client-cert": ":AAAA:"}, False), ("rack", {"x-client-cert": by_rfc["client-cert"]}, False),
        ):  # fmt: skip
            answer = await http.post("/oauth/token", data=FORM | {"client_id": client_id}, headers=fields)
            assert answer.status_code == (200 if is_right and is_believed else 401), (client_id, answer.text)
        twice = list(by_rfc.items()) * 2
        assert (await http.post("/oauth/token", data=FORM | {"client_id": "rack"}, headers=twice)).status_code == 401


def test_somebody_must_be_believed_and_somebody_must_show_one() -> None:
    server = "listen: '127.0.0.1:80', metrics: null"
    text = config("http://127.0.0.1", server, certificate("a"), certificate("b"), "  certificate_header: client-cert")
    with pytest.raises(ConfigError, match=r"issuer.certificate_header: is believed from trusted proxies only"):
        parse(text, "t.yaml", {})
    with pytest.raises(ConfigError, match=r"clients\[0\].tls_subject: has no effect"):
        parse(text.replace("  certificate_header: client-cert", ""), "t.yaml", {})
    client = {"id": "robot", "secret": "x" * 40, "grants": ["client_credentials"]}
    nobody = (
        text[: text.index("  clients:")] + f"  clients: {json.dumps([client])}\n  certificate_header: client-cert\n"
    )
    with pytest.raises(ConfigError, match="no client has a `tls_subject` or `tls_thumbprint`"):
        parse(nobody, "t.yaml", {})
