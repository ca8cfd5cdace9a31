"""policies.audit: one record of each deed, however it ends, before the end; and what is said when there can be none."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from tollhouse.core.call import Actor, Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, Request, Response, finish
from tollhouse.core.identity import Event
from tollhouse.core.reply import Reply
from tollhouse.ledger.audit import BEGIN, AuditRecord, Chain, Seal
from tollhouse.ledger.audit_reader import Row
from tollhouse.ledger.audit_verify import follow
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT
from tollhouse.ledger.segment import Reader
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.audit import Audit, AuditSetting, AuditSpec, Deed

pytestmark = pytest.mark.anyio

SEAL = Seal(b"0123456789abcdef0123456789abcdef")
OK = Ending(200, Reason.UPSTREAM, 704)
ADA = Principal(
    "jwt:https://idp|ada",
    source="jwt",
    user="ada",
    org="acme",
    agent="bot",
    client="bot-client",
    issuer="https://idp",
    jti="inbound-1",
    sid="session-1",
    actors=(Actor("https://idp", "bot"), Actor("", "helper")),
)


class Bench:
    def __init__(self, directory: Path, spec: AuditSpec | None = None, **options: Any) -> None:
        self.journal = Journal(directory / "journal", **options)
        self.journal.open()
        self.families = Families(Metrics())
        self.lines: list[tuple[str, bytes]] = []
        self.chain = Chain(self.journal)
        line = (lambda *one: self.lines.append(one)) if spec is not None and spec.log else None
        self.audit = Audit(spec or AuditSpec(), self.chain, SEAL, self.families, line)

    async def call(
        self, call: Call, act: Callable[[Call], Any] | None = None, ending: Ending = OK, how: str = "call"
    ) -> None:
        async def inner(call: Call) -> Reply:
            if act is not None:
                result = act(call)
                if result is not None:
                    await result
            return Reply(200, [], b"{}")

        try:
            reply = await getattr(self.audit, how)(call, inner)
        except Failure as failure:
            self.over(call.request, Ending(failure.status, failure.reason))
            raise
        except BaseException as error:
            self.over(call.request, Ending(500, Reason.INTERNAL) if isinstance(error, Exception) else Ending(499, "x"))
            raise
        call.request.ends = reply.ends + call.request.ends
        self.over(call.request, ending)

    async def request(self, how: str, request: Request, ending: Ending, *name: str) -> None:
        async def inner(request: Request) -> Response:
            return Response(ending.status, [])

        await getattr(self.audit, how)(*name, request, inner)
        self.over(request, ending)

    @staticmethod
    def over(request: Request, ending: Ending) -> None:
        ends, request.ends = request.ends, []
        finish(ends, ending)

    def records(self) -> list[AuditRecord]:
        reader = Reader(self.journal.directory, self.journal.id, 0, live=True)
        entries = reader.read(1000)
        reader.close()
        rows = [msgspec.json.decode(entry.body, type=AuditRecord) for entry in entries]
        assert {entry.kind for entry in entries} <= {AUDIT}
        stored = [Row(one.n, one.at, entry.body) for one, entry in zip(rows, entries, strict=True)]
        assert follow(self.journal.id, stored, [SEAL]).breaks == ()
        assert [one.operation for one in rows[:1]] in ([], [BEGIN])
        return rows[1:]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def request(method: bytes = b"POST", target: bytes = b"/mcp", who: Principal | None = ADA) -> Request:
    one = Request(method, target, Headers(), b"{}", peer="192.0.2.1")
    one.context = Context(request_id="r-1", route="mcp", principal=who)
    return one


def tool_call(
    method: str = "tools/call", arguments: bytes = b'{"to":"bob"}', who: Principal | None = ADA, name: str = "pay"
) -> ToolCall:
    asked = request(who=who)
    asked.context.backend = "bank"
    params = {"name": msgspec.Raw(b'"pay"'), "arguments": msgspec.Raw(arguments)} if arguments else {}
    return ToolCall(asked, asked.context, server="bank", method=method, name=name, params=params, meta=None)


def model_call() -> ModelCall:
    asked = request(target=b"/v1/chat/completions")
    asked.context.operation, asked.context.model_asked, asked.context.backend = "chat", "smart", "openai"
    return ModelCall(
        asked, asked.context, dialect=None, operation="chat", model="smart", label="smart", stream=False, fields={},
        body=b"{}",
    )  # fmt: skip


async def test_a_tools_call(bench: Bench) -> None:
    def act(call: Call) -> None:
        call.context.decision, call.context.token_jti, call.context.mcp_outcome = "allow", "minted-1", "ok"

    await bench.call(tool_call(), act)
    (one,) = bench.records()
    assert (one.operation, one.server, one.target, one.backend, one.route) == (
        "tools/call",
        "bank",
        "pay",
        "bank",
        "mcp",
    )
    assert (one.principal, one.source, one.user, one.org) == ("jwt:https://idp|ada", "jwt", "ada", "acme")
    assert (one.agent, one.client, one.issuer, one.jti, one.session) == (
        "bot", "bot-client", "https://idp", "inbound-1", "session-1",
    )  # fmt: skip
    assert one.actors == ADA.actors
    assert (one.decision, one.minted, one.outcome, one.status) == ("allow", "minted-1", "ok", 200)
    assert (one.request_id, one.address) == ("r-1", "192.0.2.1")
    assert one.took_us >= 0
    assert one.arguments_hash == SEAL.of_arguments(b'{"to":"bob"}').decode()
    assert one.arguments == ""
    assert bench.families.ledger_records.child("audit", "journal").value == 1


async def test_a_models_call(bench: Bench) -> None:
    await bench.call(model_call())
    (one,) = bench.records()
    assert (one.operation, one.target, one.server, one.outcome, one.user) == ("chat", "smart", "", "ok", "ada")
    assert one.arguments_hash == ""


@pytest.mark.parametrize("make", [tool_call, model_call])
async def test_a_refusal_names_its_rule(bench: Bench, make: Callable[[], Call]) -> None:
    def deny(call: Call) -> None:
        call.context.rule, call.context.decision = "top: no", "deny"
        raise Failure(403, Reason.AUTHORIZATION, "no")

    with pytest.raises(Failure):
        await bench.call(make(), deny)
    (one,) = bench.records()
    assert (one.decision, one.rule, one.outcome, one.status) == ("deny", "top: no", "denied", 403)


async def test_what_a_limit_refuses_is_denied_too(bench: Bench) -> None:
    def limit(call: Call) -> None:
        call.context.decision = "allow"
        raise Failure(429, Reason.RATE_LIMIT, "later")

    with pytest.raises(Failure):
        await bench.call(tool_call(), limit)
    assert [(one.decision, one.reason) for one in bench.records()] == [("deny", Reason.RATE_LIMIT)]


@pytest.mark.parametrize(
    ("decision", "shadow", "rule", "approver", "told"),
    [
        ("", "", "", "", ("", "", "")),
        ("allow", "top: 2", "", "", ("shadow-deny", "top: 2", "")),
        ("allow", "", "top: 1", "", ("approve", "top: 1", "")),
        ("allow", "top: 2", "top: 1", "", ("approve", "top: 1", "")),
        ("deny", "", "top: 1", "user", ("deny", "top: 1", "user")),
        ("approved", "", "top: 1", "operator:eve", ("approved", "top: 1", "operator:eve")),
        ("approved", "top: 2", "top: 1", "user", ("approved", "top: 1", "user")),
    ],
)
async def test_decisions(
    bench: Bench, decision: str, shadow: str, rule: str, approver: str, told: tuple[str, str, str]
) -> None:
    def act(call: Call) -> None:
        context = call.context
        context.decision, context.shadow, context.rule, context.approver = decision, shadow, rule, approver

    await bench.call(tool_call(), act)
    assert [(one.decision, one.rule, one.approver) for one in bench.records()] == [told]


@pytest.mark.parametrize(
    ("ending", "mcp", "outcome"),
    [
        (Ending(200, Reason.UPSTREAM), "tool_error", "tool_error"),
        (Ending(200, Reason.UPSTREAM), "protocol_error", "upstream_error"),
        (Ending(200, Reason.UPSTREAM, 1, Failure(502, Reason.UPSTREAM_FAILURE, "cut")), "", "cut"),
        (Ending(200, Reason.UPSTREAM, 1, None, True), "", "client_gone"),
        (Ending(504, Reason.TIMEOUT), "", "timeout"),
    ],
)
async def test_ends_after_the_answer_began(bench: Bench, ending: Ending, mcp: str, outcome: str) -> None:
    await bench.call(tool_call(), lambda call: setattr(call.context, "mcp_outcome", mcp), ending)
    await bench.call(model_call(), ending=ending)
    await bench.request("service", request(), ending)
    found = bench.records()
    assert found[0].outcome == outcome
    assert mcp or {one.outcome for one in found} == {outcome}
    why = ending.reason if ending.failure is None else ending.failure.reason
    assert {(one.status, one.reason) for one in found} == {(ending.status, why)}


async def test_cancelled_and_bugs(bench: Bench) -> None:
    async def hang(call: Call) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(bench.call(tool_call(), hang))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    def bug(call: Call) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bench.call(tool_call(), bug)
    assert [(one.outcome, one.status) for one in bench.records()] == [("client_gone", 499), ("error", 500)]


async def test_who_only_looks_is_recorded_when_refused(bench: Bench) -> None:
    def deny(call: Call) -> None:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    await bench.call(tool_call("tools/list", b""))
    with pytest.raises(Failure):
        await bench.call(tool_call("tools/list", b""), deny)
    assert [(one.operation, one.decision) for one in bench.records()] == [("tools/list", "deny")]


def deny(call: Call) -> None:
    raise Failure(403, Reason.AUTHORIZATION, "no")


def reaches_nobody(method: str, name: str = "") -> ToolCall:
    asked = request()
    return ToolCall(asked, asked.context, server="", method=method, name=name, params={}, meta=None)


@pytest.mark.parametrize("method", ["tools/list", "ping", "DELETE", "batch", "logging/setLevel"])
async def test_what_reaches_no_server_is_recorded_when_refused(bench: Bench, method: str) -> None:
    await bench.call(reaches_nobody(method), how="admission")
    for _ in range(2):
        with pytest.raises(Failure):
            await bench.call(reaches_nobody(method), deny, how="admission")
    found = [(one.operation, one.user, one.decision, one.status) for one in bench.records()]
    assert found == [(method, "ada", "deny", 403)] * 2


async def test_a_program_that_is_run_is_a_deed(bench: Bench) -> None:
    await bench.call(reaches_nobody("tools/call", "run_program"), how="admission")
    failed = reaches_nobody("tools/call", "run_program")
    failed.context.mcp_outcome = "tool_error"
    await bench.call(failed, how="admission")
    with pytest.raises(Failure):
        await bench.call(reaches_nobody("tools/call", "run_program"), deny, how="admission")
    with pytest.raises(ZeroDivisionError):
        await bench.call(reaches_nobody("tools/call", "run_program"), lambda call: 1 // 0, how="admission")
    await bench.call(reaches_nobody("tools/call"), how="admission")  # of a tool that nobody has
    found = [(one.operation, one.target, one.outcome) for one in bench.records()]
    outcomes = ("ok", "tool_error", "denied", "error")
    assert found == [("tools/call", "run_program", outcome) for outcome in outcomes]


async def test_models_that_are_listed_are_the_doors_business(bench: Bench) -> None:
    asked = request(b"GET", b"/v1/models")
    with pytest.raises(Failure):
        await bench.call(Call(asked, asked.context), deny, how="admission")
    assert not bench.records()
    assert not asked.context.audited


@pytest.mark.parametrize(
    ("spec", "arguments", "hashed", "kept"),
    [
        (AuditSpec(arguments="off"), b'{"a":1}', False, ""),
        (AuditSpec(arguments="keep"), b'{"a":"\xc3\xa4"}', True, '{"a":"ä"}'),
        (AuditSpec(arguments="keep", keep_bytes=4), b'{"a":1}', True, '{"a"…'),
        (AuditSpec(arguments="keep"), b'{"a":"\xff\\ud800"}', True, '{"a":"\ufffd\\ud800"}'),
        (AuditSpec(arguments="keep"), b"", False, ""),
    ],
)
async def test_arguments(tmp_path: Path, spec: AuditSpec, arguments: bytes, hashed: bool, kept: str) -> None:
    bench = Bench(tmp_path, spec)
    await bench.call(tool_call(arguments=arguments))
    (one,) = bench.records()
    assert one.arguments == kept
    assert one.arguments_hash == (SEAL.of_arguments(arguments).decode() if hashed else "")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.binary(max_size=40), st.text(max_size=3000))
def test_no_callers_word_leaves_its_place(tmp_path_factory: Any, name: str, jti: str, raw: bytes, user: str) -> None:
    bench = Bench(tmp_path_factory.mktemp("audit"), AuditSpec(arguments="keep"))
    who = Principal("p", source="jwt", user=user, jti=jti)
    call = tool_call(arguments=raw, who=who, name=name)
    call.context.token_jti = jti
    asyncio.run(bench.call(call))
    (one,) = bench.records()
    assert (one.target, one.user) == (name, user[:2048])
    assert (one.outcome, one.n) == ("ok", 2)
    bench.journal.close()


async def test_words_that_are_no_text(bench: Bench) -> None:
    await bench.call(tool_call(name="half\ud800", who=Principal("p\udfff", source="key", user="\ud800")))
    assert [(one.target, one.principal, one.user) for one in bench.records()] == [("half?", "p?", "?")]


# ---- the request floor
async def test_who_was_not_let_in_is_recorded_once(bench: Bench) -> None:
    refused = Ending(401, Reason.JWT_AUTH)
    await bench.request("door", request(who=None), refused)
    await bench.request("door", request(), OK)
    await bench.request("door", request(who=None), Ending(404, Reason.NOT_FOUND))
    made = tool_call()

    async def inner(asked: Request) -> Response:
        def deny(call: Call) -> None:
            raise Failure(403, Reason.AUTHORIZATION, "no")

        ends, asked.ends = asked.ends, []
        with pytest.raises(Failure):
            await bench.call(made, deny)
        asked.ends = ends
        return Response(403, [])

    await bench.audit.door(made.request, inner)
    bench.over(made.request, Ending(403, Reason.AUTHORIZATION))
    told = [(one.operation, one.decision, one.status, one.principal, one.address) for one in bench.records()]
    assert told == [
        ("request", "deny", 401, "", "192.0.2.1"),
        ("tools/call", "deny", 403, "jwt:https://idp|ada", "192.0.2.1"),
    ]


async def test_strangers_can_be_left_out(tmp_path: Path) -> None:
    bench = Bench(tmp_path, AuditSpec(refused="known"))
    for how in ("door", "service"):
        await bench.request(how, request(who=None), Ending(401, Reason.JWT_AUTH))
        await bench.request(how, request(), Ending(403, Reason.AUTHORIZATION))
    await bench.request("issuer", request(who=None), Ending(401, Reason.JWT_AUTH), "token")
    nobody = request(who=Principal("anonymous", source="anonymous"))
    await bench.request("door", nobody, Ending(403, Reason.AUTHORIZATION))
    await bench.request("service", nobody, Ending(200, Reason.UPSTREAM))  # which is no refusal
    assert [one.status for one in bench.records()] == [403, 403, 200]


async def test_each_request_to_a_service(bench: Bench) -> None:
    asked = request(b"PUT", b'/shop/"1"?token=secret')
    asked.context.backend = "shop"
    await bench.request("service", asked, Ending(204, Reason.UPSTREAM))
    preflight = request(b"OPTIONS", b"/shop/1", None)
    preflight.headers.append((b"access-control-request-method", b"GET"))
    await bench.request("service", preflight, Ending(204, Reason.DIRECT_RESPONSE))
    await bench.request("service", request(b"OPTIONS", b"/shop/2"), Ending(403, Reason.AUTHORIZATION))
    preflight.context.backend = "shop"  # which has answered it
    await bench.request("service", preflight, Ending(204, Reason.UPSTREAM))
    one, refused, passed = bench.records()
    assert (refused.target, refused.decision) == ("OPTIONS /shop/2", "deny")
    assert (passed.target, passed.backend) == ("OPTIONS /shop/1", "shop")
    assert (one.operation, one.target, one.backend, one.status) == ("http", 'PUT /shop/"1"', "shop", 204)


async def test_the_door_says_what_was_wanted(bench: Bench) -> None:
    for method, operation in (("tools/call", "mcp"), ("", "chat"), ("", "")):
        asked = request()
        asked.context.mcp_method, asked.context.operation = method, operation
        await bench.request("door", asked, Ending(401, Reason.JWT_AUTH))
    assert [one.operation for one in bench.records()] == ["tools/call", "chat", "request"]


async def test_the_client_is_whom_trusted_proxies_name(bench: Bench) -> None:
    asked = request()
    asked.context.client = "198.51.100.7"
    await bench.request("service", asked, OK)
    assert [one.address for one in bench.records()] == ["198.51.100.7"]


async def test_what_callers_choose_is_not_kept_without_bound(bench: Bench) -> None:
    await bench.call(tool_call(name="x" * 2040))
    assert not bench.audit._rows
    for number in range(10_020):
        bench.audit._tool_ended(tool_call(name=f"n{number}"), 0.0, OK)
    assert 0 < len(bench.audit._rows) < 100
    await bench.call(tool_call(name="n10019"))
    assert len(bench.audit._rows) < 100


async def test_what_the_auth_provider_does(bench: Bench) -> None:
    asked = request(target=b"/oauth/token", who=None)
    asked.context.event = Event("issuer.token", "robot", "ada", ("read", "write"), "https://api", "minted-2", "s-1")
    await bench.request("issuer", asked, Ending(200, Reason.DIRECT_RESPONSE), "token")
    await bench.request("issuer", request(b"GET", who=None), Ending(200, Reason.DIRECT_RESPONSE), "login")
    await bench.request("issuer", request(who=None), Ending(401, Reason.JWT_AUTH), "token")
    await bench.request("issuer", request(who=None), Ending(400, Reason.INVALID_REQUEST), "par")
    await bench.request("issuer", request(b"GET", who=None), Ending(403, Reason.AUTHORIZATION), "login")
    known = request(target=b"/oauth/revoke", who=ADA)
    known.context.event = Event("issuer.revoke", "other", "ada", session="s-1")
    await bench.request("issuer", known, Ending(200, Reason.DIRECT_RESPONSE), "revoke")
    issued, refused, wrong, looked, revoked = bench.records()
    assert (looked.operation, looked.decision) == ("issuer.login", "deny")
    assert (revoked.client, revoked.session) == ("bot-client", "session-1")  # who was let in, said once
    assert (issued.operation, issued.client, issued.subject) == ("issuer.token", "robot", "ada")
    assert (issued.scopes, issued.audience, issued.minted, issued.session) == (
        ("read", "write"), "https://api", "minted-2", "s-1",
    )  # fmt: skip
    assert (refused.operation, refused.decision, refused.status) == ("issuer.token", "deny", 401)
    assert (wrong.operation, wrong.outcome) == ("issuer.par", "invalid")


# ---- when there can be no record
@pytest.mark.parametrize("make", [tool_call, model_call])
async def test_nothing_begins_while_the_journal_is_full(tmp_path: Path, make: Callable[[], Call]) -> None:
    bench = Bench(tmp_path, max_size=10)
    with pytest.raises(Failure) as caught:
        await bench.call(make())
    assert (caught.value.status, caught.value.code) == (503, "audit_unavailable")
    for how, name in (("service", ()), ("issuer", ("token",))):
        with pytest.raises(Failure):
            await bench.request(how, request(), OK, *name)
    with pytest.raises(Failure):
        await bench.call(reaches_nobody("tools/call", "run_program"), how="admission")
    with pytest.raises(Failure):
        bench.audit.deed(request(), Deed("admin.keys.create", ""))
    await bench.call(tool_call("tools/list", b""))  # which needs none
    await bench.call(reaches_nobody("tools/list"), how="admission")
    await bench.request("issuer", request(b"GET"), OK, "authorize")


async def test_an_answer_without_a_record_fails(bench: Bench) -> None:
    bench.journal.seal()
    for make in (tool_call, model_call):
        with pytest.raises(Failure) as caught:
            await bench.call(make())
        assert caught.value.status == 503

    def deny(call: Call) -> None:
        raise Failure(403, Reason.AUTHORIZATION, "no")

    with pytest.raises(Failure) as caught:
        await bench.call(tool_call(), deny)
    assert caught.value.status == 403  # it fails already
    assert bench.families.ledger_errors.child("audit", "journal").value == 3
    await bench.call(model_call(), ending=Ending(502, Reason.UPSTREAM_FAILURE))  # so does this
    await bench.request("service", request(), Ending(502, Reason.UPSTREAM_FAILURE))
    with pytest.raises(Failure):
        await bench.request("service", request(), OK)
    assert bench.families.ledger_errors.child("audit", "journal").value == 6


async def test_or_it_passes_with_an_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(tmp_path, AuditSpec(on_failure="allow"), max_size=10)
    await bench.call(tool_call())
    bench.journal.seal()
    with caplog.at_level(logging.ERROR, "tollhouse.audit"):
        await bench.call(tool_call())
        await bench.call(model_call())
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "audit records are lost, as configured (on_failure"
    ]
    assert bench.families.ledger_errors.child("audit", "journal").value == 2


async def test_lines_for_the_log(tmp_path: Path) -> None:
    bench = Bench(tmp_path, AuditSpec(log=True))
    await bench.call(tool_call())
    ((chain, body),) = bench.lines
    assert chain == bench.journal.id
    assert msgspec.json.decode(body, type=AuditRecord) == bench.records()[0]


# ---- settings
@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"mode": "off", "log": True}, "`log` has no effect with `mode: off`"),
        ({"keep_bytes": 10}, "`keep_bytes` has no effect without `arguments: keep`"),
        ({"key": "short"}, "shorter than 32 bytes"),
        ({"former_keys": ["short"]}, "shorter than 32 bytes"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        AuditSpec.model_validate(values)


def test_words_for_settings() -> None:
    setting: TypeAdapter[AuditSpec] = TypeAdapter(AuditSetting)
    assert setting.validate_python("off") == AuditSpec(mode="off")
    assert setting.validate_python({"arguments": "keep"}) == AuditSpec(arguments="keep")
    with pytest.raises(ValidationError, match="write on, off"):
        setting.validate_python("maybe")


def test_a_key_is_a_secret() -> None:
    spec = AuditSpec(key=SecretStr("0123456789abcdef0123456789abcdef"))
    assert "0123" not in repr(spec)


def test_what_no_request_has_done_is_recorded_in_the_chain(tmp_path: Path) -> None:
    bench = Bench(tmp_path, AuditSpec(log=True))
    event = Event("account.disconnected", "desk", "ada\nroot", ("read", "write"), "files")
    bench.audit.happened(event)
    (one,) = bench.records()
    assert (one.operation, one.client, one.subject) == ("account.disconnected", "desk", "ada\nroot")
    assert (list(one.scopes), one.audience, one.outcome) == (["read", "write"], "files", "ok")
    assert len(bench.lines) == 1


def test_what_no_request_has_done_and_cannot_be_recorded_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    bench.journal.close()
    with caplog.at_level("ERROR", "tollhouse.audit"):
        bench.audit.happened(Event("account.disconnected", subject="ada", audience="files"))
    assert "an audit record is lost: account.disconnected of 'ada'" in caplog.text
    assert bench.families.ledger_errors.child("audit", "journal").value == 1
