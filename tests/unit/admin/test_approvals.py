"""Calls that wait, answered by the admin API: the first answer holds, with who has given it."""

import time
from pathlib import Path

import pytest
from tests.unit.admin.house import House

from tollhouse.policies.authorize.desk import Answer, Desk, Directory, Entry, Shared

pytestmark = pytest.mark.anyio


def entry(id: str, asked: float = 0.0, seconds: float = 60.0) -> Entry:
    now = time.time()
    return Entry(id, now + asked, now + seconds, "bank/pay", "top: pay", "jwt:ada", "ada", "bot", arguments='{"a": 1}')


@pytest.fixture(params=["directory", "state"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[House, Desk]:
    if request.param == "directory":
        return House(tmp_path), Directory(tmp_path / "keys.db.approvals")
    house = House(tmp_path, "state: redis://127.0.0.1:1/0\n")  # whose values a memory has here, for both sides
    return house, Shared(house.state)


async def test_seen_approved_and_denied_once(there: tuple[House, Desk]) -> None:
    house, desk = there
    assert (await house.ask("GET", "/api/approvals"))[1] == {"approvals": [], "next": None}
    await desk.put(entry("abcd2345"))
    await desk.put(entry("efgh2345", 1.0))
    _, told, _ = await house.ask("GET", "/api/approvals")
    assert [one["id"] for one in told["approvals"]] == ["abcd2345", "efgh2345"]
    assert (told["approvals"][0]["what"], told["approvals"][0]["arguments"]) == ("bank/pay", '{"a": 1}')
    status, said, _ = await house.ask("POST", "/api/approvals/abcd2345/approve", {"remember": 60})
    assert (status, said) == (200, {"id": "abcd2345", "approved": True, "by": "eve"})
    assert await desk.answered("abcd2345") == Answer(True, "eve", 60.0)
    assert (await house.ask("POST", "/api/approvals/abcd2345/deny"))[0] == 404  # it is answered
    assert (await house.ask("POST", "/api/approvals/efgh2345/deny"))[0] == 200
    assert await desk.answered("efgh2345") == Answer(False, "eve")
    assert (await house.ask("POST", "/api/approvals/missing2/approve"))[0] == 404


async def test_pages(there: tuple[House, Desk]) -> None:
    house, desk = there
    ids = [f"call{n:04}" for n in range(5)]
    for n, id in enumerate(ids):
        await desk.put(entry(id, float(n // 2)))
    _, first, _ = await house.ask("GET", "/api/approvals?limit=3")
    await desk.drop(first["approvals"][-1]["id"])
    _, rest, _ = await house.ask("GET", f"/api/approvals?limit=3&cursor={first['next']}")
    assert [one["id"] for page in (first, rest) for one in page["approvals"]] == ids
    assert rest["next"] is None


@pytest.mark.parametrize(
    "body", [{"remember": 0}, {"remember": -1}, {"remember": 1e9}, {"by": "ada"}, {"remember": "1h"}]
)
async def test_answers_that_are_none(tmp_path: Path, body: dict[str, object]) -> None:
    house = House(tmp_path)
    desk = Directory(tmp_path / "keys.db.approvals")
    await desk.put(entry("abcd2345"))
    assert (await house.ask("POST", "/api/approvals/abcd2345/approve", body))[0] == 400
    assert (await house.ask("POST", "/api/approvals/abcd2345/deny", {"remember": 60}))[0] == 400
    assert await desk.answered("abcd2345") is None


async def test_no_call_can_wait_without_a_place(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.config = house.config.model_copy(update={"ledger": None})
    status, told, _ = await house.ask("GET", "/api/approvals")
    assert (status, told["code"]) == (409, "conflict")
