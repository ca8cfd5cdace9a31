"""Transform: fields of a model's request are removed, set or filled in, and a system text is put around the caller's.

Rule: what is changed are the fields of the request in the caller's own API, by the names they have there: at the top
level, or below it by a JSON Pointer. `model` and `stream` are not for it, since targets and callers decide those. Doubt
refuses: a value or condition in CEL that has no answer on a call (a missing header), or a value for which there is no
place, must not turn into a request that nobody meant.

Scopes add up: the narrower one's value counts where both set a field or its default, and the wider one's text stands
outside of the narrower one's.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, Any, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from tollhouse.core.call import Call, ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import CelCondition, Expression, Outcome, Undecided
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Parts, one_or_several, several
from tollhouse.policies.quotes import Changes
from tollhouse.wire.llm.system import System
from tollhouse.wire.pointer import Misplaced, Pointer

__all__ = ["TRANSFORM", "PromptSpec", "Steps", "Transform", "TransformSpec", "changes_of"]

Raw = msgspec.Raw

_KEPT = ("model", "stream")
_HOLE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_OWN = "system"
_LONGEST = 65_536  # characters that CEL may put into one hole
_CEL = frozenset(("cel",))
_FILLED = 1024  # bytes that CEL is reckoned to put somewhere
_BOUND = re.compile(r"(?i:max_?(?:completion_?|output_?)?tokens|(?:generation|inference)_?config)$")
_SEVERAL = re.compile(r"(?:^|/)(?:n|best_of|candidate_?count)$", re.IGNORECASE)
_TIER = re.compile(r"service_?tier|speed", re.IGNORECASE)

_encode = msgspec.json.Encoder().encode


# ---- Specs


def _field(name: str) -> str:
    first = name
    if name.startswith("/"):
        steps = Pointer(name).steps
        first = steps[0]
        if len(steps) == 1:
            raise ValueError(f"`{name}` is a field of the top level: write {first!r}")
    if first.casefold() in _KEPT:
        raise ValueError(f"`{name}` cannot be changed: targets name the model, and the caller says whether to stream")
    if not first:
        raise ValueError("a field has a name")
    return name


def _there(name: str) -> str:
    if name.startswith("/") and Pointer(name).is_next:
        raise ValueError(f"`{name}`: `-` is the place behind a list's last element, where nothing is; use it in `set`")
    return name


def _value(value: JsonValue) -> JsonValue:
    if isinstance(value, dict) and value.keys() == _CEL:
        source = value["cel"]
        if not isinstance(source, str):
            raise ValueError("`cel` is an expression, as text")
        Expression(source)
    else:
        _json(value)
    return value


def _text(value: str) -> str:
    for source in _HOLE.findall(value):
        if source.strip() != _OWN:
            Expression(source.strip())
    return value


def _without_own(value: str) -> str:
    if any(source.strip() == _OWN for source in _HOLE.findall(value)):
        raise ValueError("`{{ system }}` is for `template`; a prefix or suffix stands beside the caller's text anyway")
    return value


FieldName = Annotated[str, AfterValidator(_field)]
FieldThere = Annotated[str, AfterValidator(_field), AfterValidator(_there)]
FieldValue = Annotated[JsonValue, AfterValidator(_value)]
PromptText = Annotated[str, Field(min_length=1), AfterValidator(_text)]


class PromptSpec(Spec):
    """System text around the caller's own. `{{ ... }}` in it is CEL."""

    prefix: Annotated[PromptText, AfterValidator(_without_own)] | None = Field(
        default=None, description="before the caller's system text"
    )
    suffix: Annotated[PromptText, AfterValidator(_without_own)] | None = Field(
        default=None, description="after the caller's system text"
    )
    template: PromptText | None = Field(
        default=None,
        description="in place of the caller's system text, which `{{ system }}` stands for; it may be left out",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.template is None and self.prefix is None and self.suffix is None:
            raise ValueError("give a prefix, a suffix, or a template")
        if self.template is None:
            return self
        if self.prefix is not None or self.suffix is not None:
            raise ValueError("a template is the whole text; give it, or prefix and suffix")
        if sum(source.strip() == _OWN for source in _HOLE.findall(self.template)) > 1:
            raise ValueError("`{{ system }}` stands in a template once")
        return self


class TransformSpec(Spec):
    """Changes to the fields of a request, in this order: remove, set, defaults, prompt. A field is a name of the top
    level, or a JSON Pointer like /metadata/team, in which * is each element of a list. A value is any JSON, or
    `{cel: ...}`."""

    when: CelCondition | None = Field(default=None, description="only for calls for which this CEL expression is true")
    remove: tuple[FieldThere, ...] = Field(default=(), description="taken away")
    set: dict[FieldName, FieldValue] = Field(default={}, description="in place of what the caller says")
    defaults: dict[FieldThere, FieldValue] = Field(default={}, description="where the caller says nothing, or null")
    prompt: PromptSpec | None = Field(default=None, description="system text before and after the caller's own")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not (self.remove or self.set or self.defaults or self.prompt):
            raise ValueError("nothing is changed here; leave it out")
        for one, other, why in (
            (self.remove, self.set, "both removed and set; `set` replaces it anyway"),
            (self.remove, self.defaults, "removed, so that its default always counts; use `set`"),
            (self.set, self.defaults, "both set and a default; what is set always counts"),
        ):
            both = frozenset(one).intersection(other)
            if both:
                raise ValueError(f"`{min(both)}` is {why}")
        return self


Steps = Annotated[
    tuple[TransformSpec, ...],
    Field(min_length=1, json_schema_extra=one_or_several),
    BeforeValidator(several),
]
"""One transform, or several in order."""


def changes_of(steps: Sequence[TransformSpec]) -> Changes:
    """What these may make of a request, for what it may cost."""
    size, output = 0, 0
    tiers: list[str] = []
    for step in steps:
        for name, value in (*step.set.items(), *step.defaults.items()):
            computed = isinstance(value, dict) and value.keys() == _CEL
            size += len(name) + (_FILLED if computed else len(_encode(value)))
            if _TIER.fullmatch(name) and isinstance(value, str):
                tiers.append(value.lower())
            if _SEVERAL.search(name) and value != 1:
                output = -1  # each of the answers may be as long as one
        if step.prompt is not None:
            for text in filter(None, (step.prompt.prefix, step.prompt.suffix, step.prompt.template)):
                pieces = _HOLE.split(text)
                size += sum(len(_encode(piece)) for piece in pieces[::2]) + _FILLED * (len(pieces) // 2)
        for name in (*step.remove, *step.set):
            if _BOUND.search(name):
                value = step.set.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0 and output >= 0:
                    output = max(output, value)
                else:
                    output = -1
    return Changes(size, output, tuple(tiers))


# ---- the policy


Value = Callable[[Call], Raw]


class _Step:
    """One transform, ready-made."""

    __slots__ = ("_defaults", "_gone", "_gone_below", "_prompt", "_set", "_when", "where")

    def __init__(self, spec: TransformSpec, where: str) -> None:
        self.where = where
        self._when = None if spec.when is None else Expression(spec.when)
        self._gone = frozenset(name.casefold() for name in (*spec.remove, *spec.set) if not name.startswith("/"))
        self._gone_below = [Pointer(name) for name in spec.remove if name.startswith("/")]
        self._set = [(name, _below(name), self._value(name, value)) for name, value in spec.set.items()]
        self._defaults = [(name, _below(name), self._value(name, value)) for name, value in spec.defaults.items()]
        self._prompt = None if spec.prompt is None else self._system(spec.prompt)

    def concerns(self, call: Call) -> bool:
        """Raises Failure 400 where that cannot be decided."""
        if self._when is None:
            return True
        said = self._when.ask(call)
        if said is Outcome.DOUBT:
            raise self._undecided("when", "it is neither true nor false")
        return said is Outcome.YES

    def assign(self, call: ModelCall) -> None:
        fields = call.fields
        if self._gone:
            # Some servers take a field whatever the case of its name.
            for name in [name for name in fields if name.casefold() in self._gone]:
                del fields[name]
        for pointer in self._gone_below:
            pointer.remove(fields)
        for name, place, value in self._set:
            if place is None:
                fields[name] = value(call)
                continue
            try:
                place.put(fields, value(call))
            except Misplaced as error:
                raise self._no_place(name, error) from None

    def fill(self, call: ModelCall) -> None:
        fields = call.fields
        for name, place, value in self._defaults:
            if place is not None:
                place.fill(fields, partial(value, call))
                continue
            have = fields.get(name)
            if have is None or bytes(have) == b"null":
                fields[name] = value(call)

    def prompt(self, call: ModelCall) -> None:
        if self._prompt is not None:
            call.dialect.with_system(call.fields, self._prompt(call))

    def _value(self, name: str, value: JsonValue) -> Value:
        if not isinstance(value, dict) or value.keys() != _CEL:
            raw = _json(value)
            return lambda _: raw
        expression = Expression(str(value["cel"]))

        def computed(call: Call) -> Raw:
            try:
                return _json(expression.value(call))
            except ValueError as error:  # Undecided, or a value that JSON does not have
                raise self._undecided(name, str(error)) from None

        return computed

    def _system(self, spec: PromptSpec) -> Callable[[Call], System]:
        before, after, own = spec.prefix or "", spec.suffix or "", True
        if spec.template is not None:
            parts = _split(spec.template)
            own = len(parts) == 2
            before, after = parts if own else (spec.template, "")
        prefix, suffix = self._template(before), self._template(after)
        return lambda call: System(prefix(call), suffix(call), own)

    def _template(self, text: str) -> Callable[[Call], str]:
        pieces: Sequence[str] = _HOLE.split(text)
        texts = pieces[::2]
        holes = [Expression(source.strip()) for source in pieces[1::2]]
        if not holes:
            return lambda _: text

        def filled(call: Call) -> str:
            out = [texts[0]]
            try:
                for hole, following in zip(holes, texts[1:], strict=True):
                    out += (hole.text(call, _LONGEST), following)
            except Undecided as error:
                raise self._undecided("prompt", str(error)) from None
            return "".join(out)

        return filled

    def _no_place(self, name: str, error: Misplaced) -> Failure:
        return Failure(
            400,
            Reason.INVALID_REQUEST,
            f"{error}: the gateway sets a value in it",
            code="invalid_value",
            detail=f"{self.where}: {name}",
        )

    def _undecided(self, name: str, why: str) -> Failure:
        return Failure(
            400,
            Reason.INVALID_REQUEST,
            f"the gateway cannot work out `{name}` for this request: something it needs is missing or of a wrong type; "
            "ask the operator of this gateway what that is",
            code="transform_undecided",
            detail=f"{self.where}: {name}: {why}",
        )


class Transform:
    """The transforms that are in force for one model."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._steps = tuple(
            _Step(spec, f"{layer.where}: transform {number}")
            for layer in layers
            for number, spec in enumerate(layer.spec, 1)
        )

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 400."""
        if isinstance(call, ModelCall):
            steps = [step for step in self._steps if step.concerns(call)]
            if steps:
                self._change(call, steps)
        return next(call)

    def _change(self, call: ModelCall, steps: Sequence[_Step]) -> None:
        for step in steps:
            step.assign(call)
        for step in reversed(steps):
            step.fill(call)
        for step in reversed(steps):
            step.prompt(call)
        # What was worked out of the fields before.
        call.chat = None
        call.reserve = None


def _below(name: str) -> Pointer | None:
    """Where a field is, unless at the top level."""
    return Pointer(name) if name.startswith("/") else None


def _split(template: str) -> list[str]:
    """What stands before and after `{{ system }}`; the template alone where there is none."""
    for hole in _HOLE.finditer(template):
        if hole[1].strip() == _OWN:
            return [template[: hole.start()].strip(), template[hole.end() :].strip()]
    return [template]


def _json(value: Any) -> Raw:
    """Raises ValueError for what JSON does not have."""
    try:
        raw = _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from None
    if raw == b"null" and value is not None:
        raise ValueError("not a JSON value: NaN and infinity are none")
    return Raw(raw)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return Transform(layers).handle


TRANSFORM: Kind[Call, Reply] = Kind(
    "transform", frozenset(("top", "model")), adds=True, build=_build, entrances=frozenset(("llm",))
)
