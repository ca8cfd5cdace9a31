"""CEL expressions over a Call: checked when configuration is read, asked when a call comes.

Rule: doubt is an answer of its own. A rule that cannot be decided (a claim that is not there, a wrong type) is not
false: who asks decides, and a guard denies. Two kinds of "cannot" are told apart from doubt, because they are no
fault of the caller: the rule speaks of something the call is not about (`mcp.tool` on a model call), and, in
listings, of something only a call has (a tool's arguments, the request's headers).

CEL itself absorbs errors: `false && error` is false and `true || error` is true. Only where the whole expression
fails is its skeleton of `&&`, `||` and `!` walked, part by part (see `_AND` and `_OR`).
"""

import re
from collections.abc import Collection, Mapping
from enum import Enum
from functools import partial
from itertools import groupby, pairwise
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator

from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.cel_engine import cel
from tollhouse.core.expr_names import Named, Token
from tollhouse.core.facts import FACTS, MISSING, VARIABLES, Fact, Prepared, Read, gather, prepare, recall
from tollhouse.core.http import Headers, Request

__all__ = ["Cel", "CelCondition", "Expression", "Memo", "Outcome", "Undecided", "check_condition", "not_bool"]

MAX_SOURCE = 4096
"""Characters of one expression. Its depth is bounded by CEL's parser."""

MAX_VERDICTS = 1024
"""Remembered verdicts of one Principal."""

_ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What `Program.execute` and reading a call's JSON raise (RecursionError is a RuntimeError)."""


class Undecided(ValueError):
    """The expression has no value on this call; says why. For the log: it may quote the caller's values."""


class Outcome(Enum):
    """What a rule says of a call."""

    YES = "yes"
    NO = "no"
    DOUBT = "doubt"  # it failed: a missing claim or header, a wrong type, an answer that is not a bool
    APART = "apart"  # it speaks of something this call is not about
    UNSURE = "unsure"  # in a listing: it depends on what only a call has


YES, NO, DOUBT, APART, UNSURE = Outcome

# `a && b` is the first of these that a or b is; `a || b` likewise. APART is neutral in `||`, and in `&&` it takes the
# rule away; UNSURE gives way to doubt in `||`, since both decide against the call there.
_AND = (NO, APART, UNSURE, DOUBT, YES)
_OR = (YES, DOUBT, UNSURE, NO, APART)
_NOT = {YES: NO, NO: YES}


class Expression:
    """A compiled expression.

    source: at most 4,096 characters of CEL. variables: those that may be named here. late: facts known only when the
    call is over may be named too. Raises ValueError saying what is wrong and what would be right.

    names_only: its value depends on the Principal and on what is asked (model; server, method and name), and on
    nothing else of the call, so that it may be remembered (`Memo`). reads_listed: it names what servers say of their
    things, so that its answer in listings may change.
    """

    __slots__ = (
        "_listed",
        "_nobody",
        "_per_call",
        "_program",
        "_reads",
        "_tree",
        "names_only",
        "reads_listed",
        "source",
    )

    def __init__(self, source: str, variables: Collection[str] = VARIABLES, *, late: bool = False) -> None:
        self.source = source
        self._program = _compile(source)
        text = Named(source, self._program, frozenset(variables), late)
        self.names_only = text.sound and all(fact.caller or fact.name_of_call for fact in text.facts)
        self._reads = _by_variable(text.facts, text.keys if text.sound else {})
        self._per_call = any(_is_per_call(fact) for fact in text.facts)
        self._listed = _by_variable([fact for fact in text.facts if fact.name_of_call or fact.listed])
        self.reads_listed = any(fact.listed for fact in text.facts)
        # Only a rule that names something a call may lack ever needs its parts.
        self._tree = _grow(text, 0, len(text.tokens)) if self._reads else None
        self._nobody = Principal("anonymous", source="anonymous")

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"

    def value(self, call: Call) -> Any:
        """What it says of `call`. Raises Undecided."""
        try:
            context, current = self._prepared(call)
            for variable, facts in self._reads:
                current[variable] = gather(facts, call)
            return self._program.execute(context)
        except _ERRORS as error:
            raise Undecided(_why(error)) from None
        finally:
            self._forget(call)

    def evaluate(self, request: Request, context: Context) -> Any:
        """What it says of a finished request, for metric labels and log fields. Raises Undecided."""
        return self.value(recall(request, context))

    def text(self, call: Call, limit: int = 128) -> str:
        """`value` as text of at most `limit` characters, for keys and labels. Raises Undecided, also for lists and
        maps, which are no keys."""
        value = self.value(call)
        if isinstance(value, bool):
            return "true" if value else "false"
        if value is None or isinstance(value, (list, dict)):
            raise Undecided(f"it is {'null' if value is None else 'a list or map'}, not a text or a number")
        return str(value)[:limit]

    def apart(self, call: Call) -> bool:
        """Whether it names something of a model call or an MCP call that `call` is not about."""
        return any(_speaks_of_other(fact, call) for _, facts in self._reads for fact in facts)

    def ask(self, call: Call, *, listing: bool = False) -> Outcome:
        """As a rule. listing: `call` stands for any call of that name by that principal, so that nothing else of it is
        known; the answer then depends on the names alone, and on what servers say of the things named."""
        try:
            context, current = self._prepared(call)
            for variable, facts in self._listed if listing else self._reads:
                current[variable] = gather(facts, call)
            if not (listing and self._per_call):
                try:
                    return _verdict(self._program.execute(context))
                except _ERRORS:
                    pass
            return DOUBT if self._tree is None else self._tree.ask(context, call, listing)
        except _ERRORS:  # facts that cannot be read, or claims that CEL has no type for
            return DOUBT
        finally:
            self._forget(call)

    def _prepared(self, call: Call) -> Prepared:
        principal = call.principal
        if principal is None:
            principal = self._nobody
        prepared: Prepared | None = principal.facts
        return prepare(principal) if prepared is None else prepared

    def _forget(self, call: Call) -> None:
        """Take the call's facts out of the principal's context: the next call must not see them."""
        principal = call.principal
        prepared = (self._nobody if principal is None else principal).facts
        if prepared is not None:
            prepared[1].clear()


class Memo:
    """Verdicts remembered on the Principal, for a decision made of `expressions`.

    names_only: False when one of them depends on more of a call than its name; then nothing is remembered.
    """

    __slots__ = ("names_only",)

    def __init__(self, expressions: Collection[Expression]) -> None:
        self.names_only = all(expression.names_only for expression in expressions)

    def get(self, call: Call) -> bool | None:
        """The remembered verdict, or None."""
        principal = call.principal
        if principal is None or not self.names_only:
            return None
        # The memo itself is part of the key: an id could come back with another configuration.
        if type(call) is ModelCall:
            return principal.verdicts.get((self, call.model))
        if type(call) is ToolCall:
            return principal.verdicts.get((self, call.server, call.method, call.name))
        return principal.verdicts.get(self) if type(call) is Call else None

    def put(self, call: Call, verdict: bool) -> None:
        principal = call.principal
        if principal is None or not self.names_only:
            return
        verdicts = principal.verdicts
        if len(verdicts) >= MAX_VERDICTS:
            verdicts.clear()
        if type(call) is ModelCall:
            verdicts[(self, call.model)] = verdict
        elif type(call) is ToolCall:
            verdicts[(self, call.server, call.method, call.name)] = verdict
        elif type(call) is Call:
            verdicts[self] = verdict


def _checked(source: str) -> str:
    Expression(source)
    return source


Cel = Annotated[str, AfterValidator(_checked)]
"""A CEL expression in a Spec, checked when it is read."""


def check_condition(expression: Expression) -> None:
    """Raises ValueError for an expression whose value is a bool for no call: seen from its value for one that says
    nothing. What has no value there (a claim, a header) may be anything."""
    request = Request(b"POST", b"/", Headers([(b"host", b"localhost")]))
    call = ModelCall(
        request, Context(), dialect=_NO_DIALECT, operation="chat", model="m", label="m", stream=False, fields={},
        body=b"", reserve=1,
    )  # fmt: skip
    try:
        value = expression.value(call)
    except Undecided:
        return
    if not isinstance(value, bool):
        raise ValueError(f"a condition is true or false, and this is {_kind(value)}: compare it with something")


def not_bool(value: Any) -> str:
    """Why the value of a condition is of no use, for the log; "" for a bool."""
    return "" if isinstance(value, bool) else f"it is {_kind(value)}, neither true nor false"


_NO_DIALECT = object()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a map" if isinstance(value, dict) else "a list" if isinstance(value, (list, tuple)) else "something else"


def _decides(source: str) -> str:
    check_condition(Expression(source))
    return source


CelCondition = Annotated[str, AfterValidator(_decides)]
"""As Cel, where it is asked for a yes or no."""


def _compile(source: str) -> Any:
    if len(source) > MAX_SOURCE:
        raise ValueError(f"the expression has {len(source)} characters; {MAX_SOURCE} are allowed")
    try:
        return cel.compile(source)
    except ValueError as error:
        # The library's text repeats the source and draws an arrow; its first ERROR line has the place and the cause.
        found = re.search(r"ERROR: <input>:(\d+):(\d+): (.*)", str(error))
        if found is None:
            raise ValueError("not a CEL expression") from None
        cause = found[3].split(" expecting ")[0]
        raise ValueError(f"not a CEL expression: line {found[1]}, column {found[2]}: {cause}") from None


def _why(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"there is no {error.args[0] if error.args else 'such key'!r}"
    return str(error)[:200] or type(error).__name__


def _verdict(value: Any) -> Outcome:
    return YES if value is True else NO if value is False else DOUBT


def _by_variable(
    facts: Collection[Fact], keys: Mapping[str, set[str] | None] = MappingProxyType({})
) -> tuple[tuple[str, tuple[Fact, ...]], ...]:
    """keys: of maps by the path of their fact, the only ones that are named; None for all."""
    read = [fact for fact in FACTS if fact in facts and not fact.caller]
    named = [keys.get(fact.path) for fact in read]
    # CEL takes a map member by member, which costs more than all else.
    read = [
        fact._replace(read=partial(_some, fact.read, frozenset(wanted))) if wanted else fact
        for fact, wanted in zip(read, named, strict=True)
    ]
    return tuple((variable, tuple(group)) for variable, group in groupby(read, key=lambda fact: fact.variable))


def _some(read: Read, wanted: frozenset[str], call: Call) -> Any:
    value = read(call)
    return {key: value[key] for key in wanted if key in value} if isinstance(value, dict) else value


# ---- the skeleton of && || !


class _Part:
    """One comparison of a rule, asked by itself when the rule as a whole has failed."""

    __slots__ = ("_facts", "_per_call", "_program")

    def __init__(self, source: str, facts: frozenset[Fact]) -> None:
        self._program = cel.compile(source)
        self._facts = tuple(fact for fact in facts if not fact.caller)
        self._per_call = any(_is_per_call(fact) for fact in self._facts)

    def ask(self, context: cel.Context, call: Call, listing: bool) -> Outcome:
        if listing and self._per_call:
            return APART if any(_speaks_of_other(fact, call) for fact in self._facts) else UNSURE
        try:
            return _verdict(self._program.execute(context))
        except _ERRORS:
            return APART if any(_speaks_of_other(fact, call) for fact in self._facts) else DOUBT


def _is_per_call(fact: Fact) -> bool:
    """Whether only a call has it, and a listing does not."""
    return not (fact.caller or fact.name_of_call or fact.listed)


def _speaks_of_other(fact: Fact, call: Call) -> bool:
    if fact.variable not in ("llm", "mcp"):
        return False
    try:
        return fact.read(call) is MISSING
    except _ERRORS:  # it has one, which cannot be read
        return False


class _Both:
    """`a && b && ...` or `a || b || ...`: the first of `order` that any of them is."""

    __slots__ = ("_order", "_parts")

    def __init__(self, order: tuple[Outcome, ...], parts: list["_Tree"]) -> None:
        self._order = order
        self._parts = parts

    def ask(self, context: cel.Context, call: Call, listing: bool) -> Outcome:
        said = {part.ask(context, call, listing) for part in self._parts}
        return next(outcome for outcome in self._order if outcome in said)


class _Not:
    __slots__ = ("_part",)

    def __init__(self, part: "_Tree") -> None:
        self._part = part

    def ask(self, context: cel.Context, call: Call, listing: bool) -> Outcome:
        said = self._part.ask(context, call, listing)
        return _NOT.get(said, said)


_Tree = _Part | _Both | _Not


def _grow(text: Named, first: int, last: int) -> _Tree:
    """The skeleton of the tokens from `first` up to `last`. What is not `&&`, `||`, `!` of a bracket, or a bracket is a
    part."""
    tokens = text.tokens
    breaks: dict[str, list[int]] = {"||": [], "&&": [], "?": []}
    depth, whole = 0, tokens[first].text == "(" and tokens[first].kind == "sign"
    for at in range(first, last):
        sign = tokens[at].text if tokens[at].kind == "sign" else ""
        if sign in ("(", "[", "{"):
            depth += 1
        elif sign in (")", "]", "}"):
            depth -= 1
            whole = whole and (depth > 0 or at == last - 1)
        elif depth == 0 and sign in breaks:
            breaks[sign].append(at)
    if not breaks["?"]:
        for sign, order in (("||", _OR), ("&&", _AND)):
            if breaks[sign]:
                edges = [first - 1, *breaks[sign], last]
                return _Both(order, [_grow(text, a + 1, b) for a, b in pairwise(edges)])
        if whole:
            return _grow(text, first + 1, last - 1)
        if tokens[first].text == "!" and tokens[first].kind == "sign" and _is_bracket(tokens, first + 1, last):
            return _Not(_grow(text, first + 1, last))
    facts = frozenset[Fact]().union(*(text.named.get(at, frozenset()) for at in range(first, last)))
    return _Part(text.source[tokens[first].start : tokens[last - 1].end], facts if text.sound else text.facts)


def _is_bracket(tokens: tuple[Token, ...], first: int, last: int) -> bool:
    """Whether the tokens are one bracketed expression."""
    depth = 0
    for at in range(first, last):
        if tokens[at].kind == "sign":
            depth += (tokens[at].text in ("(", "[", "{")) - (tokens[at].text in (")", "]", "}"))
        if depth == 0:
            return tokens[first].text == "(" and at == last - 1
    return False
