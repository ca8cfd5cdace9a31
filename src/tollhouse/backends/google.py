"""Google's credentials: a service account's key, a user's refresh token, a federated workload identity, or the machine.

Rule: what a credential file says is the operator's word, read again for each token (its key only when it has changed);
its `type` decides, and one that is not known is refused when the configuration is read.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

import msgspec
from joserfc.jwk import RSAKey
from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from tollhouse.backends.renewal import Lease
from tollhouse.backends.token import (
    Asker,
    Bearer,
    LiveFile,
    Scope,
    bearer,
    checked_url,
    content_of,
    members,
    private_pem,
    read_file,
    read_token,
    seconds_until,
    signed,
    signing_key,
    text_of,
    token_of,
    unusable,
)
from tollhouse.core.clock import Clock
from tollhouse.core.spec import Reading, Spec
from tollhouse.net.client import Client, Origin

__all__ = ["GoogleAuthSpec", "google_credential"]

_CLOUD = "https://www.googleapis.com/auth/cloud-platform"
_TOKEN_URL = "https://oauth2.googleapis.com/token"
_METADATA_URL = "http://metadata.google.internal"
_METADATA_TIMEOUT = 3.0
_LIFE = 3600
"""Seconds: the longest that Google gives without further rights."""

_SKEW = 10
"""Seconds that our clock may be ahead: an assertion from the future is refused."""

_FLAVOR = (b"metadata-flavor", b"Google")
_JSON = (b"content-type", b"application/json")
_EMAIL = re.compile(r"[A-Za-z0-9._:-]+@[A-Za-z0-9.-]+")
_PROJECT = re.compile(r"[a-z0-9.:-]+")

_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Key = Callable[[str, str], RSAKey | None]
"""Reads a PEM key, or only looks at it. Raises ValueError."""

Fetch = Callable[[Asker, tuple[str, ...]], Awaitable[Lease[str]]]
"""A token for these scopes. Raises Failure, ValueError."""


class _Account(msgspec.Struct, frozen=True):
    """What a credential file leads to. quota_project: who is charged, where that is not the token's own project."""

    fetch: Fetch
    quota_project: str | None = None

    def __repr__(self) -> str:
        return "<a Google account>"


class GoogleAuthSpec(Spec):
    """A Google account: one of `credentials`, `credentials_json` and `metadata`."""

    kind: Literal["google"] = "google"
    credentials: LiveFile | None = Field(
        default=None, description="JSON file of a service account, a user, or a federated workload identity"
    )
    credentials_json: SecretStr | None = Field(default=None, description="the content of such a file")
    metadata: bool = Field(default=False, description="the service account of the machine, from its metadata server")
    metadata_url: str = Field(default=_METADATA_URL, description="where that is")
    impersonate: str | None = Field(
        default=None, pattern=rf"^{_EMAIL.pattern}$", description="a service account to act as, by its e-mail address"
    )
    scopes: tuple[Scope, ...] = Field(
        default=(_CLOUD,), min_length=1, max_length=100, description="what the token is asked for"
    )

    @field_validator("metadata_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if Origin.of(value)[1] != b"/":
            raise ValueError("metadata_url has no path; write scheme and host, like http://metadata.google.internal")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one(self, info: ValidationInfo) -> Self:
        given = (self.credentials is not None) + (self.credentials_json is not None) + self.metadata
        if given != 1:
            raise ValueError(
                "name one source: `credentials` (a JSON file), `credentials_json` (its content, like "
                "${GOOGLE_CREDENTIALS}), or `metadata: true` on Google's own machines"
            )
        if self.metadata_url != _METADATA_URL and not self.metadata:
            raise ValueError("`metadata_url` has no effect without `metadata: true`")
        if self.credentials_json is not None:
            _account(self.credentials_json.get_secret_value(), "credentials_json", private_pem)
        elif self.credentials is not None and isinstance(info.context, Reading):
            _account(content_of(self.credentials), self.credentials, private_pem)
        return self


def google_credential(
    name: str, spec: GoogleAuthSpec, client: Client, clock: Clock, *, proxy: str | None = None
) -> Bearer:
    """name: the provider's. Raises ConfigError where the credentials cannot be used."""
    asker = Asker(client, proxy=proxy)
    scopes = spec.scopes
    inline = spec.credentials_json
    file: _File | None = None
    with unusable(name):
        if spec.credentials is not None:
            file = _File(spec.credentials)
            account = file.account
        elif inline is not None:
            account = _account(inline.get_secret_value(), "credentials_json", signing_key)
        else:
            account = _Account(_machine(spec.metadata_url))

    async def fetch() -> Lease[str]:
        source = (account if file is None else await file.read()).fetch
        if spec.impersonate is not None:
            url = f"https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{quote(spec.impersonate)}"
            source = _impersonated(source, f"{url}:generateAccessToken", _LIFE, ())
        return await source(asker, scopes)

    project = account.quota_project
    extra = b"" if project is None else b"x-goog-user-project: %b\r\n" % project.encode("ascii")
    return bearer(fetch, name, clock, extra)


class _File:
    """A credential file, and what it said when it last changed."""

    __slots__ = ("_content", "_path", "account")

    def __init__(self, path: str) -> None:
        self._path = path
        self._content = content_of(path)
        self.account = _account(self._content, path, signing_key)

    async def read(self) -> _Account:
        content = await read_file(self._path)
        if content != self._content:
            self.account = _account(content, self._path, signing_key)
            self._content = content
        return self.account


# ---- Credential files


def _account(content: bytes | str, what: str, key: Key) -> _Account:
    """What a credential file says. Raises ValueError that names the member, never its content."""
    return _account_of(members(content, what), what, key)


def _account_of(fields: Mapping[str, Any], what: str, read: Key) -> _Account:
    kind = fields.get("type")
    project = fields.get("quota_project_id")
    if project is not None and (not isinstance(project, str) or not _PROJECT.fullmatch(project)):
        raise ValueError(f"{what} has no usable `quota_project_id`")
    if kind == "service_account":
        return _Account(_service_account(fields, what, read))
    if kind == "authorized_user":
        return _Account(_user(fields, what), project)
    if kind == "external_account":
        return _Account(_federated(fields, what), project)
    if kind == "impersonated_service_account":
        source = fields.get("source_credentials")
        if not isinstance(source, dict) or source.get("type") == kind:
            raise ValueError(f"{what} has no usable `source_credentials`")
        inner = _account_of(source, f"source_credentials of {what}", read)
        url = checked_url(
            fields.get("service_account_impersonation_url"), f"service_account_impersonation_url in {what}"
        )
        delegates = fields.get("delegates") or []
        if not isinstance(delegates, list) or not all(isinstance(each, str) for each in delegates):
            raise ValueError(f"`delegates` in {what} is no list of texts")
        return _Account(_impersonated(inner.fetch, url, _LIFE, tuple(delegates)), project)
    raise ValueError(
        f"{what} is not a credential file of Google that is known here: its `type` must be service_account, "
        "authorized_user, external_account or impersonated_service_account"
    )


def _service_account(fields: Mapping[str, Any], what: str, read: Key) -> Fetch:
    """RFC 7523 section 2.1: an assertion signed with the account's key."""
    email = text_of(fields, "client_email", what)
    pem = fields.get("private_key")
    if not isinstance(pem, str):
        raise ValueError(f"{what} has no usable `private_key`")
    key = read(pem, f"private_key in {what}")
    header = {"alg": "RS256"}
    if fields.get("private_key_id") is not None:
        header["kid"] = text_of(fields, "private_key_id", what)
    url = checked_url(fields.get("token_uri", _TOKEN_URL), f"token_uri in {what}")

    async def fetch(asker: Asker, scopes: tuple[str, ...]) -> Lease[str]:
        issued = int(time.time()) - _SKEW
        claims = {"iss": email, "scope": " ".join(scopes), "aud": url, "iat": issued, "exp": issued + _LIFE}
        assert key is not None
        assertion = signed(key, header, claims)
        return token_of(await asker.post(url, {"grant_type": _JWT_GRANT, "assertion": assertion}), "the token's answer")

    return fetch


def _user(fields: Mapping[str, Any], what: str) -> Fetch:
    """RFC 6749 section 6. The scopes are those the user agreed to."""
    form = {name: text_of(fields, name, what) for name in ("client_id", "client_secret", "refresh_token")}
    form["grant_type"] = "refresh_token"
    url = checked_url(fields.get("token_uri", _TOKEN_URL), f"token_uri in {what}")

    async def fetch(asker: Asker, scopes: tuple[str, ...]) -> Lease[str]:
        body = await asker.post(url, form, hidden=(form["client_secret"], form["refresh_token"]))
        return token_of(body, "the token's answer")

    return fetch


def _federated(fields: Mapping[str, Any], what: str) -> Fetch:
    """RFC 8693: a token of the platform is exchanged, and then, if the file says so, a service account impersonated."""
    audience = text_of(fields, "audience", what)
    kind = text_of(fields, "subject_token_type", what)
    url = checked_url(fields.get("token_url"), f"token_url in {what}")
    subject = _subject(fields.get("credential_source"), what)
    options = fields.get("workforce_pool_user_project")
    if options is not None:
        options = json.dumps({"userProject": text_of(fields, "workforce_pool_user_project", what)})
    impersonation = fields.get("service_account_impersonation_url")

    async def exchange(asker: Asker, scopes: tuple[str, ...]) -> Lease[str]:
        form = {
            "grant_type": _EXCHANGE_GRANT,
            "audience": audience,
            "requested_token_type": _ACCESS_TOKEN,
            "scope": " ".join(scopes),
            "subject_token_type": kind,
            "subject_token": await subject(asker),
        }
        if options is not None:
            form["options"] = options
        return token_of(await asker.post(url, form, hidden=(form["subject_token"],)), "the exchange's answer")

    if impersonation is None:
        return exchange
    lifetime = fields.get("service_account_impersonation") or {}
    seconds = lifetime.get("token_lifetime_seconds", _LIFE) if isinstance(lifetime, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int) or not 600 <= seconds <= 43_200:
        raise ValueError(f"token_lifetime_seconds in {what} is not a number from 600 to 43200")
    there = checked_url(impersonation, f"service_account_impersonation_url in {what}")
    return _impersonated(exchange, there, seconds, ())


def _subject(source: Any, what: str) -> Callable[[Asker], Awaitable[str]]:
    """How the platform's own token is had."""
    where = f"credential_source in {what}"
    if not isinstance(source, dict):
        raise ValueError(f"{what} has no usable `credential_source`")
    form = source.get("format") or {"type": "text"}
    if not isinstance(form, dict) or form.get("type", "text") not in ("text", "json"):
        raise ValueError(f"`format` of {where} must have the type text or json")
    member = text_of(form, "subject_token_field_name", where) if form.get("type") == "json" else ""
    if source.get("file") is not None:
        path = source["file"]
        if not isinstance(path, str) or not path or "\0" in path:
            raise ValueError(f"`file` of {where} is not the name of a file")

        async def from_file(_: Asker) -> str:
            if member:
                return text_of(members(await read_file(path), path), member, path)
            return await read_token(path)

        return from_file
    if source.get("url") is not None:
        url = checked_url(source["url"], f"url of {where}")
        headers = _headers(source.get("headers") or {}, where)

        async def from_url(asker: Asker) -> str:
            answer = "the answer of the url of credential_source"
            hidden = [value.decode("latin-1") for _, value in headers]
            body = await asker.ask(url, headers=headers, hidden=hidden)
            if member:
                return text_of(members(body, answer), member, answer)
            return text_of({"token": body.decode("utf-8", "replace").strip()}, "token", answer)

        return from_url
    raise ValueError(
        f"{where} must have `file` or `url`; AWS environments, executables and certificates are not "
        "supported here: have a file with a token of the platform, or use the machine's own metadata"
    )


def _headers(value: Any, where: str) -> list[tuple[bytes, bytes]]:
    if not isinstance(value, dict):
        raise ValueError(f"`headers` of {where} is no object")
    headers = []
    for name, text in value.items():
        if (
            not re.fullmatch(r"[A-Za-z0-9-]+", name)
            or not isinstance(text, str)
            or not re.fullmatch(r"[ -~]*", text)
            or name.lower() in ("host", "content-length", "connection", "transfer-encoding")
        ):
            raise ValueError(f"`headers` of {where} has a field that cannot be sent")
        headers.append((name.encode("ascii"), text.encode("ascii")))
    return headers


def _impersonated(source: Fetch, url: str, seconds: int, delegates: tuple[str, ...]) -> Fetch:
    """A token of the service account that `url` names, with one that may ask for it (IAM Credentials API)."""

    async def fetch(asker: Asker, scopes: tuple[str, ...]) -> Lease[str]:
        own = await source(asker, (_CLOUD,))
        body = json.dumps({"scope": scopes, "lifetime": f"{seconds}s", "delegates": delegates}).encode("ascii")
        proof = (b"authorization", b"Bearer " + own.value.encode("ascii"))
        what = "the impersonation's answer"
        answer = members(
            await asker.ask(url, method="POST", headers=(_JSON, proof), body=body, hidden=(own.value,)), what
        )
        return Lease(text_of(answer, "accessToken", what), seconds_until(answer.get("expireTime"), what))

    return fetch


def _machine(url: str) -> Fetch:
    """The metadata server of Google's machines. Only it can set the header field that its answers have."""

    async def fetch(asker: Asker, scopes: tuple[str, ...]) -> Lease[str]:
        query = urlencode({"scopes": ",".join(scopes)})
        body = await asker.ask(
            f"{url}/computeMetadata/v1/instance/service-accounts/default/token?{query}",
            headers=(_FLAVOR,),
            timeout=_METADATA_TIMEOUT,
            marker=_FLAVOR,
        )
        return token_of(body, "the metadata server's answer")

    return fetch
