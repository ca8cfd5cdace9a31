"""What tokens can be for, and which scopes go with it."""

import pytest
from tests.fixtures.issuer import API, MCP

from tollhouse.issuer.clients import Client
from tollhouse.issuer.resources import Resource, Resources
from tollhouse.issuer.scopes import scopes_for
from tollhouse.wire.oauth import OAuthError

ISSUER = "https://auth.example.com"
OURS = Resources(
    ISSUER,
    {MCP: Resource(MCP, "Tools", {}), API: Resource(API, "", {"read": "Read all", "write": ""}, ("read",))},
    {"mcp": "Use tools"},
)
ONE = Resources(ISSUER, {API: Resource(API, "", {"read": "Read all"})}, {})


def test_resources_are_compared_in_their_canonical_form() -> None:
    assert OURS.asked(["HTTPS://API.example.com:443/", API, MCP]) == (API, MCP)
    assert OURS.asked([ISSUER]) == (ISSUER,)


@pytest.mark.parametrize("uri", ["https://other.example.com", f"{MCP}/", f"{MCP}#x", "mcp", ""])
def test_what_is_nobodys_target(uri: str) -> None:
    with pytest.raises(OAuthError) as error:
        OURS.asked([uri])
    assert error.value.error == "invalid_target"


def test_which_one_goes_without_saying() -> None:
    assert OURS.chosen((API, MCP), ()) == API
    assert OURS.chosen((), ("openid",)) == ISSUER
    assert ONE.chosen((), ()) == API
    with pytest.raises(OAuthError):
        OURS.chosen((), ("mcp",))


def test_agents_that_know_no_resource_get_the_main_one() -> None:
    main = Resources(ISSUER, {API: Resource(API, "", {}), MCP: Resource(MCP, "Tools", {}, main=True)}, {})
    assert main.chosen((), ("mcp",)) == MCP
    assert main.unsaid(("mcp",)) == (MCP,)
    assert main.unsaid(("openid", "mcp")) == ()
    with pytest.raises(OAuthError):
        OURS.unsaid(("mcp",))


def test_scopes_have_words() -> None:
    assert OURS.words("read", (API,)) == "Read all"
    assert OURS.words("mcp") == "Use tools"
    assert OURS.words("openid") == "Know who you are"
    assert OURS.words("write", (API,)) == "write"
    assert OURS.words("x") == "x"
    assert OURS.name(MCP) == "Tools"
    assert OURS.name(API) == API
    assert {"read", "write", "mcp", "openid"} < set(OURS.scopes)
    assert [resource.uri for resource in OURS] == [MCP, API]


def client(**fields: object) -> Client:
    return Client(id="app", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("who", "asked", "uris", "got"),
    [
        (client(), "read", (API,), ("read",)),
        (client(), "openid read", (API,), ("openid", "read")),
        (client(), "", (API,), ("read",)),
        (client(), "", (MCP,), ()),
        (client(scopes=frozenset(("read", "openid"))), "", (API,), ("read",)),
        (client(scopes=frozenset(("own",))), "own", (MCP,), ("own",)),
        (client(scopes=frozenset(("read", "write")), default_scopes=("write",)), "", (API,), ("write",)),
    ],
)
def test_what_a_client_gets(who: Client, asked: str, uris: tuple[str, ...], got: tuple[str, ...]) -> None:
    assert scopes_for(who, OURS, asked, uris) == got


@pytest.mark.parametrize(
    ("who", "asked", "uris"),
    [
        (client(), "other", (API,)),
        (client(), "read", (MCP,)),
        (client(scopes=frozenset(("read",))), "write", (API,)),
        (client(scopes=frozenset(("own",))), "own", (API,)),
        (client(scopes=frozenset(("own",)), source="registered"), "own", (MCP,)),
    ],
)
def test_what_a_client_does_not_get(who: Client, asked: str, uris: tuple[str, ...]) -> None:
    with pytest.raises(OAuthError) as error:
        scopes_for(who, OURS, asked, uris)
    assert error.value.error == "invalid_scope"


def test_scopes_about_people_need_one() -> None:
    with pytest.raises(OAuthError):
        scopes_for(client(), OURS, "openid", (API,), user=False)
    assert scopes_for(client(scopes=frozenset(("openid", "read"))), OURS, "", (API,), user=False) == ("read",)
