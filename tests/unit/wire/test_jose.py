"""Tokens: everything that must not be accepted, and that what must be is."""

import base64
import hmac
import json
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from hypothesis import example, given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tollhouse.wire.jose import (
    ALGORITHMS,
    DEFAULT_ALGORITHMS,
    MAX_KEYS,
    Flaw,
    Keys,
    Token,
    _header,
    check_claims,
    from_base64url,
    header_of,
    parse,
    public_key,
    verify,
)

NOW = 1_800_000_000.0
ISSUER = "https://idp.example.com"
EC = ECKey.generate_key("P-256", {"kid": "ec"})
EC384 = ECKey.generate_key("P-384", {"kid": "ec384"})
EC521 = ECKey.generate_key("P-521", {"kid": "ec521"})
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
ALL = (EC, EC384, EC521, RSA, ED)
OF: dict[str, Any] = {
    "ES256": EC, "ES384": EC384, "ES512": EC521, "EdDSA": ED, "Ed25519": ED,
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
}  # fmt: skip
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": NOW + 300}


def jwks(*keys: Any, **more: Any) -> bytes:
    return json.dumps({"keys": [k if isinstance(k, dict) else k.as_dict(private=False) | more for k in keys]}).encode()


def b64(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def sign(header: dict[str, Any], key: Any, claims: Any = CLAIMS) -> bytes:
    """Any header, signed by the algorithm it names."""
    signed = b64(header) + b"." + b64(claims)
    return signed + b"." + b64(jws.JWSRegistry.algorithms[header["alg"]].sign(signed, key))


def judge(token: bytes, keys: bytes, algorithms: Any = DEFAULT_ALGORITHMS) -> Flaw | None:
    parsed = parse(token)
    return parsed if isinstance(parsed, Flaw) else verify(parsed, Keys.parse(keys), algorithms)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_verifies_its_own_key(algorithm: str) -> None:
    key = OF[algorithm]
    token = sign({"alg": algorithm, "kid": key.kid}, key)
    assert judge(token, jwks(*ALL), [algorithm]) is None
    parsed = parse(token)
    assert isinstance(parsed, Token)
    assert parsed.claims == CLAIMS
    flipped = token[:-10] + (b"A" if token[-10:-9] != b"A" else b"B") + token[-9:]
    assert judge(flipped, jwks(*ALL), [algorithm]) is Flaw.SIGNATURE


def test_a_foreign_library_agrees() -> None:
    token = pyjwt.encode(CLAIMS, EC.as_pem(private=True), algorithm="ES256", headers={"kid": "ec"})
    assert judge(token.encode(), jwks(*ALL)) is None


PEM = RSA.as_pem(private=False)


def shared_secret(secret: bytes) -> bytes:
    signed = b64({"alg": "HS256", "kid": "rsa"}) + b"." + b64(CLAIMS)
    return signed + b"." + b64(hmac.digest(secret, signed, "sha256"))


REFUSED: list[tuple[str, bytes, bytes, Flaw]] = [
    ("none", b64({"alg": "none"}) + b"." + b64(CLAIMS) + b".", jwks(EC), Flaw.MALFORMED),
    ("none with a signature", b64({"alg": "none"}) + b"." + b64(CLAIMS) + b".AAAA", jwks(EC), Flaw.ALGORITHM),
    ("None", b64({"alg": "nOnE"}) + b"." + b64(CLAIMS) + b".AAAA", jwks(EC), Flaw.ALGORITHM),
    ("public key as secret", shared_secret(PEM), jwks(RSA), Flaw.ALGORITHM),
    ("not on the list", sign({"alg": "PS256", "kid": "rsa"}, RSA), jwks(RSA), Flaw.ALGORITHM),
    ("no alg", b64({"kid": "ec"}) + b"." + b64(CLAIMS) + b".AAAA", jwks(EC), Flaw.MALFORMED),
    ("alg no text", b64({"alg": ["ES256"]}) + b"." + b64(CLAIMS) + b".AAAA", jwks(EC), Flaw.MALFORMED),
    ("kid no text", b64({"alg": "ES256", "kid": {}}) + b"." + b64(CLAIMS) + b".AAAA", jwks(EC), Flaw.MALFORMED),
    ("unknown kid", sign({"alg": "ES256", "kid": "other"}, EC), jwks(EC), Flaw.NO_KEY),
    ("kid of another type", sign({"alg": "ES256", "kid": "rsa"}, EC), jwks(EC, RSA), Flaw.NO_KEY),
    ("another curve", sign({"alg": "ES256", "kid": "ec384"}, EC), jwks(EC384), Flaw.NO_KEY),
    ("key bound to another alg", sign({"alg": "RS256", "kid": "rsa"}, RSA), jwks(RSA, alg="RS512"), Flaw.NO_KEY),
    ("crit", sign({"alg": "ES256", "crit": ["b64"], "b64": False}, EC), jwks(EC), Flaw.CRITICAL),
    ("empty crit", sign({"alg": "ES256", "crit": []}, EC), jwks(EC), Flaw.CRITICAL),
    ("crit null", sign({"alg": "ES256", "crit": None}, EC), jwks(EC), Flaw.CRITICAL),
    ("too large", b"a" * 16385, jwks(EC), Flaw.TOO_LARGE),
    ("encrypted", b"a.b.c.d.e", jwks(EC), Flaw.MALFORMED),
    ("two parts", b"a.b", jwks(EC), Flaw.MALFORMED),
    ("empty", b"", jwks(EC), Flaw.MALFORMED),
    ("padded", sign({"alg": "ES256"}, EC) + b"=", jwks(EC), Flaw.MALFORMED),
    ("standard base64", sign({"alg": "ES256"}, EC)[:-4] + b"+/+/", jwks(EC), Flaw.MALFORMED),
    ("newline", sign({"alg": "ES256"}, EC) + b"\n", jwks(EC), Flaw.MALFORMED),
    ("claims a list", sign({"alg": "ES256"}, EC, [1]), jwks(EC), Flaw.MALFORMED),
    ("claims no JSON", sign({"alg": "ES256"}, EC, b"{"), jwks(EC), Flaw.MALFORMED),
    ("claims deep", sign({"alg": "ES256"}, EC, b'{"a":' + b"[" * 4000 + b"]" * 4000 + b"}"), jwks(EC), Flaw.MALFORMED),
    ("claims not UTF-8", sign({"alg": "ES256"}, EC, b'{"a":"\xff"}'), jwks(EC), Flaw.MALFORMED),
    ("no signature for EC", b64({"alg": "ES256"}) + b"." + b64(CLAIMS) + b".AA", jwks(EC), Flaw.SIGNATURE),
    ("zero signature", b64({"alg": "ES256"}) + b"." + b64(CLAIMS) + b"." + b64(bytes(64)), jwks(EC), Flaw.SIGNATURE),
    ("zero signature Ed", b64({"alg": "EdDSA"}) + b"." + b64(CLAIMS) + b"." + b64(bytes(64)), jwks(ED), Flaw.SIGNATURE),
    ("long signature", b64({"alg": "RS256"}) + b"." + b64(CLAIMS) + b"." + b64(bytes(900)), jwks(RSA), Flaw.SIGNATURE),
]  # fmt: skip


@pytest.mark.parametrize("token, keys, flaw", [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused(token: bytes, keys: bytes, flaw: Flaw) -> None:
    assert judge(token, keys) is flaw


@pytest.mark.parametrize("header", ["jwk", "jku", "x5u", "x5c"])
def test_a_token_that_brings_its_key_along_is_refused(header: str) -> None:
    mine = ECKey.generate_key("P-256", {"kid": "ec"})
    nowhere = "http://127.0.0.1:1/jwks"
    values: dict[str, Any] = {"jwk": mine.as_dict(private=False), "jku": nowhere, "x5u": nowhere, "x5c": ["x"]}
    for brought in (values[header], None):
        for key in (mine, EC):
            token = sign({"alg": "ES256", "kid": "ec", header: brought}, key)
            assert judge(token, jwks(EC)) is Flaw.KEY_BROUGHT


@pytest.mark.parametrize(
    "kid", ["../../etc/passwd", "' OR 1=1 --", "https://127.0.0.1:1/k", "k" * 512, "\u202e", "ec ", "EC"]
)
def test_a_kid_is_a_name_and_nothing_else(kid: str) -> None:
    assert judge(sign({"alg": "ES256", "kid": kid}, EC), jwks(EC)) is Flaw.NO_KEY


@pytest.mark.parametrize("kid", ["a\nb", "a\r\nx: y", "a\0", "k" * 513])
def test_a_kid_that_could_not_stand_in_a_line(kid: str) -> None:
    assert judge(sign({"alg": "ES256", "kid": kid}, EC), jwks(EC)) is Flaw.MALFORMED


def test_a_header_is_short() -> None:
    assert judge(sign({"alg": "ES256", "kid": "ec", "x": "x" * 900}, EC), jwks(EC)) is None
    assert judge(sign({"alg": "ES256", "kid": "ec", "x": "x" * 1100}, EC), jwks(EC)) is Flaw.MALFORMED


def test_b64_is_refused_whatever_it_says() -> None:
    for value in (True, False, None):
        assert judge(sign({"alg": "ES256", "kid": "ec", "b64": value}, EC), jwks(EC)) is Flaw.CRITICAL


def test_of_two_claims_with_one_name_one_reader_decides() -> None:
    text = b'{"iss": "https://other.example.com", "iss": "%b", "aud": "tollhouse", "exp": %d}' % (ISSUER.encode(), NOW)
    parsed = parse(sign({"alg": "ES256", "kid": "ec"}, EC, text))
    assert isinstance(parsed, Token)
    assert parsed.claims["iss"] == ISSUER
    assert check_claims(parsed, issuer=ISSUER, audiences=["tollhouse"], now=NOW) is None


def test_seen_headers_are_bounded() -> None:
    for number in range(3000):
        parse(b64({"alg": "ES256", "kid": f"k{number}"}) + b".e30.AAAA")
    seen = _header.cache_info().currsize
    assert seen <= 1024
    assert header_of(b"e" * 1367) is Flaw.MALFORMED
    assert _header.cache_info().currsize == seen  # nothing of that size is kept


def test_keys_with_one_kid_are_all_tried() -> None:
    other = ECKey.generate_key("P-256", {"kid": "ec"})
    keys = jwks(other, EC, RSA.as_dict(private=False) | {"kid": "ec"})
    assert judge(sign({"alg": "ES256", "kid": "ec"}, EC), keys) is None
    assert judge(sign({"alg": "RS256", "kid": "ec"}, RSA), keys) is None


def test_without_kid_few_keys_are_tried() -> None:
    others = [ECKey.generate_key("P-256") for _ in range(3)]
    assert judge(sign({"alg": "ES256"}, EC), jwks(*others, RSA, EC)) is None
    more = [*others, ECKey.generate_key("P-256")]
    assert judge(sign({"alg": "ES256"}, EC), jwks(*more, EC)) is Flaw.SIGNATURE


def test_bad_keys_are_ignored() -> None:
    public = EC.as_dict(private=False)
    bad: list[Any] = [
        None,
        "x",
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "ec"},
        {"kty": ["EC"]},
        {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        public | {"use": "enc"},
        public | {"key_ops": ["sign"]},
        public | {"key_ops": "verify"},
        public | {"alg": "HS256"},
        public | {"alg": 5},
        public | {"x": "AA"},
        public | {"x": 5},
        {k: v for k, v in public.items() if k != "y"},
        public | {"kid": 5},
        RSAKey.generate_key(1024).as_dict(private=False),
        {"kty": "RSA", "n": "", "e": "AQAB"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "OKP", "crv": "X25519", "x": base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
    ]
    keys = Keys.parse(jwks(*bad_dicts(bad), EC))
    assert len(keys) == 1
    assert keys.ignored == len(bad_dicts(bad))
    with pytest.raises(ValueError, match="no public key for signatures"):
        Keys.parse(json.dumps({"keys": bad}).encode())


def bad_dicts(bad: list[Any]) -> list[Any]:
    return [key for key in bad if isinstance(key, dict)]


def test_of_a_private_key_the_public_part_is_taken() -> None:
    keys = Keys.parse(json.dumps({"keys": [EC.as_dict(private=True)]}).encode())
    assert len(keys.candidates("ES256", "ec")) == 1
    kind, key = public_key(EC.as_dict(private=True)) or ((), None)
    assert kind == ("EC", "P-256")
    assert isinstance(key, EllipticCurvePublicKey)


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": 5}', b"5", b'{"keys":' + b"[" * 5000],
)
def test_what_is_no_key_set(document: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        Keys.parse(document)


def test_a_key_set_is_bounded() -> None:
    with pytest.raises(ValueError, match="100 are allowed"):
        Keys.parse(json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode())


@pytest.mark.parametrize(
    "change, flaw",
    [
        ({}, None),
        ({"aud": ["x", "tollhouse"]}, None),
        ({"exp": NOW + 0.5}, None),
        ({"exp": NOW - 59}, None),  # within the leeway
        ({"exp": NOW - 60}, Flaw.EXPIRED),
        ({"exp": None}, Flaw.CLAIM),
        ({"exp": "1900000000"}, Flaw.CLAIM),
        ({"exp": True}, Flaw.CLAIM),
        ({"exp": 10**400}, Flaw.CLAIM),
        ({"exp": -(10**400)}, Flaw.CLAIM),
        ({"exp": 1e308}, Flaw.CLAIM),
        ({"exp": float("inf")}, Flaw.CLAIM),
        ({"exp": float("nan")}, Flaw.CLAIM),
        ({"nbf": 10**400}, Flaw.CLAIM),
        ({"nbf": -(10**400)}, Flaw.CLAIM),
        ({"iat": 10**400}, Flaw.CLAIM),
        ({"iat": -(10**400)}, Flaw.CLAIM),
        ({"exp": 253_402_300_799, "nbf": -1}, None),  # the end of the year 9999
        ({"nbf": NOW + 59}, None),
        ({"nbf": NOW + 61}, Flaw.NOT_YET),
        ({"nbf": None}, Flaw.CLAIM),
        ({"nbf": "x"}, Flaw.CLAIM),
        ({"iat": NOW + 61}, Flaw.NOT_YET),
        ({"iat": [1]}, Flaw.CLAIM),
        ({"iss": ISSUER + "/"}, Flaw.ISSUER),
        ({"iss": ISSUER.upper()}, Flaw.ISSUER),
        ({"iss": [ISSUER]}, Flaw.ISSUER),
        ({"iss": None}, Flaw.ISSUER),
        ({"aud": "toll"}, Flaw.AUDIENCE),
        ({"aud": "tollhouse2"}, Flaw.AUDIENCE),
        ({"aud": []}, Flaw.AUDIENCE),
        ({"aud": None}, Flaw.AUDIENCE),
        ({"aud": {"tollhouse": 1}}, Flaw.AUDIENCE),
        ({"aud": ["tollhouse", 5]}, Flaw.AUDIENCE),
    ],
)
def test_claims(change: dict[str, Any], flaw: Flaw | None) -> None:
    token = Token("ES256", None, None, CLAIMS | change, b"", b"")
    assert check_claims(token, issuer=ISSUER, audiences=["tollhouse"], now=NOW) is flaw


def test_exp_must_be_there() -> None:
    token = Token("ES256", None, None, {"iss": ISSUER, "aud": "tollhouse"}, b"", b"")
    assert check_claims(token, issuer=ISSUER, audiences=["tollhouse"], now=NOW) is Flaw.CLAIM


def test_without_audiences_any_will_do() -> None:
    token = Token("ES256", None, None, CLAIMS | {"aud": 5}, b"", b"")
    assert check_claims(token, issuer=ISSUER, audiences=(), now=NOW) is None


@pytest.mark.parametrize(
    "typ, types, ok",
    [
        (None, None, True),
        ("JWT", None, True),
        ("at+jwt", None, True),
        ("application/at+JWT", None, True),
        ("dpop+jwt", None, False),
        ("oauth-id-jag+jwt", None, False),
        ("logout+jwt", None, False),
        ("", None, False),
        ("at+jwt", ["at+jwt"], True),
        ("JWT", ["at+jwt"], False),
        (None, ["at+jwt"], False),
    ],
)
def test_type(typ: str | None, types: list[str] | None, ok: bool) -> None:
    token = Token("ES256", None, typ, CLAIMS, b"", b"")
    flaw = check_claims(token, issuer=ISSUER, audiences=["tollhouse"], now=NOW, types=types)
    assert flaw is (None if ok else Flaw.TYPE)


GOOD = sign({"alg": "ES256", "kid": "ec"}, EC)
KEYS = Keys.parse(jwks(*ALL))


@given(st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255))))
@example(b"..")
def test_no_other_bytes_are_accepted_and_none_raise(change: bytes | tuple[int, int]) -> None:
    if isinstance(change, tuple):
        at, byte = change
        token = GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    else:
        token = change
    parsed = parse(token)
    if isinstance(parsed, Flaw):
        return
    if verify(parsed, KEYS) is None:
        assert parsed.claims == CLAIMS  # the last bits of a base64 text mean nothing


# ---- joserfc is the oracle: what we verify by ourselves it verifies too, and nothing else


def oracle(algorithm: str, signed: bytes, signature: bytes) -> bool:
    model = jws.JWSRegistry.algorithms[algorithm]
    try:
        return bool(model.verify(signed, signature, OF[algorithm]))
    except (JoseError, ValueError):
        return False


def spoil(signature: bytes, how: str, at: int, byte: int) -> bytes:
    at %= max(len(signature), 1)
    half = len(signature) // 2
    return {
        "as it is": signature,
        "one byte": signature[:at] + bytes([byte]) + signature[at + 1 :],
        "cut": signature[:at],
        "longer": signature + bytes([byte]),
        "leading zero": b"\0" + signature,
        "halves changed": signature[half:] + signature[:half],
        "no r": bytes(half) + signature[half:],
        "no s": signature[:half] + bytes(half),
        "large": b"\xff" * len(signature),
        "nothing": b"",
    }[how]


WAYS = (
    "as it is", "one byte", "cut", "longer", "leading zero", "halves changed", "no r", "no s", "large", "nothing",
)  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=40), how=st.sampled_from(WAYS), at=st.integers(0, 600), byte=st.integers(0, 255))
def test_the_verdict_is_that_of_joserfc(algorithm: str, content: bytes, how: str, at: int, byte: int) -> None:
    signature = spoil(jws.JWSRegistry.algorithms[algorithm].sign(content, OF[algorithm]), how, at, byte)
    token = Token(algorithm, OF[algorithm].kid, None, {}, content, signature)
    assert (verify(token, KEYS, [algorithm]) is None) == oracle(algorithm, content, signature)


def test_numbers_with_leading_zeros_are_verified() -> None:
    """Every 256th R or S is a byte shorter, and every second has its highest bit set."""
    for number in range(600):
        content = b"%d" % number
        signature = jws.JWSRegistry.algorithms["ES256"].sign(content, EC)
        assert verify(Token("ES256", "ec", None, {}, content, signature), KEYS) is None


@given(st.binary(max_size=64))
def test_base64url_is_read_as_it_is_written(content: bytes) -> None:
    assert from_base64url(base64.urlsafe_b64encode(content).rstrip(b"=")) == content


@given(st.binary(max_size=12))
def test_nothing_but_base64url_is_read(part: bytes) -> None:
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    is_one = len(part) % 4 != 1 and all(byte in alphabet for byte in part)
    if is_one:  # and its last bits mean something
        is_one = base64.urlsafe_b64encode(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))).rstrip(b"=") == part
    try:
        read = from_base64url(part)
    except ValueError:
        assert not is_one
    else:
        assert is_one
        assert read == base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))


def test_there_is_one_text_for_a_signature() -> None:
    """Else a token had several digests, by which it is remembered."""
    good = pyjwt.encode(CLAIMS, EC.as_pem(private=True), algorithm="ES256", headers={"kid": "ec"}).encode()
    read = parse(good)
    assert isinstance(read, Token)
    for last in range(128):
        other = good[:-1] + bytes((last,))
        assert other == good or not isinstance(parse(other), Token) or parse(other) != read
