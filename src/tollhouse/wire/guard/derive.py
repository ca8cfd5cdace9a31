"""What follows from an expression: how it is written, how long its matches are, and what the beginnings of them are.

Rule: `prefixes` may say too much, never too little: every beginning of every match is one. Texts are held back by it,
so that too much costs delay, and too little would let a secret out.
"""

from tollhouse.wire.guard.expression import Assertion, Atom, Branches, Node, Repeat, Sequence

__all__ = ["alphabet", "least", "prefixes", "trie", "unbounded", "widest", "written"]

_COUNTED = 8
"""Counted repetitions above this are any number in `prefixes`: an automaton that counts them is slow to build."""

_NOTHING = Sequence()


def written(node: Node) -> str:
    """The expression in RE2's syntax."""
    if isinstance(node, Atom | Assertion):
        return f"(?{node.flags}:{node.source})" if node.flags else node.source
    if isinstance(node, Sequence):
        return "".join(_part(part) for part in _joined(node.parts))
    if isinstance(node, Branches):
        return "(?:" + "|".join(written(part) for part in node.parts) + ")"
    inner = written(node.node)
    if not isinstance(node.node, Atom):
        inner = f"(?:{inner})"
    if (node.least, node.most) == (0, 1):
        return inner + "?"
    if node.most is None:
        return inner + {0: "*", 1: "+"}.get(node.least, f"{{{node.least},}}")
    return inner + (f"{{{node.least}}}" if node.least == node.most else f"{{{node.least},{node.most}}}")


def _part(part: Node | str) -> str:
    return part if isinstance(part, str) else written(part)


def _joined(parts: tuple[Node, ...]) -> list[Node | str]:
    """Letters under the same flags written as one."""
    out: list[Node | str] = []
    run, flags = "", ""
    for part in (*parts, None):
        if isinstance(part, Atom) and part.flags:
            if run and part.flags != flags:
                out.append(f"(?{flags}:{run})")
                run = ""
            run, flags = run + part.source, part.flags
            continue
        if run:
            out.append(f"(?{flags}:{run})")
            run = ""
        if part is not None:
            out.append(part)
    return out


def least(node: Node) -> int:
    """Characters of the shortest match."""
    if isinstance(node, Atom):
        return 1
    if isinstance(node, Assertion):
        return 0
    if isinstance(node, Sequence):
        return sum(map(least, node.parts))
    if isinstance(node, Branches):
        return min(map(least, node.parts))
    return least(node.node) * node.least


def widest(node: Node) -> int | None:
    """Characters of the longest match, and one more where a condition looks at the next; None: there is no longest."""
    length = _widest(node)
    return None if length is None else length + _conditional(node)


def _widest(node: Node) -> int | None:
    if isinstance(node, Atom):
        return 1
    if isinstance(node, Assertion):
        return 0
    if isinstance(node, Repeat):
        inner = _widest(node.node)
        if inner == 0 or node.most == 0:
            return 0
        return None if inner is None or node.most is None else inner * node.most
    widths = [_widest(part) for part in node.parts]
    known = [width for width in widths if width is not None]
    if len(known) < len(widths):
        return None
    return sum(known) if isinstance(node, Sequence) else max(known)


def _conditional(node: Node) -> bool:
    if isinstance(node, Repeat):
        return _conditional(node.node)
    if isinstance(node, Atom | Assertion):
        return isinstance(node, Assertion)
    return any(map(_conditional, node.parts))


def prefixes(node: Node) -> Node:
    """The expression of every beginning of every match, the empty one and the whole ones too. A condition at its end
    counts as true: the next character decides, and has not come."""
    if isinstance(node, Atom):
        return Repeat(node, 0, 1)
    if isinstance(node, Assertion):
        return _NOTHING
    if isinstance(node, Branches):
        return Branches(tuple(map(prefixes, node.parts)))
    if isinstance(node, Repeat):
        if node.most == 0:
            return _NOTHING
        most = None if node.most is None or node.most > _COUNTED else node.most - 1
        return Sequence((Repeat(_relaxed(node.node), 0, most), prefixes(node.node)))
    begun: Node = _NOTHING
    for part in reversed(node.parts):
        begun = _led(begun, part)
    return begun


def _led(rest: Node, part: Node) -> Node:
    """P(part) | part P(rest)"""
    if isinstance(part, Atom | Assertion):
        return Repeat(part if rest == _NOTHING else Sequence((part, rest)), 0, 1)
    if rest == _NOTHING:
        return prefixes(part)
    return Branches((prefixes(part), Sequence((_relaxed(part), rest))))


def _relaxed(node: Node) -> Node:
    if isinstance(node, Atom | Assertion):
        return node
    if isinstance(node, Repeat):
        inner = _relaxed(node.node)
        if (node.most or 0) > _COUNTED or node.least > _COUNTED:
            return Repeat(inner, min(node.least, 1), None)
        return Repeat(inner, node.least, node.most)
    parts = tuple(map(_relaxed, node.parts))
    return Sequence(parts) if isinstance(node, Sequence) else Branches(parts)


def unbounded(node: Node) -> Node:
    """An expression that finds more: high bounds of repetitions are left out, by which automata of many rules would
    grow with every text."""
    if isinstance(node, Atom | Assertion):
        return node
    if isinstance(node, Repeat):
        inner = unbounded(node.node)
        return Repeat(inner, min(node.least, _COUNTED), None if (node.most or 0) > _COUNTED else node.most)
    parts = tuple(map(unbounded, node.parts))
    return Sequence(parts) if isinstance(node, Sequence) else Branches(parts)


def alphabet(node: Node) -> frozenset[Atom]:
    """Every character that a match may have."""
    if isinstance(node, Atom):
        return frozenset((node,))
    if isinstance(node, Assertion):
        return frozenset()
    if isinstance(node, Repeat):
        return alphabet(node.node)
    return frozenset().union(*map(alphabet, node.parts))


class _Branch:
    __slots__ = ("below", "ends")

    def __init__(self) -> None:
        self.below: dict[Node, _Branch] = {}
        self.ends = False


def trie(words: list[tuple[Node, ...]]) -> Node:
    """One expression for many words, each beginning written once."""
    root = _Branch()
    for word in words:
        at = root
        for letter in word:
            at = at.below.setdefault(letter, _Branch())
        at.ends = True
    return _grown(root)


def _grown(branch: _Branch) -> Node:
    parts: list[Node] = []
    for letter, below in branch.below.items():
        letters = [letter]
        while not below.ends and len(below.below) == 1:
            ((letter, below),) = below.below.items()
            letters.append(letter)
        if below.below:
            letters.append(_grown(below))
        parts.append(letters[0] if len(letters) == 1 else Sequence(tuple(letters)))
    node = parts[0] if len(parts) == 1 else Branches(tuple(parts))
    return Repeat(node, 0, 1) if branch.ends else node
