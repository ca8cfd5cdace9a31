"""Tokens that we make: foreign libraries read them, one key has one name, and no private key is shown."""

import base64
import os
from typing import Any

import jwt as pyjwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet

from tollhouse.wire.jose import Keys, Token, parse, verify
from tollhouse.wire.jwt import SIGNING, Ids, Minter, Signer, generate, half_hash, jwk_of, thumbprint, to_base64url

PRIVATE = {alg: generate(alg) for alg in SIGNING}
SIGNERS = {alg: Signer(alg, key) for alg, key in PRIVATE.items()}
JWKS = {"keys": [signer.jwk for signer in SIGNERS.values()]}
CLAIMS = {"iss": "https://auth.example.com", "sub": "ada", "aud": "https://gw.example.com/mcp", "scope": "a b"}


@pytest.mark.parametrize("alg", SIGNING)
def test_foreign_libraries_verify_our_tokens(alg: str) -> None:
    signer = SIGNERS[alg]
    token = Minter("at+jwt", CLAIMS).mint(signer, 1_800_000_000, 4_000_000_000, "abc_-9")
    whole = {**CLAIMS, "iat": 1_800_000_000, "exp": 4_000_000_000, "jti": "abc_-9"}
    key: Any = pyjwt.PyJWK(signer.jwk)
    assert pyjwt.decode(token, key.key, [alg], audience=CLAIMS["aud"], options={"verify_iat": False}) == whole
    read = joserfc_jwt.decode(token.decode(), KeySet.import_key_set(JWKS), algorithms=[alg])  # type: ignore[arg-type]
    assert read.claims == whole
    assert read.header == {"alg": alg, "typ": "at+jwt", "kid": signer.kid}
    parsed = parse(token)
    assert isinstance(parsed, Token)
    assert verify(parsed, Keys.parse(msgspec.json.encode(JWKS))) is None
    assert list(parsed.claims) == [*CLAIMS, "iat", "exp", "jti"]


@pytest.mark.parametrize("alg", SIGNING)
def test_a_key_is_named_by_its_thumbprint(alg: str) -> None:
    signer = SIGNERS[alg]
    [same] = [key for key in KeySet.import_key_set(JWKS).keys if key.kid == signer.kid]  # type: ignore[arg-type]
    assert same.thumbprint() == thumbprint(signer.public)
    assert signer.kid == thumbprint(signer.public)[:16]
    assert Signer(alg, PRIVATE[alg]).kid == signer.kid
    assert Signer(alg, PRIVATE[alg], "mine").kid == "mine"


def test_the_thumbprint_of_the_standard() -> None:
    """RFC 7638 section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMs"
        "tn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn"
        "1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key: Any = pyjwt.PyJWK({"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256"})
    assert thumbprint(key.key) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_what_is_published_is_public() -> None:
    for signer in SIGNERS.values():
        assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & signer.jwk.keys()
        assert signer.jwk["use"] == "sig"
    assert jwk_of(generate_ec(SECP384R1()).public_key())["crv"] == "P-384"


def test_a_signer_shows_nothing_of_its_key() -> None:
    for alg, signer in SIGNERS.items():
        assert repr(signer) == f"<Signer {alg} {signer.kid}>"
        assert not any(isinstance(getattr(signer, name, None), bytes) for name in dir(signer))


def test_a_key_that_does_not_fit_its_algorithm() -> None:
    other = generate_ec(SECP384R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for alg, private in [
        ("ES256", PRIVATE["RS256"]),
        ("RS256", PRIVATE["ES256"]),
        ("EdDSA", PRIVATE["ES256"]),
        ("ES256", other),
        ("HS256", PRIVATE["ES256"]),
        ("none", PRIVATE["ES256"]),
    ]:
        with pytest.raises(ValueError, match="does not fit the algorithm") as wrong:
            Signer(alg, private)
        assert to_base64url(private).decode() not in str(wrong.value)
    with pytest.raises(ValueError, match="ES256, RS256, EdDSA"):
        generate("HS256")


def test_signatures_of_es256_have_always_64_bytes() -> None:
    signer = SIGNERS["ES256"]
    keys = Keys.parse(msgspec.json.encode(JWKS))
    minter = Minter("at+jwt", {"sub": "ada"})
    for number in range(600):  # every 256th R or S is a byte shorter
        parsed = parse(minter.mint(signer, number, number + 5, "x"))
        assert isinstance(parsed, Token)
        assert len(parsed.signature) == 64
        assert verify(parsed, keys) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdef", min_size=1), JSON, max_size=5))
def test_claims_come_back_as_they_were(claims: dict[str, Any]) -> None:
    parsed = parse(Minter("JWT", claims).mint(SIGNERS["EdDSA"], 1, 2, "j"))
    assert isinstance(parsed, Token)
    assert parsed.claims == {**claims, "iat": 1, "exp": 2, "jti": "j"}


@pytest.mark.parametrize("value", [object(), "\ud800", float, [object()]])
def test_a_claim_that_cannot_stand_in_json(value: Any) -> None:
    with pytest.raises(ValueError, match="a claim has a value that cannot stand in a token"):
        Minter("JWT", {"x": value})


def test_a_claim_adds_no_line_and_no_other_claim() -> None:
    parsed = parse(Minter("JWT", {"name": 'x", "admin": true, "y": "\r\nX: z'}).mint(SIGNERS["EdDSA"], 1, 2, "j"))
    assert isinstance(parsed, Token)
    assert set(parsed.claims) == {"name", "iat", "exp", "jti"}


def test_ids_are_random_and_differ_after_a_fork() -> None:
    ids = Ids()
    made = [ids() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert {len(one) for one in made} == {22}
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, "".join(ids() for _ in range(20)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 4096).decode()
    os.close(read)
    os.close(write)
    assert len(theirs) == 20 * 22
    assert not {theirs[at : at + 22] for at in range(0, 440, 22)} & {ids() for _ in range(300)}


def test_headers_of_unusual_types_are_not_kept() -> None:
    signer = Signer("ES256", PRIVATE["ES256"])
    made = [signer.header(f"type-{number}") for number in range(40)]
    assert len(set(made)) == 40
    assert signer.header("type-0") is made[0]
    assert signer.header("type-39") == made[39]


def test_half_of_a_hash() -> None:
    """OpenID Connect Core, appendix A.4: c_hash of its example."""
    assert half_hash("RS256", b"Qcb0Orv1zh30vL1MPRsbm-diHiMwcLyZvn1arpZv-Jxf_11jnpEX3Tgfvk") == "LDktKdoQak3Pk0cnXxCltA"
    assert len(base64.urlsafe_b64decode(half_hash("EdDSA", b"x") + "==")) == 32
