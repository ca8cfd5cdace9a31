"""Vectors of texts, from a configured model, for the gateway's own use.

Rule: it is a call like any other: made for the caller of a request, through the model's whole chain, so that its rules,
limits, records and price are those of everybody. It may outlive that request, so it has a Request of its own.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Request, finish
from tollhouse.core.reply import Reply
from tollhouse.endpoints.models import Model
from tollhouse.wire.llm import EMBEDDINGS

__all__ = ["embed"]


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Vector]


async def embed(model: Model, name: str, request: Request, texts: Sequence[str]) -> list[list[float]]:
    """One vector for each text, in their order. name: as the model is asked for. Raises Failure."""
    body = msgspec.json.encode({"model": name, "input": list(texts)})
    asked = EMBEDDINGS.decode(body)
    own = Request(b"POST", b"/v1" + EMBEDDINGS.path, request.headers, body, peer=request.peer)
    context = own.context = msgspec.structs.replace(
        request.context,
        dialect=EMBEDDINGS.family,
        operation=EMBEDDINGS.operation,
        model_asked=name,
        stream=False,
        usage=None,
        cost_nano=None,
        server="",
        tool="",
        mcp_method="",
        mcp_outcome="",
        arguments=None,
        upstream_began=0.0,
        upstream_ended=0.0,
        attempts=0,
        bytes_in=len(body),
    )
    ending = Ending(500, Reason.INTERNAL)
    reply: Reply | None = None
    try:
        reply = await model.handler(
            ModelCall(
                own,
                context,
                dialect=EMBEDDINGS,
                operation=EMBEDDINGS.operation,
                model=name,
                label=model.name,
                stream=False,
                fields=asked.fields,
                body=body,
                content_type=asked.content_type,
            )
        )
        vectors = _vectors(reply, name, len(texts))
        ending = Ending(reply.status, Reason.UPSTREAM, len(reply.first))
        return vectors
    except Failure as failure:
        ending = Ending(failure.status, failure.reason, 0, failure.copy())
        raise
    except asyncio.CancelledError:
        ending = Ending(499, Reason.CLIENT_GONE, gone=True)
        raise
    finally:
        ends, own.ends = own.ends, []  # they refer to the call, and that to the request
        finish([*(reply.ends if reply is not None else ()), *reversed(ends)], ending)


def _vectors(reply: Reply, name: str, number: int) -> list[list[float]]:
    if reply.source is not None:
        reply.source.close()
        raise Failure(502, Reason.UPSTREAM_FAILURE, f"the model {name!r} answers with a stream")
    data = reply.first
    for tap in reply.taps or ():
        data = tap(data)
    try:
        found = sorted(msgspec.json.decode(data, type=_Answer).data, key=lambda one: one.index)
        if len(found) != number:
            raise ValueError(f"{len(found)} vectors for {number} texts")
    except ValueError as problem:  # msgspec's errors are of this kind
        message = f"the model {name!r} gave no vectors"
        raise Failure(502, Reason.UPSTREAM_FAILURE, message, detail=str(problem)) from None
    return [one.embedding for one in found]
