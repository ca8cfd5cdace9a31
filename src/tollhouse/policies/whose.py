"""Whose bucket or budget a call takes from: user, key, team, model, tool ... or what CEL says.

Rule: a caller who has no user, key or agent is himself, under a name that nobody can have; a name that a caller only
guesses (a model or tool that is not there) is nobody's. Names of models are the configured ones: asking for ever new
names under a `*` gives no new keys.
"""

import re
from collections.abc import Callable
from typing import Final

from tollhouse.core.call import Call, ModelCall, Principal, ToolCall
from tollhouse.core.expr import Expression, Undecided
from tollhouse.core.forwarded import network_of

__all__ = ["ANONYMOUS", "TAGS", "WHOSE", "Key", "calls", "checked_per", "key_of", "tags_of"]

Key = Callable[[Call], str | None]
"""Whose; None where a call is no concern of it."""

ANONYMOUS: Final = "\x01anonymous"

_LONGEST = 256
TAGS: Final = 16
_TAG = re.compile(r"[A-Za-z0-9_.:/@+-]{1,64}")


def _user(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.user or _itself(principal)


def _key(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.key or _itself(principal)


def _agent(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.agent or _itself(principal)


def _org(call: Call) -> str | None:
    principal = call.principal
    return "" if principal is None else principal.org


def _team(call: Call) -> str | None:
    principal = call.principal
    # Teams of one name in two organisations are two.
    return "" if principal is None or not principal.team else f"{principal.org}\x01{principal.team}"


def _itself(principal: Principal) -> str:
    # No user can have this name, or one could empty the bucket of a caller who has none.
    return "\x01" + principal.id


def _model(call: Call) -> str | None:
    return (call.label or None) if isinstance(call, ModelCall) else None


def _tool(call: Call) -> str | None:
    if isinstance(call, ToolCall) and call.server and call.method == "tools/call":
        return f"{call.server}/{call.name}"
    return None  # a name that no server has is nobody's: those who guess must not share a bucket


def _server(call: Call) -> str | None:
    return (call.server or None) if isinstance(call, ToolCall) else None


def _route(call: Call) -> str | None:
    return call.context.route


def _ip(call: Call) -> str | None:
    return network_of(call.context.client or call.request.peer)


WHOSE: Final[dict[str, Key]] = {
    "user": _user,
    "key": _key,
    "org": _org,
    "team": _team,
    "agent": _agent,
    "model": _model,
    "tool": _tool,
    "server": _server,
    "route": _route,
    "ip": _ip,
}


def calls(call: Call) -> int:
    """1 for what counts as a call of a model or a tool; 0 for the rest, and for a later round of one."""
    if isinstance(call, ModelCall):
        return 1 if call.model else 0
    return 1 if isinstance(call, ToolCall) and call.server and call.method == "tools/call" and not call.round else 0


def tags_of(value: bytes) -> tuple[str, ...]:
    """The tags in a header field x-tollhouse-tags: words of up to 64 letters with a comma between them, sorted; what is
    no word is left out, and what comes after 16 of them."""
    words = {word.strip() for word in value.decode("latin-1").split(",")}
    return tuple(sorted(word for word in words if _TAG.fullmatch(word))[:TAGS])


def checked_per(value: str, names: tuple[str, ...]) -> str:
    """A setting `per`: one of `names`, or CEL. Raises ValueError."""
    if value not in names:
        try:
            Expression(value)
        except ValueError as error:
            raise ValueError(f"neither one of {', '.join(names)} nor a CEL expression: {error}") from None
    return value


def key_of(per: str) -> Key:
    """What `per` says of a call."""
    return WHOSE.get(per) or _expression(per)


def _expression(source: str) -> Key:
    expression = Expression(source)

    def key(call: Call) -> str | None:
        try:
            text = expression.text(call, _LONGEST)
        except Undecided:
            # Without the header or claim it is about, everybody is in one bucket, not in none.
            return None if expression.apart(call) else ""
        # What no record and no database takes: it may come from arguments.
        return text if text.isprintable() else text.encode("utf-8", "replace").decode().replace("\0", " ")

    return key
