"""A service that decides: what it is told, what its answer means, and what silence does."""

import asyncio
from typing import Any

import pytest
from tests.unit.policies.authenticate.door import Door, Idp, bearer, idp

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Reason
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.policies.authenticate import AuthenticateSpec

pytestmark = pytest.mark.anyio

FIELDS = {"user": "ada", "org": "o", "groups": "dev, ops", "email": "a@x", "scopes": "read write"}
YES = (200, "".join(f"x-auth-{name}: {value}\r\n" for name, value in FIELDS.items()), b"")


def spec(it: Idp) -> dict[str, Any]:
    return {"ext_authz": {"url": f"{it.url}/allowed?x=1"}}


async def test_it_says_who_it_is() -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": YES}
        door = Door(spec(it))
        ada = await door.enter(
            (b"host", b"gw.example.com"), (b"cookie", b"s=1"), (b"x-auth-user", b"root"), (b"x-secret", b"no"),
            target=b"/reports?a=b",
        )  # fmt: skip
        assert (ada.id, ada.source, ada.user, ada.org, ada.email) == ("ext:ada", "ext", "ada", "o", "a@x")
        assert (ada.groups, ada.scopes) == (("dev", "ops"), {"read", "write"})
        target, head, _ = it.requests[0]
        assert target == "/allowed?x=1"
        lines = head.decode().split("\r\n")
        for line in (
            "cookie: s=1", "x-forwarded-method: POST", "x-forwarded-uri: /reports?a=b", "x-forwarded-for: 10.0.0.7",
            "x-forwarded-host: gw.example.com", "x-forwarded-proto: http",
        ):  # fmt: skip
            assert line in lines
        assert "x-auth-user" not in head.decode()
        assert "x-secret" not in head.decode()
        await door.enter(bearer(b"anything"))
        assert it.asked == 2  # nothing is remembered unless that is said
        await door.close()


async def test_who_it_is_need_not_be_said() -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": (204, "", b"")}
        door = Door(spec(it))
        assert (await door.enter()).id == "ext"
        await door.close()


@pytest.mark.parametrize(
    "answer, status, fields",
    [
        (
            (401, "www-authenticate: Bearer realm=x\r\nset-cookie: a=b\r\n", b""),
            401,
            {b"www-authenticate": b"Bearer realm=x"},
        ),
        ((403, "", b"no"), 403, {}),
        ((302, "location: https://evil.example.com\r\n", b""), 403, {}),
        ((500, "", b""), 403, {}),
    ],
)
async def test_a_no_is_a_no(answer: Any, status: int, fields: dict[bytes, bytes]) -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": answer}
        door = Door(spec(it))
        failure = await door.refused(bearer(b"x"))
        assert (failure.status, failure.reason) == (status, Reason.EXT_AUTH)
        assert dict(failure.headers) == fields
        await door.close()


async def test_silence_is_a_no() -> None:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    async with idp() as (it, _):
        it.gate.clear()
        door = Door({"ext_authz": {"url": f"{it.url}/allowed", "timeout": "200ms"}}, client=Client(clock))
        failure = await door.refused()
        assert (failure.status, failure.code) == (403, "authorization_unavailable")
        it.gate.set()
        await door.close()
    timer.stop()
    door = Door({"ext_authz": {"url": "http://127.0.0.1:1/"}})
    assert (await door.refused()).status == 403
    await door.close()


@pytest.mark.parametrize("name, user", [("ada\u00ff", "ada\u00ff"), ("a\tb", ""), ("x" * 257, ""), (" ada ", "ada")])
async def test_a_strange_name_is_none(name: str, user: str) -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": (200, f"x-auth-user: {name}\r\n", b"")}
        door = Door(spec(it))
        assert (await door.enter()).user == user
        await door.close()


async def test_a_yes_may_be_remembered_for_the_same_head() -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": YES}
        door = Door({"ext_authz": {"url": f"{it.url}/allowed", "cache": "1m"}})
        ada = await door.enter(bearer(b"x"))
        assert await door.enter(bearer(b"x")) is ada
        assert it.asked == 1
        await door.enter(bearer(b"y"))
        await door.enter(bearer(b"x"), target=b"/other")
        await door.enter(bearer(b"x"), method=b"GET")
        assert it.asked == 4
        await door.close()


async def test_whom_another_kind_of_credential_knows_is_not_asked_about() -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": YES}
        door = Door(spec(it) | {"keys": [{"name": "ci", "key": "sk-0123456789"}]})
        assert (await door.enter(bearer(b"sk-0123456789"))).source == "key"
        assert it.asked == 0
        for shown in (bearer(b"unknown"), (b"authorization", b"Digest x"), (b"x-other", b"y")):
            assert (await door.enter(shown)).source == "ext"
        assert it.asked == 3
        await door.close()


async def test_many_at_once_share_its_connections() -> None:
    async with idp() as (it, _):
        it.documents = {"/allowed": YES}
        door = Door({"ext_authz": {"url": f"{it.url}/allowed", "connections": 2}})
        found = await asyncio.gather(*(door.enter(bearer(b"%d" % n)) for n in range(20)))
        assert {one.user for one in found} == {"ada"}
        await door.close()


@pytest.mark.parametrize(
    "change",
    [
        {"url": "ftp://x"},
        {"headers": ["Bad Name"]},
        {"headers": ["content-length"]},
        {"headers": ["x-forwarded-for"]},
        {"user_header": "X Y"},
        {"timeout": "0s"},
    ],
)
def test_bad_settings(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"URL|header|pattern|greater|connection"):
        AuthenticateSpec.model_validate({"ext_authz": {"url": "http://x/"} | change})
