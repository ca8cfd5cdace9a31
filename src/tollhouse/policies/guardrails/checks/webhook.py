"""A service of one's own that is told the texts and says what is to be done, signed as Standard Webhooks has it.

Rule: who calls it is told by name and never by credential. An answer that contradicts itself (a mask without texts,
texts without a mask, another number of them) is a service that does not work, and counts as none.

It is sent `{version, id, phase, texts, call, caller}` and answers `{action, texts, rule, message}`: action is allow,
mask, reject or flag; texts, with mask alone, has each text as it is to be, or null for one that stays; message is what
the caller is told.
"""

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Sequence
from secrets import token_hex
from time import time
from typing import Annotated, Any, Literal

import msgspec
from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from tollhouse.core.call import Call, ModelCall, Principal, ToolCall
from tollhouse.core.spec import File, Secret, Size, Spec
from tollhouse.net.client import Origin
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import Finding, Phase, Span
from tollhouse.policies.guardrails.checks.changes import changes
from tollhouse.policies.guardrails.checks.pieces import clean
from tollhouse.policies.guardrails.checks.remote import OwnService, RemoteCheck

__all__ = ["Webhook", "WebhookSpec", "webhook"]

_PREFIX = "whsec_"
_LEAST_SECRET = 24
_LONGEST_MESSAGE = 500
_MORE = 64 << 10  # bytes that an answer may be longer than the texts
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_RULE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_OURS = frozenset(
    ("host", "content-type", "content-length", "transfer-encoding", "connection", "accept", "expect", "upgrade",
     "webhook-id", "webhook-timestamp", "webhook-signature")
)  # fmt: skip

Told = Literal["id", "user", "org", "key", "agent", "email", "groups", "client"]


def _url(value: str) -> str:
    Origin.of(value)
    if "#" in value:
        raise ValueError("a URL without a fragment")
    return value


class WebhookSpec(Spec):
    """An HTTP service that is told the texts, and says whether they pass."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        description="asked with POST", examples=["http://127.0.0.1:9100/guard"]
    )
    secret: Secret | None = Field(
        default=None,
        description="signs each question: `webhook-signature` as Standard Webhooks has it; `whsec_` and Base64, or a "
        "text of 24 characters or more",
    )
    headers: dict[str, SecretStr] = Field(
        default={}, max_length=32, description="header fields of every question, like authorization"
    )
    caller: tuple[Told, ...] = Field(
        default=("id", "user", "org", "key", "agent"), description="what it is told of who calls; none of it a secret"
    )
    ca: File | None = Field(default=None, description="PEM file of roots to trust instead of the system's")
    max_size: Size = Field(default=1 << 20, ge=1, le=16 << 20, description="of the texts of a question, at most")
    connections: int = Field(default=32, ge=1, le=1024, description="questions at once; others wait within `timeout`")

    @field_validator("headers")
    @classmethod
    def _fields(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, content in value.items():
            if _NAME.fullmatch(name.lower()) is None:
                raise ValueError(f"{name!r} is not the name of a header field")
            if name.lower() in _OURS:
                raise ValueError(f"the header {name!r} is the gateway's own to set")
            if re.fullmatch(r"[ -~]*", content.get_secret_value()) is None:
                raise ValueError(f"the value of the header {name!r} has characters outside of ASCII")
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _key(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _effect(self) -> "WebhookSpec":
        if self.ca is not None and not self.url.startswith("https:"):
            raise ValueError("`ca` has no effect without https; leave it out")
        return self


class _Answer(msgspec.Struct):
    action: Literal["allow", "mask", "reject", "flag"]
    texts: list[str | None] | None = None
    rule: str = ""
    message: str = ""


_answer = msgspec.json.Decoder(_Answer)


class Webhook(RemoteCheck):
    name = "webhook"
    masks = True

    def __init__(self, spec: WebhookSpec, service: OwnService, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._spec = spec

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        size = sum(len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > self._spec.max_size:
            raise self.cannot(f"the texts have {size} bytes, more than `max_size` ({self._spec.max_size})")
        if not texts:
            return ()
        sent = [clean(text) for text in texts]
        said = await self.ask(b"", self._question(sent, call, phase), _answer, 2 * size + _MORE)
        return self._findings(said, texts, sent)

    def _question(self, texts: list[str], call: Call, phase: Phase) -> dict[str, Any]:
        return {
            "version": 1,
            "id": call.context.request_id,
            "phase": phase,
            "call": _about(call),
            "caller": _who(call.principal, self._spec.caller),
            "texts": texts,
        }

    def _findings(self, said: _Answer, texts: Sequence[str], sent: Sequence[str]) -> Sequence[Finding]:
        if (said.texts is not None) != (said.action == "mask"):
            what = "a mask without texts" if said.texts is None else f"texts with the action {said.action}"
            raise self.cannot(f"its answer contradicts itself: {what}")
        if said.action == "allow":
            return ()
        rule = f"rule {said.rule}" if _RULE.fullmatch(said.rule) else ""
        if said.texts is None:
            shown = _CONTROL.sub(" ", said.message)[:_LONGEST_MESSAGE].strip()
            return (Finding("webhook", message=rule, decided=said.action, shown=shown),)
        if len(said.texts) != len(texts):
            raise self.cannot(f"it answers with {len(said.texts)} texts to {len(texts)}")
        spans: list[Span] = []
        replaces: list[str] = []
        for index, (before, after) in enumerate(zip(sent, said.texts, strict=True)):
            if after is not None:
                for start, end, text in changes(before, after):
                    spans.append((index, start, end))
                    replaces.append(text)
        if not spans:
            return ()
        return (Finding("webhook", tuple(spans), rule, tuple(replaces), "mask"),)


def webhook(spec: WebhookSpec, parts: Parts, timeout: float) -> Webhook:
    """Raises OriginError."""
    lines = b"".join(
        b"%b: %b\r\n" % (name.lower().encode("ascii"), value.get_secret_value().encode("ascii"))
        for name, value in spec.headers.items()
    )
    signed = None if spec.secret is None else _signer(_key(spec.secret.get_secret_value()))
    service = parts.shared(
        ("guardrails webhook", spec.fingerprint()),
        lambda: OwnService(
            parts.client, spec.url, connections=spec.connections, lines=lines, signed=signed, ca=spec.ca
        ),
        OwnService.close,
    )
    return Webhook(spec, service, timeout)


def _key(secret: str) -> bytes:
    """The bytes to sign with. Raises ValueError."""
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"what stands behind {_PREFIX} is not Base64") from None
    else:
        key = secret.encode("ascii")
    if len(key) < _LEAST_SECRET:
        raise ValueError(f"a secret of {_LEAST_SECRET} bytes or more is needed; this one could be guessed")
    return key


def _signer(key: bytes) -> Callable[[bytes], bytes]:
    def signed(body: bytes) -> bytes:
        message, moment = b"msg_" + token_hex(12).encode("ascii"), b"%d" % time()
        digest = hmac.digest(key, b"%b.%b.%b" % (message, moment, body), "sha256")
        return b"webhook-id: %b\r\nwebhook-timestamp: %b\r\nwebhook-signature: v1,%b\r\n" % (
            message,
            moment,
            base64.b64encode(digest),
        )

    return signed


def _about(call: Call) -> dict[str, Any]:
    about: dict[str, Any] = {"route": call.context.route}
    if isinstance(call, ModelCall):
        about |= {"kind": "model", "model": call.model, "operation": call.operation, "stream": call.stream}
    elif isinstance(call, ToolCall):
        about |= {"kind": "mcp", "server": call.server, "method": call.method, "name": call.name}
    return about


def _who(principal: Principal | None, told: Sequence[Told]) -> dict[str, Any]:
    return {} if principal is None else {name: value for name in told if (value := getattr(principal, name))}
