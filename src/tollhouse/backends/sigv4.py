"""AWS Signature Version 4: the header lines that prove who sends a request.

Rule: what is signed is what is sent. The path is given as it stands in the request line, already escaped; AWS escapes
it once more before it signs (all services but S3), so a model's `:` goes out as `%3A` and is signed as `%253A`.
"""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from hmac import digest
from time import gmtime, strftime
from urllib.parse import quote_from_bytes

import msgspec

__all__ = ["AWSCredentials", "Signer"]

_EMPTY = sha256(b"").hexdigest()
_NONE = ("", "", b"")


class AWSCredentials(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """An access key. token: of a session, "" for a key that lasts. They are in no repr."""

    access_key: str
    secret_key: str
    token: str = ""

    def __repr__(self) -> str:
        return f"AWSCredentials({self.access_key!r})"


class Signer:
    """Signs requests to one service in one region. A signing key is good for a day: the last one is remembered."""

    __slots__ = ("_key", "region", "service")

    def __init__(self, region: str, service: str) -> None:
        """service: the signing name ("bedrock"), which may differ from the host's."""
        self.region = region
        self.service = service
        self._key = _NONE  # day, secret, signing key

    def lines(
        self,
        credentials: AWSCredentials,
        now: float,
        *,
        method: bytes,
        path: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        query: bytes = b"",
    ) -> bytes:
        """Header lines to add: `x-amz-date`, `x-amz-security-token` for a session's key, and `authorization`.

        now: unix seconds; AWS takes a request for five minutes. headers: those to sign, names in lower case, `host` and
        `content-type` among them; each must be sent as it is here. query: without the question mark, escaped.
        """
        moment = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
        day = moment[:8]
        signed = [*headers, (b"x-amz-date", moment.encode("ascii"))]
        token = credentials.token.encode("ascii")
        if token:
            signed.append((b"x-amz-security-token", token))
        names, fields = _canonical_headers(signed)
        request = b"%b\n%b\n%b\n%b\n%b\n%b" % (
            method,
            _canonical_path(path),
            _canonical_query(query) if query else b"",
            fields,
            names,
            (sha256(body).hexdigest() if body else _EMPTY).encode("ascii"),
        )
        scope = f"{day}/{self.region}/{self.service}/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(request).hexdigest()}"
        signature = digest(self._signing_key(day, credentials.secret_key), text.encode(), "sha256").hex()
        return (
            b"x-amz-date: %b\r\n%bauthorization: AWS4-HMAC-SHA256 Credential=%b, SignedHeaders=%b, Signature=%b\r\n"
            % (
                moment.encode("ascii"),
                b"x-amz-security-token: %b\r\n" % token if token else b"",
                f"{credentials.access_key}/{scope}".encode(),
                names,
                signature.encode("ascii"),
            )
        )

    def _signing_key(self, day: str, secret: str) -> bytes:
        known_day, known_secret, key = self._key
        if known_day != day or known_secret != secret:
            key = f"AWS4{secret}".encode()
            for part in (day, self.region, self.service, "aws4_request"):
                key = digest(key, part.encode(), "sha256")
            self._key = (day, secret, key)
        return key


_SPACES = re.compile(rb"[\t ]+")


def _canonical_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The names, and the lines to sign. Of several fields of a name the values are joined in their order."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        value = _SPACES.sub(b" ", value.strip(b"\t "))
        fields[name] = b"%b,%b" % (fields[name], value) if name in fields else value
    names = sorted(fields)
    return b";".join(names), b"".join(b"%b:%b\n" % (name, fields[name]) for name in names)


def _canonical_path(path: bytes) -> bytes:
    """Without empty and dot segments, and escaped once more."""
    segments: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            if segments:
                segments.pop()
        elif segment not in (b"", b"."):
            segments.append(segment)
    end = b"/" if segments and path.endswith(b"/") else b""
    return quote_from_bytes(b"/%b%b" % (b"/".join(segments), end), safe="/~").encode("ascii")


def _canonical_query(query: bytes) -> bytes:
    pairs = sorted((name, value) for name, _, value in (pair.partition(b"=") for pair in query.split(b"&")))
    return b"&".join(b"%b=%b" % pair for pair in pairs)
