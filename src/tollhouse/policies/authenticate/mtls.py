"""Client certificates: of the TLS connection, or told by a proxy that ended it (RFC 9440, and what nginx sends).

Rule: a certificate counts because somebody has verified it: our listener, against its `client_ca`, or a proxy that is
trusted by its address. A field with a certificate from anybody else is as if it were not there.
"""

import re
from base64 import b64decode
from collections.abc import Callable
from fnmatch import fnmatchcase
from hashlib import sha256
from time import time
from typing import Literal, Self
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.x509.oid import NameOID
from pydantic import Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.http import Request
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Parts

__all__ = ["Certificates", "MtlsSpec", "of_connection", "reader", "told_by"]

_REMEMBERED = 4096
_LARGEST = 16 << 10
_LONGEST = 256
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")

Name = Literal["san_uri", "san_email", "san_dns", "subject_cn"]


class MtlsSpec(Spec):
    """Client certificates as credentials."""

    user: tuple[Name, ...] = Field(
        default=("san_uri", "san_email", "san_dns", "subject_cn"),
        min_length=1,
        description="which name of the certificate says who it is: the first that is there",
    )
    org: Literal["subject_o", "subject_ou", ""] = Field(default="subject_o", description="which one the organisation")
    allow: tuple[str, ...] = Field(
        default=("*",), min_length=1, description="names that are taken, by patterns with `*`; others are nobody's"
    )
    header: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]{1,64}$",
        description="the field in which proxies of `server.trusted_proxies` send it: client-cert (RFC 9440), or one "
        "with URL-encoded PEM; absent: the certificate of the TLS connection",
    )
    issuer: str = Field(default="", max_length=256, description="only certificates whose issuer's CN this is")

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.user)) != len(self.user):
            raise ValueError("a name stands twice in `user`")
        return self


def reader(spec: MtlsSpec | None, parts: Parts) -> Callable[[Request], bytes]:
    """What gives the verified certificate of a request: of its connection, or as `spec` says. Raises ValueError."""
    if spec is None or spec.header is None:
        return of_connection
    if not parts.forwarding:
        raise ValueError("mtls: `header` is believed from trusted proxies only; name them in `server.trusted_proxies`")
    return told_by(spec.header, parts.forwarding)


def of_connection(request: Request) -> bytes:
    """The certificate that was shown to our listener, in DER."""
    return request.certificate


def told_by(header: str, proxies: Forwarding) -> Callable[[Request], bytes]:
    """What gives the certificate that one of `proxies` tells of in a field, in DER."""
    name, trusts = header.encode(), proxies.trusts
    return lambda request: _told(request, name, trusts)


def _told(request: Request, header: bytes, trusts: Callable[[str], bool]) -> bytes:
    """The certificate in DER, b"" where there is none. A value that is none, or comes twice, is none."""
    values = [value for name, value in request.headers if name == header]
    if len(values) != 1 or not trusts(request.peer) or len(values[0]) > 3 * _LARGEST:
        return b""
    value = values[0].strip()
    if value[:1] == b":" and value[-1:] == b":":  # RFC 9440: a byte sequence (RFC 8941 section 3.3.5)
        encoded = value[1:-1]
    else:
        match = _PEM.search(unquote_to_bytes(value))
        if match is None:
            return b""
        encoded = b"".join(match[1].split())
    try:
        return b64decode(encoded, validate=True)
    except ValueError:
        return b""


class Certificates:
    """Whose certificates are. now: unix seconds."""

    def __init__(self, spec: MtlsSpec, parts: Parts, now: Callable[[], float] = time) -> None:
        self._spec = spec
        self._now = now
        self._certificate = reader(spec, parts)
        self._known: dict[bytes, tuple[float, Principal | None]] = {}

    def find(self, request: Request) -> Principal | None:
        """Whose certificate came with the request; None without one, or with one that is not taken."""
        der = self._certificate(request)
        if not der:
            return None
        digest = sha256(der).digest()
        known = self._known.get(digest)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[digest] = self._read(der)
        begins, principal = known
        now = self._now()
        return principal if principal is not None and begins <= now < principal.expires else None

    def _read(self, der: bytes) -> tuple[float, Principal | None]:
        spec = self._spec
        if len(der) > _LARGEST:
            return 0.0, None
        try:
            certificate = x509.load_der_x509_certificate(der)
            name = next(filter(None, (_name(certificate, kind) for kind in spec.user)), "")
            issuer = _first(certificate.issuer, NameOID.COMMON_NAME)
            org = ""
            if spec.org:
                oid = NameOID.ORGANIZATION_NAME if spec.org == "subject_o" else NameOID.ORGANIZATIONAL_UNIT_NAME
                org = _first(certificate.subject, oid)
            begins = certificate.not_valid_before_utc.timestamp()
            ends = certificate.not_valid_after_utc.timestamp()
        except (ValueError, TypeError):  # not a certificate, or one with extensions that are none
            return 0.0, None
        if not 0 < len(name) <= _LONGEST or _CONTROL.search(name) or (spec.issuer and issuer != spec.issuer):
            return 0.0, None
        if not any(fnmatchcase(name, pattern) for pattern in spec.allow):
            return 0.0, None
        claims = {"subject": certificate.subject.rfc4514_string(), "issuer": certificate.issuer.rfc4514_string()}
        return begins, Principal(
            f"mtls:{issuer}|{name}",
            source="mtls",
            user=name,
            org="" if _CONTROL.search(org) else org[:_LONGEST],
            email=_name(certificate, "san_email")[:_LONGEST],
            claims=claims,
            expires=ends,
            subject=name,
        )


def _name(certificate: x509.Certificate, kind: str) -> str:
    if kind == "subject_cn":
        return _first(certificate.subject, NameOID.COMMON_NAME)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    found: list[str]
    if kind == "san_uri":
        found = names.get_values_for_type(x509.UniformResourceIdentifier)
    elif kind == "san_email":
        found = names.get_values_for_type(x509.RFC822Name)
    else:
        found = names.get_values_for_type(x509.DNSName)
    return found[0] if found else ""


def _first(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    values = name.get_attributes_for_oid(oid)
    return str(values[0].value) if values else ""
