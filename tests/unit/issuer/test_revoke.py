"""Tokens are given back by whom they were given to."""

import pytest
from tests.fixtures.issuer import issuing

pytestmark = pytest.mark.anyio


async def test_an_access_token_alone() -> None:
    async with issuing() as node:
        login = await node.login()
        assert (await node.post("revoke", {"token": login["access_token"]}, "app")).status_code == 200
        assert not await node.is_active(login["access_token"])
        refreshed = await node.token("app", grant_type="refresh_token", refresh_token=login["refresh_token"])
        assert refreshed.status_code == 200
        assert await node.is_active(refreshed.json()["access_token"])


async def test_a_refresh_token_takes_all_along() -> None:
    async with issuing() as node:
        login = await node.login()
        form = {"token": login["refresh_token"], "token_type_hint": "access_token"}
        assert (await node.post("revoke", form, "app")).status_code == 200
        assert not await node.is_active(login["access_token"])
        refused = await node.token("app", grant_type="refresh_token", refresh_token=login["refresh_token"])
        assert refused.json()["error"] == "invalid_grant"


async def test_what_is_not_known_is_gone_already() -> None:
    async with issuing() as node:
        login = await node.login()
        for token in ("x", "x.y.z", "thr_x", login["refresh_token"][:-1] + "_", login["access_token"] + "x"):
            assert (await node.post("revoke", {"token": token}, "app")).status_code == 200
        assert await node.is_active(login["access_token"])


async def test_nobody_gives_back_what_is_anothers() -> None:
    async with issuing() as node:
        login = await node.login()
        for token in (login["refresh_token"], login["access_token"]):
            refused = await node.post("revoke", {"token": token}, "robot")
            assert (refused.status_code, refused.json()["error"]) == (400, "unauthorized_client")
            refused = await node.post("revoke", {"token": token, "client_id": "native"})
            assert refused.json()["error"] == "unauthorized_client"
        assert (await node.post("revoke", {"token": login["access_token"]})).status_code == 401
        assert await node.is_active(login["access_token"])
