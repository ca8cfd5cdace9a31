"""Content codings: right, damaged, unknown, and bombs."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.errors import Failure
from tollhouse.net.decode import decompress


def raw_deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(data) + deflater.flush()


@given(st.binary(max_size=5000))
def test_there_and_back(data: bytes) -> None:
    limit = len(data)
    assert decompress(gzip.compress(data), b"gzip", limit) == data
    assert decompress(gzip.compress(data), b" X-GZIP ", limit) == data
    assert decompress(zlib.compress(data), b"deflate", limit) == data
    assert decompress(gzip.compress(zlib.compress(data)), b"deflate, gzip", limit + 100) == data
    assert decompress(gzip.compress(data[:9]) + gzip.compress(data[9:]) + b"\0\0", b"gzip", limit) == data
    assert decompress(data, b"identity", 0) == data
    assert decompress(data, None, 0) == data
    assert decompress(data, b"", 0) == data


def test_bare_deflate() -> None:
    assert decompress(raw_deflate(b"hello"), b"deflate", 10) == b"hello"


def test_an_empty_body_has_no_coding() -> None:
    assert decompress(b"", b"gzip", 10) == b""


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        (b"x", b"br", "'br'"),
        (b"x", b"gzip, zstd", "'zstd'"),
        (b"x", b"gzip, gzip, gzip, gzip", "too many times"),
        (b"hello", b"gzip", "damaged"),
        (b"hello", b"deflate", "damaged"),
        (gzip.compress(b"hello", mtime=0)[:-3], b"gzip", "cut short"),
        (zlib.compress(b"hello")[:-6], b"deflate", "cut short"),
        (gzip.compress(b"hello", mtime=0) + b"junk", b"gzip", "damaged"),
        (gzip.compress(b"", mtime=0) * 100, b"gzip", "too many members"),
        (gzip.compress(b"x" * 1001, mtime=0), b"gzip", "larger than 1000"),
        (gzip.compress(b"x" * 501, mtime=0) * 2, b"gzip", "larger"),
        (zlib.compress(b"x" * 10_000_000), b"deflate", "larger than 1000"),
    ],
    ids=range(12),
)
def test_what_is_refused(body: bytes, encoding: bytes, message: str) -> None:
    with pytest.raises(Failure, match=message) as raised:
        decompress(body, encoding, 1000)
    assert raised.value.status == 502
    assert len(raised.value.message) < 120


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate"]))
def test_noise_is_a_failure_or_a_body(body: bytes, encoding: bytes) -> None:
    try:
        assert len(decompress(body, encoding, 1000)) <= 1000
    except Failure:
        pass
