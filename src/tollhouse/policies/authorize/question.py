"""What people read who are asked whether a call may be made.

Rule: what a caller wrote acts on nobody's screen: letters that cannot be seen are written out, and long texts are cut.
"""

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.wire.mcp.letters import visible

__all__ = ["cut", "elicited", "shown"]

_LONGEST = 1000  # characters of arguments that a person is shown


def shown(call: ToolCall) -> str:
    """The arguments as people can read them."""
    return cut(bytes(call.arguments).decode("utf-8", "replace"))


def cut(text: str) -> str:
    """As much of a text as people are shown, all of it visible."""
    text = visible(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def elicited(call: ToolCall) -> bytes:
    """Params of the elicitation by which the agent's user is asked: a form without fields."""
    text = f"Allow the call of {visible(call.name)} at {call.server}?"
    arguments = shown(call)
    if arguments:
        text += f"\nArguments: {arguments}"
    return msgspec.json.encode({"message": text, "requestedSchema": {"type": "object", "properties": {}}})
