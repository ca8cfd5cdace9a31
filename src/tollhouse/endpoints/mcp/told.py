"""What a server hears that asks the agent for something within a call.

Rule: it gets an answer to everything it asks, and nothing of the agent's that guards have not let out.
"""

from tollhouse.core.call import ToolCall
from tollhouse.wire import jsonrpc

__all__ = ["tell", "unsupported"]


def tell(call: ToolCall | None, answer: bytes) -> None:
    """An answer to a request of the server's, as guards leave it. Nothing for a call that is over."""
    if call is None or call.answer is None:
        return
    if call.outgoing is None:
        call.answer(answer)
    else:
        call.outgoing(call, answer, call.answer)


def unsupported(message: jsonrpc.Message) -> bytes:
    """The answer to what the agent cannot be asked."""
    text = f"the client does not support {message.method!r} here"
    return jsonrpc.error(bytes(message.id), jsonrpc.METHOD_NOT_FOUND, text)
