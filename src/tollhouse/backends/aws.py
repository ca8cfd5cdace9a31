"""AWS access keys: from the configuration, the environment, a profile, a platform's token, the container or the
machine; and a role assumed with them.

Rule: the order is that of AWS's own tools, and the first place that has something decides: one that is there and fails
is a failure, not a reason to act as somebody else. Files and the environment are read again for each renewal.
"""

import asyncio
import configparser
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlencode
from xml.etree import ElementTree as ET

from pydantic import Field, field_validator, model_validator

from tollhouse.backends.renewal import Lease, Renewed
from tollhouse.backends.sigv4 import AWSCredentials, Signer
from tollhouse.backends.token import (
    Asker,
    LiveFile,
    checked_url,
    content_of,
    members,
    read_token,
    seconds_until,
    text_of,
)
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.spec import Duration, Secret, Spec
from tollhouse.net.client import Client, Origin

__all__ = ["AWSAuthSpec", "AccessKeys", "aws_credential", "sts_url"]

_METADATA_URL = "http://169.254.169.254"
_CONTAINER_URL = "http://169.254.170.2"
_METADATA_TIMEOUT = 2.0
_METADATA_TOKEN_LIFE = 21_600
_ROLE_PATH = "/latest/meta-data/iam/security-credentials/"
_FORM = (b"content-type", b"application/x-www-form-urlencoded")
_XML = (b"accept", b"text/xml")
_STS_VERSION = "2011-06-15"
_STS_ANSWER = "the answer of STS"
_MAX_PROFILES = 5
_ARN = r"^arn:[a-z0-9-]+:iam::[0-9]+:role/[!-~]+$"
_SESSION = r"^[A-Za-z0-9_+=,.@-]+$"
_REGION = r"^[a-z0-9-]+$"
_ROLE_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,128}")
_ELSEWHERE = ("sso_session", "sso_start_url", "sso_account_id", "credential_process", "login_session")
_SOURCES = {"Environment": "environment", "EcsContainer": "container", "Ec2InstanceMetadata": "instance"}

Keys = Lease[AWSCredentials]


class AWSAuthSpec(Spec):
    """Whose access keys sign requests: those of `access_key_id`, of `profile`, of `token_file` with `role`, or of where
    `source` says; without any, the places that AWS's own tools look at, in their order."""

    kind: Literal["aws"] = "aws"
    access_key_id: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_]+$", min_length=16, max_length=128, description="keys given here"
    )
    secret_access_key: Secret | None = Field(default=None, description="the secret that belongs to it")
    session_token: Secret | None = Field(default=None, description="for temporary keys; they end, and are not renewed")
    profile: str | None = Field(default=None, min_length=1, description="of the shared credentials and config files")
    token_file: LiveFile | None = Field(
        default=None, description="a token of the platform, to assume `role` with: like ${AWS_WEB_IDENTITY_TOKEN_FILE}"
    )
    source: Literal["chain", "environment", "container", "instance"] = Field(
        default="chain", description="one place to take the keys from; chain: each, the first that has some"
    )
    role: str | None = Field(default=None, pattern=_ARN, description="ARN of a role to assume")
    session_name: str = Field(
        default="tollhouse", pattern=_SESSION, min_length=2, max_length=64, description="as the audit trail names us"
    )
    external_id: str | None = Field(
        default=None, pattern=r"^[!-~]+$", min_length=2, max_length=1224, description="if the role asks for one"
    )
    duration: Duration | None = Field(default=None, ge=900.0, le=43_200.0, description="for how long a role is assumed")
    region: str | None = Field(default=None, pattern=_REGION, description="of STS, if not the provider's")
    sts_url: str | None = Field(default=None, description="another endpoint of STS, without a path")
    metadata_url: str = Field(default=_METADATA_URL, description="the machine's metadata service")

    @field_validator("sts_url", "metadata_url")
    @classmethod
    def _url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if Origin.of(value)[1] != b"/":
            raise ValueError("write scheme and host alone, like https://sts.eu-west-1.amazonaws.com")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("`access_key_id` and `secret_access_key` go together")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("`session_token` has no effect without `access_key_id`")
        named = [name for name in ("access_key_id", "profile", "token_file") if getattr(self, name) is not None]
        named += ["source"] * (self.source != "chain")
        if len(named) > 1:
            raise ValueError(f"`{named[0]}` and `{named[1]}` both say where the keys come from; name one of them")
        if self.token_file is not None and self.role is None:
            raise ValueError("`token_file` needs `role`: the ARN of the role that it lets us assume")
        for name in ("external_id", "duration"):
            if getattr(self, name) is not None and self.role is None:
                raise ValueError(f"`{name}` has no effect without `role`")
        if self.external_id is not None and self.token_file is not None:
            raise ValueError("`external_id` has no effect with `token_file`")
        return self


class AccessKeys(Renewed[AWSCredentials]):
    """Access keys: `value` signs a request. `lines` are not all that proves it: they are what the signature's own lines
    replace, and tell one session's keys from another's."""

    __slots__ = ()
    stale: ClassVar[frozenset[int]] = frozenset((401, 403))  # an expired session's key is answered with 403


def aws_credential(
    name: str,
    spec: AWSAuthSpec,
    client: Client,
    clock: Clock,
    *,
    region: str,
    proxy: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> AccessKeys:
    """name: the provider's. region: of STS, if the Spec names none."""
    chain = _Chain(spec, Asker(client, proxy=proxy), spec.region or region, env)
    return AccessKeys(chain.fetch, _session_line, name, clock)


def sts_url(region: str) -> str:
    """STS in a region of the public or the Chinese partition."""
    return f"https://sts.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"


def _session_line(keys: AWSCredentials) -> bytes:
    return b"x-amz-security-token: %b\r\n" % keys.token.encode("ascii") if keys.token else b""


class _Chain:
    """Where the keys come from. Its methods raise Failure and ValueError; what has none returns None."""

    def __init__(self, spec: AWSAuthSpec, asker: Asker, region: str, env: Mapping[str, str]) -> None:
        self._spec = spec
        self._asker = asker
        self._env = env
        self._signer = Signer(region, "sts")
        self._sts = spec.sts_url or sts_url(region)

    async def fetch(self) -> Keys:
        spec = self._spec
        role = {"RoleArn": spec.role or "", "RoleSessionName": spec.session_name}
        if spec.duration is not None:
            role["DurationSeconds"] = str(int(spec.duration))
        if spec.token_file is not None:
            return await self._by_token(role, spec.token_file)
        own = await self._own()
        if spec.role is None:
            return own
        if spec.external_id is not None:
            role["ExternalId"] = spec.external_id
        return await self._assumed(role, own.value)

    async def _own(self) -> Keys:
        spec = self._spec
        if spec.access_key_id is not None and spec.secret_access_key is not None:
            token = spec.session_token.get_secret_value() if spec.session_token is not None else ""
            return Lease(AWSCredentials(spec.access_key_id, spec.secret_access_key.get_secret_value(), token))
        if spec.profile is not None:
            return await self._of_profile(spec.profile)
        if spec.source != "chain":
            return await self._of_source(spec.source)
        places: tuple[Callable[[], Awaitable[Keys | None]], ...] = (
            self._of_environment,
            self._of_web_identity,
            self._of_default_profile,
            self._of_container,
        )
        for place in places:
            found = await place()
            if found is not None:
                return found
        nowhere = "no AWS credentials are in the environment, a profile or the container"
        try:
            found = await self._of_instance()
        except Failure as failure:
            why = f"{failure.message} {failure.detail}".strip()
            raise ValueError(f"{nowhere}; nor has the machine's metadata service any: {why}") from None
        if found is None:
            raise ValueError(f"{nowhere}, and the machine's metadata service is switched off; name them in `auth`")
        return found

    async def _of_source(self, source: str) -> Keys:
        place = {
            "environment": self._of_environment,
            "container": self._of_container,
            "instance": self._of_instance,
        }[source]
        found = await place()
        if found is None:
            raise ValueError(f"there are no AWS credentials in the place that is named: {source}")
        return found

    async def _of_environment(self) -> Keys | None:
        env = self._env
        if not env.get("AWS_ACCESS_KEY_ID"):
            return None
        if not env.get("AWS_SECRET_ACCESS_KEY"):
            raise ValueError("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not")
        return Lease(_keys(env, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "the environment"))

    async def _of_web_identity(self) -> Keys | None:
        env = self._env
        path, role = env.get("AWS_WEB_IDENTITY_TOKEN_FILE"), env.get("AWS_ROLE_ARN")
        if not path:
            return None
        if not role:
            raise ValueError("AWS_WEB_IDENTITY_TOKEN_FILE is set, AWS_ROLE_ARN is not")
        session = env.get("AWS_ROLE_SESSION_NAME") or self._spec.session_name
        return await self._by_token({"RoleArn": role, "RoleSessionName": session}, path)

    # ---- Profiles

    async def _of_default_profile(self) -> Keys | None:
        named = self._env.get("AWS_PROFILE")
        if named:
            return await self._of_profile(named)
        profiles = await self._profiles()
        return await self._of_profile("default") if "default" in profiles else None

    async def _of_profile(self, name: str, before: tuple[str, ...] = ()) -> Keys:
        """The keys of a profile. before: the profiles that led here."""
        profile = (await self._profiles()).get(name)
        if profile is None:
            raise ValueError(f"there is no AWS profile {name!r} in the shared credentials and config files")
        what = f"the AWS profile {name!r}"
        source = profile.get("source_profile")
        if "role_arn" in profile and not (source == name and name in before):
            return await self._of_role(profile, name, before)
        if "aws_access_key_id" in profile:
            return Lease(
                _keys(profile, "aws_access_key_id", "aws_secret_access_key", "aws_session_token", what)
            )  # no end is known: it is read again when it is refused
        elsewhere = next((key for key in _ELSEWHERE if key in profile), None)
        if elsewhere is not None:
            raise ValueError(
                f"{what} has {elsewhere}, which is for people and is not supported here; give the gateway a role, a "
                "token file or keys of its own"
            )
        raise ValueError(f"{what} has neither keys nor a role")

    async def _of_role(self, profile: Mapping[str, str], name: str, before: tuple[str, ...]) -> Keys:
        what = f"the AWS profile {name!r}"
        role = {
            "RoleArn": profile["role_arn"],
            "RoleSessionName": profile.get("role_session_name", self._spec.session_name),
        }
        if "duration_seconds" in profile:
            role["DurationSeconds"] = profile["duration_seconds"]
        if "web_identity_token_file" in profile:
            return await self._by_token(role, _expanded(profile["web_identity_token_file"], self._env))
        if "mfa_serial" in profile:
            raise ValueError(f"{what} has mfa_serial: nobody is here to type a code; use a role that needs none")
        if "external_id" in profile:
            role["ExternalId"] = profile["external_id"]
        source, place = profile.get("source_profile"), profile.get("credential_source")
        if source is not None:
            if len(before) >= _MAX_PROFILES or (source in before and source != name):
                raise ValueError(f"{what} leads back to itself by source_profile")
            own = await self._of_profile(source, (*before, name))
        elif place in _SOURCES:
            own = await self._of_source(_SOURCES[place])
        else:
            raise ValueError(
                f"{what} has role_arn, and needs source_profile, web_identity_token_file, or credential_source "
                f"with one of {', '.join(_SOURCES)}"
            )
        return await self._assumed(role, own.value)

    async def _profiles(self) -> dict[str, dict[str, str]]:
        return await asyncio.to_thread(_profiles, self._env)

    # ---- Platforms

    async def _of_container(self) -> Keys | None:
        """ECS, and EKS Pod Identity."""
        env = self._env
        relative, full = (
            env.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
            env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        )
        if relative:
            if not relative.startswith("/"):
                raise ValueError("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI does not begin with a slash")
            url = _CONTAINER_URL + relative
        elif full:
            url = full
        else:
            return None
        url = checked_url(url, "the URL of the container's credentials")
        path = env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        proof = await read_token(path) if path else env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
        headers = [(b"accept", b"application/json")]
        if proof:
            headers.append((b"authorization", proof.encode("latin-1")))
        body = await self._asker.ask(url, headers=headers, hidden=(proof,), timeout=_METADATA_TIMEOUT)
        return _answered(members(body, "the container's answer"), "the container's answer")

    async def _of_instance(self) -> Keys | None:
        """The machine's metadata service, in its second version: a session first."""
        env = self._env
        url = self._spec.metadata_url
        if url == _METADATA_URL:
            if env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true" and self._spec.source == "chain":
                return None
            if env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT"):
                endpoint = env["AWS_EC2_METADATA_SERVICE_ENDPOINT"].rstrip("/")
                url = checked_url(endpoint, "AWS_EC2_METADATA_SERVICE_ENDPOINT")
        what = "the metadata service's answer"
        session = await self._asker.ask(
            f"{url}/latest/api/token",
            method="PUT",
            headers=((b"x-aws-ec2-metadata-token-ttl-seconds", b"%d" % _METADATA_TOKEN_LIFE),),
            timeout=_METADATA_TIMEOUT,
        )
        token = text_of({"token": session.decode("latin-1").strip()}, "token", what)
        headers = ((b"x-aws-ec2-metadata-token", token.encode("ascii")),)
        listed = await self._asker.ask(url + _ROLE_PATH, headers=headers, hidden=(token,), timeout=_METADATA_TIMEOUT)
        role = listed.decode("latin-1").strip().partition("\n")[0].strip()
        if not _ROLE_NAME.fullmatch(role):
            raise ValueError(f"{what} names no role: none is attached to the machine")
        body = await self._asker.ask(
            url + _ROLE_PATH + role, headers=headers, hidden=(token,), timeout=_METADATA_TIMEOUT
        )
        return _answered(members(body, what), what)

    # ---- STS

    async def _by_token(self, role: Mapping[str, str], path: str) -> Keys:
        token = await read_token(path)
        form = {"Action": "AssumeRoleWithWebIdentity", "Version": _STS_VERSION, **role, "WebIdentityToken": token}
        return await self._sts_asked(form, (token,), None)

    async def _assumed(self, role: Mapping[str, str], own: AWSCredentials) -> Keys:
        form = {"Action": "AssumeRole", "Version": _STS_VERSION, **role}
        return await self._sts_asked(form, (own.secret_key, own.token), own)

    async def _sts_asked(self, form: Mapping[str, str], hidden: tuple[str, ...], own: AWSCredentials | None) -> Keys:
        body = urlencode(form).encode("ascii")
        headers = [_FORM, _XML]
        if own is not None:
            signed = (_FORM, (b"host", Origin.of(self._sts)[0].authority))
            lines = self._signer.lines(own, time.time(), method=b"POST", path=b"/", headers=signed, body=body)
            for line in lines.split(b"\r\n")[:-1]:
                name, _, value = line.partition(b": ")
                headers.append((name, value))
        answer = await self._asker.ask(f"{self._sts}/", method="POST", headers=headers, body=body, hidden=hidden)
        return _answered(_from_xml(answer), _STS_ANSWER)


def _keys(fields: Mapping[str, Any], access: str, secret: str, token: str, what: str) -> AWSCredentials:
    """Raises ValueError that names the field that cannot be used."""
    session = text_of(fields, token, what) if fields.get(token) else ""
    return AWSCredentials(text_of(fields, access, what), text_of(fields, secret, what), session)


def _answered(fields: Mapping[str, Any], what: str) -> Keys:
    """Keys as metadata services and STS give them, to their `Expiration`."""
    code = fields.get("Code", "Success")
    if code != "Success":
        shown = code if isinstance(code, str) and _ROLE_NAME.fullmatch(code) else "an error"
        raise ValueError(f"{what} has no keys but {shown}")
    token = "Token" if "Token" in fields else "SessionToken"
    keys = _keys(fields, "AccessKeyId", "SecretAccessKey", token, what)
    return Lease(keys, seconds_until(fields.get("Expiration"), what))


def _from_xml(body: bytes) -> dict[str, str]:
    """The members of the one element `Credentials`. A document type is refused: entities grow."""
    try:
        text = body.decode("utf-8")
        if "<!" in text:
            raise ValueError
        root = ET.fromstring(text)  # noqa: S314 - has no document type, and is small
    except (ET.ParseError, ValueError):
        raise ValueError(f"{_STS_ANSWER} is not XML") from None
    for element in root.iter():
        if element.tag.rpartition("}")[2] == "Credentials":
            return {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in element}
    raise ValueError(f"{_STS_ANSWER} has no credentials")


# ---- The shared files


def _expanded(path: str, env: Mapping[str, str]) -> str:
    home = env.get("HOME", "")
    return home + path[1:] if home and path.startswith("~/") else path


def _profiles(env: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Profiles of the config file, and over them those of the credentials file. Raises ValueError."""
    config = _sections(_expanded(env.get("AWS_CONFIG_FILE") or "~/.aws/config", env))
    profiles = {}
    for name, fields in config.items():
        kind, _, rest = name.partition(" ")
        if kind == "profile" and rest.strip():
            profiles[rest.strip().strip("\"'")] = fields
        elif name == "default":
            profiles.setdefault("default", fields)
    for name, fields in _sections(
        _expanded(env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", env)
    ).items():
        if "aws_access_key_id" in fields:  # a set of keys is never put together from two files
            known = {k: v for k, v in profiles.get(name, {}).items() if not k.startswith("aws_")}
        else:
            known = profiles.get(name, {})
        profiles[name] = known | fields
    return profiles


def _sections(path: str) -> dict[str, dict[str, str]]:
    """An INI file; nothing, when it is not there."""
    if not Path(path).is_file():
        return {}
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        parser.read_string(content_of(path).decode("utf-8"))
    except (configparser.Error, ValueError):  # their texts have lines of the file
        raise ValueError(f"{path} is not an INI file of UTF-8 text") from None
    return {name: dict(parser.items(name)) for name in parser.sections()}
