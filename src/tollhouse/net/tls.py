"""TLS for listeners: contexts whose files can be replaced while they serve; what is common with upstreams' TLS.

Rule: new handshakes use the new files, connections that are open keep theirs; files that cannot be loaded leave the old
ones serving.
"""

import re
import ssl
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Literal

__all__ = ["CertificateError", "ClientAuth", "ServerTLS", "Stamp", "cause", "load_pair", "stamp"]

Setting = Literal["cert", "key", "client_ca"]

Stamp = tuple[tuple[int, int, int], ...]
"""What changes when one of some files is written or replaced."""

_CERTIFICATE = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_NO_PEM = ("NO_CERTIFICATE_OR_CRL_FOUND", "NO_START_LINE", "PEM_LIB")


class ClientAuth(StrEnum):
    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class CertificateError(Exception):
    """A certificate, key or CA file cannot be used; the message names the file and the cause. setting: which it is."""

    def __init__(self, message: str, setting: Setting = "cert") -> None:
        super().__init__(message)
        self.setting: Setting = setting


class ServerTLS:
    """One listener's TLS. cert, key, client_ca: PEM files. `context` is for `loop.create_server`.

    TLS 1.2 and later (RFC 9325 section 3.1.1); ALPN offers http/1.1 only. Raises CertificateError.
    """

    def __init__(
        self, cert: str, key: str, client_ca: str | None = None, client_auth: ClientAuth = ClientAuth.NONE
    ) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._client_auth = client_auth
        self._pair = stamp((cert, key))
        self._ca = self._ca_stamp()
        self.context = self._make()

    def _make(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self._cert, self._key)
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ssl.SSLError) as error:
                message = f"cannot load the client CA {self._client_ca}: {cause(error)}"
                raise CertificateError(message, "client_ca") from None
            required = self._client_auth == ClientAuth.REQUIRED
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        return context

    def _ca_stamp(self) -> Stamp:
        return stamp(() if self._client_ca is None else (self._client_ca,))

    def reload(self) -> bool:
        """Load again what has changed: True if anything had. Raises CertificateError; the old files then still serve.

        Another certificate takes effect in `context` itself. Another client CA needs another `context`, because
        neither an authority nor a session that it vouched for can be taken out of one: the listener must take it.
        """
        pair, ca = stamp((self._cert, self._key)), self._ca_stamp()
        if (pair, ca) == (self._pair, self._ca):
            return False
        if ca != self._ca:
            self.context = self._make()
        else:
            # A half-written pair must not break the serving context.
            load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._cert, self._key)
            load_pair(self.context, self._cert, self._key)
        self._pair, self._ca = pair, ca
        return True


def stamp(names: Iterable[str]) -> Stamp:
    """The files as they are now; one that is not there has a stamp too."""
    stamps = []
    for name in names:
        try:
            status = Path(name).stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(stamps)


def load_pair(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    """Have `context` show the certificate (and chain) in `cert`, with the key in `key` or in the same file.

    Raises CertificateError. Never asks a terminal for a passphrase.
    """
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        setting, cause = _why(cert, key or cert, error)
        what = f"the certificate {cert}" + (f" with the key {key}" if key is not None else "")
        raise CertificateError(f"cannot load {what}: {cause}", setting) from None


def _why(cert: str, key: str, error: OSError) -> tuple[Setting, str]:
    """Which of the two is to blame, and for what: OpenSSL says neither."""
    texts: list[bytes] = []
    names: tuple[tuple[Setting, str], ...] = (("cert", cert), ("key", key))
    for setting, name in names:
        try:
            texts.append(Path(name).read_bytes())
        except OSError as unreadable:
            return setting, f"{name} cannot be read: {cause(unreadable)}"
    if _CERTIFICATE.search(texts[0]) is None:
        return "cert", "there is no PEM certificate in it"
    if b"PRIVATE KEY-----" not in texts[1]:
        return "key", "there is no PEM private key in it"
    if b"ENCRYPTED" in texts[1]:  # PKCS #8 and the older form say so
        return "key", "the key is encrypted; store it without a passphrase, readable for the gateway only"
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "key", "the key is not that of the certificate"
    return "cert", cause(error)


def cause(error: OSError) -> str:
    """Why a file of certificates cannot be used, without the library's own codes."""
    if isinstance(error, ssl.SSLError):
        return "there is no PEM certificate in it" if error.reason in _NO_PEM else str(error.reason or error)
    return error.strerror or str(error)
