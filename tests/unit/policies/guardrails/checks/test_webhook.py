"""A webhook: what it is told, what it may say, and everything that is no answer."""

import asyncio
import base64
import hmac
import json
import ssl
from pathlib import Path
from time import time
from typing import Any

import pytest
import trustme
from pydantic import ValidationError
from tests.fixtures.guard_services import FAILURES, guard_services
from tests.unit.policies.floor import model, tool, who
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, look, masked, said, world

from tollhouse.policies.guardrails.check import Check, Finding
from tollhouse.policies.guardrails.checks.webhook import WebhookSpec, webhook

pytestmark = pytest.mark.anyio

SECRET = "a-secret-that-is-long-enough"


def hook(at: World, timeout: float = 5.0, **spec: Any) -> Check:
    return webhook(WebhookSpec.model_validate({"url": f"{at.services.url}/guard", **spec}), at.parts, timeout)


async def test_it_is_told_the_texts_the_call_and_the_caller_but_no_credential() -> None:
    async with world() as at:
        principal = who(org="acme", key="ci", agent="bot", groups=("a", "b"), email="a@x.org", claims={"secret": 1})
        principal.token = b"bearer-token-of-the-caller"
        call = model("smart", principal)
        assert await look(hook(at), "one", "two\ud800", call=call) == ()
        asked = at.services.asked[0]
        assert asked.target == "/guard"
        assert asked.body == {
            "version": 1,
            "id": "r",
            "phase": "request",
            "call": {"route": "unknown", "kind": "model", "model": "smart", "operation": "chat", "stream": False},
            "caller": {"id": "jwt:ada", "user": "ada", "org": "acme", "key": "ci", "agent": "bot"},
            "texts": ["one", "two\ufffd"],
        }
        assert b"bearer-token" not in asked.raw
        assert "webhook-signature" not in asked.headers

        check = hook(at, caller=["groups", "email"])
        await look(check, "x", phase="response", call=tool("search", principal))
        body = at.services.asked[1].body
        assert body["phase"] == "response"
        assert body["call"] == {
            "route": "unknown",
            "kind": "mcp",
            "server": "shop",
            "method": "tools/call",
            "name": "search",
        }
        assert body["caller"] == {"groups": ["a", "b"], "email": "a@x.org"}


@pytest.mark.parametrize("secret", [SECRET, "whsec_" + base64.b64encode(SECRET.encode()).decode()])
async def test_each_question_is_signed(secret: str) -> None:
    async with world() as at:
        check = hook(at, secret=secret, headers={"Authorization": "Bearer guard"})
        await look(check, "text")
        await look(check, "text")
        first, second = at.services.asked
        for asked in (first, second):
            content = f"{asked.headers['webhook-id']}.{asked.headers['webhook-timestamp']}.".encode() + asked.raw
            digest = base64.b64encode(hmac.digest(SECRET.encode(), content, "sha256")).decode()
            assert asked.headers["webhook-signature"] == f"v1,{digest}"
            assert abs(int(asked.headers["webhook-timestamp"]) - time()) < 60
            assert asked.headers["authorization"] == "Bearer guard"
        assert first.headers["webhook-id"] != second.headers["webhook-id"]
        assert secret not in repr(WebhookSpec.model_validate({"url": at.services.url, "secret": secret}))


async def test_it_allows_rejects_and_flags_in_its_own_words() -> None:
    async with world() as at:
        check = hook(at)
        for action in ("reject", "flag"):
            at.services.says = {"action": action, "rule": "tone-7", "message": "Please\nbe kind.", "extra": 1}
            assert await look(check, "x") == (
                Finding("webhook", message="rule tone-7", decided=action, shown="Please be kind."),  # type: ignore[arg-type]
            )
        at.services.says = {"action": "reject", "rule": "not a rule's name, but x", "message": "y" * 9999}
        found = await look(check, "x")
        assert found[0].message == ""
        assert len(found[0].shown) == 500


async def test_it_masks_by_saying_the_text_as_it_is_to_be() -> None:
    async with world() as at:
        check = hook(at)
        texts = ("Anna met Ben.", "nothing here", "Call Anna now")
        at.services.says = {"action": "mask", "texts": ["[X] met Ben.", None, "Call [X] now!"]}
        found = await look(check, *texts)
        assert masked(texts, found) == ["[X] met Ben.", "nothing here", "Call [X] now!"]
        assert [span[0] for span in found[0].spans] == [0, 2, 2]
        assert found[0].decided == "mask"
        at.services.says = {"action": "mask", "texts": [None, None, None]}
        assert await look(check, *texts) == ()
        at.services.says = lambda body: {"action": "mask", "texts": body["texts"]}
        assert await look(check, *texts) == ()


LIES: list[Any] = [
    {"action": "mask"},
    {"action": "mask", "texts": []},
    {"action": "mask", "texts": ["a"]},
    {"action": "mask", "texts": ["a", "b", "c"]},
    {"action": "mask", "texts": "ab"},
    {"action": "mask", "texts": [1, 2]},
    {"action": "mask", "texts": [{"text": "a"}, None]},
    {"action": "allow", "texts": ["a", "b"]},
    {"action": "reject", "texts": ["a", "b"]},
    {"action": "Allow"},
    {"action": "block"},
    {"action": None},
    {"action": True},
    {"allow": True},
    {"action": "reject", "message": 5},
    [],
    "allow",
    None,
    True,
]


@pytest.mark.parametrize("lie", LIES, ids=json.dumps)
async def test_a_lie_is_no_answer(lie: Any) -> None:
    async with world() as at:
        at.services.says = lambda body: lie
        check = hook(at)
        why = str(await cannot(check, "secret text", "another"))
        assert why.startswith("webhook: ")
        assert "secret" not in why
        assert check.health() != ""


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_fails_is_no_answer_in_time(failure: str) -> None:
    async with world() as at:
        at.services.fails = failure
        check = hook(at, timeout=0.4, secret=SECRET)
        assert check.health() == ""
        began = time()
        error = await cannot(check, "text")
        assert time() - began < 4
        assert SECRET not in str(error)
        assert error.retry_after == (7.0 if failure == "429" else None)
        assert check.health() == str(error).removeprefix("webhook: ")
        if failure == "hang":
            late = ("it did not answer within 0.4 seconds", "the upstream did not answer in time")  # on a busy machine
            assert check.health() in late
        if failure == "redirect":
            assert "redirect (302)" in check.health()
        at.services.fails = ""
        assert await look(check, "text") == ()
        assert check.health() == ""


async def test_nobody_there_is_asked_once_more_and_no_longer() -> None:
    async with world() as at:
        check = webhook(WebhookSpec(url="http://127.0.0.1:1/guard"), at.parts, 5.0)
        began = time()
        await cannot(check, "text")
        assert time() - began < 4


async def test_so_many_questions_at_once_and_no_text_too_long() -> None:
    async with world() as at:
        check = hook(at, timeout=20.0, connections=3, max_size=1000)
        at.services.says = {"action": "flag"}
        import anyio

        results: list[Any] = []

        async def one(n: int) -> None:
            results.append(said(await look(check, f"text {n}")))

        async with anyio.create_task_group() as group:
            for n in range(12):
                group.start_soon(one, n)
        assert results == [["webhook"]] * 12
        assert at.services.most <= 3
        at.services.asked.clear()
        assert "more than `max_size`" in str(await cannot(check, "é" * 501))
        assert await look(check) == ()
        assert at.services.asked == []


async def test_calls_that_are_left_leave_nothing_behind() -> None:
    async with world() as at:
        check = hook(at, timeout=20.0, connections=2)
        for _ in range(20):
            at.services.gate = asyncio.Event()
            left = [asyncio.ensure_future(look(check, f"text {n}")) for n in range(6)]
            while at.services.now < 2:
                await asyncio.sleep(0)
            for one in left:
                one.cancel()
            assert all(
                isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*left, return_exceptions=True)
            )
            at.services.gate.set()
            at.services.gate = None
            while at.services.now:
                await asyncio.sleep(0)
        assert await look(check, "text") == ()
        assert at.services.most <= 2
        assert check.health() == ""


async def test_guards_with_the_same_settings_share_their_connections() -> None:
    async with world() as at:
        first, second, other = hook(at), hook(at), hook(at, connections=5)
        await look(first, "x")
        await look(second, "x")
        assert at.services.connections == 1
        await look(other, "x")
        assert at.services.connections == 2


async def test_with_roots_of_its_own(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with world() as at, guard_services(context) as services:
        services.says = {"action": "flag"}
        url = f"{services.url}/guard"
        known = webhook(WebhookSpec(url=url, ca=str(tmp_path / "ca.pem")), at.parts, 5.0)
        assert said(await look(known, "text")) == ["webhook"]
        await cannot(webhook(WebhookSpec(url=url), at.parts, 5.0), "text")


@pytest.mark.parametrize(
    "spec, wrong",
    [
        ({"url": "ftp://x/"}, "http"),
        ({"url": "http://x/#a"}, "without a fragment"),
        ({"url": "http://x/", "secret": "short"}, "could be guessed"),
        ({"url": "http://x/", "secret": "whsec_%%%"}, "not Base64"),
        ({"url": "http://x/", "headers": {"host": "y"}}, "gateway's own"),
        ({"url": "http://x/", "headers": {"Webhook-Signature": "y"}}, "gateway's own"),
        ({"url": "http://x/", "headers": {"a b": "y"}}, "name of a header"),
        ({"url": "http://x/", "headers": {"a": "x\r\ny: z"}}, "outside of ASCII"),
        ({"url": "http://x/", "caller": ["token"]}, "Input should be"),
        ({"url": "http://x/", "ca": "ca.pem"}, "no effect without https"),
    ],
)
def test_settings_that_cannot_be(spec: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong) as error:
        WebhookSpec.model_validate(spec)
    assert "short" not in str(error.value)
