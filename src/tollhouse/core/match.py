"""Which requests a route is for: paths in one normal form, and predicates over path, host, method, header and query.

Rule: a path is compared, authorised and sent upstream in the same form. `normalise` makes that form, refuses what
different servers read differently, and leaves a path that already has it untouched.
"""

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Self
from urllib.parse import unquote_to_bytes

import msgspec
from pydantic import BeforeValidator, Field, field_validator, model_validator

from tollhouse.core.cel_engine import cel
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.core.spec import Spec

__all__ = ["FieldMatch", "FieldSpec", "MatchSpec", "Predicate", "PredicateSpec", "host_of", "normal_path", "normalise"]

_PCHAR = rb"A-Za-z0-9\-._~!$&'()*+,;=:@"
# No possessive quantifiers here or elsewhere: with groups they match what they should not before Python 3.11.5.
_NORMAL = re.compile(rb"(?:/(?!\.\.?(?:[/;]|\Z))[" + _PCHAR + rb"]+)*/?")
_FORBIDDEN = re.compile(rb"[\x00-\x20\x7f-\xff\\#?]")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?|[^" + _PCHAR + rb"%/]")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SEPARATOR = re.compile(rb"%2F|%5C")
_DOTS = (b".", b"..")
_MAX_VALUE = 4096  # bytes of a header or query value that a regular expression looks at

_HOST = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*|\[[0-9a-f:.]+\]"
)
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def normalise(path: bytes) -> bytes:
    """The normal form of a request path (RFC 3986 section 6.2.2), the one that is matched, authorised and sent on.

    Percent-encoded unreserved characters are decoded, other escapes get upper-case digits, dot segments are removed,
    repeated slashes become one, and printable characters that RFC 3986 does not allow in a path are encoded. `%2F`
    stays as it is: it is data, not a separator. Raises Failure 400 for what servers read in different ways: a bad
    escape, NUL, control characters, bytes above 0x7E, backslashes, a path that climbs above the root, and dot segments
    that show only after a second reading (`..%2F`, `..%5C`, `..;x`).
    """
    if path and _NORMAL.fullmatch(path):
        return path
    if path[:1] != b"/":
        raise _bad("it must begin with a slash")
    if _FORBIDDEN.search(path):
        raise _bad("it has a character that must be percent-encoded, or that is not allowed at all")
    segments: list[bytes] = []
    parts = _ESCAPE.sub(_canonical, path).split(b"/")
    for segment in parts:
        if not segment or segment == b".":
            continue
        if segment == b"..":
            if not segments:
                raise _bad("it climbs above the root")
            segments.pop()
            continue
        if b".." in segment or segment[:1] == b"." or b"%" in segment:
            for piece in _SEPARATOR.split(segment):
                if piece.partition(b";")[0] in _DOTS:
                    raise _bad("it hides a dot segment")
        segments.append(segment)
    if segments and (not parts[-1] or parts[-1] in _DOTS):
        segments.append(b"")
    return b"/" + b"/".join(segments)


def _canonical(match: re.Match[bytes]) -> bytes:
    digits = match[1]
    if digits is None:
        if match[0] == b"%":
            raise _bad("a percent sign must be followed by two hexadecimal digits")
        return b"%%%02X" % match[0][0]
    code = int(digits, 16)
    if code == 0:
        raise _bad("it has a NUL")
    return bytes((code,)) if code in _UNRESERVED else b"%" + digits.upper()


def _bad(why: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, f"the path of the request cannot be used: {why}")


def host_of(request: Request) -> bytes:
    """The host asked for: lower case, without port and without a final dot; empty when there is none."""
    value = (request.header(b"host") or b"").lower()
    if value[:1] == b"[":
        return value[: value.find(b"]") + 1]
    value = value.partition(b":")[0]
    return value[:-1] if value[-1:] == b"." else value


class FieldMatch(msgspec.Struct, frozen=True):
    """One header field or query parameter compared. kind: exact (any of `values`), prefix, contains, regex, present,
    absent. Where a name comes several times, one matching value is enough."""

    name: bytes
    kind: str
    values: tuple[bytes, ...] = ()
    program: Any = None  # of a regex; CEL's engine is linear in the value, whatever the pattern

    @property
    def key(self) -> tuple[bytes, str, tuple[bytes, ...]]:
        return (self.name, self.kind, self.values)

    def accepts(self, found: list[bytes]) -> bool:
        """Whether `found`, the values of that name in the request, fit."""
        kind = self.kind
        if kind == "absent":
            return not found
        if kind == "present":
            return bool(found)
        if kind == "exact":
            return any(v in self.values for v in found)
        return any(map(self._fits, found))

    def _fits(self, value: bytes) -> bool:
        if self.kind == "prefix":
            return value.startswith(self.values)
        if self.kind == "contains":
            return self.values[0] in value
        if len(value) > _MAX_VALUE:
            return False
        return bool(self.program.execute({"value": value.decode("utf-8", "replace")}))


class Predicate(msgspec.Struct, frozen=True):
    """What a request must be like. `path` is in normal form; as a prefix it has no final slash and matches whole
    segments. hosts: names or `.example.com` for every name below it; none: any host. methods: None for any."""

    path: bytes
    exact: bool = False
    hosts: tuple[bytes, ...] = ()
    methods: frozenset[bytes] | None = None
    headers: tuple[FieldMatch, ...] = ()
    query: tuple[FieldMatch, ...] = ()

    @property
    def weight(self) -> int:
        """How many conditions there are beyond path and host."""
        return len(self.headers) + len(self.query) + (self.methods is not None)

    @property
    def conditions(self) -> frozenset[Any]:
        """Header and query conditions as a comparable value."""
        return frozenset([("header", *f.key) for f in self.headers] + [("query", *f.key) for f in self.query])

    def fits_path(self, path: bytes) -> bool:
        if self.exact:
            return path == self.path
        size = len(self.path)
        return path[:size] == self.path and path[size : size + 1] in (b"", b"/")

    def fits_host(self, host: bytes) -> bool:
        return not self.hosts or any(host.endswith(h) if h[:1] == b"." else host == h for h in self.hosts)

    def fits_method(self, request: Request) -> bool:
        """OPTIONS fits every method, so that a CORS preflight finds the route it asks about; a preflight only where
        the method it announces fits."""
        methods = self.methods
        if methods is None or request.method in methods:
            return True
        if request.method != b"OPTIONS":
            return False
        announced = request.header(b"access-control-request-method")
        return announced is None or announced in methods

    def fits_fields(self, request: Request) -> bool:
        for field in self.headers:
            if not field.accepts(request.headers.get_all(field.name)):
                return False
        if self.query:
            found = _parameters(request.query)
            for field in self.query:
                if not field.accepts(found.get(field.name, [])):
                    return False
        return True

    def fits(self, request: Request, path: bytes) -> bool:
        """All of it; `path` is the request's in normal form."""
        return (
            self.fits_path(path)
            and self.fits_host(host_of(request))
            and self.fits_method(request)
            and self.fits_fields(request)
        )


def _parameters(query: bytes) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for pair in query.split(b"&"):
        if pair:
            name, _, value = pair.replace(b"+", b" ").partition(b"=")
            found.setdefault(unquote_to_bytes(name), []).append(unquote_to_bytes(value))
    return found


# ---- Specs


class FieldSpec(Spec):
    """One comparison, written out. Exactly one of these."""

    exact: str | None = Field(default=None, description="the whole value")
    prefix: str | None = Field(default=None, min_length=1, description="how the value begins")
    contains: str | None = Field(default=None, min_length=1, description="what is somewhere in the value")
    regex: str | None = Field(default=None, description="a regular expression (RE2 syntax) for the whole value")
    present: bool | None = Field(default=None, description="true: the name is there; false: it is not")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [n for n in ("exact", "prefix", "contains", "regex", "present") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of exact, prefix, contains, regex, present")
        if self.regex is not None:
            _regex(self.regex)
        return self


def _scalar(value: Any) -> Any:
    """YAML reads `2` as a number; in a request it is text."""
    if isinstance(value, list):
        return [_scalar(v) for v in value]
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


Comparison = Annotated[bool | str | list[str] | FieldSpec, BeforeValidator(_scalar)]
"""`true` present, `false` absent, text exact, a list any of these, or a FieldSpec."""


class MatchSpec(Spec):
    """Conditions on header fields and query parameters; all must hold."""

    headers: dict[str, Comparison] = Field(default={}, description="by header name, in any case")
    query: dict[str, Comparison] = Field(default={}, description="by parameter name, decoded")

    @field_validator("headers")
    @classmethod
    def _names(cls, value: dict[str, Comparison]) -> dict[str, Comparison]:
        for name in value:
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"not a header name: {name!r}")
        if len({name.lower() for name in value}) != len(value):
            raise ValueError("a header is named twice; names do not depend on case")
        return value

    @field_validator("headers", "query")
    @classmethod
    def _values(cls, value: dict[str, Comparison]) -> dict[str, Comparison]:
        for name, comparison in value.items():
            if isinstance(comparison, list) and not comparison:
                raise ValueError(f"{name}: an empty list matches nothing; name at least one value")
        return value


def normal_path(value: str) -> str:
    """A path of config, which is written in normal form. Raises ValueError that shows it."""
    try:
        normal = normalise(value.encode("utf-8")).decode("ascii")
    except Failure as failure:
        raise ValueError(failure.message) from None
    if normal != value:
        raise ValueError(f"not in normal form; write {normal!r}")
    return value


class PredicateSpec(Spec):
    """Which requests a route is for. Without any of these: all."""

    path: str | None = Field(
        default=None, description="this path and all below it, by whole segments; a final slash is optional"
    )
    exact: str | None = Field(default=None, description="this path and no other, instead of `path`")
    host: str | list[str] | None = Field(
        default=None, description="a name, or *.example.com for every name below it; or a list"
    )
    methods: list[str] | None = Field(default=None, min_length=1, description="request methods; GET includes HEAD")
    match: MatchSpec = Field(default=MatchSpec(), description="conditions on headers and query parameters")

    @field_validator("path", "exact")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return None if value is None else normal_path(value)

    @field_validator("host")
    @classmethod
    def _host(cls, value: str | list[str] | None) -> str | list[str] | None:
        for host in [value] if isinstance(value, str) else value or ():
            if not _HOST.fullmatch(host.lower()):
                raise ValueError(
                    f"not a host: {host!r}; write a name like api.example.com or *.example.com, without port"
                )
        if isinstance(value, list) and not value:
            raise ValueError("an empty list of hosts matches nothing; leave it out to match every host")
        return value

    @field_validator("methods")
    @classmethod
    def _methods(cls, value: list[str] | None) -> list[str] | None:
        for method in value or ():
            if not _TOKEN.fullmatch(method) or method != method.upper():
                raise ValueError(f"not a method: {method!r}; write upper-case names like GET")
        return value

    @model_validator(mode="after")
    def _one_path(self) -> Self:
        if self.path is not None and self.exact is not None:
            raise ValueError("give `path` or `exact`, not both")
        return self

    def compile(self) -> Predicate:
        """The Predicate of this Spec."""
        hosts = [self.host] if isinstance(self.host, str) else self.host or []
        methods = frozenset(m.encode("ascii") for m in self.methods) if self.methods is not None else None
        if methods is not None and b"GET" in methods:
            methods |= {b"HEAD"}
        path = self.exact if self.exact is not None else (self.path or "/").rstrip("/")
        return Predicate(
            path.encode("ascii"),
            exact=self.exact is not None,
            hosts=tuple(dict.fromkeys(h.lower().removeprefix("*").encode("ascii") for h in hosts)),
            methods=methods,
            headers=_fields(self.match.headers, str.lower),
            query=_fields(self.match.query, str),
        )


def _fields(comparisons: dict[str, Comparison], fold: Callable[[str], str]) -> tuple[FieldMatch, ...]:
    return tuple(_field(fold(name).encode("utf-8"), comparison) for name, comparison in comparisons.items())


def _field(name: bytes, comparison: bool | str | list[str] | FieldSpec) -> FieldMatch:
    if isinstance(comparison, bool):
        return FieldMatch(name, "present" if comparison else "absent")
    if isinstance(comparison, str):
        return FieldMatch(name, "exact", (comparison.encode("utf-8"),))
    if isinstance(comparison, list):
        return FieldMatch(name, "exact", _encoded(comparison))
    if comparison.present is not None:
        return FieldMatch(name, "present" if comparison.present else "absent")
    if comparison.regex is not None:
        return FieldMatch(name, "regex", _encoded([comparison.regex]), _regex(comparison.regex))
    for kind in ("exact", "prefix", "contains"):
        value = getattr(comparison, kind)
        if value is not None:
            return FieldMatch(name, kind, _encoded([value]))
    raise AssertionError("a FieldSpec has exactly one comparison")


def _encoded(values: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(sorted({v.encode("utf-8") for v in values}))


def _regex(pattern: str) -> Any:
    """A CEL program that tells whether `value` fits. Raises ValueError for a bad pattern."""
    # The pattern is a JSON string, and every JSON string is a CEL string with the same meaning.
    try:
        for anchored in (pattern, f"^(?:{pattern})$"):  # alone too, so that it cannot close our group
            program = cel.compile(f"value.matches({msgspec.json.encode(anchored).decode()})")
            program.execute({"value": ""})
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"not a regular expression: {pattern!r}: {error}") from None
    return program
