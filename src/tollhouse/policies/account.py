"""Accounts: a call that needs an account which its agent's user has not connected yet asks him to, and goes on then.

Rule: asked is only about what rules and limits have let pass, and what was not sent. The link that the user gets is for
him alone, and not the agent's answer but the account says that he has followed it. An agent that can put a URL to its
user is asked to (MCP, URL mode elicitation), in its own era; the others get the link in words.
"""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Any, Final

import msgspec

from tollhouse.core.call import ACCOUNT, CONNECTING, Call, Consent, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.identity import ACCOUNT_NEEDED, Accounts, Target
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Kind, Layer, Parts, wrong
from tollhouse.policies.question import Question, can_ask, put
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.letters import visible

__all__ = ["ACCOUNTS", "AccountAsked"]

_OWN: Final = 0  # id of answers that are ours in a server's place (`wire.mcp.messages.OWN_ID`)
_JSON: Final = (b"content-type", b"application/json")
_ROUND: Final = 40.0  # clients and proxies give up after 60 seconds
_ROUNDS: Final = 300.0  # seconds in all rounds: clients come back about ten times
_BEAT: Final = 15.0
_NOTHING: Final = Target("", (), 0.0, False)  # an account's token is for its server, whatever is asked
_URL_MODE: Final = b'{"mode":"url"}'


class AccountAsked:
    """Of the calls to one server. asked: told of each time that a user is sent a link. patience: seconds that he has
    for it. round: seconds that one request of a stateless agent waits for him. beat: seconds between two signs to an
    agent with a session that its call is waited for."""

    def __init__(
        self,
        server: str,
        accounts: Accounts,
        clock: Clock,
        asked: Callable[[], None],
        *,
        patience: float = 300.0,
        round: float = _ROUND,
        beat: float = _BEAT,
    ) -> None:
        self._server = server
        self._accounts = accounts
        self._clock = clock
        self._asked = asked
        self._patience = patience
        self._round = round
        self._beat = beat

    async def handle(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        """Raises Failure 403 where there is no account, 503 where nobody can say, and what `next` raises."""
        assert isinstance(call, ToolCall)
        consent, call.consent = call.consent, None
        if consent is not None and consent.about == CONNECTING:
            call.connects = True  # the server may have a tool of this name, which is seen now
        then = self._connected if call.connects else next
        if consent is not None and consent.about in (ACCOUNT, CONNECTING):
            return await self._answered(consent, call, then)
        if call.connects and not await self._accounts.connected(self._who(call), 0.0):
            return self._ask(call, then)
        try:
            return await then(call)
        except Failure as failure:
            if failure.code != ACCOUNT_NEEDED or failure.sent:
                raise
            more = bool(failure.scopes)
        return self._ask(call, then, more)

    async def _connected(self, call: Call) -> Reply:
        """In the place of the server: what our own tool gives."""
        assert isinstance(call, ToolCall)
        host = visible(self._accounts.host)
        text = f"An account at {host} is connected. The tools of {self._server} can be listed and called now."
        return _told(text)

    # ---- asking
    def _ask(self, call: ToolCall, next: Handler[Call, Reply], more: bool = False) -> Reply:
        """The question, or the link in words. more: there is an account, whose user is to agree to more (MCP
        authorization, Step-Up Authorization Flow). Raises Failure."""
        link = self._accounts.link(self._who(call))
        self._asked()
        noted = call.context.rule, call.context.decision, call.context.approver
        self._note(call, "", "")
        # What is carried on from an earlier round brings a state along that would be lost.
        if call.round or not can_ask(call, _URL_MODE):
            return _whole(self._in_words(call, link, more))
        params = {"mode": "url", "message": self._message(call, more), "url": link}
        timeout = max(min(self._patience, call.context.deadline - monotonic()), 0.001)
        if call.session is None:
            return put(_about(call), call, msgspec.json.encode(params), min(timeout, _ROUNDS))
        id = params["elicitationId"] = secrets.token_urlsafe(12)
        question = Question(
            ACCOUNT,
            call,
            msgspec.json.encode(params),
            self._clock,
            timeout,
            go_on=partial(self._go_on, next, id, noted, more),
            refused=partial(self._refused, more=more),
            waits=True,
        )
        return question.reply()

    # ---- an agent with a session
    async def _go_on(
        self,
        next: Handler[Call, Reply],
        id: str,
        noted: tuple[str, str, str],
        more: bool,
        question: Question,
        call: ToolCall,
    ) -> Reply:
        """The user has the link: go on once there is an account, however that came about. noted: what was, before."""
        until = monotonic() + question.timeout
        beats = 0
        while not await self._accounts.connected(self._who(call), max(min(self._beat, until - monotonic()), 0.0)):
            if monotonic() >= until:
                return _whole(self._refused(call, "", more=more))
            if call.progress:  # for clients that wait as long as they hear something
                beats += 1
                said = {"progressToken": 0, "progress": beats / 1000, "message": self._message(call, more)}
                question.send(jsonrpc.notification("notifications/progress", jsonrpc.encode_fields(said)))
        question.settle()
        done = jsonrpc.encode_fields({"elicitationId": id})
        question.send(jsonrpc.notification("notifications/elicitation/complete", done))
        call.context.rule, call.context.decision, call.context.approver = noted
        return await self._once_more(call, next)

    # ---- a stateless agent
    async def _answered(self, consent: Consent, call: ToolCall, next: Handler[Call, Reply]) -> Reply:
        """Its request has come back."""
        call.round = 0  # for all behind this it is the first one
        if consent.action not in ("accept", ""):
            return _whole(self._refused(call, consent.action, more=await self._has_one(call)))
        began = monotonic()
        timeout = min(self._round, consent.left, call.context.deadline - began)
        if await self._accounts.connected(self._who(call), max(timeout, 0.0)):
            return await self._once_more(call, next)
        left = consent.left - (monotonic() - began)
        if left < 1.0:
            return _whole(self._refused(call, "", more=await self._has_one(call)))
        self._note(call, "", "")
        return put(_about(call), call, b"", left)

    async def _has_one(self, call: ToolCall) -> bool:
        """Whether its user has an account all the same: what he was asked for is more of it."""
        try:
            made = self._accounts.exchanged(self._who(call), _NOTHING)
            if isinstance(made, Awaitable):
                await made
        except Failure:
            return False
        return True

    # ---- what becomes of it
    async def _once_more(self, call: ToolCall, next: Handler[Call, Reply]) -> Reply:
        try:
            return await next(call)
        except Failure as failure:
            if failure.code != ACCOUNT_NEEDED or failure.sent:
                raise
            more = bool(failure.scopes)
        self._note(call, "", "")
        link = self._accounts.link(self._who(call))
        return _whole(self._in_words(call, link, more))

    def _refused(self, call: ToolCall, action: str, *, more: bool = False) -> Failure | Reply:
        """What the call comes to whose user has not connected an account. action: as `Question` has it."""
        host = visible(self._accounts.host)
        if action == "error":
            return self._in_words(call, self._accounts.link(self._who(call)), more)
        if action:
            self._note(call, "deny", "user")
            what = f"let {self._server} use more of his" if more else "connect an"
            why = f"The user did not agree to {what} account at {host}, which {self._server} needs."
            return self._failed(call, why)
        self._note(call, "deny", "timeout")
        late = "The user did not agree in time. " if more else "No account was connected in time. "
        return self._in_words(call, self._accounts.link(self._who(call)), more, late)

    def _in_words(self, call: ToolCall, link: str, more: bool, before: str = "") -> Failure | Reply:
        host = visible(self._accounts.host)
        text = f"{before}{self._server} needs an account of the user at {host}, which is not connected."
        if more:
            text = f"{before}{self._server} needs more of the user's account at {host} than was agreed."
        return self._failed(call, text, link)

    def _failed(self, call: ToolCall, text: str, link: str = "") -> Failure | Reply:
        """A result of a tool, which the model reads; an error of anything else."""
        call.context.error = text
        if call.method != "tools/call" or "task" in call.params:
            return Failure(403, Reason.AUTHORIZATION, text, code=ACCOUNT_NEEDED, url=link)
        if link:
            text += (
                f" Ask the user to open this link in a browser and to connect it there, then call the tool again: "
                f"{link}\nThe link is for this user alone, and good for a few minutes."
            )
        return _told(text, failed=not (call.connects and link))

    def _message(self, call: ToolCall, more: bool = False) -> str:
        """What the user reads."""
        host = visible(self._accounts.host)
        if call.connects:
            return f"Connect your account at {host}, so that {self._server} can be used."
        name = visible(call.name)[:200]
        if more:
            return f"{self._server} needs more of your account at {host} than you agreed to: agree, and {name} goes on."
        return f"{self._server} needs your account at {host}: connect it, and {name} goes on."

    def _note(self, call: ToolCall, decision: str, who: str) -> None:
        """For audit and log; without a decision the answer is the question."""
        context = call.context
        context.rule, context.decision, context.approver = ACCOUNT, decision, who

    def _who(self, call: ToolCall) -> Principal:
        principal = call.principal
        if principal is None:
            what = f"{self._server} is used with accounts of users; this call needs a user who can log in here"
            raise Failure(403, Reason.AUTHORIZATION, what, code="permission_denied")
        return principal


def _about(call: ToolCall) -> str:
    return CONNECTING if call.connects else ACCOUNT


def _told(text: str, *, failed: bool = False) -> Reply:
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}]}
    if failed:
        result["isError"] = True
    return Reply(200, [_JSON], jsonrpc.result(_OWN, jsonrpc.encode_fields(result)))


def _whole(end: Failure | Reply) -> Reply:
    if isinstance(end, Failure):
        raise end
    return end


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    layer = layers[-1]
    accounts = parts.accounts(layer.name) if parts.accounts is not None else None
    if accounts is None:
        raise wrong(layer, "oauth", "nobody can connect an account here: that needs an `issuer` in this configuration")
    asked = parts.families.accounts.child(layer.name, "asked").inc
    return AccountAsked(layer.name, accounts, parts.clock, asked, patience=parts.patience).handle


ACCOUNTS: Kind[Call, Reply] = Kind(
    "oauth", frozenset(("server",)), adds=False, build=_build, entrances=frozenset(("mcp",))
)
