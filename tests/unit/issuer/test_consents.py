"""What is remembered of consent, on any store: it grows, ages, and is taken back."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.auth_provider import CALENDAR, MCP, RESOURCES

from tollhouse.core.clock import Clock
from tollhouse.issuer.consents import Asked, Consents, by_resource
from tollhouse.issuer.records import Allowance, Consent
from tollhouse.issuer.resources import Resources
from tollhouse.store.memory import MemoryState
from tollhouse.store.table import Table

pytestmark = pytest.mark.anyio

HERE = Resources("https://auth.example.com", RESOURCES, {"everywhere": "Do it everywhere"})


class Memory:
    def __init__(self, ttl: float = 100.0) -> None:
        values = MemoryState(Clock()).values
        self.now = 1000.0
        self.consents = Consents(
            Table(values, "iss:co:", Consent, hashed=True),
            Table(values, "iss:cx:", Allowance, hashed=True),
            ttl,
            lambda: self.now,
        )


@pytest.mark.parametrize(
    "uris, scopes, asked",
    [
        ((), ("openid",), {"": ("openid",)}),
        ((), ("mcp",), {"": ("mcp",)}),
        ((), (), {"": ()}),
        ((MCP,), (), {MCP: ()}),
        ((MCP,), ("openid", "mcp"), {"": ("openid",), MCP: ("mcp",)}),
        ((MCP, CALENDAR), ("mcp", "calendar"), {MCP: ("mcp",), CALENDAR: ("calendar",)}),
        ((MCP, CALENDAR), ("everywhere",), {MCP: ("everywhere",), CALENDAR: ("everywhere",)}),
    ],
)
async def test_scopes_are_asked_where_they_mean_something(
    uris: Iterable[str], scopes: Iterable[str], asked: Asked
) -> None:
    assert by_resource(HERE, uris, scopes) == asked


@given(
    st.sets(st.sampled_from([MCP, CALENDAR])), st.lists(st.sampled_from(["openid", "mcp", "calendar", "everywhere"]))
)
def test_no_scope_that_is_asked_for_is_left_unsaid(uris: set[str], scopes: list[str]) -> None:
    asked = by_resource(HERE, sorted(uris), scopes)
    assert {scope for some in asked.values() for scope in some} == set(scopes)


async def test_what_was_allowed_is_not_missing_and_anything_else_is() -> None:
    memory = Memory()
    consents = memory.consents
    asked = {"": ("openid",), MCP: ("mcp",)}
    assert await consents.missing("ada", "app", "app.example.com", asked) == asked
    await consents.allow("ada", "app", "app.example.com", asked)
    assert await consents.missing("ada", "app", "app.example.com", asked) == {}
    more = {"": ("openid", "email"), MCP: ("mcp", "mcp:read"), CALENDAR: ()}
    assert await consents.missing("ada", "app", "app.example.com", more) == {
        "": ("email",),
        MCP: ("mcp:read",),
        CALENDAR: (),
    }
    for sub, client, host in (("bob", "app", "app.example.com"), ("ada", "b", "app.example.com"), ("ada", "app", "x")):
        assert await consents.missing(sub, client, host, asked) == asked


async def test_two_names_are_not_one_however_they_are_joined() -> None:
    consents = Memory().consents
    await consents.allow("ada", "1app", "h", {"": ()})
    assert await consents.missing("ada1", "app", "h", {"": ()}) == {"": ()}


async def test_consent_is_asked_again_when_it_is_old() -> None:
    memory = Memory(ttl=100.0)
    await memory.consents.allow("ada", "app", "h", {MCP: ("mcp",)})
    memory.now += 60
    await memory.consents.allow("ada", "app", "h", {CALENDAR: ()})
    memory.now += 60
    assert await memory.consents.missing("ada", "app", "h", {MCP: ("mcp",), CALENDAR: ()}) == {MCP: ("mcp",)}
    assert [entry.resource for consent in await memory.consents.all("ada") for entry in consent.entries] == [CALENDAR]


async def test_what_is_taken_back_is_missing_and_not_listed() -> None:
    consents = Memory().consents
    for client in ("a", "b", "a"):
        await consents.allow("ada", client, "h", {"": ()})
    assert [consent.client_id for consent in await consents.all("ada")] == ["a", "b"]
    assert await consents.forget("ada", "a")
    assert not await consents.forget("ada", "a")
    assert [consent.client_id for consent in await consents.all("ada")] == ["b"]
    assert await consents.missing("ada", "a", "h", {"": ()}) == {"": ()}
    assert await consents.all("bob") == []


async def test_of_several_who_allow_at_once_all_are_remembered() -> None:
    consents = Memory().consents
    scopes = [f"s{n}" for n in range(6)]
    await asyncio.gather(*(consents.allow("ada", "app", "h", {"": (scope,)}) for scope in scopes))
    assert await consents.missing("ada", "app", "h", {"": tuple(scopes)}) == {}
