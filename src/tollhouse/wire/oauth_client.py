"""OAuth as its client sees it: where a resource's tokens come from, the way there, and what the answers say (RFC 6749
sections 4.1, 5 and 6; RFC 7009, 7591, 7636, 8414, 8707, 9728; MCP authorization).

Rule: what a document or an answer says is believed only as far as it can be meant for us: metadata of a resource that
is not the one asked, a token that cannot stand in a header, and a life that is no number are refused. No message
repeats what was in an answer.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tollhouse.core.depth import decode
from tollhouse.wire.oauth import OAuthError, basic_credentials, code_challenge, scope_of

__all__ = [
    "ClientAuth", "ClientIdentity", "Refusal", "ResourceMetadata", "ServerMetadata", "Tokens", "authorization_request",
    "bearer_challenge", "client_form", "method_for", "refusal_of", "resource_metadata_urls", "tokens_of",
]  # fmt: skip

ClientAuth = Literal["client_secret_basic", "client_secret_post", "none"]

_WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
_LONGEST_URL: Final = 2048
_TOKEN: Final = re.compile(r"[!-~]{1,8000}")  # it stands in a header field
_REFRESH: Final = re.compile(r"[ -~]{1,8000}")  # RFC 6749 appendix A.17
_LONGEST_LIFE: Final = 10 * 365 * 86400.0
_ERROR: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TEXT: Final = re.compile(r"[^ -~]+")
_SECRET_LIKE: Final = re.compile(r"[A-Za-z0-9_\-+/=.~%]{20,}")
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_SCHEME: Final = re.compile(rf"({_WORD})(?:[ \t]+(?![ \t,])([A-Za-z0-9._~+/-]+=*)(?=[ \t]*(?:,|$)))?")
_GAP: Final = re.compile(r"[ \t,]*")
_MOST_FIELDS: Final = 8
_LONGEST_FIELD: Final = 8192


# ---- where tokens come from
def bearer_challenge(fields: Iterable[bytes]) -> dict[str, str]:
    """The parameters of the first challenge `Bearer` in fields `www-authenticate` (RFC 9110 section 11.6.1, RFC 6750
    section 3), names in lower case; empty where there is none, or it cannot be read."""
    for field in list(fields)[:_MOST_FIELDS]:
        found = _bearer(field[:_LONGEST_FIELD].decode("latin-1"))
        if found is not None:
            return found
    return {}


def _bearer(field: str) -> dict[str, str] | None:
    found: dict[str, str] | None = None
    at, end = 0, len(field)
    while True:
        gap = _GAP.match(field, at)
        at = gap.end() if gap is not None else at
        if at >= end:
            return found
        parameter = _PARAMETER.match(field, at)
        if parameter is not None:
            at = parameter.end()
            if found is not None:
                value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
                found.setdefault(parameter[1].lower(), value)
            continue
        if found is not None:
            return found
        scheme = _SCHEME.match(field, at)
        if scheme is None:
            return None
        if scheme[1].lower() == "bearer":
            found = {}
        parameter = _PARAMETER.match(field, scheme.end(1) + 1)
        at = scheme.end(1) if parameter is not None else scheme.end()


def resource_metadata_urls(url: str) -> tuple[str, ...]:
    """Where the metadata of the resource at `url` may be, in the order of asking (RFC 9728 section 3.1, MCP)."""
    parts = urlsplit(url)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    root = origin + _WELL_KNOWN
    return (root + path, root) if path else (root,)


class ResourceMetadata(msgspec.Struct, frozen=True):
    """RFC 9728 section 2, as far as it is read."""

    resource: str
    authorization_servers: tuple[str, ...] = ()
    scopes_supported: tuple[str, ...] = ()

    @classmethod
    def parse(cls, document: bytes, url: str) -> "ResourceMetadata":
        """Of the resource at `url`. Raises ValueError for what is none, or of another resource: one that names a
        resource elsewhere would have tokens made for that (section 3.3)."""
        value = decode(document, 16)
        if not isinstance(value, dict):
            raise ValueError("its metadata is no JSON object")
        try:
            metadata = msgspec.convert({n: value[n] for n in cls.__struct_fields__ if value.get(n) is not None}, cls)
        except msgspec.ValidationError:
            raise ValueError("its metadata lacks `resource`, or has members of the wrong type") from None
        if not _covers(metadata.resource, url):
            raise ValueError("its metadata is of another resource (`resource`)")
        if any(not _is_url(server) for server in metadata.authorization_servers):
            raise ValueError("its metadata names an authorization server that is no URL")
        return metadata


def _covers(resource: str, url: str) -> bool:
    """Whether `resource` is what `url` is, or stands above it."""
    if not _is_url(resource):
        return False
    a, b = urlsplit(resource), urlsplit(url)
    if (a.scheme.lower(), a.netloc.lower()) != (b.scheme.lower(), b.netloc.lower()) or (a.query and a.query != b.query):
        return False
    above, path = a.path.rstrip("/"), b.path.rstrip("/")
    return path == above or path.startswith(above + "/")


def _is_url(value: str) -> bool:
    if not value.startswith(("https://", "http://")) or len(value) > _LONGEST_URL:
        return False
    if re.search(r"[^!-~]|[\\#\"<>^`{|}]", value) is not None:
        return False
    try:
        split = urlsplit(value)
        _ = split.port
    except ValueError:
        return False
    return bool(split.hostname) and "@" not in split.netloc


class ServerMetadata(msgspec.Struct, frozen=True):
    """RFC 8414 section 2 and OpenID Connect Discovery section 3, as far as it is read. Defaults are theirs; None: it
    does not say."""

    issuer: str
    authorization_endpoint: str = ""
    token_endpoint: str = ""
    revocation_endpoint: str = ""
    registration_endpoint: str = ""
    scopes_supported: tuple[str, ...] = ()
    grant_types_supported: tuple[str, ...] | None = None
    code_challenge_methods_supported: tuple[str, ...] | None = None
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False
    client_id_metadata_document_supported: bool = False

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ServerMetadata":
        """Raises ValueError for members of the wrong type, and endpoints that are no URLs."""
        try:
            metadata = msgspec.convert({n: fields[n] for n in cls.__struct_fields__ if fields.get(n) is not None}, cls)
        except msgspec.ValidationError:
            raise ValueError("its metadata has members of the wrong type") from None
        for name in ("authorization_endpoint", "token_endpoint", "revocation_endpoint", "registration_endpoint"):
            if getattr(metadata, name) and not _is_url(getattr(metadata, name)):
                raise ValueError(f"its metadata has a `{name}` that is no URL")
        return metadata


# ---- the way there
class ClientIdentity(msgspec.Struct, frozen=True):
    """Who we are for an issuer. secret: "" for none."""

    client_id: str
    secret: str = ""
    method: ClientAuth = "none"

    def __repr__(self) -> str:
        return f"<ClientIdentity {self.client_id!r}>"


def method_for(secret: str, supported: Iterable[str]) -> ClientAuth:
    """How a client with this secret authenticates where those are supported (RFC 6749 section 2.3.1: Basic is what each
    server must take)."""
    if not secret:
        return "none"
    known = frozenset(supported)
    return "client_secret_post" if "client_secret_post" in known and "client_secret_basic" not in known else (
        "client_secret_basic"
    )  # fmt: skip


def authorization_request(endpoint: str, *, verifier: str, **parameters: str) -> str:
    """Where the browser goes (RFC 6749 section 4.1.1, RFC 7636 section 4.3). Parameters without value are left out."""
    asked = {name: value for name, value in parameters.items() if value}
    asked |= {
        "response_type": "code",
        "code_challenge": code_challenge(verifier),
        "code_challenge_method": "S256",
    }
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked, quote_via=quote)}"


def client_form(who: ClientIdentity, **fields: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header fields and body for an endpoint at which a client authenticates (RFC 6749 section 2.3). Fields without
    value are left out."""
    form = {name: value for name, value in fields.items() if value}
    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"application/json")]
    if who.method == "client_secret_basic":
        headers.append((b"authorization", basic_credentials(who.client_id, who.secret)))
    else:
        form["client_id"] = who.client_id
        if who.method == "client_secret_post":
            form["client_secret"] = who.secret
    return headers, urlencode(form).encode("ascii")


# ---- what is answered
class Tokens(NamedTuple):
    """A token endpoint's answer (RFC 6749 section 5.1). refresh: "" where none came. life: seconds, None where that was
    not said. scopes: None where that was not said."""

    access: str
    refresh: str
    life: float | None
    scopes: tuple[str, ...] | None

    def __repr__(self) -> str:
        return f"<Tokens of {self.life} s>"


class Refusal(NamedTuple):
    """An error of a token, registration or revocation endpoint (RFC 6749 section 5.2). error: "" where it is none that
    can be read. text: for the log, with nothing that looks like a secret."""

    error: str
    text: str


_ALIASES: Final = {
    "bad_refresh_token": "invalid_grant",
    "bad_verification_code": "invalid_grant",
    "incorrect_client_credentials": "invalid_client",
}
"""What GitHub says for the codes of RFC 6749."""


def tokens_of(document: bytes) -> Tokens:
    """The tokens in an answer of status 200. Raises ValueError."""
    fields = _members(document)
    access, refresh = fields.get("access_token"), fields.get("refresh_token")
    if not isinstance(access, str) or _TOKEN.fullmatch(access) is None:
        raise ValueError("it has no usable `access_token`")
    if str(fields.get("token_type", "")).lower() != "bearer":
        raise ValueError("its `token_type` is not Bearer")
    if refresh is not None and (not isinstance(refresh, str) or (refresh and _REFRESH.fullmatch(refresh) is None)):
        raise ValueError("its `refresh_token` cannot be used")
    return Tokens(access, refresh or "", _life(fields.get("expires_in")), _scopes(fields.get("scope")))


def refusal_of(document: bytes) -> Refusal:
    """The error in an answer; ("", "") where it has none."""
    try:
        fields = _members(document)
    except ValueError:
        return Refusal("", "")
    error, text = fields.get("error"), fields.get("error_description")
    if not isinstance(error, str) or _ERROR.fullmatch(error) is None:
        return Refusal("", "")
    said = _SECRET_LIKE.sub("***", _TEXT.sub(" ", text[:1000]))[:200] if isinstance(text, str) else ""
    return Refusal(_ALIASES.get(error, error), f"{error}: {said}" if said else error)


def _members(document: bytes) -> dict[str, Any]:
    try:
        value = decode(document, 16)
    except ValueError:
        raise ValueError("it is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def _life(value: Any) -> float | None:
    """Seconds; what is longer than ten years is ten years."""
    if value is None:
        return None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = -1.0
        if seconds > 0.0:
            return min(seconds, _LONGEST_LIFE)
    raise ValueError("its `expires_in` is no number of seconds above 0")


def _scopes(value: Any) -> tuple[str, ...] | None:
    """Some separate them by commas, which no scope of theirs has."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("its `scope` is no text")
    try:
        return scope_of(value.replace(",", " ") if " " not in value.strip() else value)
    except OAuthError:
        raise ValueError("its `scope` is malformed, or has too many entries") from None
