"""What a server says within one call: held until it is read, and no more than that."""

import asyncio

import pytest

from tollhouse.backends.mcp.messages import Messages, messages_of
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio


class Held(Messages):
    """From nowhere."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop().create_future(), None)
        self.left = 0

    def quit(self, call: ToolCall | None) -> None:
        self.left += 1


class Reader:
    """A Sink."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.ended: list[Failure | None] = []

    def send(self, data: bytes) -> None:
        self.read.append(data)

    def end(self, failure: Failure | None = None) -> None:
        self.ended.append(failure)


async def test_nobody_is_asked_who_does_not_read() -> None:
    messages, reader = Held(), Reader()
    messages.push(b"progress", droppable=True)
    assert await messages.first() == b"progress"
    asked = 0
    while messages.ask(b"?" * 10_000):
        asked += 1
    assert asked == 27  # 256 KiB, and the one that goes beyond
    messages.push(b"progress", droppable=True)
    messages.start(reader)
    assert len(reader.read) == asked
    assert messages.ask(b"??")
    messages.pause()
    messages.push(b"answer")
    messages.finish()
    assert not messages.ask(b"late")
    assert reader.read[asked:] == [b"??"]
    messages.resume()
    assert reader.read[asked:] == [b"??", b"answer"]
    assert reader.ended == [None]


async def test_an_answer_that_is_all_there_is_no_stream() -> None:
    messages = Held()
    messages.push(b"answer")
    messages.finish()
    reply = messages.reply(await messages.first())
    assert (reply.first, reply.source, messages.streams) == (b"answer", None, False)


async def test_nothing_was_said() -> None:
    messages = Held()
    asyncio.get_running_loop().call_soon(messages.finish, Failure(504, Reason.TIMEOUT, "late"))
    with pytest.raises(Failure, match="late"):
        await messages.first()
    messages = Held()
    messages.finish()
    with pytest.raises(Failure, match="said nothing"):
        await messages.first()


async def test_who_gives_up_quits_once() -> None:
    messages = Held()
    waiting = asyncio.ensure_future(messages.first())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    messages.close()
    assert messages.left == 1


def test_batches_are_of_one_revision() -> None:
    assert messages_of(b' [{"a":1},{"b":2}]', "2025-03-26") == [b'{"a":1}', b'{"b":2}']
    assert messages_of(b"[{}]", "2025-06-18") == [b"[{}]"]
    with pytest.raises(jsonrpc.Malformed):
        messages_of(b"[{]", "2025-03-26")
