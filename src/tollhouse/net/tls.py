"""TLS for listeners: a context whose certificate can be replaced while it serves.

Rule: new handshakes use the new certificate, connections that are open keep theirs; a certificate that cannot be
loaded leaves the old one serving.
"""

import ssl
from enum import StrEnum
from pathlib import Path

__all__ = ["CertificateError", "ClientAuth", "ServerTLS"]


class ClientAuth(StrEnum):
    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class CertificateError(Exception):
    """A certificate, key or CA file cannot be used; the message names the file and the cause."""


class ServerTLS:
    """One listener's TLS. cert, key, client_ca: PEM files. `context` is for `loop.create_server`.

    TLS 1.2 and later (RFC 9325 section 3.1.1); ALPN offers http/1.1 only.
    """

    def __init__(
        self, cert: str, key: str, client_ca: str | None = None, client_auth: ClientAuth = ClientAuth.NONE
    ) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._client_auth = client_auth
        self._seen = self._stamp()
        self.context = self._make()

    def _make(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ssl.SSLError) as error:
                raise CertificateError(f"cannot load the client CA {self._client_ca}: {error}") from None
            required = self._client_auth == ClientAuth.REQUIRED
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as error:
            what = f"the certificate {self._cert} with the key {self._key}"
            raise CertificateError(f"cannot load {what}: {error}") from None

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        stamps = []
        for name in (self._cert, self._key):
            try:
                stat = Path(name).stat()
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                stamps.append((0, 0, 0))
        return tuple(stamps)

    def reload(self) -> bool:
        """Load the certificate again if its files have changed. True if they had. Raises CertificateError; the old
        certificate then still serves."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        probe = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load(probe)  # a half-written pair must not break the serving context
        self._load(self.context)
        self._seen = stamp
        return True
