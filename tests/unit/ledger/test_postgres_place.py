"""ledger.postgres_place: what a URL says, and that a password stays in it."""

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.ledger.postgres_place import Place, Security, place_of

SECRET = "p@ss/w%rd:of?the#ledger"
WRITTEN = "p%40ss%2Fw%25rd%3Aof%3Fthe%23ledger"


def test_what_a_url_says() -> None:
    place = place_of(f"postgresql://ada:{WRITTEN}@db.example.com:5433/usage")
    assert place == Place((("db.example.com", 5433),), "usage", "ada", SECRET)
    assert str(place) == "postgresql://db.example.com:5433/usage"
    assert SECRET not in repr(place) + str(place)


@pytest.mark.parametrize(
    ("url", "hosts", "shown"),
    [
        ("postgres://ada@db/usage", (("db", 5432),), "db:5432"),
        ("postgresql://ada@[::1]:7/usage", (("::1", 7),), "[::1]:7"),
        ("postgresql://ada@a:1,b,[fe80::1]/usage", (("a", 1), ("b", 5432), ("fe80::1", 5432)), "a:1,b:5432"),
        ("postgresql://ada@%2Frun%2Fpostgresql/usage", (("/run/postgresql", 5432),), "/run/postgresql"),
    ],
)
def test_hosts(url: str, hosts: tuple[tuple[str, int], ...], shown: str) -> None:
    place = place_of(url)
    assert place.hosts == hosts
    assert shown in str(place)
    assert place.options()["host"] == ",".join(host for host, _ in hosts)
    assert ("target_session_attrs" in place.options()) == (len(hosts) > 1)
    assert "password" not in place.options()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://ada:hunter2@db", "not a place"),
        ("postgresql://ada:hunter2@db/", "not a place"),
        ("postgresql://ada:hunter2@db/a/b", "not a place"),
        ("mysql://ada:hunter2@db/a", "not a place"),
        ("postgresql://ada:hunter2@/a", "not a host"),
        ("postgresql://ada:hunter2@db:99999/a", "not a host"),
        ("postgresql://ada:hunter2@d b/a", "not a host"),
        ("postgresql://db/hunter2", "the user is missing"),
        ("postgresql://:hunter2@db/a", "the user is missing"),
        ("postgresql://ada:hunter2@db/a?sslmode=require", "`\\?` has settings"),
        ("postgresql://ada:hunter2%00@db/a", "NUL"),
    ],
)
def test_what_is_no_place_is_said_without_it(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        place_of(url)
    assert "hunter2" not in str(caught.value)


@given(st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), min_size=1, max_size=30))
def test_any_password_can_be_written(password: str) -> None:
    from urllib.parse import quote

    assert place_of(f"postgresql://ada:{quote(password, safe='')}@db/usage").password == password


@pytest.mark.parametrize(
    ("host", "security", "mode"),
    [
        ("db.example.com", Security(), "verify-full"),
        ("10.0.0.7", Security(), "verify-full"),
        ("127.0.0.1", Security(), "prefer"),
        ("localhost", Security(), "prefer"),
        ("[::1]", Security(), "prefer"),
        ("%2Frun%2Fpostgresql", Security(), "prefer"),
        ("localhost,db.example.com", Security(), "verify-full"),
        ("db.example.com", Security("disable"), "disable"),
        ("db.example.com", Security("require"), "require"),
        ("127.0.0.1", Security("verify-full"), "verify-full"),
    ],
)
def test_who_is_elsewhere_shows_a_certificate(host: str, security: Security, mode: str) -> None:
    options = place_of(f"postgresql://ada@{host}/usage")._replace(security=security).options()
    assert options["sslmode"] == mode
    assert ("sslrootcert" in options) == (mode == "verify-full")


def test_roots_are_the_systems_or_those_that_are_named() -> None:
    place = place_of("postgresql://ada@db/usage")
    found = ssl.get_default_verify_paths().cafile
    if found is not None:
        assert place.options()["sslrootcert"] == found
    assert place.options()["sslrootcert"] == "system" or Path(place.options()["sslrootcert"]).is_file()
    own = place._replace(security=Security("verify-full", "ca.pem", "cert.pem", "key.pem")).options()
    assert (own["sslrootcert"], own["sslcert"], own["sslkey"]) == ("ca.pem", "cert.pem", "key.pem")
