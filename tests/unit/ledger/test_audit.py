"""ledger.audit: seals, chains and their key."""

import hashlib
import hmac
import multiprocessing
import stat
from pathlib import Path

import msgspec
import pytest

from tollhouse.core.errors import Failure
from tollhouse.ledger.audit import BEGIN, END, MARK, Anchor, AuditRecord, Chain, Seal, first_of, key_in
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT
from tollhouse.ledger.segment import Reader

KEY = b"0123456789abcdef0123456789abcdef"


def journal(where: Path) -> Journal:
    one = Journal(where)
    one.open()
    return one


def bodies(one: Journal) -> list[bytes]:
    reader = Reader(one.directory, one.id, 0, live=True)
    entries = reader.read(1000)
    reader.close()
    assert {entry.kind for entry in entries} <= {AUDIT}
    return [entry.body for entry in entries]


@pytest.mark.parametrize("key", [b"", b"short", KEY, b"k" * 64, b"k" * 65, b"k" * 500])
@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 1000])
def test_a_seal_is_an_hmac_by_which_others_can_check_it(key: bytes, data: bytes) -> None:
    derived = hmac.digest(key, b"tollhouse audit record", "sha256")
    assert Seal(key).of(data) == hmac.new(derived, data, hashlib.sha256).hexdigest().encode()
    derived = hmac.digest(key, b"tollhouse audit arguments", "sha256")
    assert Seal(key).of_arguments(data) == hmac.new(derived, data, hashlib.sha256).hexdigest().encode()


def test_a_seal_shows_nothing_of_its_key() -> None:
    assert KEY.decode() not in repr(Seal(KEY)) + Seal(KEY).id
    assert Seal(KEY).id == Seal(KEY).id != Seal(KEY + b"!").id


def test_each_record_has_the_hash_of_the_one_before(tmp_path: Path) -> None:
    one = journal(tmp_path)
    anchor = Anchor("0" * 32, 7, "f" * 64)
    chain = Chain(one, [anchor], now=lambda: 1_700_000_000.5)
    seal = Seal(KEY)
    returned = [chain.append(seal, b',"operation":"tools/call","user":"u%d"' % n) for n in range(3)]
    chain.end()
    chain.end()  # and no second time
    found = bodies(one)
    one.close()
    assert found[1:4] == returned
    records = [msgspec.json.decode(body, type=AuditRecord) for body in found]
    assert [record.n for record in records] == [1, 2, 3, 4, 5]
    assert [record.operation for record in records] == [BEGIN, *["tools/call"] * 3, END]
    assert records[0].anchors == (anchor,)
    assert {record.at for record in records} == {1_700_000_000_500_000}
    before = first_of(chain.id).decode()
    for record, body in zip(records, found, strict=True):
        assert record.prev == before
        assert seal.holds(body)
        assert not Seal(b"another").holds(body)
        assert body.rpartition(MARK)[2] == record.hash.encode() + b'"}'
        before = record.hash


def test_a_chain_without_records_writes_nothing(tmp_path: Path) -> None:
    one = journal(tmp_path)
    Chain(one).end()
    assert bodies(one) == []
    one.close()


def test_what_cannot_be_written_is_no_part_of_the_chain(tmp_path: Path) -> None:
    one = journal(tmp_path)
    chain = Chain(one)
    chain.append(Seal(KEY), b',"operation":"x"')
    before = chain.n, chain.hash
    one.seal()
    with pytest.raises(Failure):
        chain.append(Seal(KEY), b',"operation":"y"')
    assert (chain.n, chain.hash) == before
    one.close()


def _make(path: Path) -> bytes:
    return key_in(path)


def test_a_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "k"
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        keys = set(pool.map(_make, [path] * 6))
    assert keys == {path.read_bytes()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["k"]


def test_a_file_that_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"")
    with pytest.raises(ValueError, match="no key in it"):
        key_in(tmp_path / "k")
