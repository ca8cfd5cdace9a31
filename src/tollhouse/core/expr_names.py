"""What a CEL expression names: the facts that its variables and fields stand for.

Rule: who writes a name that there is not hears so when configuration is read, with those that there are. What CEL's own
parser knows of an expression (its variables and functions) is not enough for that, so its text is read here as well;
where the two disagree, CEL is believed.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tollhouse.core.facts import FACTS, VARIABLES, Fact

__all__ = ["FUNCTIONS", "MACROS", "Named", "Token"]

FUNCTIONS = (
    "size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bytes", "type", "dyn",
    "timestamp", "duration", "getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear",
    "getHours", "getMinutes", "getSeconds", "getMilliseconds",
)  # fmt: skip
MACROS = ("all", "exists", "exists_one", "filter", "map")


class Token(NamedTuple):
    """kind: text, name, number, sign. start, end: characters of the source."""

    kind: str
    text: str
    start: int
    end: int


_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<text>(?:[bB]?[rR]|[rR][bB])(?:\"\"\"(?s:.*?)\"\"\"|'''(?s:.*?)'''|"[^"\n]*"|'[^'\n]*')
      |[bB]?(?:\"\"\"(?s:\\.|.)*?\"\"\"|'''(?s:\\.|.)*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
  | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<number>0x[0-9A-Fa-f]+[uU]?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[uU]?)
  | (?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%!<>=?:.,()\[\]{}])
    """,
    re.VERBOSE,
)
_PLAIN = re.compile(r"""(?:"([^"\\\n]*)"|'([^'\\\n]*)')""")
_WORDS = frozenset(("true", "false", "null", "in"))


def _tokens(source: str) -> Iterator[Token]:
    at = 0
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None:
            raise ValueError(f"not a CEL expression: a character that has no meaning at {at + 1}: {source[at]!r}")
        if found.lastgroup != "space":
            yield Token(found.lastgroup or "", found[0], at, found.end())
        at = found.end()


class Named:
    """An expression's tokens, and which facts each of its names stands for. program: as CEL has compiled it. variables:
    those that may be named. late: facts that are known only when the call is over may be, too. Raises ValueError.

    named: facts by the place of the token. keys: of open facts by path, the members that are named, None for all.
    sound: our reading of the names agrees with the CEL parser's. It always should; where not, all that the program
    could read counts as named.
    """

    def __init__(self, source: str, program: Any, variables: frozenset[str], late: bool) -> None:
        self.source = source
        self.tokens = tuple(_tokens(source))
        self.variables = variables
        self.late = late
        self.named: dict[int, frozenset[Fact]] = {}
        self.keys: dict[str, set[str] | None] = {}
        self._check_functions(program)
        read = self._walk()
        told = set(program.variables())
        self.sound = told == read
        facts = frozenset[Fact]().union(*self.named.values())
        if not self.sound:
            for name in told - read:
                self._check_variable(name)
            facts |= {fact for fact in FACTS if fact.variable in told}
        self.facts = facts

    def _check_functions(self, program: Any) -> None:
        for name in program.functions():
            if name[:1].isalpha() and name not in FUNCTIONS:
                known = ", ".join((*FUNCTIONS, "has", *MACROS))
                raise ValueError(f"unknown function `{name}`; there are: {known}")

    def _check_variable(self, name: str) -> None:
        if name not in self.variables:
            known = ", ".join(v for v in VARIABLES if v in self.variables)
            where = " here" if name in VARIABLES else ""
            raise ValueError(f"unknown variable `{name}`{where}; there are: {known}")

    def _walk(self) -> set[str]:
        """Fill `named`; all root names, bound ones included."""
        roots: set[str] = set()
        scopes: list[str] = []  # what each open bracket binds, "" for nothing
        for at, token in enumerate(self.tokens):
            if token.text in ("(", "[", "{") and token.kind == "sign":
                bound = self._binds(at)
                if bound in VARIABLES:
                    raise ValueError(f"`{bound}` is a variable; give the element in `{self._at(at - 1)}` another name")
                scopes.append(bound)
            elif token.text in (")", "]", "}") and token.kind == "sign":
                scopes.pop()
            elif token.kind == "name" and token.text not in _WORDS and self._is_root(at):
                roots.add(token.text)
                if self._at(at + 1) == "{":
                    raise ValueError(f"message literals like `{token.text}{{...}}` are not supported")
                if token.text not in scopes:
                    self._check_variable(token.text)
                    self.named[at] = self._facts(at)
        return roots

    def _at(self, at: int) -> str:
        """The sign or name there; "" for texts, numbers and beyond the ends."""
        if 0 <= at < len(self.tokens) and self.tokens[at].kind in ("sign", "name"):
            return self.tokens[at].text
        return ""

    def _binds(self, at: int) -> str:
        """The name that the call opened at `at` binds: `x` in `.all(x, ...)`."""
        if self._at(at) == "(" and self._at(at - 1) in MACROS and self._at(at - 2) == "." and self._at(at + 2) == ",":
            return self._at(at + 1)
        return ""

    def _is_root(self, at: int) -> bool:
        return self._at(at - 1) != "." and self._at(at + 1) != "("

    def _facts(self, at: int) -> frozenset[Fact]:
        """The facts that the name at `at`, with the fields selected from it, stands for."""
        variable = self.tokens[at].text
        path, end = self._path(at)
        tested = self._at(at - 2) == "has" and self._at(at - 1) == "(" and self._at(end) == ")"
        mine = [f for f in FACTS if f.variable == variable and not (f.early if self.late else f.late)]
        if not path or not mine[0].name:
            self.keys.update((fact.path, None) for fact in mine)
            return frozenset(mine)
        for fact in mine:
            if [part for part in (fact.group, fact.name) if part] == path[: 1 + bool(fact.group)]:
                if not fact.open and len(path) > 1 + bool(fact.group):
                    raise ValueError(f"`{fact.path}` has no fields: there is no `{'.'.join((variable, *path))}`")
                self._take_key(fact, path[1 + bool(fact.group) :])
                return frozenset((fact,))
        group = [fact for fact in mine if fact.group == path[0]]
        if group and len(path) == 1:
            self.keys.update((fact.path, None) for fact in group)
            # `has(mcp.tool)` asks only whether there is one; `mcp.tool` by itself is all of it.
            return frozenset(fact for fact in group if fact.name_of_call or not tested)
        known = ", ".join(dict.fromkeys(fact.path for fact in (group or mine)))
        raise ValueError(f"unknown field `{'.'.join((variable, *path[: 1 + bool(group)]))}`; there are: {known}")

    def _take_key(self, fact: Fact, path: list[str]) -> None:
        """Of the map `fact` the member that `path` begins with is named, or all of it."""
        named = self.keys.setdefault(fact.path, set())
        if not path:
            self.keys[fact.path] = None
        elif named is not None:
            named.add(path[0])

    def _path(self, at: int) -> tuple[list[str], int]:
        """Fields selected by name after the root at `at`, and the place after them. A method is not a field."""
        path: list[str] = []
        at += 1
        while True:
            if self._at(at) == "." and self.tokens[at + 1].kind == "name" and self._at(at + 2) != "(":
                path.append(self.tokens[at + 1].text)
                at += 2
            elif self._at(at) == "[" and self._at(at + 2) == "]":
                plain = _PLAIN.fullmatch(self.tokens[at + 1].text)
                if plain is None:
                    return path, at
                path.append(plain[1] if plain[1] is not None else plain[2])
                at += 3
            else:
                return path, at
