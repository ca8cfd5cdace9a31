"""What the caller of an API calls a place of the neutral model: "parallel" is its `parallel_tool_calls`.

Rule: who is told what is wrong with a request is told it in the names of that request. Encoders know the neutral places
only ("messages[2].parts[0].citations"); each codec has a table, and says where its messages and their parts stand.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from tollhouse.wire.llm.model import Chat, Message

__all__ = ["Items", "Turns", "named", "place_of_content", "place_of_turn"]

_PART = re.compile(r"messages\[(\d+)\](?:\.parts\[(\d+)\](?:\.parts\[(\d+)\])?)?")
_TOOL = re.compile(r"tools\[(\d+)\]")
_FIELD = re.compile(r"(\w+)(\.\w+)?")


class Turns(list[Message]):
    """A request's messages. wheres: where each of them stood, as `Fields.where`."""

    __slots__ = ("wheres",)

    def __init__(self, messages: Iterable[Message], wheres: list[str]) -> None:
        super().__init__(messages)
        self.wheres = wheres


class Items(list[Message]):
    """The same of an API whose items are parts of messages. wheres: of each part, that of its item."""

    __slots__ = ("wheres",)

    def __init__(self, messages: Iterable[Message], wheres: list[list[str]]) -> None:
        super().__init__(messages)
        self.wheres = wheres


def place_of_turn(chat: Chat, n: int) -> str:
    """Where the message `n` stood; "messages" where that is not known."""
    messages = chat.messages
    return messages.wheres[n][:-1] if isinstance(messages, Turns) and n < len(messages.wheres) else "messages"


def place_of_content(chat: Chat, n: int) -> str:
    """The same of its blocks, for an API that has them in `content`, and those of instructions in `system`."""
    where = place_of_turn(chat, n)
    return where if where in ("messages", "system") else f"{where}.content"


def named(
    place: str,
    fields: Mapping[str, str],
    message: Callable[[int], str],
    part: Callable[[int, int, int | None], str],
    tool: Callable[[int], str] | None = None,
) -> str:
    """The caller's name for a place. fields: those of the neutral model that have another name, "reasoning.effort"
    before "reasoning". message, part, tool: places by their numbers; a part's last one is that in a tool's result."""
    found = _PART.match(place)
    if found is not None:
        n, k, inner = (None if digits is None else int(digits) for digits in found.groups())
        assert n is not None
        return (message(n) if k is None else part(n, k, inner)) + place[found.end() :]
    if tool is not None and (found := _TOOL.match(place)) is not None:
        return tool(int(found[1])) + place[found.end() :]
    found = _FIELD.match(place)
    if found is None:
        return place
    for size in (found.end(), found.end(1)):
        own = fields.get(place[:size])
        if own is not None:
            return own + place[size:]
    return place
