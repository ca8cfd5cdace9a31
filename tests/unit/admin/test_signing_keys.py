"""The auth provider's keys by the admin API: shown, rotated, dropped with their tokens."""

from pathlib import Path

import pytest
from tests.unit.admin.house import House, signing

pytestmark = pytest.mark.anyio


async def test_shown_rotated_and_dropped(tmp_path: Path) -> None:
    async with signing(tmp_path) as house:
        _, told, _ = await house.ask("GET", "/api/signing-keys")
        states = {key["state"]: key["kid"] for key in told["keys"]}
        assert set(states) == {"active", "next"}
        status, rotated, _ = await house.ask("POST", "/api/signing-keys/rotate", {})
        assert status == 200
        assert rotated["signs_from"] <= told["keys"][0]["until"]
        status, left, _ = await house.ask("POST", "/api/signing-keys/drop", {"kid": states["active"]})
        assert status == 200
        assert states["active"] not in [key["kid"] for key in left["keys"]]
        assert [key["state"] for key in left["keys"]].count("active") == 1
        await house.revocations.load()
        assert house.revocations.has("kid", states["active"])
        assert (await house.ask("POST", "/api/signing-keys/drop", {"kid": states["active"]}))[0] == 404
        for body in ({}, {"kid": ""}, {"kid": 5}, {"kid": "x", "alg": "ES256"}, None):
            assert (await house.ask("POST", "/api/signing-keys/drop", body))[0] == 400
        assert (await house.ask("POST", "/api/signing-keys/rotate", {"alg": "none"}))[0] == 400


async def test_there_are_none_without_an_auth_provider(tmp_path: Path) -> None:
    house = House(tmp_path)
    for method, target, body in (
        ("GET", "", None),
        ("POST", "/rotate", None),
        ("POST", "/drop", {"kid": "x"}),
    ):
        status, told, _ = await house.ask(method, f"/api/signing-keys{target}", body)
        assert (status, "no `issuer`" in told["title"]) == (409, True)
