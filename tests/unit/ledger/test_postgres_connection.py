"""ledger.postgres_connection: servers that refuse, lie, hang, go away or are strangers; and that no secret is told."""

import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import trustme
from tests.fixtures.gateway import free_port
from tests.fixtures.postgres import PASSWORD, Postgres, TLSFront

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.postgres_connection import connect, in_one, plain, translating
from tollhouse.ledger.postgres_place import Place, Security, place_of


@pytest.fixture
def place(server: Postgres) -> Place:
    return place_of(server.url("postgres"))


def refused(place: Place) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        connect(place).close()
    assert PASSWORD not in str(caught.value)
    assert str(caught.value).startswith("postgresql://")
    assert caught.value.__cause__ is None
    return caught.value


def test_a_session_is_what_the_ledger_needs(place: Place) -> None:
    db = connect(place._replace(timeout=7.0))
    query = "SELECT current_setting(name) FROM unnest(%s::text[]) AS name"
    names = ["statement_timeout", "lock_timeout", "timezone", "search_path", "application_name", "client_encoding"]
    found = [row[0] for row in db.execute(query, (names,)).fetchall()]
    assert found == ["7s", "7s", "UTC", '"tollhouse"', "tollhouse", "UTF8"]
    assert db.autocommit
    db.close()


def test_what_is_committed_is_on_disk_also_where_the_server_would_not_mind(server: Postgres) -> None:
    name = server.fresh()
    server.do("postgres", f"ALTER DATABASE {name} SET synchronous_commit = off")
    db = connect(place_of(server.url(name)))
    assert db.execute("SHOW synchronous_commit").fetchone() == ("on",)
    db.close()


def test_a_wrong_password_is_not_told(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    error = refused(place_of(server.url("postgres", password="wrong-hunter2")))
    assert "password authentication failed" in str(error)
    assert "hunter2" not in str(error) + repr(error) + caplog.text


def test_nobody_is_there() -> None:
    assert not refused(place_of(f"postgresql://ada@127.0.0.1:{free_port()}/usage")).lasting


def test_there_is_no_such_database(place: Place) -> None:
    assert "does not exist" in str(refused(place._replace(database="nowhere")))


def test_a_database_that_cannot_have_every_text_is_refused(server: Postgres) -> None:
    server.do("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    error = refused(place_of(server.url("latin")))
    assert "its encoding is LATIN1; make the database with UTF8" in str(error)
    assert error.lasting


def test_of_several_servers_the_one_that_takes_writes_is_used(server: Postgres) -> None:
    place = place_of(server.url("postgres"))
    both = place._replace(hosts=(("127.0.0.1", free_port()), *place.hosts))
    db = connect(both)
    assert db.info.port == server.port
    db.close()


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        place = Place((("127.0.0.1", mute.getsockname()[1]),), "usage", "ada", PASSWORD, timeout=1.0)
        began = time.monotonic()
        refused(place)
        assert time.monotonic() - began < 8


def test_a_server_that_stops_in_the_middle_is_given_up(server: Postgres, place: Place) -> None:
    db = connect(place)
    backend = db.info.backend_pid
    db.deadline = 0.3
    os.kill(backend, signal.SIGSTOP)
    try:
        with pytest.raises(LedgerError, match="the server does not answer"), translating(place):
            db.execute("SELECT 1")
        assert db.closed
        with pytest.raises(LedgerError), translating(place):
            db.execute("SELECT 1")
    finally:
        os.kill(backend, signal.SIGCONT)
        db.close()


def test_a_statement_that_takes_too_long_is_ended_by_the_server(place: Place) -> None:
    db = connect(place._replace(timeout=1.0))
    with pytest.raises(LedgerError, match="statement timeout"), translating(place):
        db.execute("SELECT pg_sleep(20)")
    assert db.execute("SELECT 1").fetchone() == (1,)
    db.close()


def test_what_fails_in_a_transaction_is_undone(server: Postgres) -> None:
    db = connect(place_of(server.url(server.fresh()))._replace(schema="public"))
    db.execute("CREATE TABLE t (n int)")
    with pytest.raises(ZeroDivisionError), in_one(db):
        db.execute("INSERT INTO t VALUES (1)")
        raise ZeroDivisionError
    with pytest.raises(psycopg.errors.DivisionByZero), in_one(db):
        db.execute("INSERT INTO t VALUES (1)")
        db.execute("SELECT 1 / 0")
    with in_one(db):
        db.execute("INSERT INTO t VALUES (2)")
    assert db.execute("SELECT n FROM t").fetchall() == [(2,)]
    db.close()


def test_an_error_says_nothing_of_what_it_was_about(place: Place) -> None:
    db = connect(place)
    with pytest.raises(LedgerError) as caught, translating(place):
        db.execute("SELECT %s::int", ("sk-secret-4711",))
    assert str(caught.value).startswith("postgresql://127.0.0.1")
    assert "4711" not in str(caught.value)
    db.execute("CREATE TEMPORARY TABLE t (name text UNIQUE)")
    db.execute("INSERT INTO t VALUES ('sk-secret-4711')")
    with pytest.raises(LedgerError) as caught, translating(place):
        db.execute("INSERT INTO t VALUES ('sk-secret-4711')")
    assert "4711" not in str(caught.value)
    db.close()


def test_text() -> None:
    assert plain("a\x00b") == "a␀b"
    assert plain("ab") == "ab"


# ---- TLS
@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def tls(server: Postgres, authority: trustme.CA, *names: str) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    with TLSFront(server.port, context) as front:
        yield front.port


def over(server: Postgres, port: int, security: Security, host: str = "localhost") -> Place:
    return place_of(server.url("postgres", port=port, host=host))._replace(security=security)


def test_a_certificate_for_the_name_is_believed(server: Postgres, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with tls(server, authority, "localhost") as port:
        place = over(server, port, Security("verify-full", str(tmp_path / "ca.pem")))
        db = connect(place)
        assert db.pgconn.ssl_in_use
        db.close()


def test_a_certificate_for_another_name_is_not(server: Postgres, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with tls(server, authority, "elsewhere.example.com") as port:
        error = refused(over(server, port, Security("verify-full", str(tmp_path / "ca.pem"))))
        assert "elsewhere.example.com" in str(error)


def test_a_stranger_is_not_believed_by_the_systems_roots(server: Postgres, authority: trustme.CA) -> None:
    with tls(server, authority, "localhost") as port:
        assert "certificate" in str(refused(over(server, port, Security("verify-full"))))
        db = connect(over(server, port, Security("require")))  # as `verify: false` says
        assert db.pgconn.ssl_in_use
        db.close()


def test_no_password_is_sent_in_the_clear_to_who_has_no_tls(server: Postgres) -> None:
    place = over(server, server.port, Security("verify-full"))
    assert "does not support SSL" in str(refused(place))
