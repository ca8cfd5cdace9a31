"""What servers say outside of calls, on its way to agents: what guards make of it.

Rule: it is asked anew for each message, so that a session which only listens has the guards of the configuration that
serves.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from tollhouse.core.errors import Failure
from tollhouse.wire import jsonrpc

__all__ = ["Guards", "Heard", "Outside"]

Heard: TypeAlias = "tuple[jsonrpc.Message, Callable[[bytes], None]] | None"
"""A message and who gets the answer to it; None for one that nobody is to hear."""


class Outside(Protocol):
    """What the guards of a server make of what it says outside of calls (`policies.guardrails.outside`)."""

    def instructions(self, text: str) -> str:
        """As agents get them; "" where they are refused."""
        ...

    def heard(self, message: bytes) -> bytes | None:
        """A notification or a request of the server, None where it is refused."""
        ...

    def told(self, message: bytes) -> bytes:
        """An agent's response to such a request."""
        ...

    def failed(self, failure: Failure) -> Failure:
        """Why something that is no call has failed."""
        ...


class Guards:
    """Those of all endpoints, by path and server."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: Mapping[str, Mapping[str, Outside]] = {}

    def serve(self, guards: Mapping[str, Mapping[str, Outside]]) -> None:
        """These are in force now, and no others."""
        self._of = guards

    def heard(
        self, endpoint: str, server: str, data: bytes, message: jsonrpc.Message, answer: Callable[[bytes], None]
    ) -> Heard:
        """data: the message, as it came. answer: gets an agent's response to it. Raises Malformed."""
        guard = self._of.get(endpoint, _NONE).get(server) if self._of else None
        if guard is None:
            return message, answer
        heard = guard.heard(data)
        if heard is None:
            return None
        if heard is not data:
            message = jsonrpc.decode(heard)
        told = guard.told
        return message, lambda response: answer(told(response))


_NONE: Mapping[str, Outside] = {}
