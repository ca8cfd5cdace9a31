"""Access tokens: how those who give them are asked, and what they answer (RFC 6749 section 5).

Rule: what is sent to get a token is in no message: of an error only its code and a text without anything that looks
like a secret is kept. URLs of a configuration are the operator's word; those inside a credential file lead to https,
or to this machine and its metadata services.
"""

import asyncio
import ipaddress
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from pydantic import AfterValidator, Field, ValidationInfo

from tollhouse.backends.renewal import Lease, Renewed
from tollhouse.backends.retry_after import retry_after
from tollhouse.core.clock import Clock
from tollhouse.core.depth import decode
from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.core.spec import Reading, existing
from tollhouse.net.client import TLS, Client, Origin

__all__ = [
    "Asker", "Bearer", "LiveFile", "Scope", "bearer", "checked_url", "content_of", "members", "private_pem",
    "read_file", "read_token", "seconds_until", "signed", "signing_key", "text_of", "token_of", "unusable",
]  # fmt: skip

Bearer = Renewed[str]
"""An access token, as `authorization: Bearer` (RFC 6750 section 2.1)."""

_TIMEOUT = 10.0  # seconds for one request
_MAX_BODY = 1 << 18
_MAX_FILE = 1 << 20
_MAX_TOKEN = 1 << 15
_UNSAID = 600.0
"""Seconds of life of a token whose answer does not say (RFC 6749 section 5.1 only recommends it)."""

_LONGEST = 1e9
_MIN_BITS = 2048
_FORM = (b"content-type", b"application/x-www-form-urlencoded")
_ACCEPT = (b"accept", b"application/json")
_VISIBLE = re.compile(r"[!-~]+")
_SECRET_LIKE = re.compile(r"[A-Za-z0-9_\-+/=.~%]{20,}")
_UNPRINTABLE = re.compile(r"[^ -~]+")
_METADATA_HOSTS = frozenset(("localhost", "metadata.google.internal", "fd00:ec2::23", "fd00:ec2::254"))


def _live(value: str, info: ValidationInfo) -> str:
    if isinstance(info.context, Reading):
        return existing(Path(info.context.directory, value))
    return value


def _scope(value: str) -> str:
    if not _VISIBLE.fullmatch(value):
        raise ValueError(f"{value!r} is not a scope: it is empty or has spaces; each scope is an item of its own")
    return value


Scope = Annotated[str, AfterValidator(_scope)]
"""One scope (RFC 6749 section 3.3)."""

LiveFile = Annotated[str, Field(min_length=1), AfterValidator(_live)]
"""The name of a file that is read again whenever it is needed; so it is not watched: that a platform writes a token
there each hour is no change of the configuration."""


class Asker:
    """Asks token endpoints and metadata services. proxy: an HTTP proxy for what is not on this machine or beside it."""

    __slots__ = ("_client", "_proxy", "_tls")

    def __init__(self, client: Client, *, proxy: str | None = None, tls: TLS | None = None) -> None:
        self._client = client
        self._proxy = proxy
        self._tls = tls

    async def post(
        self,
        url: str,
        fields: Mapping[str, str],
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        hidden: Iterable[str] = (),
    ) -> bytes:
        """The answer to a form. hidden: secrets in the request that no message may repeat; the values of `fields` that
        are longer than 16 characters are among them. Raises Failure 502, 504."""
        body = urlencode(fields).encode("ascii")
        hidden = (*hidden, *(value for value in fields.values() if len(value) > 16))
        return await self.ask(url, method="POST", headers=(_FORM, _ACCEPT, *headers), body=body, hidden=hidden)

    async def ask(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (_ACCEPT,),
        body: bytes = b"",
        hidden: Iterable[str] = (),
        timeout: float = _TIMEOUT,
        marker: tuple[bytes, bytes] | None = None,
    ) -> bytes:
        """The body of a 200. marker: a header field that the answer must have. Raises Failure 502, 504."""
        beside = _is_beside(Origin.of(url)[0].host)
        fetched = await self._client.fetch(
            url,
            method=method,
            headers=headers,
            body=body,
            timeout=timeout,
            limit=_MAX_BODY,
            guarded=False,
            redirects=0,
            tls=self._tls,
            proxy=None if beside else self._proxy,
        )
        where = url.partition("?")[0]
        if fetched.status != 200:
            raise Failure(
                502,
                Reason.UPSTREAM_FAILURE,
                f"{where} answered {fetched.status}",
                detail=_explained(fetched.body, hidden),
                retry_after=retry_after(fetched.headers),
            )
        if marker is not None and fetched.headers.get(marker[0]) != marker[1]:
            raise ValueError(f"{where} is not what it should be: its answer lacks {marker[0].decode()}")
        return fetched.body


def bearer(fetch: Callable[[], Awaitable[Lease[str]]], name: str, clock: Clock, extra: bytes = b"") -> Bearer:
    """A credential from a function that gets a token (see Renewed). extra: further header lines."""

    def render(token: str) -> bytes:
        return b"authorization: Bearer %b\r\n%b" % (token.encode("ascii"), extra)

    return Renewed(fetch, render, name, clock)


# ---- Answers


def members(body: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError, with nothing of its content."""
    try:
        value = decode(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body)
    except ValueError:
        raise ValueError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def text_of(fields: Mapping[str, Any], name: str, what: str) -> str:
    """A member that is a text of visible ASCII. Raises ValueError."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > _MAX_TOKEN or not _VISIBLE.fullmatch(value):
        raise ValueError(f"{what} has no usable `{name}`")
    return value


def token_of(body: bytes, what: str) -> Lease[str]:
    """A token endpoint's answer (RFC 6749 section 5.1). Numbers may be texts, as some services write them; `expires_on`
    is taken where there is no `expires_in`. Raises ValueError."""
    fields = members(body, what)
    kind = fields.get("token_type")
    if kind is not None and (not isinstance(kind, str) or kind.lower() != "bearer"):
        raise ValueError(f"{what} has a token that is no bearer token")
    token = text_of(fields, "access_token", what)
    seconds = _number(fields.get("expires_in"), what)
    if seconds is None:
        ends = _number(fields.get("expires_on"), what)
        seconds = _UNSAID if ends is None else ends - time.time()
    return Lease(token, min(seconds, _LONGEST))


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = float("nan")
        if abs(number) < 1e12:
            return number
    raise ValueError(f"{what} has a time of expiry that is no number")


def seconds_until(when: Any, what: str) -> float:
    """From now to a time of ISO 8601. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(when)
    except (ValueError, TypeError):
        raise ValueError(f"{what} has a time of expiry that is none") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()


def _explained(body: bytes, hidden: Iterable[str]) -> str:
    """What an error says: its code (RFC 6749 section 5.2, and what Google's APIs and AWS have), and its text."""
    try:
        fields = members(body, "")
    except ValueError:
        return _from_xml(body, hidden)
    error = fields.get("error", fields.get("Code", fields.get("code")))
    text = fields.get("error_description", fields.get("Message", fields.get("message")))
    if isinstance(error, dict):
        text = error.get("message")
        error = error.get("status", error.get("code"))
    return _told(error, text, hidden)


def _from_xml(body: bytes, hidden: Iterable[str]) -> str:
    content = body.decode("utf-8", "replace")
    code = re.search(r"<Code>([^<]*)</Code>", content)
    text = re.search(r"<Message>([^<]*)</Message>", content)
    return _told(code and code[1], text and text[1], hidden)


def _told(code: Any, text: Any, hidden: Iterable[str]) -> str:
    said = []
    secrets = sorted((secret for secret in hidden if secret), key=len, reverse=True)
    for value in (code, text):
        if not isinstance(value, (str, int)):
            continue
        shown = str(value)[:2000]
        for secret in secrets:
            shown = shown.replace(secret, "***")
        shown = _SECRET_LIKE.sub("***", _UNPRINTABLE.sub(" ", shown)).strip()[:300].rstrip()
        if shown:
            said.append(shown)
    return ": ".join(said)


# ---- Where tokens are


def checked_url(url: Any, what: str) -> str:
    """A URL out of a credential file: https, or http to this machine and the metadata services beside it. Raises
    ValueError."""
    if not isinstance(url, str):
        raise ValueError(f"{what} is missing or no text")
    try:
        origin, _ = Origin.of(url)
    except ValueError:
        raise ValueError(f"{what} is not a URL like https://host/path") from None
    if origin.scheme != "https" and not _is_beside(origin.host):
        raise ValueError(f"{what} is http://{origin.host}: secrets are sent by https only, or to this machine")
    return url


def _is_beside(host: str) -> bool:
    """Whether a host is this machine or a metadata service."""
    if host in _METADATA_HOSTS:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local


@contextmanager
def unusable(name: str) -> Iterator[None]:
    """What cannot be used of a provider's `auth` is a ConfigError that names the place."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([Problem(str(error), path=f"providers.{name}.auth")]) from None


async def read_file(path: str) -> bytes:
    """A file as it is now. Raises ValueError."""
    return await asyncio.to_thread(content_of, path)


def content_of(path: str) -> bytes:
    """The same, where blocking is allowed."""
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe might never answer
            raise ValueError(f"{path} is not a file")
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_FILE:
        raise ValueError(f"{path} is larger than 1 MiB")
    return content


async def read_token(path: str) -> str:
    """The token that a file holds. Raises ValueError."""
    token = (await read_file(path)).strip()
    if not token or len(token) > _MAX_TOKEN or _VISIBLE.fullmatch(token.decode("latin-1")) is None:
        raise ValueError(f"{path} does not hold a token: it is empty, or has spaces or characters outside of ASCII")
    return token.decode("ascii")


# ---- Assertions


def private_pem(pem: str, what: str) -> None:
    """Look whether there is a private key, without reading it: that takes 30 ms and more, in which nothing else runs.
    Raises ValueError."""
    if "PRIVATE KEY-----" not in pem:
        raise ValueError(f"{what} has no PEM private key")
    if "ENCRYPTED" in pem:
        raise ValueError(f"{what} is encrypted; store it without a passphrase, readable for the gateway only")


def signing_key(pem: str, what: str) -> RSAKey:
    """An RSA private key of 2,048 bits or more; to be kept as long as its file is the same. Raises ValueError."""
    private_pem(pem, what)
    try:
        key = RSAKey.import_key(pem)
        bits: int = key.raw_value.key_size
        private = key.is_private
    except (JoseError, ValueError, TypeError):
        raise ValueError(f"{what} is not an RSA private key in PEM form") from None
    if not private or bits < _MIN_BITS:
        raise ValueError(f"{what} is not an RSA private key of {_MIN_BITS} bits or more")
    return key


def signed(key: RSAKey, header: Mapping[str, str], claims: Mapping[str, Any]) -> str:
    """A JWT (RFC 7519). header: `alg` among it."""
    return jwt.encode({"typ": "JWT", **header}, dict(claims), key, algorithms=[header["alg"]])
