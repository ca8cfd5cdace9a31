"""Revocations by the admin API: in force when the answer comes, in the state for all, or refused."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.house import House

from tollhouse.core.call import Principal
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio


def holder(**more: Any) -> Principal:
    given = {"issuer": "https://i", "subject": "ada", "client": "bot", "jti": "t1", "family": "f1", "sid": "s1"} | more
    return Principal("jwt:ada", source="jwt", issued=time.time() - 5.0, **given)


@pytest.mark.parametrize(
    ("body", "concerns"),
    [
        ({"kind": "jti", "id": "t1"}, {"jti": "t1"}),
        ({"kind": "gid", "id": "f1"}, {"family": "f1"}),
        ({"kind": "sid", "id": "s1"}, {"sid": "s1"}),
        ({"kind": "sub", "id": "ada"}, {"subject": "ada"}),
        ({"kind": "client", "id": "bot", "issuer": "https://i"}, {"client": "bot"}),
        ({"kind": "grant", "client": "bot", "sub": "ada"}, {"client": "bot"}),
        ({"kind": "key", "id": "ci"}, {"key": "ci"}),
    ],
)
async def test_it_is_in_force_here_and_in_the_state(tmp_path: Path, body: dict[str, str], concerns: Any) -> None:
    house = House(tmp_path)
    assert not house.revocations.revoked(holder(**concerns))
    status, told, _ = await house.ask("POST", "/api/revocations", body)
    assert (status, told["kind"], told["issuer"]) == (201, body["kind"], body.get("issuer", ""))
    assert datetime.fromisoformat(told["until"]) > datetime.now(UTC) + timedelta(days=389)
    another = Revocations(house.state, house.clock)
    await another.load()
    for view in (house.revocations, another):
        assert view.revoked(holder(**concerns))
        assert not view.revoked(
            holder(subject="bob", client="other", jti="t2", family="f2", sid="s2", key="x", issuer="https://j")
        )


async def test_until(tmp_path: Path) -> None:
    house = House(tmp_path)
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    _, told, _ = await house.ask("POST", "/api/revocations", {"kind": "jti", "id": "t1", "until": until})
    assert abs(datetime.fromisoformat(told["until"]) - datetime.fromisoformat(until)) < timedelta(seconds=1)
    for over in ("2020-01-01T00:00:00Z", datetime.now(UTC).isoformat()):
        assert (await house.ask("POST", "/api/revocations", {"kind": "jti", "id": "t2", "until": over}))[0] == 400
    assert not house.revocations.revoked(holder(jti="t2", subject="x"))
    _, told, _ = await house.ask(
        "POST", "/api/revocations", {"kind": "jti", "id": "t3", "until": "9999-12-31T00:00:00Z"}
    )
    assert datetime.fromisoformat(told["until"]) - datetime.now(UTC) <= timedelta(days=390)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "everything", "id": "x"}, {"kind": "jti"}, {"id": "x"}, {"kind": "jti", "id": ""},
        {"kind": "jti", "id": "x" * 1025}, {"kind": "grant", "id": "x"}, {"kind": "grant", "client": "c"},
        {"kind": "grant", "sub": "s"}, {"kind": "jti", "id": "x", "sub": "s"},
        {"kind": "grant", "client": "c", "sub": "s", "id": "x"}, {"kind": "sub", "id": "x", "client": "c"},
        {"kind": "sub", "id": "a\nb"}, {"kind": "sub", "id": "x", "more": 1},
    ],
)  # fmt: skip
async def test_what_names_nothing(tmp_path: Path, body: dict[str, str]) -> None:
    house = House(tmp_path)
    assert (await house.ask("POST", "/api/revocations", body))[0] == 400
    assert len(house.revocations) == 0


async def test_workers_that_share_nothing_are_not_told_half(tmp_path: Path) -> None:
    house = House(tmp_path)
    server = house.config.server.model_copy(update={"workers": 2})
    house.config = house.config.model_copy(update={"server": server})
    status, told, _ = await house.ask("POST", "/api/revocations", {"kind": "jti", "id": "t1"})
    assert (status, "share no memory" in told["title"]) == (409, True)
    assert len(house.revocations) == 0


async def test_what_is_revoked_page_by_page(tmp_path: Path) -> None:
    house = House(tmp_path)
    assert (await house.ask("GET", "/api/revocations"))[1] == {"revocations": [], "next": None}
    asked = [{"kind": "jti", "id": f"t{n}", "issuer": "https://i"} for n in range(5)]
    asked += [{"kind": "sub", "id": "ada"}, {"kind": "jti", "id": "t1"}]
    for body in asked:
        assert (await house.ask("POST", "/api/revocations", body))[0] == 201
    found: list[dict[str, Any]] = []
    target, pages = "/api/revocations?limit=3", 0
    while True:
        status, told, _ = await house.ask("GET", target)
        assert status == 200
        found += told["revocations"]
        pages += 1
        if told["next"] is None:
            break
        target = f"/api/revocations?limit=3&cursor={told['next']}"
    assert pages == 3
    assert sorted((one["kind"], one["id"], one["issuer"]) for one in found) == sorted(
        (body["kind"], body["id"], body.get("issuer", "")) for body in asked
    )
    times = [datetime.fromisoformat(one["at"]) for one in found]
    assert times == sorted(times)
    assert all(datetime.fromisoformat(one["until"]) > datetime.now(UTC) + timedelta(days=300) for one in found)
    for bad in ("cursor=x", "limit=0", "kind=jti"):
        assert (await house.ask("GET", f"/api/revocations?{bad}"))[0] == 400


async def test_what_is_over_is_not_shown_and_what_others_revoke_is(tmp_path: Path) -> None:
    house = House(tmp_path)
    another = Revocations(house.state, house.clock, now=lambda: time.time() - 30.0)
    await another.revoke("sid", "s9", time.time() + 60.0)
    await another.revoke("jti", "over", time.time() - 10.0)
    assert len(another.in_force()) == 2  # its clock is behind
    await house.revocations.load()
    _, told, _ = await house.ask("GET", "/api/revocations")
    assert [(one["kind"], one["id"]) for one in told["revocations"]] == [("sid", "s9")]
