"""A WebSocket at a provider: the handshake, with the gateway's credential in place of the caller's.

Rule: until the answer 101 it is a call like any other, and may go to somebody else; from then on the exchange is a
tunnel, with times of its own. No extension is offered, so that what goes through can be read.
"""

from time import monotonic

from tollhouse.backends.credential import proven
from tollhouse.backends.provider import Face, Timeouts
from tollhouse.core.call import ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange, Until
from tollhouse.wire.llm.realtime import OWN_PROTOCOLS, Realtime
from tollhouse.wire.websocket import accepted, protocols

__all__ = ["upgrade"]

_PASSED = frozenset((b"openai-beta", b"openai-safety-identifier", b"traceparent", b"tracestate"))
_KEY = b"sec-websocket-key"


async def upgrade(call: ModelCall, face: Face, dialect: Realtime, model: str, timeouts: Timeouts) -> Exchange:
    """Ask for a session. Gives an exchange that is a tunnel, status 101, or one that has been refused with another
    status, its body unread. Raises Failure: 502 and 504 from the provider, 503."""
    context = call.context
    request = call.request
    key = request.header(_KEY) or b""
    offered = [each for each in protocols(request.headers) if not each.startswith(OWN_PROTOCOLS)]
    lines = [
        b"connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n%b: %b\r\n" % (_KEY, key),
        *(b"%b: %b\r\n" % pair for pair in request.headers if pair[0] in _PASSED and pair[0] not in face.own),
    ]
    if offered:
        lines.append(b"sec-websocket-protocol: %b\r\n" % b", ".join(offered))
    if context.request_id:
        lines.append(b"x-request-id: %b\r\n" % context.request_id.encode("latin-1", "replace"))
    rest = b"".join(lines)
    target = dialect.connect(model, request.query)

    async def ask(proof: bytes) -> Exchange:
        now = monotonic()
        left = max(context.deadline - now, 0.001)
        return await face.pool.exchange(
            face.native(b"GET", target, proof + rest),
            b"",
            method=b"GET",
            until=Until.HEAD,
            deadline=now + timeouts.session,
            first_byte=min(timeouts.first_event, left),
            idle=timeouts.tunnel,
            connect=min(timeouts.connect, left),
            resend=True,
        )

    exchange = await proven(face.credential, context.deadline, ask)
    if exchange.status == 101:
        wrong = accepted(exchange.headers, key, offered)
        if wrong:
            exchange.close()
            message = "the provider's answer is no WebSocket"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, detail=wrong, retry=True, sent=True)
    return exchange
