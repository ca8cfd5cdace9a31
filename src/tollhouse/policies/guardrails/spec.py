"""What the configuration may say of guardrails: rules for what goes out and for what comes back.

Rule: a rule looks for one kind of thing and says what becomes of it. What cannot act where it is written is an error
when the file is read: nothing is looked for in vain.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from tollhouse.core.spec import Duration, File, Spec
from tollhouse.policies.guardrails.check import Phase
from tollhouse.policies.guardrails.checks import (
    CHECKS,
    AzureContentSafetySpec,
    BedrockGuardrailSpec,
    InjectionSpec,
    LanguageSpec,
    LengthSpec,
    ModelArmorSpec,
    NamesSpec,
    OpenAIModerationSpec,
    SchemaSpec,
    TopicsSpec,
    WebhookSpec,
)
from tollhouse.wire.guard.catalogue import groups, named
from tollhouse.wire.guard.dangers import dangers
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.links import AllowedHosts
from tollhouse.wire.guard.rules import keywords, pattern

__all__ = [
    "KINDS_OF_TEXT",
    "PATTERNS",
    "Action",
    "GuardRuleSpec",
    "GuardrailsSpec",
    "KeywordsSpec",
    "Kind",
    "LinksSpec",
]  # fmt: skip

Action = Literal["mask", "reject", "flag"]

Kind = Literal["text", "system", "reasoning", "arguments", "results", "descriptions"]
"""What a text is: what somebody says; the system's instructions; what a model thinks; arguments of tools, and their
results; what is said of tools, and schemas."""

KINDS_OF_TEXT: Final[Mapping[Phase, tuple[Kind, ...]]] = {
    "request": ("text", "system", "reasoning", "arguments", "results", "descriptions"),
    "response": ("text", "reasoning", "arguments", "results", "descriptions"),
}

PATTERNS: Final = ("pii", "secrets", "regex", "keywords", "links", "code", "dangers")
"""Kinds of rules that are patterns: RE2 looks for all of them at once."""


def _or_true(schema: dict[str, Any]) -> None:
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [{"const": True}, listed]


def _or_one(schema: dict[str, Any]) -> None:
    listed = {key: schema.pop(key) for key in ("type", "items", "minItems") if key in schema}
    schema["anyOf"] = [{"type": "string"}, listed]


def _or_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _people(value: Any) -> Any:
    return ("pii",) if value is True else value


def _keys(value: Any) -> Any:
    return ("secrets",) if value is True else value


def _known_people(value: tuple[str, ...]) -> tuple[str, ...]:
    return _known("pii", "secrets", value)


def _known_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    return _known("secrets", "pii", value)


def _known(group: str, other: str, value: tuple[str, ...]) -> tuple[str, ...]:
    """The names, all of one group; it stands before those that only say what to leave out. Raises Refused."""
    if value[0].startswith("-"):
        value = (group, *value)
    named(value)
    members = groups()
    for name in value:
        own = name.removeprefix("-")
        if own == other or own in members[other]:
            raise Refused(f"{own!r} belongs to `{other}`: that is a rule of its own")
    return value


def _expression(value: str) -> str:
    pattern("regex", value)
    return value


def _dangerous(value: tuple[str, ...]) -> tuple[str, ...]:
    known = dangers()
    for name in value:
        if name not in known:
            raise ValueError(f"there is no such kind of danger; there are {', '.join(known)}")
    return value


def _all_dangers(value: Any) -> Any:
    return tuple(dangers()) if value is True else value


_LARGEST = 4 << 20  # bytes of a file of keywords


class KeywordsSpec(Spec):
    """Words and phrases, as they stand."""

    words: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), description="a space is any white space")
    file: File | None = Field(default=None, description="or a file of them, one a line; empty lines and # are left out")
    ignore_case: bool = Field(default=True, description="whether `Rose` is found where `rose` is written")
    whole_words: bool = Field(default=True, description="not within longer words")

    _written: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.words) == (self.file is not None):
            raise ValueError("write `words`, or a `file` of them")
        # Part of what two Specs are compared by: a file that has changed makes other rules.
        self._written = self.words if self.file is None else _lines(self.file)
        if self.words:  # of ten thousand words a pattern is made once, when they are looked for
            keywords("keywords", self.words, ignore_case=self.ignore_case, whole_words=self.whole_words)
        return self

    @property
    def written(self) -> tuple[str, ...]:
        """The words, wherever they stand."""
        return self._written


def _lines(file: str) -> tuple[str, ...]:
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(_LARGEST + 1)
        lines = content.decode().splitlines()
    except OSError as error:
        raise ValueError(f"the file {file!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the file {file!r} is not UTF-8 text") from None
    if len(content) > _LARGEST:
        raise ValueError(f"the file {file!r} is larger than {_LARGEST >> 20} MiB")
    words = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not words:
        raise ValueError(f"the file {file!r} has no keywords in it")
    return words


def _keywords(value: Any) -> Any:
    return {"words": value} if isinstance(value, (list, tuple)) else value


class LinksSpec(Spec):
    """Links to hosts that are not named: a model can be made to carry data out in them."""

    allow: tuple[str, ...] = Field(
        default=(), description="hosts that links may lead to: docs.example.org, or *.example.org for all below it"
    )
    images: bool = Field(
        default=False, description="only pictures and what else is fetched to be shown; links wait for a click"
    )

    @field_validator("allow")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        AllowedHosts(value)
        return value


Language = Annotated[str, Field(pattern=r"^[A-Za-z0-9+#_.-]{1,32}$")]


Pii = Annotated[
    tuple[str, ...],
    Field(min_length=1, json_schema_extra=_or_true),
    BeforeValidator(_people),
    AfterValidator(_known_people),
]
Secrets = Annotated[
    tuple[str, ...],
    Field(min_length=1, json_schema_extra=_or_true),
    BeforeValidator(_keys),
    AfterValidator(_known_keys),
]
Expressions = Annotated[
    tuple[Annotated[str, Field(min_length=1), AfterValidator(_expression)], ...],
    Field(min_length=1, json_schema_extra=_or_one),
    BeforeValidator(_or_list),
]
Keywords = Annotated[KeywordsSpec, BeforeValidator(_keywords, json_schema_input_type=list[str] | KeywordsSpec)]
Dangers = Annotated[
    tuple[str, ...],
    Field(min_length=1, json_schema_extra=_or_true),
    BeforeValidator(_all_dangers),
    AfterValidator(_dangerous),
]


def _as_it_is(value: Any) -> Any:
    return value


# Their Specs read the short form; editors are told of it here.
Languages = Annotated[LanguageSpec, BeforeValidator(_as_it_is, json_schema_input_type=list[str] | LanguageSpec)]
Names = Annotated[NamesSpec, BeforeValidator(_as_it_is, json_schema_input_type=Literal[True] | list[str] | NamesSpec)]
Injections = Annotated[
    InjectionSpec, BeforeValidator(_as_it_is, json_schema_input_type=Literal[True] | list[str] | InjectionSpec)
]
Schemas = Annotated[SchemaSpec, BeforeValidator(_as_it_is, json_schema_input_type=dict[str, Any] | SchemaSpec)]


class GuardRuleSpec(Spec):
    """One rule: exactly one kind of thing to look for, and what becomes of it."""

    model_config = ConfigDict(serialize_by_alias=True)

    pii: Pii | None = Field(
        default=None, description="what identifies people: true for all kinds, or some: email, card, iban, -phone"
    )
    secrets: Secrets | None = Field(
        default=None, description="keys, tokens and passwords of known forms: true for all, or some: aws, jwt"
    )
    regex: Expressions | None = Field(default=None, description="regular expressions in RE2's syntax; one, or a list")
    keywords: Keywords | None = Field(default=None, description="words and phrases: a list, or {file: ...}")
    links: LinksSpec | None = Field(default=None, description="links and pictures that lead to hosts not named")
    code: Annotated[tuple[Language, ...], Field(min_length=1)] | None = Field(
        default=None, description="fenced code of these languages: sql, bash"
    )
    dangers: Dangers | None = Field(
        default=None, description="commands that do harm: true for all, or some of sql, shell, code, markup, path"
    )

    injection: Injections | None = Field(
        default=None,
        description="texts that give a model other orders: true, some of the patterns, or {classifier: ...}",
    )
    json_schema: Schemas | None = Field(
        default=None, alias="schema", description="a JSON Schema that the model's text must fit: inline, or {file: ...}"
    )
    language: Languages | None = Field(default=None, description="languages that texts are in: [en, de]")
    length: LengthSpec | None = Field(default=None, description="how long texts may be: {max: 4000}")
    topics: TopicsSpec | None = Field(
        default=None, description="what texts are about, by phrases for example (extra `semantic`): {allow: [...]}"
    )
    names: Names | None = Field(
        default=None, description="persons and addresses, by a model in the process (extra `pii`): true, or [person]"
    )
    webhook: WebhookSpec | None = Field(default=None, description="a service of one's own is asked: {url: ...}")
    openai_moderation: OpenAIModerationSpec | None = Field(
        default=None, description="OpenAI's moderation: {provider: openai}"
    )
    bedrock: BedrockGuardrailSpec | None = Field(default=None, description="a guardrail of Amazon Bedrock")
    model_armor: ModelArmorSpec | None = Field(default=None, description="a template of Google Model Armor")
    azure_content_safety: AzureContentSafetySpec | None = Field(default=None, description="Azure AI Content Safety")

    name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$",
        description="in metrics, logs and records; absent: its kind",
    )
    action: Action = Field(
        default="reject",
        description="mask: it is replaced; reject: the call is refused, or its answer withheld; flag: it is counted "
        "and noted",
    )
    message: str | None = Field(
        default=None, min_length=1, max_length=500, description="what a caller is told who is rejected"
    )
    reversible: bool = Field(
        default=False,
        description="what is masked in a request is put back into its answer: only the caller sees it",
    )
    replacement: str | None = Field(
        default=None, max_length=100, description="what stands in place of what is masked; absent: [EMAIL]"
    )
    shadow: bool = Field(default=False, description="it is counted what it would do, and not done")
    in_: tuple[Kind, ...] | None = Field(
        default=None,
        alias="in",
        min_length=1,
        description="which texts: text, system, reasoning, arguments, results, descriptions; absent: all",
    )
    max_match: int = Field(
        default=4096,
        ge=256,
        le=65_536,
        description="characters of a match that a stream waits for; what is longer is masked",
    )
    timeout: Duration = Field(default=2.0, gt=0.0, le=60.0, description="how long an outside guard may take")
    on_failure: Literal["closed", "open"] = Field(
        default="closed",
        description="where a guard could not run. closed: the call is refused; open: it passes, counted",
    )
    parallel: bool = Field(
        default=False, description="the guard runs beside the model's call, and only the answer waits for it"
    )
    stream: Literal["hold", "window"] = Field(
        default="hold",
        description="how a streamed answer waits for an outside guard. hold: until it is whole; window: piece by piece",
    )
    window: int = Field(default=800, ge=100, le=20_000, description="characters of one piece, with `stream: window`")

    @property
    def kind(self) -> str:
        """The key that says what is looked for."""
        return next(name for name in KINDS if self._said(name) is not None)

    @property
    def sought(self) -> Any:
        """What that key says."""
        return self._said(self.kind)

    @property
    def is_pattern(self) -> bool:
        """Whether patterns look for it, and nobody is asked."""
        injection = self.injection
        return self.kind in PATTERNS or (injection is not None and injection.classifier is None)

    def _said(self, kind: str) -> Any:
        return self.json_schema if kind == "schema" else getattr(self, kind, None)

    @property
    def label(self) -> str:
        """Its name in metrics and records."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in KINDS if self._said(name) is not None]
        if len(given) != 1:
            have = f"{' and '.join(given)} are {len(given)} rules" if given else "this rule looks for nothing"
            raise ValueError(f"{have}: write exactly one of {', '.join(KINDS)}")
        if given[0] in PATTERNS and find_spec("re2") is None:
            raise ValueError(f"`{given[0]}` needs the extra `guard`: pip install 'tollhouse[guard]'")
        self._in_effect(given[0])
        return self

    def _in_effect(self, kind: str) -> None:
        said = self.model_fields_set
        for name in ("reversible", "replacement"):
            if name in said and self.action != "mask":
                raise ValueError(f"`{name}` has an effect with `action: mask` only")
        if self.reversible and self.replacement is not None:
            raise ValueError("a `replacement` says nothing of what it stands for, so that it cannot be `reversible`")
        if "message" in said and self.action != "reject":
            raise ValueError("`message` has an effect with `action: reject` only")
        here = kind in _HERE or self.is_pattern
        for name in ("timeout", "on_failure", "parallel") if here else ():
            if name in said:
                raise ValueError(f"`{name}` has no effect here: `{kind}` is looked for in the process itself")
        if self.is_pattern:
            for name in ("stream", "window"):
                if name in said:
                    raise ValueError(f"`{name}` has no effect here: patterns look at streams as they come")
            return
        check = CHECKS[kind]
        if "max_match" in said:
            raise ValueError("`max_match` has an effect on patterns only")
        if self.action == "mask" and not check.masks:
            raise ValueError(f"`{kind}` says nothing of what could be masked: use reject or flag")
        if self.parallel and self.action == "mask":
            raise ValueError("`parallel` cannot mask: what would be masked has been sent by then; use reject or flag")
        if check.whole and "stream" in said:
            raise ValueError(f"`stream` has no effect here: `{kind}` judges an answer as a whole")
        if "window" in said and self.stream != "window":
            raise ValueError("`window` has an effect with `stream: window` only")


_HERE: Final = frozenset(("schema", "language", "length"))
KINDS: Final = (*PATTERNS, *CHECKS)


def _known_texts(phase: Phase, rule: GuardRuleSpec) -> None:
    # Some settings of a check are for one phase alone.
    if not rule.is_pattern and phase not in getattr(rule.sought, "phases", CHECKS[rule.kind].phases):
        raise ValueError(f"`{rule.kind}` cannot look at a {phase}")
    known = KINDS_OF_TEXT[phase]
    for kind in rule.in_ or ():
        if kind not in known:
            raise ValueError(f"`in`: there is no {kind} in a {phase}; there are {', '.join(known)}")


def _of_requests(rule: GuardRuleSpec) -> GuardRuleSpec:
    _known_texts("request", rule)
    for name in ("stream", "window"):
        if name in rule.model_fields_set:
            raise ValueError(f"`{name}` has an effect on responses only")
    return rule


def _of_responses(rule: GuardRuleSpec) -> GuardRuleSpec:
    _known_texts("response", rule)
    for name in ("reversible", "parallel"):
        if name in rule.model_fields_set:
            raise ValueError(f"`{name}` has an effect on requests only")
    return rule


RequestRule = Annotated[GuardRuleSpec, AfterValidator(_of_requests)]
ResponseRule = Annotated[GuardRuleSpec, AfterValidator(_of_responses)]


class GuardrailsSpec(Spec):
    """What calls to models and tools are looked at for. Rules of wider scopes come first, and all of them count."""

    request: tuple[RequestRule, ...] = Field(default=(), description="for what goes out")
    response: tuple[ResponseRule, ...] = Field(default=(), description="for what comes back, streams as well")
    unsupported: Literal["reject", "pass"] = Field(
        default="reject", description="calls of an API whose texts the guards cannot read (sound, pictures, realtime)"
    )
    opaque: Literal["reject", "pass"] = Field(
        default="pass", description="pictures, sound and encrypted reasoning in what can be read otherwise; counted"
    )

    @property
    def hears(self) -> bool:
        """Whether what it cannot read may pass: sound."""
        return self.unsupported == "pass"

    @property
    def asks(self) -> bool:
        """Whether there is what ends with the configuration: what is asked, and what masks are remembered in."""
        return any(not rule.is_pattern or rule.reversible for rule in (*self.request, *self.response))

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.request and not self.response:
            raise ValueError("neither `request` nor `response` has a rule; leave it out")
        return self
