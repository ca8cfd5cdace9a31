"""What the tests of policies stand on: real parts, and calls to send through them."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Any

import msgspec

from tollhouse.core.call import Call, ModelCall, Principal, ToolCall, Usage
from tollhouse.core.clock import Clock
from tollhouse.core.http import Ending, Headers, Request, Response, finish
from tollhouse.core.reply import Reply
from tollhouse.net.client import Client
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.admission import joined
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.limits import LIMITS, LimitSpec
from tollhouse.store.memory import MemoryCounter


class Shelf:
    """Shared parts, kept as long as the test."""

    def __init__(self) -> None:
        self.parts: dict[Hashable, Any] = {}
        self.closes: list[Callable[[], Awaitable[None]]] = []

    def __call__(self, key: Hashable, make: Callable[[], Any], close: Any = None) -> Any:
        if key not in self.parts:
            made = self.parts[key] = make()
            if close is not None:
                self.closes.append(lambda: close(made))
        return self.parts[key]

    async def close(self) -> None:
        for close in self.closes:
            await close()


class Time:
    """Monotonic seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.clock = Clock(source=lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.clock.turn()


def parts(time: Time | None = None, **more: Any) -> Parts:
    clock = time.clock if time is not None else Clock()
    values: dict[str, Any] = {"families": Families(Metrics()), "counter": MemoryCounter(clock), "client": Client(clock)}
    return Parts(clock=clock, **(values | {"shared": Shelf()} | more))


def layer(spec: Any, level: Any = "top", name: str = "") -> Layer:
    return Layer(level, name, spec)


def limiting(specs: tuple[LimitSpec, ...], of: Parts) -> Any:
    """The policy of these limits; None where there are none."""
    party: Any = LIMITS.make((layer(specs),), of) if specs else None
    return None if party is None else joined([party], of)


def who(source: str = "jwt", id: str = "ada", **more: Any) -> Principal:
    more.setdefault("user", id)
    return Principal(f"{source}:{id}", source=source, **more)


def request(
    method: bytes = b"POST", target: bytes = b"/x", *headers: tuple[bytes, bytes], principal: Principal | None = None
) -> Request:
    made = Request(method, target, Headers(headers), peer="10.0.0.7")
    made.context.principal = principal
    made.context.request_id = "r"
    return made


def model(name: str = "smart", principal: Principal | None = None, estimate: int = 10, **more: Any) -> ModelCall:
    made = request(principal=principal or who())
    values: dict[str, Any] = {"operation": "chat", "stream": False, "label": name} | more
    return ModelCall(made, made.context, dialect=None, model=name, fields={}, body=b"", reserve=estimate, **values)


def tool(
    name: str = "search",
    principal: Principal | None = None,
    *,
    method: str = "tools/call",
    server: str = "shop",
    **arguments: Any,
) -> ToolCall:
    made = request(principal=principal or who())
    raw = {"arguments": msgspec.Raw(msgspec.json.encode(arguments))} if arguments else {}
    return ToolCall(made, made.context, server=server, method=method, name=name, params=raw)


async def answer(call: Call) -> Reply:
    """A backend that answers."""
    return Reply(200, [(b"content-type", b"application/json")], b"{}")


async def respond(request: Request) -> Response:
    return Response(200, [(b"content-type", b"text/plain")], b"ok")


def end(reply: Reply | None, call: Call, usage: Usage | None = None, status: int = 200) -> None:
    """What the server does at the end of a request; reply: None when the call failed."""
    call.context.usage = usage
    ends = call.request.ends if reply is None else reply.ends + call.request.ends
    call.request.ends = []
    finish(ends, Ending(status, "Upstream"))


def counted(parts: Parts, family: str) -> dict[tuple[str, ...], float]:
    """The values of a family of counters by label values."""
    families = {f.name: f for sets in parts.families.metrics._families.values() for f in sets.values()}
    found = families[f"tollhouse_{family}"]
    return {labels: child.value for labels, child in found.children.items() if child.value}
