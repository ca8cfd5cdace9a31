"""The admin API as a whole: what is refused before anything is done, and what is told of what was done."""

import asyncio
import json
import logging
import sqlite3
from base64 import urlsafe_b64encode
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.admin.house import ADMIN, KEY, House, signing

from tollhouse.core.http import Ending, finish
from tollhouse.gateway.audit import chain_of, seal_of
from tollhouse.ledger.journal import Journal
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.audit import Audit, AuditSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("target", ["/api/keys", "/openapi.json", "/nothing", "/api/approvals", "/"])
async def test_who_shows_no_key_learns_nothing(house: House, target: str) -> None:
    status, told, headers = await house.ask("GET", target, key="wrong")
    assert (status, told["code"]) == (401, "unauthorized")
    assert headers["content-type"] == "application/problem+json"
    status, told, _ = await house.ask("GET", target, origin="https://evil.example.com")
    assert (status, told["code"]) == (403, "permission_denied")


async def test_what_is_not_there_and_what_is_not_done_there(house: House) -> None:
    for target in ("/", "/api", "/api/keys/", "/api/keys/a/b", "/api/keys/..%2f", "/API/keys", "/openapi.json/"):
        status, told, _ = await house.ask("GET", target)
        assert (status, told["code"]) == (404, "not_found")
    status, _, headers = await house.ask("PUT", "/api/keys", {})
    assert (status, headers["allow"]) == (405, "GET, POST")
    assert (await house.ask("OPTIONS", "/api/keys"))[0] == 405  # no page of elsewhere is allowed anything
    assert (await house.ask("GET", "/api/keys/thk_abc/approve"))[0] == 404
    status, _, headers = await house.ask("HEAD", "/api/keys")
    assert (status, headers["cache-control"], headers["x-content-type-options"]) == (200, "no-store", "nosniff")


async def test_who_is_taken_out_of_the_configuration_is_no_operator_any_more(tmp_path: Path) -> None:
    house, other = House(tmp_path), "another-operators-key-of-32-letters"
    assert (await house.ask("GET", "/api/keys"))[0] == 200
    house.config = House(tmp_path, admin=ADMIN.replace("eve", "bob").replace(KEY, other)).config
    assert (await house.ask("GET", "/api/keys"))[0] == 401
    assert (await house.ask("GET", "/api/keys", key=other))[0] == 200


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=1001", "limit=-1", "limit=1e2", "limit=", "limit=%D9%A1", "limit=1&limit=2", "page=2",
        "cursor=x", "cursor=W10", "cursor=WyJhIiwxXQ", "a", "&&&&&&&&&&", "cursor=" + "A" * 4000,
    ],
)  # fmt: skip
async def test_queries_that_are_none(house: House, query: str) -> None:
    for target in ("/api/keys", "/api/approvals"):
        status, told, _ = await house.ask("GET", f"{target}?{query}")
        assert (status, told["code"]) == (400, "invalid_request")
    assert (await house.ask("POST", f"/api/keys?{query}", {"name": "ci"}))[0] == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Expected"),
        (b"{", "not JSON"),
        (b"[]", "Expected `object`"),
        (b"[" * 5000, ""),
        (b'{"name": "ci", "metadata": ' + b'{"a":' * 40 + b"1" + b"}" * 40 + b"}", "levels deep"),
        ({}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "ci", "nam": "x"}, "nam"),
        ({"name": "ci", "user": 5}, "user"),
        ({"name": "ci", "user": "a\nb"}, "user"),
        ({"name": "ci", "groups": "dev"}, "groups"),
        ({"name": "ci", "groups": ["a\x00"]}, "groups"),
        ({"name": "ci", "org": "x" * 300}, "org"),
        ({"name": "ci", "expires_at": "tomorrow"}, "expires_at"),
        ({"name": "ci", "expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"name": "ci", "expires_at": "2001-01-01T00:00:00Z"}, "is over"),
        ({"name": "ci", "expires_at": 4102444800}, "expires_at"),
    ],
)
async def test_bodies_that_cannot_be_used_are_refused_with_their_place(house: House, body: Any, said: str) -> None:
    status, told, _ = await house.ask("POST", "/api/keys", body)
    assert status == 400
    assert said in told["title"] or body == b""
    assert (await house.ask("GET", "/api/keys"))[1] == {"keys": [], "next": None}


async def test_a_body_must_be_said_to_be_json(house: House) -> None:
    body = {"name": "ci"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data; boundary=x"):
        assert (await house.ask("POST", "/api/keys", body, content_type=kind))[0] == 415
    assert (await house.ask("POST", "/api/keys", body, content_type="application/json; charset=utf-8"))[0] == 201
    assert (await house.ask("DELETE", "/api/keys/abcdefgh", body))[0] == 400
    assert (await house.ask("POST", "/api/keys", b" " * 70_000))[0] == 413


@given(raw=st.binary(max_size=200), target=st.sampled_from(["/api/keys", "/api/revocations", "/api/signing-keys/drop"]))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_no_bytes_do_anything(house: House, raw: bytes, target: str) -> None:
    status, told, _ = await house.ask("POST", target, raw)
    assert status == 400, told


_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(1e308) | st.just(-(2**64))
)
_PLACES = st.lists(_LEAVES, max_size=5) | st.dictionaries(st.text(max_size=2), _LEAVES, max_size=2) | _LEAVES


@given(
    place=_PLACES,
    path=st.sampled_from(["/api/keys", "/api/revocations", "/api/accounts", "/api/approvals"]),
    limit=st.sampled_from(["", "&limit=1", "&limit=1000"]),
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_a_cursor_that_somebody_has_made_up_is_none_or_a_place(
    house: House, place: Any, path: str, limit: str
) -> None:
    text = urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
    status, told, _ = await house.ask("GET", f"{path}?cursor={text}{limit}")
    assert status in (200, 400, 409), told  # 409: there are no accounts here, no place for approvals


async def test_every_write_is_logged_with_who_and_what_and_no_secret(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tollhouse.admin"):
        _, made, _ = await house.ask("POST", "/api/keys", {"name": "ci", "user": "bob"})
        await house.ask("DELETE", f"/api/keys/{made['id']}")
        await house.ask("DELETE", "/api/keys/missing1")
        await house.ask("POST", "/api/revocations", {"kind": "sub", "id": "ada \u2028forged"})
        await house.ask("POST", "/api/keys", {"a\nforged": 1, "name": "x"})
        await house.ask("GET", "/api/keys")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:2] == [
        f"keys.create by eve from 127.0.0.1: {made['id']} (ci) for user 'bob'",
        f"keys.revoke by eve from 127.0.0.1: {made['id']} (ci)",
    ]
    assert lines[2].startswith("keys.revoke by eve from 127.0.0.1: missing1: refused with 404: there is no key")
    assert lines[3] == "revocations.create by eve from 127.0.0.1: sub 'ada \\u2028forged'"
    assert lines[4].startswith("keys.create by eve from 127.0.0.1: -: refused with 400: ")
    assert len(lines) == 5
    assert "\n" not in "".join(lines)
    assert made["key"] not in "".join(lines)
    assert KEY not in "".join(lines)


async def test_who_leaves_while_it_is_done_is_logged(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await house.ask("GET", "/api/keys")  # the tables are there
    with sqlite3.connect(tmp_path / "keys.db", isolation_level=None) as db:
        db.execute("BEGIN IMMEDIATE")  # so that the ledger waits
        asked = asyncio.create_task(house.ask("POST", "/api/keys", {"name": "ci"}))
        while not house.requests[1:]:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        db.execute("ROLLBACK")
    assert "keys.create by eve from 127.0.0.1: -: has left before the answer" in caplog.text


async def test_what_fails_as_nobody_thought_is_logged(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, made, _ = await house.ask("POST", "/api/keys", {"name": "ci"})
    with closing(sqlite3.connect(tmp_path / "keys.db")) as db, db:
        db.execute("UPDATE api_keys SET expires_at = ?", (1 << 60,))  # a time that no calendar has
    with pytest.raises((ValueError, OSError)):
        await house.ask("DELETE", f"/api/keys/{made['id']}")
    assert f"keys.revoke by eve from 127.0.0.1: {made['id']}: has failed; it may have been done" in caplog.text


async def test_every_write_has_its_audit_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.open()
    try:
        plain = House(tmp_path)
        chain = chain_of(plain.config, journal)
        lines: list[bytes] = []
        seal = seal_of(plain.config, AuditSpec())
        audit = Audit(AuditSpec(), chain, seal, Families(Metrics()), lambda _, body: lines.append(body))
        house = House(tmp_path, audit=audit)
        _, made, _ = await house.ask("POST", "/api/keys", {"name": "ci"})
        finish(house.requests[-1].ends, Ending(201, "DirectResponse"))
        await house.ask("DELETE", "/api/keys/missing1")
        finish(house.requests[-1].ends, Ending(404, "NotFound"))
        await house.ask("GET", "/api/keys")
        assert house.requests[-1].ends == []
        records = [json.loads(line) for line in lines]
        assert [(r["operation"], r["principal"], r["target"], r["status"]) for r in records] == [
            ("admin.keys.create", "operator:eve", f"{made['id']} (ci) for user ''", 201),
            ("admin.keys.revoke", "operator:eve", "missing1", 404),
        ]
        assert all(seal.holds(line) for line in lines)
        assert made["key"].encode() not in b"".join(lines)
    finally:
        journal.close()


async def test_a_ledger_that_cannot_be_used_is_told_without_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(tmp_path)
    (tmp_path / "keys.db").write_bytes(b"this is no database" * 100)
    status, told, _ = await house.ask("GET", "/api/keys")
    assert (status, told["code"]) == (503, "ledger_unavailable")
    assert str(tmp_path) not in json.dumps(told)
    assert f"the ledger cannot be used at the moment: {tmp_path}" in caplog.text


# ---- the description


async def test_the_description_is_one_and_answers_are_as_it_says(tmp_path: Path) -> None:
    async with signing(tmp_path) as house:
        status, described, _ = await house.ask("GET", "/openapi.json")
        assert status == 200
        assert described["openapi"] == "3.1.0"
        assert described["security"] == [{"key": []}]

        def valid(path: str, method: str, status: int, value: Any) -> None:
            [(_, content)] = described["paths"][path][method]["responses"][str(status)]["content"].items()
            schema = {**content["schema"], "components": described["components"]}
            jsonschema.Draft202012Validator(schema).validate(value)

        def fits(path: str, value: Any) -> None:
            content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            jsonschema.Draft202012Validator({**content["schema"], "components": described["components"]}).validate(
                value
            )

        asked = {
            "name": "ci",
            "user": "bob",
            "models": ["m*"],
            "metadata": {"n": 1},
            "expires_at": "2099-01-01T00:00:00Z",
        }
        fits("/api/keys", asked)
        with pytest.raises(jsonschema.ValidationError):
            fits("/api/keys", {"name": "ci", "nam": 1})
        status, made, _ = await house.ask("POST", "/api/keys", asked)
        valid("/api/keys", "post", status, made)
        for target, path in (("/api/keys", "/api/keys"), (f"/api/keys/{made['id']}", "/api/keys/{id}")):
            status, told, _ = await house.ask("GET", target)
            valid(path, "get", status, told)
        status, told, _ = await house.ask("DELETE", f"/api/keys/{made['id']}")
        valid("/api/keys/{id}", "delete", status, told)
        status, told, _ = await house.ask("GET", "/api/approvals")
        valid("/api/approvals", "get", status, told)
        revoked = {"kind": "grant", "client": "c", "sub": "s"}
        fits("/api/revocations", revoked)
        status, told, _ = await house.ask("POST", "/api/revocations", revoked)
        valid("/api/revocations", "post", status, told)
        status, told, _ = await house.ask("GET", "/api/signing-keys")
        valid("/api/signing-keys", "get", status, told)
        kid = told["keys"][0]["kid"]
        status, told, _ = await house.ask("POST", "/api/signing-keys/rotate")
        valid("/api/signing-keys/rotate", "post", status, told)
        status, told, _ = await house.ask("POST", "/api/signing-keys/drop", {"kid": kid})
        valid("/api/signing-keys/drop", "post", status, told)
        references = set(json.dumps(described).split('"#/components/schemas/')[1:])
        assert {one.partition('"')[0] for one in references} <= set(described["components"]["schemas"])


async def test_the_ledger_has_no_secret(house: House, tmp_path: Path) -> None:
    _, made, _ = await house.ask("POST", "/api/keys", {"name": "ci"})
    with sqlite3.connect(tmp_path / "keys.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert made["key"][13:].encode() not in (tmp_path / "keys.db").read_bytes()
