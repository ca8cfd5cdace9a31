"""Who the client is behind proxies, and what is believed."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.forwarded import Forwarding, is_provenance, network_of
from tollhouse.core.http import Headers, Request

TRUSTED = Forwarding(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"])


def request(peer: str, *fields: tuple[str, str], host: str = "example.com") -> Request:
    headers = Headers([(b"host", host.encode()), *((n.encode(), v.encode()) for n, v in fields)])
    return Request(b"GET", b"/", headers, peer=peer)


@pytest.mark.parametrize(
    "peer, trusted",
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("2001:db8::1", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("127.0.0.1", False),
        ("", False),
        ("unix", False),
    ],
)
def test_trust(peer: str, trusted: bool) -> None:
    assert TRUSTED.trusts(peer) is trusted
    assert TRUSTED.trusts(peer) is trusted, "also when remembered"
    assert not Forwarding().trusts(peer)


def test_what_is_remembered_is_bounded() -> None:
    forwarding = Forwarding(["10.0.0.0/8"])
    for i in range(10_000):
        forwarding.trusts(f"192.0.{i // 256}.{i % 256}")
    assert len(forwarding._known) <= 4096


def test_a_bad_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="proxy"):
        Forwarding(["proxy.example.com"])


@pytest.mark.parametrize(
    "peer, fields, client",
    [
        ("192.0.2.1", [("x-forwarded-for", "1.1.1.1")], "192.0.2.1"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, 1.1.1.1")], "1.1.1.1"),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, 1.1.1.1, 10.0.0.2")], "1.1.1.1"),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1,10.0.0.2")], "1.1.1.1"),
        ("10.0.0.1", [("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
        ("10.0.0.1", [("x-forwarded-for", "6.6.6.6, unknown, 10.0.0.2")], "10.0.0.2"),
        ("10.0.0.1", [("x-forwarded-for", "1.1.1.1:5000")], "1.1.1.1"),
        ("10.0.0.1", [("x-forwarded-for", "2001:db9::1")], "2001:db9::1"),
        ("10.0.0.1", [("x-forwarded-for", "[2001:db9::1]:80")], "2001:db9::1"),
        ("10.0.0.1", [("x-forwarded-for", ",")], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", 'For="[2001:db9::1]:80";proto=https, for=10.0.0.2')], "2001:db9::1"),
        ("10.0.0.1", [("forwarded", "proto=http;for=1.1.1.1;by=10.0.0.9")], "1.1.1.1"),
        ("10.0.0.1", [("forwarded", 'x="for=6.6.6.6";for=_hidden')], "10.0.0.1"),
        ("10.0.0.1", [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.1.1.1")], "1.1.1.1"),
    ],
)
def test_the_client(peer: str, fields: list[tuple[str, str]], client: str) -> None:
    assert TRUSTED.client(request(peer, *fields)) == client


def test_scheme() -> None:
    said = ("x-forwarded-proto", "HTTPS, http")
    assert TRUSTED.scheme(request("10.0.0.1", said)) == "https"
    assert TRUSTED.scheme(request("10.0.0.1", ("x-forwarded-proto", "gopher"))) == "http"
    assert TRUSTED.scheme(request("192.0.2.1", said)) == "http"


def test_fields_are_begun_anew_for_a_stranger() -> None:
    assert TRUSTED.fields(request("2001:db9::1", ("forwarded", "for=x"), host='a"b'), b"/p") == [
        (b"forwarded", b'for="[2001:db9::1]";proto=http'),
        (b"x-forwarded-for", b"2001:db9::1"),
        (b"x-forwarded-proto", b"http"),
        (b"x-forwarded-host", b'a"b'),
        (b"x-forwarded-prefix", b"/p"),
    ]


def test_fields_grow_behind_a_trusted_proxy() -> None:
    fields = dict(TRUSTED.fields(request("10.0.0.1", ("forwarded", 'for="[::1]:9";host=h'))))
    assert fields[b"forwarded"] == b'for="[::1]:9";host=h, for=10.0.0.1;host="example.com";proto=http'
    assert fields[b"x-forwarded-for"] == b"[::1]:9, 10.0.0.1"
    fields = dict(TRUSTED.fields(request("10.0.0.1", ("x-forwarded-for", 'a"b, 2001:db9::1, 1.1.1.1:80'))))
    assert fields[b"forwarded"] == (
        b'for=unknown, for="[2001:db9::1]", for="1.1.1.1:80", for=10.0.0.1;host="example.com";proto=http'
    )
    fields = dict(TRUSTED.fields(request("10.0.0.1", ("x-real-ip", "1.1.1.1"), ("x_real_ip", "6.6.6.6"))))
    assert fields[b"x-real-ip"] == b"1.1.1.1"
    assert b"x_real_ip" not in fields


@pytest.mark.parametrize(
    "name",
    [
        b"forwarded",
        b"x-forwarded-for",
        b"x_forwarded_proto",
        b"x-forwarded-x",
        b"x-real-ip",
        b"client-cert",
        b"client_cert",
    ],
)
def test_provenance(name: bytes) -> None:
    assert is_provenance(name)


@pytest.mark.parametrize("name", [b"x-request-id", b"from", b"via", b"x-forwarded", b"client-id"])
def test_no_provenance(name: bytes) -> None:
    assert not is_provenance(name)


@given(st.ip_addresses(v=6), st.ip_addresses(v=6))
def test_an_ipv6_client_is_its_network(one: ipaddress.IPv6Address, other: ipaddress.IPv6Address) -> None:
    for address in (one, other):
        texts = (str(address), address.exploded, f"{address}%eth0", str(address).upper())
        assert len({network_of(text) for text in texts}) == 1
    if one.ipv4_mapped is None and other.ipv4_mapped is None:
        same = int(one) >> 64 == int(other) >> 64
        assert (network_of(str(one)) == network_of(str(other))) is same


def test_addresses_of_one_network_are_one() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8:0:0:ffff::") == "20010db800000000/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")


def test_an_ipv4_client_in_ipv6s_clothes_is_itself() -> None:
    assert network_of("::ffff:192.0.2.7") == network_of("::ffff:c000:207") == "192.0.2.7"
    assert network_of("unix:/x") == "unix:/x"
