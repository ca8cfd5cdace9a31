"""What `authorize` may say: rules in CEL, a policy in Rego, a policy server, and how calls are approved.

Rule: engines and approvals stand at the top alone, where they see every call; narrower scopes have rules.
"""

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from tollhouse.core.expr import Cel, Expression
from tollhouse.core.spec import Duration, File, Secret, Spec
from tollhouse.net.client import Origin, OriginError

__all__ = ["ApprovalsSpec", "AuthorizeSpec", "GuardSpec", "OpaSpec", "RegoSpec", "RuleSpec"]

_EFFECTS = ("allow", "deny", "require", "approve")


class RuleSpec(Spec):
    """One rule: what it does to calls, and a CEL expression that is true or false."""

    allow: Cel | None = Field(default=None, description="calls for which it is true may pass")
    deny: Cel | None = Field(default=None, description="calls for which it is true, or in doubt, are refused")
    require: Cel | None = Field(default=None, description="calls for which it is false, or in doubt, are refused")
    approve: Cel | None = Field(
        default=None, description="calls for which it is true, or in doubt, wait until somebody approves them"
    )
    name: str = Field(default="", max_length=64, description="in logs and audit, in place of the rule's number")
    shadow: bool = Field(default=False, description="it decides, is counted and logged, and refuses nothing")
    by: Literal["any", "user", "operator"] = Field(
        default="any",
        description="of `approve`: who is asked. user: the agent's, through the agent; operator: the queue; any: the "
        "agent's user where the agent can ask, else the queue",
    )
    remember: Duration | None = Field(
        default=None, gt=0.0, le=86400.0 * 30, description="of `approve`: as long no further call of the same thing by "
        "the same caller is asked about"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, effect) is not None for effect in _EFFECTS) != 1:
            raise ValueError("a rule has exactly one of `allow`, `deny`, `require`, `approve`")
        for name in ("by", "remember"):
            if self.approve is None and name in self.model_fields_set:
                raise ValueError(f"`{name}` has no effect without `approve`; leave it out")
        return self

    @property
    def effect(self) -> str:
        return next(effect for effect in _EFFECTS if getattr(self, effect) is not None)

    @property
    def source(self) -> str:
        """The expression."""
        text: str = getattr(self, self.effect)
        return text

    @cached_property
    def expression(self) -> Expression:
        """The same for every chain that the rule is in force for: there are as many as models, servers and tools."""
        return Expression(self.source)


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Files = Annotated[
    tuple[File, ...], BeforeValidator(_several, json_schema_input_type=str | list[str]), Field(min_length=1)
]


class RegoSpec(Spec):
    """A policy in Rego, decided in this process."""

    file: Files = Field(description="the policy: a file, or a list of them; read again when one changes")
    query: str = Field(
        default="data.tollhouse.allow",
        pattern=r"^data(\.[A-Za-z_][A-Za-z0-9_]*)+$",
        description="what is asked: true, or {allow, reason}; anything else refuses",
    )
    data: Annotated[tuple[File, ...], BeforeValidator(_several, json_schema_input_type=str | list[str])] = Field(
        default=(), description="JSON files, each an object, that become `data`; read again when one changes"
    )
    in_thread: bool = Field(
        default=False, description="decide in a thread: for policies that take long, so that nothing else waits"
    )
    shadow: bool = Field(default=False, description="it decides, is counted and logged, and refuses nothing")

    _contents: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if find_spec("regopy") is None:
            raise ValueError("needs the extra `rego`: pip install 'tollhouse[rego]'")
        # Part of what two Specs are compared by: a policy that has changed is another one.
        self._contents = tuple(_content(name) for name in (*self.file, *self.data))
        return self

    @property
    def modules(self) -> dict[str, str]:
        """The policy's text by file."""
        return dict(zip(self.file, self._contents, strict=False))

    @property
    def documents(self) -> dict[str, str]:
        """JSON of the data by file."""
        return dict(zip(self.data, self._contents[len(self.file) :], strict=True))


def _content(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"the file {name!r} cannot be read, or is no UTF-8 text") from None


class OpaSpec(Spec):
    """A policy server (Open Policy Agent), asked over HTTP for every call."""

    url: str = Field(description="where it is, like http://127.0.0.1:8181")
    path: str = Field(
        default="tollhouse/allow",
        pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$",
        description="what is asked below /v1/data: true, or {allow, reason}; anything else refuses",
    )
    token: Secret | None = Field(default=None, description="sent as `authorization: Bearer`")
    timeout: Duration = Field(default=1.0, gt=0.0, le=60.0, description="for one decision")
    on_failure: Literal["deny", "allow"] = Field(
        default="deny", description="what happens to calls while it cannot be asked: deny answers 503"
    )
    cache: Duration = Field(
        default=0.0, ge=0.0, le=300.0, description="how long a decision is used again for the same input; 0s: never"
    )
    connections: int = Field(default=64, ge=1, le=1024, description="open connections of a worker, at most")
    ca: File | None = Field(default=None, description="PEM file of roots to trust instead of the system's")
    shadow: bool = Field(default=False, description="it decides, is counted and logged, and refuses nothing")

    @field_validator("url")
    @classmethod
    def _origin(cls, value: str) -> str:
        try:
            Origin.of(value)
        except OriginError as error:
            raise ValueError(str(error)) from None
        if "?" in value or "#" in value:
            raise ValueError("a URL without query and fragment; what is asked stands in `path`")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.ca is not None and not self.url.startswith("https:"):
            raise ValueError("`ca` has no effect without https; leave it out")
        return self


class ApprovalsSpec(Spec):
    """How long calls wait that somebody is to approve."""

    timeout: Duration = Field(
        default=300.0, gt=0.0, le=86400.0, description="a call that nobody has approved by then is refused"
    )
    waiting: int = Field(default=1000, ge=1, le=100_000, description="calls of one worker that wait, at most")
    waiting_each: int = Field(default=16, ge=1, le=10_000, description="of those, calls of one caller")


class AuthorizeSpec(Spec):
    """Rules of one scope."""

    rules: tuple[RuleSpec, ...] = Field(
        min_length=1,
        description="any deny that matches refuses, every require must match; where there are allows, one must match",
    )
    shadow: bool = Field(default=False, description="all of this decides, is counted and logged, and refuses nothing")

    @model_validator(mode="after")
    def _no_double_shadow(self) -> Self:
        if self.shadow and any(part.shadow for part in self._parts()):
            raise ValueError("`shadow` of all of this makes that of its parts pointless; leave one of them out")
        return self

    def _parts(self) -> tuple[RuleSpec | RegoSpec | OpaSpec, ...]:
        return self.rules


class GuardSpec(AuthorizeSpec):
    """Who may do what."""

    rules: tuple[RuleSpec, ...] = Field(
        default=(),
        description="any deny that matches refuses, every require must match; where there are allows, one must match",
    )
    rego: RegoSpec | None = Field(default=None, description="a policy in Rego, which must agree with the rules")
    opa: OpaSpec | None = Field(default=None, description="a policy server, which must agree with the rules")
    approvals: ApprovalsSpec = Field(default=ApprovalsSpec(), description="how long calls wait for approval")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.rules and self.rego is None and self.opa is None and "approvals" not in self.model_fields_set:
            raise ValueError("says nothing; write `rules`, `rego` or `opa`, or leave it out")
        return self

    def _parts(self) -> tuple[RuleSpec | RegoSpec | OpaSpec, ...]:
        engines = (self.rego, self.opa)
        return (*self.rules, *(engine for engine in engines if engine is not None))
