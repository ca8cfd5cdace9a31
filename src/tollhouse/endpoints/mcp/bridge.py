"""Between the eras: who asks for input in the middle of a request, and who cannot be asked that way.

Rule: each side is spoken to in its own era. A stateless agent on a server with sessions: the call is held here while
the agent answers (`held`). An agent with a session on a stateless server: it is asked by requests, and the call is
made again (`rounds`). Two stateless ones: the server's state travels in ours. What an agent brings back is believed
only when it is sealed here, for this caller, at this endpoint, for exactly this question; why it is not, the log says.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from tollhouse.core.call import ACCOUNT, APPROVAL, CONNECTING, Asks, Consent, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.reply import Reply, innermost
from tollhouse.endpoints.mcp.handover import Gone, HandOver, Refusal
from tollhouse.endpoints.mcp.held import HeldCall, Leg
from tollhouse.endpoints.mcp.ids import tag_of
from tollhouse.endpoints.mcp.listen import final
from tollhouse.endpoints.mcp.peers import Peers
from tollhouse.endpoints.mcp.request import JSON, Refused, must_allow
from tollhouse.endpoints.mcp.rounds import Rounds
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.task_result import TaskResult
from tollhouse.endpoints.mcp.tasks import Tasks
from tollhouse.endpoints.mcp.used import Used
from tollhouse.store.base import State
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr, tasks
from tollhouse.wire.mcp.capabilities import Profiles
from tollhouse.wire.mcp.catalogue import KINDS
from tollhouse.wire.mcp.sealed import Seals, Unsealed

__all__ = ["Bridge", "Retry"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_KIND = "r"
_REMEMBERED = 8 << 10  # bytes of earlier answers that a state carries
_LOOK = 0.1
_CARRIED = 8 << 10  # bytes of questions that it carries for a worker that takes the call over
_URLS = "urls"
_OURS = frozenset((ACCOUNT, APPROVAL, CONNECTING))
_ELICITED = 20.0  # seconds that a call waits for the server to say that what was done at a URL is complete
_CALL_LOST = "call_lost"
_TOOLS = KINDS["tools/list"]
_NOT_VALID = "requestState is not valid here: send the request again without it"


class Retry:
    """A request that brings answers. resume: what carries the call on, None when the server itself does. known:
    answers by the digest of their question, should the call have to be made again. consent: what the agent's user said
    to a question of ours. onward: who has asked in the server's place. first: claims the round, where what was asked
    is told from what is sent again: a state that comes a second time carries no call on that was counted or approved.
    """

    __slots__ = ("consent", "first", "known", "onward", "resume", "round")

    def __init__(
        self,
        round: int,
        resume: Callable[[ToolCall], Any] | None = None,
        known: dict[bytes, bytes] | None = None,
        onward: str = "",
        first: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self.onward = onward
        self.first = first
        self.round = round
        self.resume = resume
        self.known = known if known is not None else {}
        self.consent: Consent | None = None


class Bridge:
    """What the endpoints of a worker share to bridge eras; kept while configurations come and go. Holder of the calls
    that wait for their agents.

    state: shared with other workers; None where there are none. timeout: seconds that an agent may take to answer.
    limit, limit_each: calls held at once, in all and for one principal; above them the server is told that nobody
    answers. now: unix seconds. holders: where it is written down whose they are.
    """

    def __init__(
        self,
        clock: Clock,
        seals: Seals,
        *,
        state: State | None = None,
        timeout: float = 300.0,
        limit: int = 1000,
        limit_each: int = 16,
        now: Callable[[], float] = time.time,
        holders: Holders | None = None,
    ) -> None:
        self.clock = clock
        self.seals = seals
        self.timeout = timeout
        self.profiles = Profiles()
        shared = state is not None and state.shared
        self._node = state.node if state is not None and shared else secrets.token_urlsafe(9)
        self._hand_over = HandOver(state.bus, self._node, clock, self._here) if state is not None and shared else None
        self._peers = Peers(state) if state is not None and shared else None
        self._used = Used(state.values if state is not None else None, self._peers)
        self.tasks = Tasks(clock, seals, state, node=self._node, timeout=self._patience)
        self._limit = limit
        self._limit_each = limit_each
        self._now = now
        self._holders = holders
        self._held: dict[str, HeldCall] = {}
        self._of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    async def lives(self, node: str) -> bool:
        """Whether that worker has given a sign of life lately. Raises Failure 503."""
        return node == self._node or (self._peers is not None and await self._peers.lives(node))

    def _patience(self) -> float:
        return self.timeout

    def _while(self, left: float = 0.0) -> float:
        """Seconds in which a round can be brought. left: where these may be more than `timeout`."""
        return max(self.timeout, left) + 2 * _GRACE

    # ---- answers of servers
    def carried(self, call: ToolCall, reply: Reply, server: Server, endpoint: str, retry: Retry | None) -> Reply:
        """`reply` as an agent of its era can have it, where the server's is another."""
        who = call.instead
        session, new = call.session, server.upstream.new if who is None else who.new
        if session is not None:
            waits = isinstance(innermost(reply.source), TaskResult)  # it asks by itself
            if new and not waits and (reply.source is not None or b"input_required" in reply.first):
                return Rounds.of(
                    reply,
                    server.again if who is None else who.again,
                    self.clock,
                    call=call,
                    revision=session.revision,
                    timeout=self.timeout,
                    allowed=server.bridged,
                )
        elif call.profile and not new and reply.source is not None and call.resume is None:
            if isinstance(innermost(reply.source), Leg):
                return reply  # of a call that was taken over from another worker
            held = HeldCall(
                self,
                secrets.token_urlsafe(12),
                call,
                reply,
                endpoint=endpoint,
                bound=_bound(call),
                known=dict(retry.known) if retry is not None else {},
                bridged=server.bridged,
            )
            return held.begin(reply)
        return reply

    def wrapped(self, call: ToolCall, endpoint: str, result: msgspec.Raw) -> msgspec.Raw:
        """A stateless server's result for a stateless agent: its state goes into ours. Raises Malformed, and Refused
        when it asks what the agent cannot be asked."""
        need = mrtr.need_input(call.method, result)
        if need is None:
            return result
        if call.asks is not None:
            return self._consenting(call, call.asks, endpoint, need)
        must_allow(call.profile, need.requests, f"{call.server}: the server")
        fields: dict[str, Any] = dict(jsonrpc.decode_fields(result))
        state = _unheld(call, endpoint, "", need.state)
        if call.instead is not None:
            state.instead = call.instead.name
        fields["requestState"] = self._seal(_id(call.principal), state)
        return msgspec.Raw(jsonrpc.encode_fields(fields))

    def _consenting(self, call: ToolCall, asks: Asks, endpoint: str, need: mrtr.NeedInput) -> msgspec.Raw:
        """A question of ours: what is answered counts once, and in time."""
        state = _unheld(call, endpoint, asks.about, str(int(self._now() + asks.timeout)))
        state.questions = dict.fromkeys(need.requests, b"")
        return msgspec.Raw(mrtr.render(need.requests, self._seal(_id(call.principal), state, asks.timeout)))

    def _consent(self, state: mrtr.RequestState, answers: dict[str, msgspec.Raw]) -> Retry:
        """What came back to a question of ours. A late answer is none."""
        action = "accept" if state.call != APPROVAL else "cancel"  # in a round without a question: it was agreed before
        for key in state.questions:
            said = answers.get(key, msgspec.Raw(b""))
            action = jsonrpc.decode_string(jsonrpc.decode_fields(said).get("action")) or "cancel"
        left = float(state.inner or 0) - self._now()
        claim = partial(self._used.first, state.nonce, self._while(left))
        retry = Retry(state.round, first=None if state.call == APPROVAL else claim)
        retry.consent = Consent(state.call, action if left >= 0 else "", claim, left)
        return retry

    def as_task(self, server: Server) -> Callable[[ToolCall], Any]:
        """For `ToolCall.resume`: call a tool that can only be called as a task (2025-11-25), and wait for its result.
        A server of the new era may answer at once whatever the agent declared, so that is what we do in its place."""
        return partial(self._run_task, server)

    async def _run_task(self, server: Server, call: ToolCall) -> Reply:
        method, name, params = call.method, call.name, call.params
        call.resume = None
        try:
            call.params = {**params, "task": msgspec.Raw(b"{}")}
            message = await final(call, await server.upstream.handle(call))
            task = tasks.created(message.result) if len(message.result) else None
            id = tasks.task_id(task) if task is not None else None
            if id is None:  # an error, or a result after all
                told = jsonrpc.failed(1, message.error) if len(message.error) else jsonrpc.result(1, message.result)
                return Reply(200, [JSON], told)
            call.method, call.name = "tasks/result", id
            call.params = {"taskId": msgspec.Raw(msgspec.json.encode(id))}
            return await server.again(call)
        finally:
            call.method, call.name, call.params = method, name, params

    def urls(self, call: ToolCall, endpoint: str, error: msgspec.Raw) -> bytes | None:
        """The `input_required` result that says what an URLElicitationRequiredError says (2025-11-25), or None when
        it is none. Nothing is held: the request that comes back makes the call again. Raises Refused where the agent
        cannot be asked."""
        wanted = mrtr.url_elicitations(error)
        if not wanted:
            return None
        requests = {f"url-{number}": request for number, (_, request) in enumerate(wanted, 1)}
        must_allow(call.profile, requests, f"{call.server}: the server")
        ids = msgspec.json.encode([id for id, _ in wanted]).decode()
        state = _unheld(call, endpoint, _URLS, ids)
        state.questions = dict.fromkeys(requests, b"")
        return mrtr.render(requests, self._seal(_id(call.principal), state))

    async def _after_urls(
        self, state: mrtr.RequestState, answers: dict[str, msgspec.Raw], server: Server, call: ToolCall
    ) -> Reply:
        """The user was sent to the URLs: make the call again, once the server says that it is done there, or soon."""
        for key in state.questions:
            if jsonrpc.decode_string(jsonrpc.decode_fields(answers.get(key, b"")).get("action")) != "accept":
                return Reply(200, [JSON], jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, "the user did not open the URL"))
        ids = msgspec.json.decode(state.inner or "[]", type=list[str])
        await server.upstream.wait_elicited(ids, _ELICITED)
        call.resume = None
        return await server.again(call)

    # ---- what agents bring back
    def retry(
        self,
        principal: Principal | None,
        endpoint: str,
        server: Server,
        method: str,
        name: str,
        params: dict[str, msgspec.Raw],
    ) -> Retry | None:
        """What of `params` answers an earlier result, taken out of them, or put there as the server knows it. name:
        the server's own. Raises Malformed, and Refused for a state that is not this caller's for this request."""
        new = server.upstream.new
        token, responses = params.pop("requestState", None), params.pop("inputResponses", None)
        if method not in mrtr.METHODS:
            return None
        answers = mrtr.answers_of(responses)
        if token is None:
            if new is not False and responses is not None:
                params["inputResponses"] = responses
            return None
        state = self._open(token, principal, endpoint, server.name, method, name, params)
        if state.call in _OURS:
            return self._consent(state, answers)
        if state.call == _URLS:
            opened = partial(self._after_urls, state, answers, server)
            return Retry(state.round, opened, first=partial(self._used.first, state.nonce, self._while()))
        if not state.owner:
            if new is False and not state.instead:
                return None  # the server is another than it was: the call begins again
            if state.inner is not None:
                params["requestState"] = msgspec.Raw(msgspec.json.encode(state.inner))
            if responses is not None:
                params["inputResponses"] = responses
            astray = _astray if state.instead else None
            return Retry(
                state.round, astray, onward=state.instead, first=partial(self._used.first, state.nonce, self._while())
            )
        return Retry(state.round, partial(self._resume, state, answers, server), _known(state, answers))

    def _open(
        self, token: msgspec.Raw, principal: Principal | None, endpoint: str, server: str, method: str, name: str,
        params: dict[str, msgspec.Raw],
    ) -> mrtr.RequestState:  # fmt: skip
        text = jsonrpc.decode_string(token)
        try:
            if text is None:
                raise Unsealed("it is no string")
            state = self.seals.open(_KIND, text, mrtr.RequestState)
            if state.endpoint != endpoint or state.server != server:
                raise Unsealed("it is of another endpoint or server")
            if state.principal != tag_of(_id(principal)):
                raise Unsealed("it is another caller's")
            if state.bound != mrtr.binding(method, server, name, params.get("arguments", b"")):
                raise Unsealed("it is of another request")
            if (state.owner or state.call == APPROVAL) and state.nonce in self._used:
                raise Unsealed("it was used before")
        except Unsealed as unsealed:
            log.info("mcp: a requestState was refused at %s for %s: %s", endpoint, server, unsealed.why)
            raise Refused(jsonrpc.INVALID_PARAMS, _NOT_VALID, status=400) from None
        return state

    async def _resume(
        self, state: mrtr.RequestState, answers: dict[str, msgspec.Raw], server: Server, call: ToolCall
    ) -> Reply:
        """In the place of the server: the call goes on where it is held, or where its server still works at it, or
        begins again where it may."""
        call.context.upstream_began = call.context.upstream_began or monotonic()
        ended = Failure(503, Reason.MCP, "the call that waited for this answer has ended", code=_CALL_LOST, sent=True)
        left = False
        try:
            if state.owner == self._node or self._hand_over is None or self._peers is None:
                reply = await self._here(state.call, state.round, state.nonce, answers)
                if reply is not None:
                    return reply
            else:
                rescue = partial(self._take_over, state, answers, server, call)
                try:
                    distant = await self._hand_over.ask(
                        state.owner, state.call, state.round, state.nonce, answers, self._peers.lives, rescue
                    )
                    if distant is not None:
                        return distant.reply()
                    left = True
                    why = "the call is lost: the worker that held it is gone"
                    ended = Failure(503, Reason.MCP, why, code=_CALL_LOST, sent=True)
                except Gone:
                    pass
            if not await self._used.claimed(state.nonce, self._while()):
                raise Refusal
        except Refusal:
            raise Refused(jsonrpc.INVALID_PARAMS, _NOT_VALID, status=400) from None
        except Failure as failure:
            if failure.code == "state_unavailable" or failure.status == 413:
                raise
            ended = Failure(503, Reason.MCP, failure.message, code=_CALL_LOST, sent=True)
        finally:
            call.context.upstream_ended = monotonic()
        if left and state.place:
            return await self._adopt(state, answers, server, call)
        return await self._again(state, server, call, ended)

    async def _take_over(
        self,
        state: mrtr.RequestState,
        answers: dict[str, msgspec.Raw],
        server: Server,
        call: ToolCall,
        failure: Failure,
    ) -> Reply:
        """The worker that carried the call on for us is lost, or leaves."""
        if not await self._used.claimed(state.nonce, self._while()):
            raise failure
        if state.place:
            return await self._adopt(state, answers, server, call)
        return await self._again(state, server, call, failure)

    async def _adopt(
        self, state: mrtr.RequestState, answers: dict[str, msgspec.Raw], server: Server, call: ToolCall
    ) -> Reply:
        """The server works at the call, or has ended it: take its answer over. Nothing runs twice."""
        call.resume = partial(_adopted, server, state.place)
        try:
            reply = await server.again(call)  # it may have taken long to find out that nobody else goes on with it
        except Failure as failure:
            return await self._again(state, server, call, failure)
        held = HeldCall(
            self,
            secrets.token_urlsafe(12),
            call,
            reply,
            endpoint=state.endpoint,
            bound=state.bound,
            known=_known(state, answers),
            bridged=server.bridged,
        )
        try:
            return held.adopt(state.asked, answers)
        except BaseException:
            held.left()
            raise

    async def _again(self, state: mrtr.RequestState, server: Server, call: ToolCall, failure: Failure) -> Reply:
        """Make the call once more, if that does no harm. Raises what became of it where it may."""
        if not call.idempotent and call.method == "tools/call":
            try:  # the list may never have been asked for here
                listing = await server.upstream.listing(_TOOLS, None, call.principal, call.profile)
            except Failure as unknown:
                log.info("mcp: %s: it is not known whether a call may be repeated: %s", call.server, unknown.message)
            else:
                entry = listing.index.get(call.name)
                call.idempotent = entry is not None and entry.repeatable
        if call.idempotent:
            call.resume = None
            return await server.again(call)
        if self._now() > state.expires - _GRACE:
            raise Failure(503, Reason.MCP, "the answer came too late", code="input_timeout", sent=True)
        raise failure

    async def _here(self, id: str, round: int, nonce: str, answers: dict[str, msgspec.Raw]) -> Reply | None:
        """`handover.Resume` of this worker."""
        held = self._held.get(id)
        if nonce in self._used:
            raise Refusal
        if held is None:
            return None
        if not held.held or held.round != round or not secrets.compare_digest(held.nonce, nonce):
            raise Refusal
        try:
            if not await self._used.claimed(nonce, self._while()):
                raise Refusal
        except Failure:  # nobody else can claim it either
            if nonce in self._used:
                raise Refusal from None
            self._used.add(nonce)
        if self._held.get(id) is not held or held.round != round or not held.held:
            return None
        return held.resume(answers)

    def _seal(self, principal: str, state: mrtr.RequestState, timeout: float = 0.0) -> str:
        state.principal = tag_of(principal)
        state.expires = int(self._now() + (timeout or self.timeout) + _GRACE)
        return self.seals.seal(_KIND, state)

    # ---- Holder
    def hold(self, held: HeldCall) -> bytes | None:
        if held.id not in self._held:
            own = self._of.get(held.principal, 0)
            if len(self._held) >= self._limit or own >= self._limit_each:
                log.warning("mcp: no more calls are held for answers: %d in all, %d of one caller", len(self), own)
                return None
            self._held[held.id] = held
            self._of[held.principal] = own + 1
            if self._holders is not None:
                held.owned = self._holders.hold(held.who, held, expires=False)
            self.clock.watch(held)
        held.round += 1
        held.nonce = secrets.token_urlsafe(9)
        held.deadline = self.clock.now + self.timeout
        questions = held.questions()
        state = mrtr.RequestState(
            endpoint=held.endpoint,
            server=held.server,
            owner=self._node,
            call=held.id,
            round=held.round,
            nonce=held.nonce,
            expires=0,
            principal=b"",
            bound=held.bound,
            questions={key: mrtr.question(request) for key, request in questions.items()},
        )
        if held.idempotent and sum(map(len, held.known.values())) <= _REMEMBERED:
            state.answers = held.known
        if self._peers is not None:
            state.place = held.place
            if state.place:
                state.asked = held.asked(_CARRIED)
        return mrtr.render(questions, self._seal(held.principal, state))

    def let_go(self, held: HeldCall) -> None:
        if self._held.pop(held.id, None) is not None:
            self.clock.drop(held)
            if held.owned is not None:
                held.owned.release()
            left = self._of.pop(held.principal) - 1
            if left:
                self._of[held.principal] = left

    async def settled(self) -> None:
        """Return when nothing is held or carried here that other workers could only get from this one."""
        while self._hand_over is not None and (  # noqa: ASYNC110 - looks a few times, when a worker leaves
            self._hand_over.busy or not all(held.place for held in self._held.values())
        ):
            await asyncio.sleep(_LOOK)

    def close(self) -> None:
        """Nothing is served any more: let go of what is held. What others cannot take over is given up."""
        for held in list(self._held.values()):
            if self._peers is not None:
                held.leave()
            else:
                held.expire()
        if self._hand_over is not None:
            self._hand_over.leave()

    async def closed(self) -> None:
        """`close`, and tell other workers."""
        if self._peers is not None:
            await self._peers.closed()
        self.close()
        if self._hand_over is not None:
            await self._hand_over.closed()
        await self.tasks.closed()


async def _adopted(server: Server, place: bytes, call: ToolCall) -> Reply:
    """In the place of a server that is at work on the call already."""
    call.resume = None
    return await server.upstream.adopt(call, place)


async def _astray(call: ToolCall) -> Reply:
    """In the place of a server that has not asked: who did does not stand behind it any more."""
    raise Failure(503, Reason.MCP, f"{call.onward}, which has asked, is not here any more", code=_CALL_LOST, sent=True)


_GRACE = 300.0  # seconds after its time in which a late answer is told that it is late


def _unheld(call: ToolCall, endpoint: str, kind: str, inner: str | None) -> mrtr.RequestState:
    """With what a call goes on that nobody holds. kind: whose question it is, "" for the server's."""
    return mrtr.RequestState(
        endpoint=endpoint,
        server=call.server,
        owner="",
        call=kind,
        round=call.round + 1,
        nonce=secrets.token_urlsafe(9),
        expires=0,
        principal=b"",
        bound=_bound(call),
        inner=inner,
    )


def _bound(call: ToolCall) -> bytes:
    name, arguments = call.asked or (call.name, call.arguments)
    return mrtr.binding(call.method, call.server, name, arguments)


def _known(state: mrtr.RequestState, answers: dict[str, msgspec.Raw]) -> dict[bytes, bytes]:
    """All answers that there are by now, by the digest of their question."""
    known = dict(state.answers)
    known.update((digest, bytes(answers[key])) for key, digest in state.questions.items() if key in answers)
    return known


def _id(principal: Principal | None) -> str:
    return principal.id if principal is not None else ""
