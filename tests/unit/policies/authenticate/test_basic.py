"""Names and passwords: right, wrong, too often, and what guessing tells."""

import asyncio
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest
from argon2 import PasswordHasher
from tests.unit.policies.authenticate.door import Door
from tests.unit.policies.floor import parts, request

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.passwords import QUEUE, THREADS
from tollhouse.policies.authenticate import AuthenticateSpec

pytestmark = pytest.mark.anyio

HASH = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("correct horse")
SECRET = "x" * 40
USERS = [
    {"name": "ada", "password_hash": HASH, "org": "o", "email": "a@x", "groups": ["dev"], "scopes": ["mcp"]},
    {"name": "probe", "secret_hash": sha256(SECRET.encode()).hexdigest()},
]


def shown(name: str, password: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + b64encode(f"{name}:{password}".encode())


async def test_who_knows_the_password_is_let_in() -> None:
    door = Door({"basic": {"users": USERS}})
    ada = await door.enter(shown("ada", "correct horse"))
    assert (ada.id, ada.source, ada.user, ada.org, ada.email) == ("basic:ada", "basic", "ada", "o", "a@x")
    assert (ada.groups, ada.scopes) == (("dev",), {"mcp"})
    assert (await door.enter(shown("probe", SECRET))).id == "basic:probe"
    assert await door.enter((b"authorization", b"basic " + shown("ada", "correct horse")[1][6:])) is ada


async def test_a_password_that_was_right_is_not_hashed_again() -> None:
    door = Door({"basic": {"users": USERS}})
    ada = await door.enter(shown("ada", "correct horse"))
    await door.close()  # nobody could hash now
    assert await door.enter(shown("ada", "correct horse")) is ada


@pytest.mark.parametrize(
    "value",
    [shown("ada", "wrong")[1], shown("nobody", "correct horse")[1], shown("probe", "x")[1], b"Basic", b"Basic %%%",
     b"Basic " + b64encode(b"no colon"), b"Basic " + b64encode(b"\xff:\xff"), shown("ada", "")[1]],
)  # fmt: skip
async def test_all_else_is_refused_in_the_same_words(value: bytes) -> None:
    failure = await Door({"basic": {"users": USERS}}).refused((b"authorization", value))
    assert (failure.status, failure.reason) == (401, Reason.BASIC_AUTH)
    assert failure.message == "the user name or the password is wrong"
    assert dict(failure.headers)[b"www-authenticate"] == b'Basic realm="tollhouse", charset="UTF-8"'


async def test_who_guesses_is_not_listened_to_for_a_while() -> None:
    door = Door({"basic": {"users": USERS, "failures": 3}})
    for _ in range(3):
        assert (await door.refused(shown("ada", "wrong"))).status == 401
    failure = await door.refused(shown("ada", "wrong"))
    assert (failure.status, failure.code) == (429, "too_many_attempts")
    assert failure.retry_after is not None
    assert failure.retry_after > 0
    assert dict(failure.headers)[b"retry-after"].isdigit()
    # The address has failed too often for any name.
    assert (await door.refused(shown("probe", "wrong"))).status == 429


async def test_only_so_many_are_checked_at_a_time() -> None:
    door = Door({"basic": {"users": USERS}})
    asked = [door.enter(shown("ada", "correct horse")) for _ in range(THREADS + QUEUE + 1)]
    *fit, failure = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, Principal) for one in fit)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.reason) == (503, Reason.OVERLOADED)


@pytest.mark.parametrize(
    "more",
    [
        {"keys": [{"name": "x", "key": "sk-0123456789"}]},
        {"jwt": [{"issuer": "https://i", "audiences": ["a"], "jwks": "http://127.0.0.1:1/jwks"}]},
    ],
)
async def test_a_wrong_password_beside_tokens_is_an_error_of_its_own_scheme(more: dict[str, Any]) -> None:
    failure = await Door({"basic": {"users": USERS}} | more).refused(shown("ada", "wrong"))
    assert (failure.status, failure.reason, failure.code) == (401, Reason.BASIC_AUTH, "invalid_credentials")
    said = [value for name, value in failure.headers if name == b"www-authenticate"]
    assert said[0] == b'Basic realm="tollhouse", charset="UTF-8"'  # a client takes the first one that it knows
    assert said[1].startswith(b"Bearer")
    assert not any(b"error" in value for value in said)
    failure = await Door({"basic": {"users": USERS}} | more).refused((b"authorization", b"Bearer sk-none-of-these"))
    said = [value for name, value in failure.headers if name == b"www-authenticate"]
    assert said[0].startswith(b'Bearer error="invalid_token"')
    assert said[1].startswith(b"Basic realm")


async def test_no_password_at_all_and_both_kinds_of_challenge() -> None:
    spec: dict[str, Any] = {"basic": {"users": USERS}, "keys": [{"name": "x", "key": "sk-0123456789"}]}
    failure = await Door(spec).refused()
    assert [value for _, value in failure.headers] == [b"Bearer", b'Basic realm="tollhouse", charset="UTF-8"']
    assert (await Door(spec).enter((b"x-api-key", b"sk-0123456789"))).key == "x"


@pytest.mark.parametrize(
    "user, said",
    [
        ({"name": "a"}, "either `password_hash` or `secret_hash`"),
        ({"name": "a", "password_hash": "plain"}, "not an argon2id hash"),
        ({"name": "a:b", "secret_hash": "0" * 64}, "pattern"),
        ({"name": "a", "secret_hash": "xyz"}, "pattern"),
    ],
)
def test_bad_settings(user: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AuthenticateSpec.model_validate({"basic": {"users": [user]}})
    with pytest.raises(ValueError, match="two users"):
        AuthenticateSpec.model_validate({"basic": {"users": [USERS[0], USERS[0]]}})


async def test_a_failure_of_the_state_lets_nobody_in() -> None:
    class Down:
        def buckets(self, rate: Any) -> None:
            return None

        async def admit(self, id: str, charges: Any) -> Any:
            raise Failure(503, Reason.OVERLOADED, "down")

        def settle(self, id: str, charges: Any, amounts: Any) -> None: ...

    door = Door({"basic": {"users": USERS}}, parts(counter=Down()))
    assert (await door.refused(shown("ada", "wrong"))).status == 503
    assert (await door.enter(shown("ada", "correct horse"))).user == "ada"


async def _from(door: Door, peer: str, password: str) -> int:
    asked = request(b"POST", b"/mcp", shown("ada", password))
    asked.peer = peer
    try:
        return (await door.send(asked)).status
    except Failure as failure:
        return failure.status


async def test_who_guesses_elsewhere_does_not_lock_a_name() -> None:
    door = Door({"basic": {"users": USERS, "failures": 3}})
    for n in range(9):
        assert [await _from(door, f"10.0.0.{n}", "wrong") for _ in range(3)] == [401] * 3
        assert await _from(door, f"10.0.0.{n}", "wrong") == 429
    assert await _from(door, "10.0.0.99", "correct horse") == 200
    for n in range(10, 12):  # all together get further, but not far
        for _ in range(3):
            await _from(door, f"10.0.0.{n}", "wrong")
    assert await _from(door, "10.0.0.50", "wrong") == 429


async def test_one_who_has_a_whole_network_is_one_who_guesses() -> None:
    door = Door({"basic": {"users": USERS, "failures": 3}})
    found = [await _from(door, f"2001:db8:0:1::{n}", "wrong") for n in range(1, 5)]
    assert found == [401, 401, 401, 429]
    assert await _from(door, "2001:db8:0:1:ffff::1", "correct horse") == 429
    assert await _from(door, "2001:db8:0:2::1", "correct horse") == 200


async def test_a_name_with_a_secret_costs_as_much_as_one_that_nobody_has() -> None:
    """Where nothing can be hashed any more, neither of them hears an answer, and who has the secret does."""
    door = Door({"basic": {"users": USERS, "failures": 1000}})
    busy = [asyncio.ensure_future(door.enter(shown("ada", "correct horse"))) for _ in range(THREADS + QUEUE)]
    await asyncio.sleep(0)
    found = [await door.refused(shown(name, "wrong")) for name in ("probe", "nobody", "ada")]
    assert [failure.status for failure in found] == [503] * 3
    assert (await door.enter(shown("probe", SECRET))).user == "probe"
    await asyncio.gather(*busy)
