"""Vectors for the gateway's own use are a call like any other."""

import json
from typing import Any

import pytest

from tollhouse.core.call import Call, ModelCall, Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.endpoints.embed import embed
from tollhouse.endpoints.models import Model

pytestmark = pytest.mark.anyio


class Handler:
    """Answers as a test says. endings: how its calls ended, those of the reply and of the request."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[ModelCall] = []
        self.endings: list[tuple[str, Ending]] = []

    async def __call__(self, call: Call) -> Reply:
        assert isinstance(call, ModelCall)
        self.calls.append(call)
        call.request.ends.append(lambda ending: self.endings.append(("request", ending)))
        if isinstance(self.answer, Failure):
            raise self.answer
        reply = Reply(200, [], self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode())
        reply.ends.append(lambda ending: self.endings.append(("reply", ending)))
        return reply


def request() -> Request:
    made = Request(b"POST", b"/mcp", Headers([(b"x-org", b"a")]))
    made.context.principal = Principal("key:a", source="key")
    made.context.server, made.context.tool, made.context.mcp_method = "s", "t", "tools/call"
    return made


async def test_vectors_in_order() -> None:
    handler = Handler({"data": [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1.5, 0]}]})
    asked = request()
    assert await embed(Model("m*", handler), "mini", asked, ["a", "b"]) == [[1.5, 0.0], [0.0, 1.0]]
    (call,) = handler.calls
    assert json.loads(call.body) == {"model": "mini", "input": ["a", "b"]}
    assert (call.model, call.label, call.operation) == ("mini", "m*", "embeddings")
    assert call.principal is asked.context.principal
    assert call.request.headers == asked.headers
    assert (call.context.server, call.context.tool, call.context.mcp_method) == ("", "", "")
    assert (asked.context.server, asked.context.model_asked) == ("s", "")  # the agent's own call is not touched
    assert asked.ends == [] == call.request.ends
    assert [(whose, ending.status) for whose, ending in handler.endings] == [("reply", 200), ("request", 200)]


@pytest.mark.parametrize(
    "answer", [b"no", {"data": []}, {"data": [{"embedding": "AAAA"}, {"embedding": "AAAA"}]}, {"data": 7}, {}]
)
async def test_what_is_no_vector(answer: Any) -> None:
    handler = Handler(answer)
    with pytest.raises(Failure, match="gave no vectors") as failed:
        await embed(Model("m", handler), "m", request(), ["a", "b"])
    assert failed.value.status == 502
    assert [ending.status for _, ending in handler.endings] == [502, 502]


async def test_a_refusal_ends_the_call() -> None:
    handler = Handler(Failure(429, Reason.RATE_LIMIT, "too many"))
    with pytest.raises(Failure, match="too many"):
        await embed(Model("m", handler), "m", request(), ["a"])
    ((_, ending),) = handler.endings
    assert ending.status == 429
    assert ending.failure is not None
    assert ending.failure.__traceback__ is None
