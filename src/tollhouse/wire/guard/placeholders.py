"""Placeholders: masks that can be turned back. What the model sees is `[EMAIL_7F3A]`; the caller sees the address.

Rule: the same value has the same placeholder in all of a conversation, and another one in any other, so that prompt
caches hit and nobody can tell values of others by their placeholders. Only placeholders that this conversation was
given are turned back; what a model makes up stays as it is.

A placeholder is the kind and some letters of HMAC-SHA256(key, kind and value), in base 32; more letters where two
values would share one. How it is written may change on its way through a model: case, a space for `_`, and
Markdown's backslashes are forgiven.
"""

import hmac
import re
from base64 import b32encode

from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.folding import fold
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

__all__ = ["Placeholders", "derived_key", "placeholder_patterns"]

_LETTERS = 4
_MOST_LETTERS = 16
_KIND = 24  # letters of one word of a kind
_PARTS = 4


def derived_key(secret: bytes, tenant: str, conversation: str) -> bytes:
    """The key of one conversation, from the gateway's own: 32 bytes. Raises Refused for a secret that is too short."""
    if len(secret) < 16:
        raise Refused("the key that masks are made with has at least 16 bytes")
    # The length keeps ("a", "bc") and ("ab", "c") apart.
    named = f"{len(tenant)}:{tenant}{conversation}"
    return hmac.digest(secret, named.encode(errors="surrogatepass"), "sha256")


def placeholder_patterns() -> PatternSet:
    """What placeholders look like, for a `Channel` or `StreamWindow` whose mask is `Placeholders.value`. Made once."""
    kind = rf"[A-Za-z][A-Za-z0-9]{{0,{_KIND}}}(?:\\?[_ ][A-Za-z0-9]{{1,{_KIND}}}){{0,{_PARTS - 1}}}"
    letters = rf"[A-Za-z2-7]{{{_LETTERS},{_MOST_LETTERS}}}"
    inner = rf" ?{kind}\\?[_ ]{letters} ?"
    # A backslash before it is the text's own, unless there is one at the end too.
    return PatternSet([pattern("placeholder", rf"\[{inner}\]|\\\[{inner}\\\]")], max_match=256)


class Placeholders:
    """The placeholders of one conversation, and what they stand for.

    limit: values that are remembered; masks of further ones are `[EMAIL]`, and cannot be turned back (`lost` counts
    them). Never shown in logs: it holds what was to be kept from others.
    """

    __slots__ = ("_key", "_limit", "_taken", "_values", "lost", "unknown")

    def __init__(self, key: bytes, *, limit: int = 10_000) -> None:
        self._key = key
        self._limit = limit
        self._values: dict[str, str] = {}  # by placeholder, plainly written
        self._taken: dict[tuple[str, str], str] = {}
        self.lost = 0
        self.unknown = 0

    def __repr__(self) -> str:
        return f"<Placeholders of {len(self._values)} values>"

    def mask(self, rule: Rule, text: str) -> str:
        """The placeholder of a value: a `Mask`."""
        kind = _kind(rule.name)
        known = self._taken.get((kind, text))
        if known is not None:
            return known
        if len(self._values) >= self._limit:
            self.lost += 1
            return f"[{kind}]"
        digest = hmac.digest(self._key, f"{kind}:{text}".encode(errors="surrogatepass"), "sha256")
        letters = b32encode(digest).decode()
        for length in range(_LETTERS, _MOST_LETTERS + 1):
            placeholder = f"[{kind}_{letters[:length]}]"
            if _plain(placeholder) not in self._values:
                break
        else:
            self.lost += 1
            return f"[{kind}]"
        self._values[_plain(placeholder)] = text
        self._taken[kind, text] = placeholder
        return placeholder

    def value(self, _: Rule, text: str) -> str:
        """What a placeholder stands for; itself, if it is not of this conversation (`unknown` counts them). A `Mask`
        for `placeholder_patterns`."""
        value = self._values.get(_plain(text))
        if value is None:
            self.unknown += 1
            return text
        return value

    def dump(self) -> dict[str, str]:
        """All of it, by placeholder: for a store that encrypts, where a conversation is continued elsewhere."""
        return {placeholder: text for (_, text), placeholder in self._taken.items()}

    def restore(self, values: dict[str, str]) -> None:
        """What `dump` gave, of the same conversation. Entries that are no placeholders are left out."""
        for placeholder, text in values.items():
            kind, _, letters = placeholder[1:-1].rpartition("_")
            if kind and letters and placeholder == f"[{kind}_{letters}]" and len(self._values) < self._limit:
                self._values[_plain(placeholder)] = text
                self._taken[kind, text] = placeholder


_NAMED = re.compile("[A-Za-z0-9]+")


def _kind(name: str) -> str:
    kind = "_".join([word[:_KIND] for word in _NAMED.findall(fold(name))[:_PARTS]]).upper()
    return kind if kind[:1].isalpha() else f"M{kind}"


def _plain(placeholder: str) -> str:
    """As it was made, whatever became of it on its way."""
    return placeholder.replace("\\", "").strip("[] ").replace(" ", "_").upper()
