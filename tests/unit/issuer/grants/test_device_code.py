"""Devices: two codes, patience, and one grant (RFC 8628)."""

import asyncio
import re
from typing import Any

import msgspec
import pytest
from tests.fixtures.issuer import API, CLIENTS, USER, Node, claims_of, issuing

from tollhouse.issuer.grants.device_code import typed

pytestmark = pytest.mark.anyio
GRANT = "urn:ietf:params:oauth:grant-type:device_code"


async def begin(node: Node, **form: str) -> dict[str, Any]:
    response = await node.post("device", {"scope": "read", "resource": API, **form}, "app")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def poll(node: Node, code: str) -> tuple[int, str]:
    response = await node.token("app", grant_type=GRANT, device_code=code)
    return response.status_code, response.json().get("error", "")


async def decide(node: Node, user_code: str, status: str) -> None:
    """As the page does."""
    devices = node.parts.tables.devices
    held = await devices.get(typed(user_code))
    assert held is not None
    decided = msgspec.structs.replace(held.value, status=status, sub="ada", user=USER, sid="s-1", auth_time=5)
    assert await devices.swap(held, decided, 600.0)


async def test_a_device_waits_for_its_user() -> None:
    async with issuing() as node:
        begun = await begin(node)
        assert re.fullmatch(r"[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", begun["user_code"])
        assert begun["verification_uri"] == f"{node.url}/oauth/verify"
        assert begun["verification_uri_complete"].endswith(begun["user_code"])
        assert (begun["expires_in"], begun["interval"]) == (600, 5)
        assert await poll(node, begun["device_code"]) == (400, "authorization_pending")
        await decide(node, begun["user_code"], "allowed")
        response = await node.token("app", grant_type=GRANT, device_code=begun["device_code"])
        answer = response.json()
        assert response.status_code == 200, answer
        claims = claims_of(answer["access_token"])
        assert (claims["sub"], claims["aud"], claims["scope"], claims["sid"]) == ("ada", API, "read", "s-1")
        assert (await node.token("app", grant_type="refresh_token", refresh_token=answer["refresh_token"])).is_success


async def test_a_code_is_good_once() -> None:
    async with issuing() as node:
        begun = await begin(node)
        await decide(node, begun["user_code"], "allowed")
        answers = await asyncio.gather(*(poll(node, begun["device_code"]) for _ in range(4)))
        assert sorted(answers) == [(200, "")] + [(400, "invalid_grant")] * 3


async def test_who_asks_too_often_slows_down() -> None:
    async with issuing() as node:
        code = (await begin(node))["device_code"]
        assert await poll(node, code) == (400, "authorization_pending")
        assert await poll(node, code) == (400, "slow_down")
        node.wait(6)
        assert await poll(node, code) == (400, "slow_down")
        node.wait(16)
        assert await poll(node, code) == (400, "authorization_pending")


async def test_a_refusal_and_the_end_of_patience() -> None:
    async with issuing() as node:
        refused, late = await begin(node), await begin(node)
        await decide(node, refused["user_code"], "denied")
        assert await poll(node, refused["device_code"]) == (400, "access_denied")
        node.wait(601)
        assert await poll(node, late["device_code"]) == (400, "expired_token")


async def test_a_user_code_alone_gets_nothing() -> None:
    async with issuing() as node:
        begun = await begin(node)
        await decide(node, begun["user_code"], "allowed")
        code, _, _ = begun["device_code"].partition(".")
        for guess in (code, f"{code}.", f"{code}.{'A' * 43}", begun["user_code"], "x.y", f"{code.lower()}.x"):
            assert await poll(node, guess) == (400, "invalid_grant")
        robot = await node.token("robot", grant_type=GRANT, device_code=begun["device_code"])
        assert robot.json()["error"] == "unauthorized_client"


async def test_what_is_wrong_is_said_at_the_beginning() -> None:
    async with issuing() as node:
        for form, error in (
            ({"scope": "admin", "resource": API}, "invalid_scope"),
            ({"scope": "read", "resource": "https://other.example.com"}, "invalid_target"),
            ({"scope": "read"}, "invalid_target"),
        ):
            refused = await node.post("device", form, "app")
            assert (refused.status_code, refused.json()["error"]) == (400, error)
        assert (await node.post("device", {"scope": "mcp"}, "robot")).json()["error"] == "unauthorized_client"


async def test_a_flood_of_devices_is_refused() -> None:
    async with issuing() as node:
        form = {"scope": "read", "resource": API}
        statuses = [(await node.post("device", form, "app")).status_code for _ in range(61)]
        assert statuses == [200] * 60 + [429]


@pytest.mark.parametrize(
    ("text", "code"),
    [("bcdf-ghjk", "BCDFGHJK"), (" BCDF GHJK ", "BCDFGHJK"), ("BCDFGHJ", ""), ("ABCDFGHJ", ""), ("BCDFGHJKK", "")],
)
def test_codes_are_read_as_people_type_them(text: str, code: str) -> None:
    assert typed(text) == code


async def test_a_code_that_comes_again_ends_what_it_gave_and_another_client_gets_nothing() -> None:
    clients = [*CLIENTS, {**CLIENTS[0], "id": "thief"}]
    async with issuing(clients=clients) as node:
        begun = await begin(node)
        await decide(node, begun["user_code"], "allowed")
        stolen = await node.token("thief", grant_type=GRANT, device_code=begun["device_code"])
        assert stolen.json()["error"] == "invalid_grant"
        answer = (await node.token("app", grant_type=GRANT, device_code=begun["device_code"])).json()
        assert await node.is_active(answer["access_token"])
        assert await poll(node, begun["device_code"]) == (400, "invalid_grant")
        assert not await node.is_active(answer["access_token"])
        again = await node.token("app", grant_type="refresh_token", refresh_token=answer["refresh_token"])
        assert again.status_code == 400
