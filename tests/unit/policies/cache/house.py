"""What the cache's tests stand on: its policy in a chain, before an upstream that does as it is told."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from math import inf
from typing import Any

import msgspec
from tests.unit.policies.floor import Shelf, Time, layer, parts, request, who

from tollhouse.core.call import Call, ModelCall, Principal, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.http import Ending, Sink, finish
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Parts
from tollhouse.policies.cache import CACHE
from tollhouse.policies.cache.key import Path
from tollhouse.policies.cache.spec import CacheSpec, TopCacheSpec
from tollhouse.wire.llm import CHAT

JSON = (b"content-type", b"application/json")
PRICE = 5


class Behind:
    """`policies.base.Ways`: one for all, that the test may change."""

    def __init__(self) -> None:
        self.fingerprint = b"first"
        self.conditions: Sequence[Any] = ()
        self.total = inf

    def __call__(self, model: str) -> Path:
        return Path(self.fingerprint, self.conditions, self.total)

    def server(self, name: str) -> bytes:
        return self.fingerprint


class Stream:
    """An upstream's stream. Nothing of it comes before `say`."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.closed = self.paused = False
        self.taps: list[Callable[[bytes], bytes]] = []

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True
        self.sink = None

    def say(self, *blocks: bytes) -> None:
        for block in blocks:
            assert self.sink is not None
            for tap in self.taps:
                block = tap(block)
            self.sink.send(block)

    def end(self, failure: Failure | None = None) -> None:
        sink, self.sink = self.sink, None
        assert sink is not None
        sink.end(failure)


class Upstream:
    """Answers whatever it is asked, one after the other, with what `answers` has; then with a number. gate: nothing is
    answered while it is closed."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self.answers: list[Reply | BaseException] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.settled: list[Ending] = []

    async def handle(self, call: Any) -> Reply:
        self.calls.append(call)
        number = len(self.calls)
        context = call.context
        context.upstream_began = 1.0
        context.provider, context.backend, context.model_answered = "openai", "main", "gpt-x"
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            context.usage = Usage(9, 0, estimated=True)
            raise
        answer = self.answers.pop(0) if self.answers else Reply(200, [JSON], b'{"n":%d}' % number)
        if isinstance(answer, BaseException):
            raise answer

        def settle(ending: Ending) -> None:
            context.usage = Usage(3, 4)
            self.settled.append(ending)

        if answer.source is None:
            context.usage = Usage(3, 4)
        answer.ends.append(settle)
        return answer


class Sunk:
    """A caller's connection. limit: how much it takes before it is slow."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.data = b""
        self.over = False
        self.failure: Failure | None = None
        self.slow = False
        first = reply.first
        for tap in reply.taps or ():
            first = tap(first)
        self.data += first
        self.source = reply.source
        if self.source is not None:
            self.source.start(self)
        else:
            self.over = True

    def send(self, data: bytes) -> None:
        assert not self.slow or self.source is None
        self.data += data

    def end(self, failure: Failure | None = None) -> None:
        self.over, self.failure = True, failure


def gone(call: ModelCall, reply: Reply | None = None) -> None:
    """The client leaves."""
    if reply is not None and reply.source is not None:
        reply.source.close()
    over(call, reply, Ending(499, Reason.CLIENT_GONE, gone=True))


def over(call: Call, reply: Reply | None = None, ending: Ending | None = None) -> None:
    """What the server does at the end."""
    ends = [*(reply.ends if reply is not None else ()), *reversed(call.request.ends)]
    call.request.ends = []
    if reply is not None:
        reply.ends = []
    finish(ends, ending or Ending(200, Reason.UPSTREAM))


class House:
    """A chain of the cache and an upstream. spec: of `exact`."""

    def __init__(self, *, more: Any = None, parts_: Parts | None = None, level: Any = "model", **spec: Any) -> None:
        self.time = Time()
        self.shelf = Shelf()
        self.behind = Behind()
        self.upstream = Upstream()
        self.parts = parts_ or self.made()
        settings = {"exact": {"ttl": "1m"} | spec} | (more or {})
        self.handler = self.chain(TopCacheSpec.model_validate(settings) if level == "top" else settings)

    def made(self, **more: Any) -> Parts:
        values: dict[str, Any] = {
            "shared": self.shelf, "entrance": "llm", "behind": self.behind, "price": price,
        }  # fmt: skip
        return parts(self.time, **values | more)

    def chain(
        self, settings: Any, parts_: Parts | None = None, last: Callable[[Any], Awaitable[Reply]] | None = None
    ) -> Callable[[Any], Awaitable[Reply]]:
        spec = CacheSpec.model_validate(settings) if isinstance(settings, dict) else settings
        policy = CACHE.make((layer(spec, "model", "smart"),), parts_ or self.parts)
        assert policy is not None
        return compose((policy,), last or self.upstream.handle)

    async def ask(self, call: ModelCall | None = None, **fields: Any) -> Reply:
        """The Reply, over and done with, if it is whole."""
        call = call or asked(**fields)
        reply = await self.handler(call)
        if reply.source is None:
            over(call, reply)
        return reply

    async def close(self) -> None:
        await self.shelf.close()


def price(context: Any) -> int | None:
    usage = context.usage
    if usage is None:
        return None
    if context.cost_nano is None:
        context.cost_nano = usage.total * PRICE
    cost: int = context.cost_nano
    return cost


def asked(
    text: str = "hello",
    *,
    principal: Principal | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
    label: str = "smart",
    model: str = "",
    **fields: Any,
) -> ModelCall:
    """A chat request, as the endpoint makes one."""
    made = request(b"POST", b"/v1/chat/completions", *headers, principal=principal or who(org="acme"))
    asks = {"model": model or label, "messages": [{"role": "user", "content": text}]} | fields
    body = body or msgspec.json.encode(asks)
    read = CHAT.decode(body)
    made.context.dialect = "openai"
    made.context.route = "chat"
    return ModelCall(
        made, made.context, dialect=CHAT, operation="chat", model=model or label, label=label, stream=read.stream,
        fields=read.fields, body=body,
    )  # fmt: skip


def state(reply: Reply) -> str:
    """What the header says."""
    return dict(reply.headers)[b"x-tollhouse-cache"].decode()


def streamed(*first: bytes) -> tuple[Reply, Stream]:
    """An answer that streams."""
    source = Stream()
    return Reply(200, [], b"".join(first), source, source.taps), source
