"""Tokens: what stands in them, that they name everybody who acts, and that none outlives its subject."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollhouse.core.call import Actor, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import Exchanger, Target
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import Mint, Minted, act_claim, actors_of
from tollhouse.issuer.records import UserInfo
from tollhouse.issuer.spec import KeysSpec
from tollhouse.issuer.subject import federated, is_federated
from tollhouse.store.memory import MemoryValues
from tollhouse.wire.jose import Keys, Token, check_claims, parse, verify

NOW = 1_800_000_000.0
ISSUER = "https://auth.example.com"
FOREIGN = "https://idp.example.net"
AUDIENCE = "https://gw.example.com/mcp"
TARGET = Target(AUDIENCE, ("read", "write"), 5.0, True, "search")


class Moment:
    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def moment() -> Moment:
    return Moment()


@pytest.fixture
def keys(moment: Moment) -> Iterator[SigningKeys]:
    values = MemoryValues(Clock())
    made = SigningKeys(values, KeysSpec(), moment)
    asyncio.run(made.load())
    yield made
    values.close()


@pytest.fixture
def mint(keys: SigningKeys, moment: Moment) -> Mint:
    return Mint(ISSUER, keys, moment)


def read(minted: Minted | bytes, keys: SigningKeys) -> Token:
    token = parse(minted.token if isinstance(minted, Minted) else minted)
    assert isinstance(token, Token)
    assert verify(token, Keys.parse(keys.public())) is None
    return token


def ada(**changes: Any) -> Principal:
    """A user of ours, by the agent agent-1."""
    claims = {"exp": NOW + 600, "auth_time": 5, "amr": ["pwd"], "sid": "s1", "gid": "g1", **changes.pop("claims", {})}
    said: dict[str, Any] = {
        "source": "jwt", "user": "ada", "issuer": ISSUER, "subject": "ada", "client": "agent-1",
        "expires": NOW + 605, "claims": claims, **changes,
    }  # fmt: skip
    return Principal("jwt:ada", **said)


# ---- tokens of the endpoints


def test_an_access_token(mint: Mint, keys: SigningKeys) -> None:
    minted = mint.access(
        sub="ada", aud=AUDIENCE, client_id="agent-1", scopes=("mcp", "read"), ttl=600.0,
        user=UserInfo(name="Ada", email="ada@a.example", groups=("dev",), org="platform"), auth_time=1_799_999_000,
        acr="1", amr=("pwd",), sid="s1", gid="g1", act={"sub": "x"}, may_act={"sub": "y"}, cnf={"jkt": "t"},
        claims={"plan": "gold"},
    )  # fmt: skip
    token = read(minted, keys)
    assert token.typ == "at+jwt"
    assert token.claims == {
        "iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "client_id": "agent-1", "scope": "mcp read",
        "auth_time": 1_799_999_000, "acr": "1", "amr": ["pwd"], "sid": "s1", "gid": "g1", "org": "platform",
        "groups": ["dev"], "act": {"sub": "x"}, "may_act": {"sub": "y"}, "cnf": {"jkt": "t"}, "plan": "gold",
        "iat": int(NOW), "exp": int(NOW) + 600, "jti": minted.jti,
    }  # fmt: skip
    assert minted.expires == NOW + 600
    assert check_claims(token, issuer=ISSUER, audiences=[AUDIENCE], now=NOW, types=["at+jwt"]) is None


def test_a_client_of_its_own_has_no_users_claims(mint: Mint, keys: SigningKeys) -> None:
    token = read(mint.access(sub="agent-1", aud=AUDIENCE, client_id="agent-1", scopes=(), ttl=0.2), keys)
    assert set(token.claims) == {"iss", "sub", "aud", "client_id", "iat", "exp", "jti"}
    assert token.claims["exp"] == token.claims["iat"] + 1


def test_no_claim_of_somebodys_data_overrides_what_we_say(mint: Mint, keys: SigningKeys) -> None:
    evil = {
        "iss": "x", "sub": "root", "aud": "x", "exp": 9e9, "scope": "admin", "act": {"sub": "x"}, "cnf": {}, "jti": "x",
        "client_id": "x", "gid": "x", "groups": ["admin"], "nbf": 0, "typ": "x", "name": 'a\r\nX: b","sub":"root',
    }  # fmt: skip
    token = read(
        mint.access(
            sub="ada", aud=AUDIENCE, client_id="a", scopes=(), ttl=60.0, user=UserInfo(groups=("dev",)), claims=evil
        ),
        keys,
    )
    assert set(token.claims) == {"iss", "sub", "aud", "client_id", "iat", "exp", "jti", "groups", "name"}
    assert (token.claims["sub"], token.claims["groups"]) == ("ada", ["dev"])
    token = read(mint.id_token(sub="ada", client_id="a", ttl=60.0, claims=evil), keys)
    assert set(token.claims) == {"iss", "sub", "aud", "azp", "iat", "exp", "jti", "groups", "name"}


def test_an_id_token_is_no_access_token(mint: Mint, keys: SigningKeys) -> None:
    minted = mint.id_token(
        sub="ada", client_id="agent-1", ttl=600.0, nonce="n", auth_time=5, sid="s1", access_token=b"a.b.c",
        claims={"name": "Ada"},
    )  # fmt: skip
    token = read(minted, keys)
    assert token.typ == "JWT"
    claims = token.claims
    assert (claims["aud"], claims["azp"], claims["nonce"], claims["sid"]) == ("agent-1", "agent-1", "n", "s1")
    assert len(claims["at_hash"]) == 22
    assert "scope" not in claims
    assert check_claims(token, issuer=ISSUER, audiences=[AUDIENCE], now=NOW, types=["at+jwt"]) is not None


def test_another_statement_has_a_type_of_its_own(mint: Mint, keys: SigningKeys) -> None:
    token = read(mint.signed("logout+jwt", {"aud": "a", "sid": "s1", "iss": "x", "exp": 9e9}, 120.0), keys)
    assert token.typ == "logout+jwt"
    assert (token.claims["iss"], token.claims["exp"]) == (ISSUER, int(NOW) + 120)
    assert check_claims(token, issuer=ISSUER, audiences=["a"], now=NOW) is not None


@pytest.mark.parametrize("claims", [{"x": "x" * 7000}, {"x": object()}, {"x": "\ud800"}])
def test_a_token_that_cannot_be(mint: Mint, claims: dict[str, Any]) -> None:
    with pytest.raises(Failure) as failure:
        mint.access(sub="ada", aud=AUDIENCE, client_id="a", scopes=(), ttl=60.0, claims=claims)
    assert failure.value.status == 400


# ---- a token for one call


def test_delegation_names_user_and_agent(mint: Mint, keys: SigningKeys) -> None:
    minted = mint.exchanged(ada(org="platform", groups=("dev",)), TARGET)
    assert read(minted, keys).claims == {
        "iss": ISSUER, "sub": "ada", "aud": AUDIENCE, "client_id": "tollhouse", "scope": "read write", "auth_time": 5,
        "amr": ["pwd"], "sid": "s1", "gid": "g1", "org": "platform", "groups": ["dev"],
        "act": {"iss": ISSUER, "sub": "agent-1"}, "iat": int(NOW), "exp": int(NOW) + 5, "jti": minted.jti,
    }  # fmt: skip
    assert minted.expires == NOW + 5


def test_each_call_has_a_token_of_its_own(mint: Mint, keys: SigningKeys) -> None:
    principal = ada()
    tokens = {mint.exchanged(principal, TARGET).jti for _ in range(50)}
    assert len(tokens) == 50


def test_impersonation_names_the_user_alone(mint: Mint, keys: SigningKeys) -> None:
    claims = read(mint.exchanged(ada(), TARGET._replace(delegation=False)), keys).claims
    assert "act" not in claims
    assert claims["sub"] == "ada"


@pytest.mark.parametrize(
    "changes",
    [
        {"actors": (Actor(ISSUER, "other"),)},
        {"claims": {"act": {"sub": "other"}}},
        {"claims": {"may_act": {"iss": ISSUER, "sub": "agent-1"}}},
        {"claims": {"may_act": {}}},
    ],
)
def test_impersonation_does_not_launder_a_chain(mint: Mint, changes: dict[str, Any]) -> None:
    with pytest.raises(Failure) as failure:
        mint.exchanged(ada(**changes), TARGET._replace(delegation=False))
    assert failure.value.status == 403


def test_those_who_acted_before_stand_inside(mint: Mint, keys: SigningKeys) -> None:
    principal = ada(client="agent-3", actors=(Actor(ISSUER, "agent-2"), Actor(FOREIGN, "agent-1")))
    assert read(mint.exchanged(principal, TARGET), keys).claims["act"] == {
        "iss": ISSUER, "sub": "agent-3",
        "act": {"iss": ISSUER, "sub": "agent-2", "act": {"iss": FOREIGN, "sub": "agent-1"}},
    }  # fmt: skip


def test_who_acts_already_is_not_repeated(mint: Mint, keys: SigningKeys) -> None:
    principal = ada(actors=(Actor(ISSUER, "agent-1"), Actor(ISSUER, "agent-0")))
    act = read(mint.exchanged(principal, TARGET), keys).claims["act"]
    assert act == {"iss": ISSUER, "sub": "agent-1", "act": {"iss": ISSUER, "sub": "agent-0"}}
    other = ada(actors=(Actor(FOREIGN, "agent-1"),))  # of the same name, but not the same
    assert read(mint.exchanged(other, TARGET), keys).claims["act"]["act"] == {"iss": FOREIGN, "sub": "agent-1"}


def test_an_agent_of_its_own_acts_for_nobody(mint: Mint, keys: SigningKeys) -> None:
    claims = read(mint.exchanged(ada(user="", subject="agent-1", client="agent-1"), TARGET), keys).claims
    assert claims["sub"] == "agent-1"
    assert "act" not in claims


def test_a_chain_has_its_length(mint: Mint, keys: SigningKeys) -> None:
    chain = tuple(Actor(ISSUER, f"a{n}") for n in range(4))
    assert read(mint.exchanged(ada(actors=chain), TARGET), keys).claims["act"]["sub"] == "agent-1"
    for actors in ((*chain, Actor(ISSUER, "a4")), tuple(Actor(ISSUER, "x" * 250 + str(n)) for n in range(4))):
        long = Mint(ISSUER, keys, mint._now, depth=5 if len(actors) > 4 else 9)
        many = ada(actors=actors * (1 if len(actors) > 4 else 2))
        with pytest.raises(Failure) as failure:
            long.exchanged(many, TARGET)
        assert failure.value.status == 403


@pytest.mark.parametrize(
    ("may_act", "changes", "good"),
    [
        ({"iss": ISSUER, "sub": "agent-1"}, {}, True),
        ({"sub": "agent-1"}, {}, True),
        ({"iss": ISSUER, "sub": "agent-2"}, {}, False),
        ({"iss": FOREIGN, "sub": "agent-1"}, {}, False),
        ({"iss": ISSUER}, {}, False),
        ({}, {}, False),
        ("agent-1", {}, False),
        ([{"sub": "agent-1"}], {}, False),
        ({"iss": ISSUER, "sub": ""}, {"client": ""}, False),
        ({"iss": FOREIGN, "sub": "agent-1"}, {"issuer": FOREIGN}, False),
        ({"iss": "https://trusted.example", "sub": "agent-1"}, {"issuer": "https://trusted.example"}, True),
        ({"sub": "agent-1"}, {"issuer": "https://trusted.example"}, False),
    ],
)
def test_who_may_act(keys: SigningKeys, moment: Moment, may_act: Any, changes: dict[str, Any], good: bool) -> None:
    mint = Mint(ISSUER, keys, moment, trusted_may_act=["https://trusted.example"])
    principal = ada(claims={"may_act": may_act}, **changes)
    if good:
        assert "may_act" not in read(mint.exchanged(principal, TARGET), keys).claims
        return
    with pytest.raises(Failure) as failure:
        mint.exchanged(principal, TARGET)
    assert failure.value.status == 403


def test_somebody_elsewhere_has_nobodys_name_here(keys: SigningKeys, moment: Moment) -> None:
    mint = Mint(ISSUER, keys, moment, same_subjects=["https://same.example"])
    claims = read(mint.exchanged(ada(issuer=FOREIGN, claims={"sid": "x", "gid": "y"}), TARGET), keys).claims
    assert claims["sub"] == federated(FOREIGN, "ada") != "ada"
    assert claims["sub_id"] == {"format": "iss_sub", "iss": FOREIGN, "sub": "ada"}
    assert not {"sid", "gid", "auth_time"} & claims.keys()
    assert claims["act"] == {"iss": FOREIGN, "sub": "agent-1"}
    claims = read(mint.exchanged(ada(issuer="https://same.example"), TARGET), keys).claims
    assert claims["sub"] == "ada"
    assert "sub_id" not in claims


def test_a_key_speaks_for_its_user(mint: Mint, keys: SigningKeys) -> None:
    claims = read(mint.exchanged(Principal("key:ci", source="key", user="ci-bot", key="ci"), TARGET), keys).claims
    assert (claims["sub"], claims["amr"]) == ("ci-bot", ["key"])
    assert claims["act"] == {"iss": ISSUER, "sub": "key:ci"}
    claims = read(mint.exchanged(Principal("key:ci", source="key", key="ci"), TARGET), keys).claims
    assert claims["sub"] == "key:ci"
    assert "act" not in claims


def test_what_is_kept_about_a_key_is_no_claim(mint: Mint, keys: SigningKeys) -> None:
    key = Principal("key:ci", source="key", user="bob", claims={"exp": 1, "may_act": {"sub": "x"}, "act": {"sub": "y"}})
    for target in (TARGET, TARGET._replace(delegation=False)):
        claims = read(mint.exchanged(key, target), keys).claims
        assert (claims["sub"], claims["exp"] - claims["iat"]) == ("bob", 5)
    assert read(mint.vouched(key, FOREIGN, 60.0), keys).claims["exp"] == NOW + 60


@pytest.mark.parametrize(
    ("who", "sub"),
    [
        (Principal("key:ci", source="key", user="bob"), "bob"),
        (Principal("key:ci", source="key"), "key:ci"),
        (Principal("key:ci", source="key", user=federated(FOREIGN, "ada")), ""),
        (Principal("mtls:ca|ada", source="mtls", user="ada", subject="ada"), ""),
        (Principal("ext:ada", source="ext", user="ada", subject="ada"), ""),
        (Principal("oidc:x|ada", source="oidc", user="ada", subject="ada", issuer=FOREIGN), federated(FOREIGN, "ada")),
    ],
    ids=lambda value: value.source if isinstance(value, Principal) else "",
)
def test_who_is_vouched_for_elsewhere_has_the_name_that_he_has_here(
    mint: Mint, keys: SigningKeys, who: Principal, sub: str
) -> None:
    """Above all, who names callers from outside can have none of our users vouched for."""
    said = read(mint.vouched(who, FOREIGN, 60.0), keys).claims
    here = read(mint.exchanged(who, TARGET), keys).claims
    assert said["sub"] == here["sub"]
    assert said["sub"] == sub or (not sub and is_federated(said["sub"]) and said["sub"] != who.user)
    assert read(mint.vouched(who, FOREIGN, 60.0), keys).typ == "JWT"
    assert (said["aud"], said["amr"], said["client_id"]) == (FOREIGN, [who.source], "tollhouse")
    assert said["exp"] - said["iat"] == 60


def test_our_word_ends_with_whom_it_is_about(mint: Mint, keys: SigningKeys) -> None:
    key = Principal("key:ci", source="key", user="bob", org="acme", expires=NOW + 20.5)
    said = read(mint.vouched(key, FOREIGN, 60.0), keys).claims
    assert (said["exp"], said["org"]) == (NOW + 20, "acme")
    key.expires = NOW + 0.5
    with pytest.raises(Failure) as failure:
        mint.vouched(key, FOREIGN, 60.0)
    assert failure.value.status == 401


def test_nobody_gets_nothing(mint: Mint) -> None:
    with pytest.raises(Failure) as failure:
        mint.exchanged(Principal("anonymous", source="anonymous"), TARGET)
    assert failure.value.status == 401


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(left=st.floats(1.0, 700.0), ttl=st.floats(0.5, 3600.0), part=st.floats(0.0, 0.999))
def test_no_token_outlives_its_subject(mint: Mint, moment: Moment, left: float, ttl: float, part: float) -> None:
    moment.now = NOW + part
    principal = ada(claims={"exp": moment.now + left}, expires=moment.now + left + 60)
    minted = mint.exchanged(principal, TARGET._replace(ttl=ttl))
    assert minted.expires <= moment.now + left
    assert minted.expires <= moment.now + max(ttl, 1.0)


def test_a_subject_that_is_about_to_end_is_sent_for_a_new_token(mint: Mint, moment: Moment) -> None:
    principal = ada()
    mint.exchanged(principal, TARGET)
    moment.now = NOW + 599.5
    for _ in range(2):
        with pytest.raises(Failure) as failure:
            mint.exchanged(principal, TARGET)
        assert (failure.value.status, failure.value.code) == (401, "invalid_token")


def test_a_rotated_key_signs_what_was_prepared(mint: Mint, keys: SigningKeys, moment: Moment) -> None:
    principal = ada(claims={"exp": NOW + 90 * 86400}, expires=NOW + 90 * 86400)
    first = read(mint.exchanged(principal, TARGET), keys)
    moment.now = NOW + 31 * 86400
    second = read(mint.exchanged(principal, TARGET), keys)
    assert second.kid != first.kid


def test_what_is_prepared_is_bounded_and_nobody_is_mistaken(mint: Mint, keys: SigningKeys) -> None:
    for number in range(9000):
        claims = parse(mint.exchanged(ada(subject=f"user-{number}"), TARGET).token)
        assert isinstance(claims, Token)
        assert claims.claims["sub"] == f"user-{number}"
    assert len(mint._prepared) <= 8192


def test_a_mint_is_an_exchanger(mint: Mint, keys: SigningKeys) -> None:
    exchanger: Exchanger = mint
    minted = exchanger.exchanged(ada(), TARGET)
    assert isinstance(minted, Minted)
    assert read(minted.token, keys).claims["sub"] == "ada"


def test_a_call_leaves_no_cycle(mint: Mint) -> None:
    principal = ada()
    mint.exchanged(principal, TARGET)
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            mint.exchanged(principal, TARGET)
        assert gc.collect() == 0
    finally:
        gc.enable()


# ---- chains


ACTORS = st.lists(st.builds(Actor, st.sampled_from(["", ISSUER]), st.text(min_size=1, max_size=20)), max_size=10)


@given(ACTORS)
def test_a_chain_comes_back_as_it_was(chain: list[Actor]) -> None:
    claims = {"act": act_claim(chain)} if chain else {}
    try:
        claims = msgspec.json.decode(msgspec.json.encode(claims))
    except UnicodeEncodeError:
        return
    assert actors_of(claims) == tuple(chain)


@pytest.mark.parametrize(
    "act",
    [
        "agent-1",
        5,
        [],
        {},
        {"sub": 5},
        {"sub": ""},
        {"sub": "a", "iss": 5},
        {"sub": "a", "act": {}},
        {"sub": "x" * 257},
    ],
)
def test_what_is_no_chain(act: Any) -> None:
    with pytest.raises(ValueError, match="act"):
        actors_of({"act": act})


def test_a_chain_from_outside_is_bounded() -> None:
    act: dict[str, Any] = {"sub": "a"}
    for _ in range(10):
        act = {"sub": "a", "act": act}
    with pytest.raises(ValueError, match="up to 10"):
        actors_of({"act": act})
