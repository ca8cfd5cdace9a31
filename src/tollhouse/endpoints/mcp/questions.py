"""What servers ask an agent in its session, and how often they may be told of a change that has them ask again.

Rule: a server's request goes out under an id of ours, which names this worker, so that the answer finds it from
whichever worker the agent answers at. What is not answered is bounded: the oldest gives way.
"""

import asyncio
from collections.abc import Callable

from tollhouse.wire import jsonrpc

__all__ = ["Now", "Questions"]

_ASKED = 64  # requests of servers that an agent has not answered


class Questions:
    """Those of one session that wait for their answers. node: this worker."""

    __slots__ = ("_answers", "_asked", "_node")

    def __init__(self, node: str) -> None:
        self._node = node
        self._asked = 0
        self._answers: dict[bytes, tuple[Callable[[bytes], None], bytes]] = {}

    def ask(self, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bytes:
        """A server's request under an id of ours; `answer` gets the response. Above the bound the oldest one that is
        unanswered is answered with an error."""
        if len(self._answers) >= _ASKED:
            oldest, id = self._answers.pop(next(iter(self._answers)))
            oldest(jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, "the client did not answer"))
        self._asked += 1
        id = b'"%b-%d"' % (self._node.encode(), self._asked)
        self._answers[id] = (answer, bytes(message.id))
        return jsonrpc.request(id, message.method, message.params)

    def answered(self, message: jsonrpc.Message) -> bool:
        """The agent's response to a server's request; False when nobody waits for it here."""
        waiting = self._answers.pop(bytes(message.id), None)
        if waiting is None:
            return False
        answer, id = waiting
        answer(jsonrpc.failed(id, message.error) if len(message.error) else jsonrpc.result(id, message.result))
        return True

    def clear(self) -> None:
        """Nobody waits any more."""
        self._answers.clear()


class Now:
    """Something that is done at once, but not again within `seconds`; then for the last time that was asked for."""

    __slots__ = ("_seconds", "_timer", "_wanted")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._wanted: Callable[[], None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._again)
            work()
        else:
            self._wanted = work

    def _again(self) -> None:
        work, self._wanted, self._timer = self._wanted, None, None
        if work is not None:
            self.do(work)

    def cancel(self) -> None:
        """Not again."""
        self._wanted = None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
