"""Microsoft Entra ID, for Azure: an application that proves itself by a secret, a certificate or its platform's token;
or the machine's managed identity.

Rule: an assertion is made for one request, lives minutes, and is meant for that endpoint alone.
"""

import base64
import hashlib
import os
import re
import secrets
import ssl
import time
from collections.abc import Mapping
from typing import Literal, Self
from urllib.parse import urlencode

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tollhouse.backends.renewal import Lease
from tollhouse.backends.token import (
    Asker,
    Bearer,
    LiveFile,
    Scope,
    bearer,
    content_of,
    private_pem,
    read_file,
    read_token,
    signed,
    signing_key,
    token_of,
    unusable,
)
from tollhouse.core.clock import Clock
from tollhouse.core.spec import Reading, Secret, Spec
from tollhouse.net.client import Client, Origin

__all__ = ["EntraAuthSpec", "entra_credential"]

_AUTHORITY = "https://login.microsoftonline.com"
_METADATA_URL = "http://169.254.169.254"
_METADATA_TIMEOUT = 3.0
_SCOPE = "https://cognitiveservices.azure.com/.default"
_ALL = "/.default"
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_LIFE = 300
_SKEW = 10
_NAME = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ANSWER = "the token's answer"


class EntraAuthSpec(Spec):
    """An identity of Microsoft Entra ID: `tenant` and `client_id` with one of `client_secret`, `certificate` and
    `token_file`; or `managed_identity`."""

    kind: Literal["entra"] = "entra"
    tenant: str | None = Field(default=None, pattern=_NAME, description="the directory's id or domain")
    client_id: str | None = Field(default=None, pattern=_NAME, description="of the application or managed identity")
    client_secret: Secret | None = Field(default=None, description="of the application")
    certificate: LiveFile | None = Field(
        default=None, description="PEM file with the application's certificate and, unless `key` names it, its RSA key"
    )
    key: LiveFile | None = Field(default=None, description="PEM file with the certificate's key")
    token_file: LiveFile | None = Field(
        default=None, description="a token of the platform: workload identity, like ${AZURE_FEDERATED_TOKEN_FILE}"
    )
    managed_identity: bool = Field(default=False, description="the identity of the machine, from its metadata service")
    metadata_url: str = Field(default=_METADATA_URL, description="where that is")
    authority: str = Field(default=_AUTHORITY, description="another one for a national cloud")
    scope: Scope = Field(default=_SCOPE, description="what the token is for")

    @field_validator("authority", "metadata_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if Origin.of(value)[1] != b"/":
            raise ValueError("write scheme and host alone, like https://login.microsoftonline.com")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one(self, info: ValidationInfo) -> Self:
        named = [name for name in ("client_secret", "certificate", "token_file") if getattr(self, name) is not None] + [
            "managed_identity"
        ] * self.managed_identity
        if len(named) != 1:
            raise ValueError(
                "name one proof of identity: `client_secret`, `certificate`, `token_file` (workload identity) or "
                "`managed_identity: true`" + (f"; here are {', '.join(named)}" if named else "")
            )
        if self.managed_identity:
            idle = [name for name in ("tenant", "authority") if name in self.model_fields_set]
            if idle:
                raise ValueError(f"`{idle[0]}` has no effect with `managed_identity`")
            if not self.scope.endswith(_ALL):
                raise ValueError(f"a managed identity has a token for a whole resource: end `scope` in {_ALL}")
        elif self.tenant is None or self.client_id is None:
            raise ValueError("`tenant` and `client_id` are needed: the directory, and the application in it")
        if self.key is not None and self.certificate is None:
            raise ValueError("`key` has no effect without `certificate`")
        if self.metadata_url != _METADATA_URL and not self.managed_identity:
            raise ValueError("`metadata_url` has no effect without `managed_identity: true`")
        if self.certificate is not None and isinstance(info.context, Reading):
            _thumbprint(content_of(self.certificate), self.certificate)
            private_pem(content_of(self.key or self.certificate).decode("latin-1"), self.key or self.certificate)
        return self


def entra_credential(
    name: str,
    spec: EntraAuthSpec,
    client: Client,
    clock: Clock,
    *,
    proxy: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Bearer:
    """name: the provider's. env: where a platform says how its managed identities are asked for. Raises
    ConfigError where a certificate cannot be used."""
    asker = Asker(client, proxy=proxy)
    if spec.managed_identity:
        return bearer(lambda: _managed(asker, spec, env), name, clock)
    url = f"{spec.authority}/{spec.tenant}/oauth2/v2.0/token"
    certificate = None
    if spec.certificate is not None:
        with unusable(name):
            certificate = _Certificate(spec.certificate, spec.key or spec.certificate)

    async def fetch() -> Lease[str]:
        form = {"grant_type": "client_credentials", "client_id": spec.client_id or "", "scope": spec.scope}
        if spec.client_secret is not None:
            form["client_secret"] = spec.client_secret.get_secret_value()
            proof = form["client_secret"]
        else:
            if certificate is not None:
                proof = await certificate.assertion(url, spec.client_id)
            else:
                assert spec.token_file is not None
                proof = await read_token(spec.token_file)
            form |= {"client_assertion_type": _ASSERTION, "client_assertion": proof}
        return token_of(await asker.post(url, form, hidden=(proof,)), _ANSWER)

    return bearer(fetch, name, clock)


class _Certificate:
    """A certificate with its key, read again when their files have changed. Raises ValueError."""

    __slots__ = ("_contents", "_key", "_key_path", "_path", "_thumbprint")

    def __init__(self, path: str, key_path: str) -> None:
        self._path = path
        self._key_path = key_path
        self._take((content_of(path), content_of(key_path)))

    def _take(self, contents: tuple[bytes, bytes]) -> None:
        thumbprint = _thumbprint(contents[0], self._path)
        self._key = signing_key(_CERTIFICATE.sub("", contents[1].decode("latin-1")).strip(), self._key_path)
        self._thumbprint = thumbprint
        self._contents = contents

    async def assertion(self, url: str, client_id: str | None) -> str:
        """RFC 7523 section 2.2, with the certificate named by its digest (RFC 7515 section 4.1.8)."""
        contents = await read_file(self._path), await read_file(self._key_path)
        if contents != self._contents:
            self._take(contents)
        now = int(time.time()) - _SKEW
        claims = {
            "aud": url,
            "iss": client_id,
            "sub": client_id,
            "jti": secrets.token_urlsafe(16),
            "iat": now,
            "nbf": now,
            "exp": now + _ASSERTION_LIFE,
        }
        return signed(self._key, {"alg": "PS256", "x5t#S256": self._thumbprint}, claims)


def _thumbprint(content: bytes, path: str) -> str:
    """The digest of the first certificate in a file. Raises ValueError."""
    found = _CERTIFICATE.search(content.decode("latin-1"))
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0]) if found is not None else b""
    except ValueError:
        der = b""
    if not der:
        raise ValueError(f"there is no PEM certificate in {path}")
    return base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode("ascii")


async def _managed(asker: Asker, spec: EntraAuthSpec, env: Mapping[str, str]) -> Lease[str]:
    """The identity of a machine; or of an app, where the platform names an endpoint of its own."""
    query = {"resource": spec.scope.removesuffix(_ALL)}
    if spec.client_id is not None:
        query["client_id"] = spec.client_id
    endpoint, proof = env.get("IDENTITY_ENDPOINT"), env.get("IDENTITY_HEADER")
    if endpoint and proof and spec.metadata_url == _METADATA_URL:
        url, headers = endpoint, ((b"x-identity-header", proof.encode("latin-1")),)
        query["api-version"] = "2019-08-01"
    else:
        url, headers = f"{spec.metadata_url}/metadata/identity/oauth2/token", ((b"metadata", b"true"),)
        query["api-version"] = "2018-02-01"
    body = await asker.ask(
        f"{url}?{urlencode(query)}", headers=headers, hidden=(proof or "",), timeout=_METADATA_TIMEOUT
    )
    return token_of(body, _ANSWER)
