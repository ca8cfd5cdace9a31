"""What OAuth puts on the wire: forms, errors, how clients prove who they are, redirect URIs, scopes, resources,
challenges (RFC 6749, 6750, 7523, 8252, 8707, 9728; OAuth 2.1).

Rule: what two readers could read in two ways is refused: a parameter that comes twice, two ways to authenticate, a URI
with a fragment. Descriptions of errors are fixed texts and never what was sent.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote_plus, unquote_to_bytes, urlsplit

from tollhouse.wire.jose import Token, parse
from tollhouse.wire.jwt import to_base64url

__all__ = [
    "ASSERTION_TYPE",
    "MAX_FORM",
    "Form",
    "OAuthError",
    "Presented",
    "basic_credentials",
    "canonical_resource",
    "certificate_thumbprint",
    "challenge",
    "code_challenge",
    "is_loopback_redirect",
    "presented",
    "redirect_fits",
    "redirect_flaw",
    "scope_of",
    "unauthenticated",
]

MAX_FORM = 64 << 10
"""Bytes of a form."""

_MOST_FIELDS = 64
_LONGEST_NAME = 128
_REPEATABLE = frozenset(("resource", "audience"))

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 section 2.2."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_CLIENT_ID = re.compile(r"[\x20-\x7e]{1,2048}")  # RFC 6749 appendix A.1
_SECRET = re.compile(r"[\x20-\x7e]{1,1024}")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 section 3.3
_MOST_SCOPES = 100
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!$&'()*+,;=:@/?%A-Za-z0-9._~\[\]-]*")  # RFC 3986, no fragment
_LONGEST_URI = 2048
_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|\[::1\]|localhost)(?::([1-9][0-9]{0,4}))?((?:[/?].*)?)")
_SCRIPTS = frozenset(
    ("javascript", "data", "vbscript", "file", "blob", "about", "filesystem", "view-source", "ftp", "ws", "wss",
     "jar", "mailto", "tel", "chrome", "resource", "urn")
)  # fmt: skip
_PORTS = {"http": 80, "https": 443}


class OAuthError(Exception):
    """An error that the protocol has a code for (RFC 6749 section 5.2 and those that extend it).

    error: the code. description: fixed text, safe to show. status: of the answer. headers: in lower case. detail: for
    the log only.
    """

    __slots__ = ("description", "detail", "error", "headers", "status")

    def __init__(
        self,
        error: str,
        description: str,
        status: int = 400,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        *,
        detail: str = "",
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.status = status
        self.headers = headers
        self.detail = detail


class Form:
    """Parameters of a request, each at most once except `resource` and `audience`. One without a value is as one that
    is left out (RFC 6749 section 3.1)."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, tuple[str, ...]]) -> None:
        self._values = values

    @classmethod
    def parse(cls, encoded: bytes) -> "Form":
        """A body or a query, `application/x-www-form-urlencoded`. Raises OAuthError `invalid_request`."""
        if len(encoded) > MAX_FORM:
            raise OAuthError("invalid_request", "the form is larger than 64 KiB", 413)
        values: dict[str, tuple[str, ...]] = {}
        try:
            pairs = parse_qsl(
                encoded.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
            )
        except ValueError:
            raise OAuthError("invalid_request", "the form is not well-formed, or has too many parameters") from None
        for name, value in pairs:
            if not value:
                continue
            if len(name) > _LONGEST_NAME or _CONTROLS.search(value) is not None:
                raise OAuthError("invalid_request", "a parameter has a name or characters that cannot be used")
            if name in values and name not in _REPEATABLE:
                raise OAuthError("invalid_request", "a parameter is given twice")
            values[name] = (*values.get(name, ()), value)
        return cls(values)

    def get(self, name: str) -> str:
        """Its value; "" where there is none."""
        values = self._values.get(name)
        return values[0] if values is not None else ""

    def all(self, name: str) -> tuple[str, ...]:
        return self._values.get(name, ())

    def need(self, name: str) -> str:
        """Its value. Raises OAuthError `invalid_request` where there is none, or more than one."""
        values = self._values.get(name, ())
        if len(values) != 1:
            raise OAuthError("invalid_request", f"the parameter `{name}` is required, once")
        return values[0]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def items(self) -> Iterable[tuple[str, tuple[str, ...]]]:
        return self._values.items()


Method = Literal["none", "client_secret_basic", "client_secret_post", "private_key_jwt"]


class Presented(NamedTuple):
    """Who a client says it is, and what shall prove it. method: "none" where there is a name only (then a certificate
    may prove it). assertion: of `private_key_jwt`, taken apart and not verified."""

    method: Method
    client_id: str
    secret: str = ""
    assertion: Token | None = None

    def __repr__(self) -> str:
        return f"<Presented {self.method}>"


def presented(authorization: Iterable[bytes], form: Form) -> Presented:
    """How a client authenticates (RFC 6749 section 2.3, RFC 7523 section 2.2): by exactly one method.

    authorization: the values of all fields of that name. Raises OAuthError `invalid_client` for what is malformed or
    missing, `invalid_request` for two ways at once.
    """
    fields = list(authorization)
    ways = bool(fields) + ("client_secret" in form) + ("client_assertion" in form)
    if ways > 1 or len(fields) > 1:
        raise OAuthError("invalid_request", "a client authenticates in exactly one way")
    named = form.get("client_id")
    if fields:
        client_id, secret = _basic(fields[0])
        if named and named != client_id:
            raise OAuthError("invalid_request", "`client_id` is not who authenticates")
        return Presented("client_secret_basic", client_id, secret)
    if "client_assertion" in form:
        return _assertion(form, named)
    if "client_assertion_type" in form:
        raise OAuthError("invalid_request", "`client_assertion_type` comes without `client_assertion`")
    if not named:
        raise unauthenticated("a client must say who it is")
    if _CLIENT_ID.fullmatch(named) is None:
        raise unauthenticated("the client is not known, or did not prove who it is")
    if "client_secret" in form:
        return Presented("client_secret_post", named, form.get("client_secret"))
    return Presented("none", named)


def basic_credentials(client_id: str, secret: str) -> bytes:
    """A client's id and secret as the value of the field Authorization, each encoded as in a form first (RFC 6749
    section 2.3.1)."""
    return b"Basic " + b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode("ascii"))


def code_challenge(verifier: str) -> str:
    """The challenge `S256` of a code verifier (RFC 7636 section 4.2)."""
    return _sha256(verifier.encode())


def certificate_thumbprint(der: bytes) -> str:
    """`x5t#S256` of a certificate (RFC 8705 section 3.1)."""
    return _sha256(der)


def _sha256(octets: bytes) -> str:
    return to_base64url(sha256(octets).digest()).decode()


def unauthenticated(description: str, detail: str = "") -> OAuthError:
    """`invalid_client`, with the challenge that RFC 6749 section 5.2 asks for. detail: for the log."""
    challenges = ((b"www-authenticate", b'Basic realm="oauth"'),)
    return OAuthError("invalid_client", description, 401, challenges, detail=detail)


def _basic(field: bytes) -> tuple[str, str]:
    scheme, _, encoded = field.strip().partition(b" ")
    wrong = "the Authorization field is not `Basic` with a client's id and secret, each encoded as in a form"
    if scheme.lower() != b"basic":
        raise unauthenticated(wrong)
    try:
        name, colon, secret = b64decode(encoded.strip(), validate=True).partition(b":")
        decoded = [unquote_to_bytes(part.replace(b"+", b" ")).decode("utf-8") for part in (name, secret)]
    except ValueError:
        raise unauthenticated(wrong) from None
    if not colon or _CLIENT_ID.fullmatch(decoded[0]) is None or _SECRET.fullmatch(decoded[1]) is None:
        raise unauthenticated(wrong)
    return decoded[0], decoded[1]


def _assertion(form: Form, named: str) -> Presented:
    if form.get("client_assertion_type") != ASSERTION_TYPE:
        raise OAuthError("invalid_request", "`client_assertion_type` is not the one of RFC 7523")
    token = parse(form.get("client_assertion").encode("utf-8"))
    if not isinstance(token, Token):
        raise unauthenticated("the client's assertion is not a signed JSON Web Token")
    subject = token.claims.get("sub")
    if not isinstance(subject, str) or _CLIENT_ID.fullmatch(subject) is None or token.claims.get("iss") != subject:
        raise unauthenticated("`iss` and `sub` of the client's assertion must be its client_id")
    if named and named != subject:
        raise OAuthError("invalid_request", "`client_id` is not who authenticates")
    return Presented("private_key_jwt", subject, assertion=token)


# ---- scopes
def scope_of(value: str) -> tuple[str, ...]:
    """The scopes that `value` lists, sorted, each once (RFC 6749 section 3.3). Raises OAuthError `invalid_scope`."""
    scopes = value.split(" ")
    if len(scopes) > _MOST_SCOPES or any(_SCOPE.fullmatch(scope) is None for scope in scopes if scope):
        raise OAuthError("invalid_scope", "the scope is malformed, or has too many entries")
    return tuple(sorted({scope for scope in scopes if scope}))


# ---- resources
def canonical_resource(uri: str) -> str:
    """A resource's URI in the one form it is compared in (RFC 8707 section 2, RFC 3986 section 6): scheme and host in
    lower case, no default port, no slash alone as path. Raises ValueError for what is no absolute URI without
    fragment, user and password."""
    if len(uri) > _LONGEST_URI or _URI.fullmatch(uri) is None:
        raise ValueError("not an absolute URI without fragment")
    try:
        split = urlsplit(uri)
        port = split.port
    except ValueError:
        raise ValueError("not an absolute URI without fragment") from None
    scheme = split.scheme.lower()
    if scheme not in _PORTS:
        return scheme + uri[len(scheme) :]
    host = split.hostname
    if not host or "@" in split.netloc:
        raise ValueError("not an absolute URI without user and password")
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port != _PORTS[scheme]:
        host = f"{host}:{port}"
    path = "" if split.path == "/" and not split.query else split.path
    return f"{scheme}://{host}{path}" + (f"?{split.query}" if split.query else "")


# ---- redirect URIs
def redirect_flaw(uri: str) -> str:
    """What is wrong with a redirect URI that a client registers (RFC 9700 section 4.1, RFC 8252); "" if nothing is."""
    if len(uri) > _LONGEST_URI or _URI.fullmatch(uri) is None:
        return "is not an absolute URI without fragment"
    try:
        split = urlsplit(uri)
        _ = split.port
    except ValueError:
        return "is not an absolute URI without fragment"
    scheme = split.scheme.lower()
    if scheme in _SCRIPTS:
        return "has a scheme that nobody is sent to"
    if "\\" in uri or "@" in split.netloc:
        return "has a user, a password or a backslash"
    if scheme == "http" and _LOOPBACK.fullmatch(uri) is None:
        return "must be https, unless it is on 127.0.0.1, [::1] or localhost"
    if scheme in _PORTS and (not split.hostname or any(part in (".", "..") for part in split.path.split("/"))):
        return "needs a host, and a path without dot segments"
    return ""


def is_loopback_redirect(uri: str) -> bool:
    """Whether it leads to this machine itself: 127.0.0.1, [::1] or localhost over http."""
    return _LOOPBACK.fullmatch(uri) is not None


def redirect_fits(registered: Iterable[str], asked: str, *, native: bool) -> bool:
    """Whether `asked` is a redirect URI of the client: the same string; for a native client on loopback the port may
    be any (RFC 8252 section 7.3)."""
    known = tuple(registered)
    if asked in known:
        return True
    if not native or _CONTROLS.search(asked) is not None:
        return False
    loopback = _LOOPBACK.fullmatch(asked)
    if loopback is None or (loopback[2] is not None and int(loopback[2]) > 65535) or "#" in asked:
        return False
    for uri in known:
        match = _LOOPBACK.fullmatch(uri)
        if match is not None and match[1] == loopback[1] and match[3] == loopback[3]:
            return True
    return False


# ---- challenges
def challenge(scheme: str, **parameters: str) -> bytes:
    """The value of `www-authenticate` (RFC 9110 section 11.6.1); parameters without value are left out. What could end
    a quoted string is taken out of it."""
    told = [f'{name}="{_quotable(value)}"' for name, value in parameters.items() if value]
    return (f"{scheme} {', '.join(told)}" if told else scheme).encode("latin-1", "replace")


def _quotable(text: str) -> str:
    return _CONTROLS.sub("", text).replace("\\", "").replace('"', "'")
