"""What in a tool's definition speaks to the model behind the operator's back: hidden characters, instructions, and
names that stand in for another server's.

Rule: every finding says where and by which rule, and rules have scores; a single weak sign is no verdict. Scans find
careless attacks; what was approved is kept by its hash.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tollhouse.wire.mcp.instructions import told
from tollhouse.wire.mcp.letters import ascii_of, hidden, sample, simple, visible
from tollhouse.wire.pointer import below

__all__ = ["RULES", "THRESHOLD", "Finding", "Mention", "scan"]

THRESHOLD = 10
"""The sum of the scores of a tool's findings from which on a scan acts."""

RULES: dict[str, tuple[int, str]] = {
    "tag-characters": (10, "letters of the Unicode tag block, which models read and people do not see"),
    "bidi-control": (10, "characters that change the order in which text is shown"),
    "variation-selectors": (10, "several variation selectors in a row, or one where it selects nothing"),
    "zero-width": (5, "characters without width where no script needs them; more than eight count twice"),
    "private-use": (5, "characters that no standard gives a meaning"),
    "control-character": (10, "control characters, those of terminals among them"),
    "invisible-filler": (4, "other characters that show as nothing"),
    "padding": (5, "so much white space that what follows is out of sight"),
    "hidden-comment": (4, "an HTML comment, which is not shown where Markdown is"),
    "chat-markup": (10, "markup of a chat template or of a tool's result"),
    "pseudo-tag": (4, "tags like `<IMPORTANT>` or `<SYSTEM>`"),
    "override": (10, "earlier or other instructions are to be ignored"),
    "role": (6, "the model is to be somebody else, or has other rules from now on"),
    "secrecy": (7, "something is to be kept from the user"),
    "unasked": (5, "something is to be done silently, or without the user's consent"),
    "sensitive-file": (5, "files that hold keys or the agent's own configuration"),
    "exfiltration": (7, "the conversation, the system prompt, keys or the environment are to be put somewhere"),
    "prerequisite": (4, "something has to be read, opened or sent before this tool is used"),
    "any-other-tool": (7, "what is to happen when any other tool is used"),
    "coercion": (3, "a threat of what happens otherwise"),
    "bait-argument": (4, "an argument named after the conversation, the system prompt or the model"),
    "encoded": (5, "a long run of Base64 or hexadecimal digits"),
    "ambiguous": (10, "JSON that readers may read differently, or cannot read"),
    "oversized": (10, "more than 256 KiB of text, of which only the beginning is looked at"),
    "lookalike-letters": (10, "a name in letters that look like Latin ones"),
    "same-name": (4, "a server that stands before has a tool of this name, but for case and separators"),
    "confusable-name": (10, "a server that stands before has a tool whose name looks the same"),
    "names-other-tool": (10, "what to do with another server's tool"),
}
"""Of each rule its score, and what it finds."""

LONGEST = 256 << 10  # characters of one tool that are looked at
_MENTIONS = 64
_MANY = 8
_SHORTEST = 8  # characters that can say something


class Finding(msgspec.Struct, frozen=True, gc=False):
    """One sign. place: a JSON Pointer into the tool. what: the text in question, fit to be shown."""

    rule: str
    place: str
    what: str
    score: int


class Mention(msgspec.Struct, frozen=True, gc=False):
    """Something that may be the name of a tool (`simple`), in a text that says what to do with it."""

    name: str
    place: str


def scan(definition: Mapping[str, Any]) -> tuple[tuple[Finding, ...], tuple[Mention, ...]]:
    """The signs in one tool by itself, each rule once, and the tools that it may speak of.

    definition: what agents are shown of the tool; every string in it and every name of a member is looked at.
    """
    found: dict[str, Finding] = {}
    mentions: dict[str, Mention] = {}
    left = LONGEST

    def note(rule: str, place: str, what: str, times: int = 1) -> None:
        score = RULES[rule][0] * times
        if rule not in found or found[rule].score < score:
            found[rule] = Finding(rule, place, what, score)

    for place, text, is_name in _texts(definition):
        if len(text) > left:
            note("oversized", place, "")
            text = text[:left]
        left -= len(text)
        if not (text.isascii() and text.isprintable()):
            for rule, chars in hidden(text).items():
                note(rule, place, _revealed(rule, chars), 2 if rule == "zero-width" and len(chars) > _MANY else 1)
        if is_name and simple(ascii_of(text)) in _BAIT:
            note("bait-argument", place, visible(text[:64]))
        if len(text) < _SHORTEST or place == "/name":
            continue
        for rule, what in told(text):
            note(rule, place, what)
        if not is_name and len(mentions) < _MENTIONS:
            for mention in _mentions(text, place):
                mentions.setdefault(mention.name, mention)
    name = definition.get("name")
    if isinstance(name, str) and not name.isascii() and ascii_of(name).isascii():
        note("lookalike-letters", "/name", visible(name[:64]))
    return tuple(found.values()), tuple(mentions.values())[:_MENTIONS]


def _revealed(rule: str, chars: list[str]) -> str:
    if rule == "tag-characters":
        return sample("".join(chr(ord(char) - 0xE0000) for char in chars if 0x20 <= ord(char) - 0xE0000 < 0x7F))
    return f"{len(chars)}: {visible(''.join(chars[:_MANY]))}"


def _texts(definition: Mapping[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Every string with its place, and whether it is the name of a member."""
    stack: list[tuple[str, Any]] = [("", definition)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, str):
            yield place, value, False
        elif isinstance(value, Mapping):
            inner = []
            for key, one in value.items():
                at = below(place, key)
                if place:  # else it is one of ours
                    yield at, key, True
                inner.append((at, one))
            stack.extend(reversed(inner))
        elif isinstance(value, list):
            stack.extend([(f"{place}/{n}", one) for n, one in enumerate(value)][::-1])


_BAIT = frozenset(
    (
        "sidenote", "systemprompt", "systemmessage", "conversationhistory", "chathistory", "conversation",
        "previousmessages", "messagehistory", "fullconversation", "chainofthought", "modelname", "toolslist",
        "availabletools", "alltools", "toolcallhistory", "userprompt", "originalprompt",
    )
)  # fmt: skip

# ---- other servers' tools
# A word is tried from its beginning only, and no further than a name can reach: else one long word takes forever.
_COMPOUND = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Za-z][A-Za-z0-9]{0,127}(?:[_-]{1,2}[A-Za-z0-9]{1,127}){1,64}"
    r"|[a-z]{1,128}(?:[A-Z][a-z0-9]{1,127}){1,64})"
)
_NAMED = re.compile(r"[`'\"]([A-Za-z][A-Za-z0-9]{2,63})[`'\"]|\b([A-Za-z][A-Za-z0-9]{2,63}) tool\b")
_DOING = re.compile(
    r"\b(?:call(?:s|ed|ing)?|us(?:e|es|ed|ing)|invok(?:e|es|ed|ing)|run(?:s|ning)?|execut(?:e|es|ed|ing)"
    r"|trigger(?:s|ed|ing)?|instead of|rather than|before|after|when|whenever|never|do not|don't|must|always|replaces?"
    r"|supersedes?|overrides?|prefer|disregard|ignore)\b",
    re.IGNORECASE,
)
_AROUND = 60


def _mentions(text: str, place: str) -> Iterator[Mention]:
    doing = [match.span() for match in _DOING.finditer(text)]
    if not doing:
        return
    ends = [end for _, end in doing]
    for pattern in (_COMPOUND, _NAMED):
        for match in pattern.finditer(text):
            at = match.start()
            before = bisect_right(ends, at) - 1
            if before >= 0 and doing[before][0] >= at - _AROUND:
                yield Mention(simple(next(filter(None, (*match.groups(), match[0])))), place)
