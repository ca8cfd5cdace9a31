"""A realtime session between two fake ends: what it passes, counts, refuses and leaves behind."""

import asyncio
import json
from collections.abc import Awaitable
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.garbage import collected, ours

from tollhouse.core.call import Context, ModelCall, Principal, Usage
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import Ending, Feeder, Headers, Request, Sink
from tollhouse.core.reply import Reply
from tollhouse.endpoints.realtime_session import GRANTED, Session, Sums
from tollhouse.wire.llm import REALTIME
from tollhouse.wire.websocket import CLOSE, PING, TEXT, FrameReader, Message, close_frame, frame

pytestmark = pytest.mark.anyio

KEY = b"mask"
USAGE = {"input_tokens": 10, "output_tokens": 5}


class Upstream:
    """The provider's end: a Duplex. got: what came from the client. ended, closed: how it was parted from."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.got = b""
        self.ended = self.closed = False
        self.paused: list[bool] = []
        self.feeder: Feeder | None = None

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None:
        self.paused.append(True)

    def resume(self) -> None:
        self.paused.append(False)

    def close(self) -> None:
        self.closed = True
        self.sink = None

    def send(self, data: bytes) -> None:
        self.got += data

    def end(self, failure: Failure | None = None) -> None:
        self.ended = True

    def feed(self, feeder: Feeder) -> None:
        self.feeder = feeder


class Client:
    """The client's end: a Sink, which settles when it ends, as the server does."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = False
        self.settle: Any = None

    def send(self, data: bytes) -> None:
        assert not self.ended
        self.got += data

    def end(self, failure: Failure | None = None) -> None:
        assert failure is None
        self.ended = True
        settle, self.settle = self.settle, None
        settle(Ending(101, Reason.UPSTREAM))

    @property
    def messages(self) -> list[Message]:
        return FrameReader(client=False, keep=1 << 20).feed(self.got)

    @property
    def code(self) -> int:
        """It was closed with."""
        assert self.messages[-1].opcode == CLOSE
        return int.from_bytes(self.messages[-1].payload[:2])


class World:
    """A session. calls: its answers, as their chain saw them. endings: how those ended. refusal, unrecordable: what the
    chain and its end raise. gate: what the chain waits for."""

    def __init__(self, principal: Principal | None = None, *, transcribes: bool = False, **more: Any) -> None:
        self.clock = Clock()
        self.calls: list[ModelCall] = []
        self.endings: list[Ending] = []
        self.refusal: Failure | None = None
        self.unrecordable: Failure | None = None
        self.gate: asyncio.Event | None = None
        self.upstream, self.client = Upstream(), Client()
        request = Request(b"GET", b"/v1/realtime?model=voice", Headers([(b"x-team", b"red")]), peer="10.1.1.1")
        context = request.context = Context(
            request_id="r1",
            principal=principal,
            operation="realtime",
            backend="up",
            model_sent="gpt",
            began=monotonic(),
        )
        call = ModelCall(
            request, context, dialect=REALTIME, operation="realtime", model="voice", label="voice", stream=False,
            fields={}, body=b"", reserve=0,
        )  # fmt: skip
        self.context = context
        self.sums = Sums(context)
        self.open: set[Session] = set()
        self.session = Session(
            call, REALTIME, self.upstream, self.begin, self.sums, self.clock, self.open, transcribes=transcribes, **more
        )
        self.ending: Ending | None = None
        self.client.settle = self.settled
        self.session.start(self.client)

    def settled(self, ending: Ending) -> None:
        self.ending = ending
        self.session.settle(ending)

    def begin(self, call: ModelCall) -> Awaitable[Reply]:
        self.calls.append(call)
        call.request.ends.append(self.over)
        if self.gate is not None:
            return self.later(call)
        if self.refusal is not None:
            raise self.refusal
        return GRANTED

    async def later(self, call: ModelCall) -> Reply:
        assert self.gate is not None
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        return Reply(200, [], b"")

    def over(self, ending: Ending) -> None:
        if self.unrecordable is not None:
            raise self.unrecordable
        self.endings.append(ending)

    def say(self, type: str, **fields: Any) -> bytes:
        """From the provider."""
        data = frame(TEXT, json.dumps({"type": type, **fields}).encode())
        self.come(data)
        return data

    def come(self, data: bytes) -> None:
        assert self.upstream.sink is not None
        self.upstream.sink.send(data)

    def usages(self) -> list[Usage | None]:
        return [call.context.usage for call in self.calls]


async def test_bytes_pass_as_they_are_and_so_does_back_pressure() -> None:
    it = World()
    assert it.open == {it.session}
    said = it.say("response.created", response={"id": "a"})
    said += it.say("response.output_text.delta", response_id="a", delta="Hi")
    for byte in (whole := frame(PING, b"p") + frame(2, bytes(300))):
        it.come(bytes((byte,)))
    assert it.client.got == said + whole
    sent = frame(TEXT, b'{"type":"response.create"}', KEY)
    it.session.send(sent[:3])
    it.session.send(sent[3:])
    assert it.upstream.got == sent
    feeder: Any = object()
    it.session.feed(feeder)
    it.session.pause()
    it.session.resume()
    assert (it.upstream.feeder, it.upstream.paused) == (feeder, [True, False])


async def test_each_answer_is_a_call_of_its_own() -> None:
    principal = Principal("key:ci", source="key")
    it = World(principal)
    it.say("session.created", session={"model": "gpt-2"})
    it.say("response.created", response={"id": "a", "max_output_tokens": 70})
    it.say("response.output_text.delta", response_id="a", delta="Hi")
    assert it.endings == []
    it.say("response.done", response={"id": "a", "status": "completed", "usage": USAGE})
    (call,), (ending,) = it.calls, it.endings
    context = call.context
    assert (ending.status, ending.failure) == (200, None)
    assert (context.usage, context.model_answered, context.model_sent) == (Usage(10, 5), "gpt-2", "gpt")
    assert (context.operation, context.backend, context.request_id) == ("realtime.response", "up", "r1")
    assert (call.principal, call.label, call.estimate) == (principal, "voice", 70)
    assert call.request.header(b"x-team") == b"red"
    assert context.began <= context.first_event <= context.upstream_ended
    # An answer that begins and ends unseen, and a failed one.
    it.say("response.done", response={"id": "b", "status": "cancelled", "usage": USAGE})
    it.say("response.done", response={"id": "c", "status": "failed", "usage": None})
    assert [e.status for e in it.endings] == [200, 200, 502]
    assert it.usages() == [Usage(10, 5), Usage(10, 5), None]
    it.sums.tell(Ending(101, ""))
    assert it.context.usage == Usage(20, 10)


async def test_what_is_refused_ends_the_session_between_two_messages() -> None:
    it = World()
    it.say("session.created", session={})
    before = it.client.got
    it.refusal = Failure(429, Reason.RATE_LIMIT, "no more", code="rate_limit_exceeded")
    created = frame(TEXT, b'{"type":"response.created","response":{"id":"a"}}')
    it.come(created + frame(TEXT, b'{"type":"x"}'))
    assert it.client.got.startswith(before)
    (_, error, close) = it.client.messages  # neither that event nor what followed it
    assert json.loads(error.payload)["error"]["code"] == "rate_limit_exceeded"
    assert close.payload == b"\x03\xf0no more"
    assert it.client.ended
    assert it.ending is not None
    assert it.ending.failure is it.refusal
    (ending,) = it.endings
    assert (ending.status, ending.reason) == (429, Reason.RATE_LIMIT)
    (usage,) = it.usages()
    assert usage is not None
    assert usage.estimated  # the provider is at it already
    (bye,) = FrameReader(client=True).feed(it.upstream.got)
    assert (bye.opcode, it.upstream.ended, it.upstream.closed) == (CLOSE, True, False)
    it.come(frame(TEXT, b"{}"))  # too late
    it.session.send(frame(TEXT, b"{}", KEY))
    assert it.client.messages[-1].opcode == CLOSE
    it.session.expire()  # it did not close in time
    assert it.upstream.closed


async def test_a_refusal_waits_for_a_message_that_has_begun() -> None:
    it = World()
    it.gate = asyncio.Event()
    it.refusal = Failure(429, Reason.RATE_LIMIT, "no more")
    created = it.say("response.created", response={"id": "a"})
    rest = frame(TEXT, b'{"type":"y"}')
    it.come(rest[:4])
    it.gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert it.client.got == created + rest[:4]
    it.come(rest[4:] + frame(TEXT, b'{"type":"z"}'))
    assert it.client.got.startswith(created + rest)
    assert [m.opcode for m in it.client.messages] == [TEXT, TEXT, TEXT, CLOSE]
    assert it.client.code == 1008


async def test_an_answer_that_ends_before_its_chain_has_let_it_in() -> None:
    it = World()
    it.gate = asyncio.Event()
    it.say("response.created", response={"id": "a"})
    it.say("response.done", response={"id": "a", "status": "completed", "usage": USAGE})
    assert it.endings == []
    it.gate.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert [e.status for e in it.endings] == [200]
    # One that is still waiting at the session's end is recorded then.
    it.gate = asyncio.Event()
    it.say("response.created", response={"id": "b"})
    it.come(close_frame(1000))
    assert it.upstream.sink is not None
    it.upstream.sink.end()
    assert [e.status for e in it.endings] == [200, 499]
    await asyncio.sleep(0)


async def test_an_answer_that_cannot_be_recorded_is_not_given() -> None:
    it = World()
    it.unrecordable = Failure(503, Reason.INTERNAL, "usage cannot be recorded")
    created = it.say("response.created", response={"id": "a"})
    it.say("response.done", response={"id": "a", "status": "completed", "usage": USAGE})
    assert it.client.got.startswith(created)
    assert b"response.done" not in it.client.got
    assert it.client.code == 1013


async def test_a_credential_that_has_expired_begins_nothing() -> None:
    it = World(Principal("jwt:x", source="jwt", expires=1.0))
    it.say("response.created", response={"id": "a"})
    assert json.loads(it.client.messages[0].payload)["error"]["code"] == "token_expired"
    assert (it.client.code, it.calls) == (1008, [])


@pytest.mark.parametrize("mid_frame", [False, True])
async def test_a_provider_that_is_lost(mid_frame: bool) -> None:
    it = World()
    it.say("response.created", response={"id": "a"})
    it.say("response.output_text.delta", response_id="a", delta="x" * 40)
    if mid_frame:
        it.come(b"\x81")
    before = it.client.got
    assert it.upstream.sink is not None
    it.upstream.sink.end(Failure(502, Reason.UPSTREAM_FAILURE, "cut short"))
    assert it.client.ended
    assert it.client.got == before if mid_frame else it.client.code == 1014
    assert it.ending is not None
    assert it.ending.failure is not None
    (ending,) = it.endings
    assert ending.failure is it.ending.failure
    assert it.usages() == [Usage(0, 10, estimated=True)]
    assert not it.open


async def test_a_client_that_is_lost() -> None:
    it = World()
    it.say("response.created", response={"id": "a"})
    it.session.end()
    (bye,) = FrameReader(client=True).feed(it.upstream.got)
    assert bye.payload == b"\x03\xe9"
    it.session.close()
    assert it.upstream.closed
    ending = Ending(499, Reason.CLIENT_GONE, 0, None, True)
    it.session.settle(ending)
    assert (ending.status, ending.gone) == (499, True)
    assert [(e.status, e.gone) for e in it.endings] == [(499, True)]
    # One that has said goodbye has left in good order.
    it = World()
    it.session.send(close_frame(1000, key=KEY))
    it.session.end()
    assert it.upstream.got == close_frame(1000, key=KEY)  # as it came, and nothing more
    ending = Ending(499, Reason.CLIENT_GONE, 0, None, True)
    it.session.settle(ending)
    assert (ending.status, ending.reason, ending.gone) == (101, Reason.UPSTREAM, False)


async def test_bytes_that_are_no_frames() -> None:
    it = World()
    it.session.send(frame(TEXT, b"no mask"))
    assert (it.client.code, it.upstream.ended) == (1002, True)
    assert it.upstream.got == b""  # it may be in the middle of a frame
    it = World()
    it.say("x")
    it.come(frame(TEXT, b"{}") + b"\xf1\x00")
    assert (it.client.code, it.client.ended) == (1014, True)
    assert it.ending is not None
    assert it.ending.failure is not None
    assert it.ending.failure.reason is Reason.UPSTREAM_FAILURE


async def test_a_model_that_changes_under_way() -> None:
    it = World()
    it.say("session.created", session={"model": "a"})
    it.say("session.updated", session={"model": "a"})
    it.say("session.updated", session={"model": "b"})
    assert it.client.code == 1008
    it = World(transcribes=True)
    it.say("session.created", session={"audio": {"input": {"transcription": {"model": "their-own"}}}})
    it.say("session.updated", session={"audio": {"input": {"transcription": {"model": "gpt"}}}})
    assert not it.client.ended
    it.say("session.updated", session={"audio": {"input": {"transcription": {"model": "dearer"}}}})
    assert it.client.code == 1008


async def test_a_session_ends_when_its_principal_is_no_longer_good() -> None:
    holders = Holders(Clock())
    it = World(Principal("ada", source="jwt"), holders=holders)
    it.say("session.created", session={})
    assert len(holders) == 1
    half = frame(TEXT, json.dumps({"type": "response.text.delta"}).encode())
    it.come(half[:5])
    holders.end("ada", Failure(401, Reason.JWT_AUTH, "it was revoked", code="credential_revoked"))
    assert not it.client.ended  # not in the middle of a message
    it.come(half[5:])
    assert (it.client.code, it.client.ended) == (1008, True)
    assert b"credential_revoked" in it.client.got
    assert len(holders) == 0


async def test_a_session_that_ended_is_not_held() -> None:
    holders = Holders(Clock())
    it = World(Principal("ada", source="jwt"), holders=holders)
    it.session.leave()
    assert len(holders) == 0


async def test_a_model_that_listens_must_be_permitted() -> None:
    asked: list[str] = []
    it = World(permitted=lambda model: not asked.append(model) and model != "no")  # type: ignore[func-returns-value]
    heard = {"model": "a", "audio": {"input": {"transcription": {"model": "yes"}}}}
    it.say("session.created", session={"model": "a"})
    it.say("session.updated", session=heard)
    it.say("session.updated", session=heard)
    assert (asked, it.client.ended) == (["yes"], False)
    it.say("session.updated", session={"model": "a", "input_audio_transcription": {"model": "no"}})
    assert (asked, it.client.code) == (["yes", "no"], 1008)
    assert b"model_not_permitted" in it.client.got


async def test_the_gateway_stops() -> None:
    it = World()
    it.say("session.created", session={})
    it.session.leave()
    assert (it.client.code, it.client.ended, it.upstream.ended) == (1001, True, True)
    assert it.context.error == "the gateway is stopping"
    it.session.leave()


async def test_nothing_is_left_for_the_cycle_collector() -> None:
    def run(how: int) -> None:
        it = World()
        it.say("response.created", response={"id": "a"})
        it.say("response.done", response={"id": "a", "status": "completed", "usage": USAGE})
        it.say("response.created", response={"id": "b"})
        assert it.upstream.sink is not None
        if how == 0:
            it.come(close_frame(1000))
            it.upstream.sink.end()
        elif how == 1:
            it.session.end()
            it.session.close()
            it.session.settle(Ending(499, Reason.CLIENT_GONE, 0, None, True))
        else:
            it.refusal = Failure(429, Reason.RATE_LIMIT, "no")
            it.say("response.created", response={"id": "c"})
            it.session.expire()
        it.client.settle = it.session.__class__
        it.refusal = None
        vars(it).clear()

    for how in range(3):
        with collected() as found:
            run(how)
        left = [one for one in found if ours(one)]
        assert not left, (how, left)
