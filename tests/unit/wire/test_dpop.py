"""DPoP proofs: every point of RFC 9449 section 4.3, and nonces that nobody remembers."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from tollhouse.wire.dpop import DPOP_ALGORITHMS, DpopFlaw, Nonces, Proof, access_token_hash, read_proof, target_of

NOW = 1_800_000_000.0
URL = "https://gw.example.com/mcp"
TOKEN = b"a.b.c"
EC = ECKey.generate_key("P-256")
OTHER = ECKey.generate_key("P-256")
ED = OKPKey.generate_key("Ed25519")
RSA = RSAKey.generate_key(2048)
EC384 = ECKey.generate_key("P-384")
OF: dict[str, Any] = {"ES256": EC, "EdDSA": ED, "Ed25519": ED, "RS256": RSA, "PS256": RSA, "ES384": EC384}
CLAIMS = {"jti": "one", "htm": "POST", "htu": URL, "iat": NOW, "ath": access_token_hash(TOKEN)}


def b64(value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def made(claims: Any = CLAIMS, key: Any = EC, alg: str = "ES256", **header: Any) -> bytes:
    head = {"typ": "dpop+jwt", "alg": alg, "jwk": key.as_dict(private=False), **header}
    signed = b64({name: value for name, value in head.items() if value is not ...}) + b"." + b64(claims)
    model = jws.JWSRegistry.algorithms.get(head["alg"], jws.JWSRegistry.algorithms["ES256"])
    return signed + b"." + b64(model.sign(signed, key))


def judge(proof: bytes, **changes: Any) -> Proof | DpopFlaw:
    return read_proof(proof, **{"method": "POST", "url": URL, "now": NOW, "access_token": TOKEN, **changes})


@pytest.mark.parametrize("alg", DPOP_ALGORITHMS)
def test_a_proof_of_each_algorithm(alg: str) -> None:
    proof = judge(made(key=OF[alg], alg=alg))
    assert proof == Proof(OF[alg].thumbprint(), "one", NOW, "")
    assert isinstance(proof, Proof)
    assert proof.proof_id == f"{OF[alg].thumbprint()}:one"
    assert judge(made(key=OF[alg], alg=alg), bound_to=OF[alg].thumbprint()) == proof


def test_the_example_of_the_standard() -> None:
    """RFC 9449 section 4.1, figure 2, and the thumbprint of section 6.1."""
    proof = (
        b"eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQy"
        b"VVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiI"
        b"tQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE"
        b"2fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
    )
    read = read_proof(proof, method="POST", url="https://server.example.com/token", now=1562262616.0)
    assert read == Proof("0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I", "-BwC3ESc6acc2lTc", 1562262616.0, "")


@pytest.mark.parametrize(
    ("htu", "url"),
    [
        (URL, URL + "?a=b#c"),
        (URL + "?x=y#z", URL),
        ("HTTPS://GW.example.com:443/mcp", URL),
        ("https://gw.example.com", "https://gw.example.com/"),
        ("http://127.0.0.1:80/a", "http://127.0.0.1/a"),
        ("https://[::1]:8443/a", "https://[::1]:8443/a?b"),
    ],
)
def test_the_same_target(htu: str, url: str) -> None:
    assert isinstance(judge(made({**CLAIMS, "htu": htu}), url=url), Proof)


@pytest.mark.parametrize(
    "htu",
    [
        "https://gw.example.com/mcp/", "https://gw.example.com/MCP", "http://gw.example.com/mcp",
        "https://gw.example.com:8443/mcp", "https://gw.example.com.evil.example/mcp", "https://x@gw.example.com/mcp",
        "https://gw.example.com/mcp%2f", "https://gw.example.com/a/../mcp", "/mcp", "", "gw.example.com/mcp", "https://",
        "https://gw.example.com:99999/mcp", "https://[/mcp", "ftp://gw.example.com/mcp",
    ],
)  # fmt: skip
def test_another_target(htu: str) -> None:
    assert judge(made({**CLAIMS, "htu": htu})) is DpopFlaw.TARGET


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def flipped(proof: bytes) -> bytes:
    """With another signature, whatever it was."""
    signed, _, signature = proof.rpartition(b".")
    return signed + b"." + (b"B" if signature[:1] == b"A" else b"A") + signature[1:]


REFUSED: list[tuple[str, bytes, DpopFlaw]] = [
    ("no token", b"", DpopFlaw.MALFORMED),
    ("two parts", b"a.b", DpopFlaw.MALFORMED),
    ("two proofs", made() + b", " + made(), DpopFlaw.MALFORMED),
    ("large", made({**CLAIMS, "x": "x" * 4000}), DpopFlaw.MALFORMED),
    ("typ JWT", made(typ="JWT"), DpopFlaw.TYPE),
    ("typ at+jwt", made(typ="at+jwt"), DpopFlaw.TYPE),
    ("no typ", made(typ=...), DpopFlaw.MALFORMED),
    ("none", made(alg="none"), DpopFlaw.ALGORITHM),
    ("HS256", made(alg="HS256", key=OctKey.generate_key(256), jwk=EC.as_dict(private=False)), DpopFlaw.ALGORITHM),
    ("not on the list", made(key=RSA, alg="RS512"), DpopFlaw.ALGORITHM),
    ("no key", made(jwk=...), DpopFlaw.KEY),
    ("key no object", made(jwk="x"), DpopFlaw.KEY),
    ("private key", made(jwk=EC.as_dict(private=True)), DpopFlaw.KEY),
    ("symmetric key", made(jwk={"kty": "oct", "k": "c2VjcmV0"}), DpopFlaw.KEY),
    ("key of another type", made(jwk=RSA.as_dict(private=False)), DpopFlaw.KEY),
    ("key off the curve", made(jwk={**EC.as_dict(private=False), "x": "AA"}), DpopFlaw.KEY),
    ("another's key", made(jwk=OTHER.as_dict(private=False)), DpopFlaw.SIGNATURE),
    ("jku", made(jku="http://127.0.0.1:1/"), DpopFlaw.KEY),
    ("x5c", made(x5c=["x"]), DpopFlaw.KEY),
    ("crit", made(crit=["b64"]), DpopFlaw.KEY),
    ("signature flipped", flipped(made()), DpopFlaw.SIGNATURE),
    ("claims changed", b".".join([made().split(b".")[0], b64({**CLAIMS, "jti": "two"}), made().split(b".")[2]]),
     DpopFlaw.SIGNATURE),
    ("claims no object", made([1]), DpopFlaw.CLAIMS),
    *[(f"no {name}", made(without(name)), DpopFlaw.CLAIMS) for name in ("jti", "htm", "htu", "iat")],
    ("empty jti", made({**CLAIMS, "jti": ""}), DpopFlaw.CLAIMS),
    ("long jti", made({**CLAIMS, "jti": "x" * 257}), DpopFlaw.CLAIMS),
    ("jti a number", made({**CLAIMS, "jti": 5}), DpopFlaw.CLAIMS),
    ("iat a text", made({**CLAIMS, "iat": str(NOW)}), DpopFlaw.CLAIMS),
    ("iat true", made({**CLAIMS, "iat": True}), DpopFlaw.CLAIMS),
    ("another method", made({**CLAIMS, "htm": "GET"}), DpopFlaw.METHOD),
    ("method in small letters", made({**CLAIMS, "htm": "post"}), DpopFlaw.METHOD),
    ("old", made({**CLAIMS, "iat": NOW - 61}), DpopFlaw.TIME),
    ("early", made({**CLAIMS, "iat": NOW + 61}), DpopFlaw.TIME),
    ("far", made({**CLAIMS, "iat": 1e300}), DpopFlaw.TIME),
    ("no ath", made(without("ath")), DpopFlaw.TOKEN),
    ("ath of another token", made({**CLAIMS, "ath": access_token_hash(b"x.y.z")}), DpopFlaw.TOKEN),
]  # fmt: skip


@pytest.mark.parametrize(("proof", "flaw"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused(proof: bytes, flaw: DpopFlaw) -> None:
    assert judge(proof) is flaw


def test_a_proof_of_another_key_than_the_token_is_bound_to() -> None:
    assert judge(made(), bound_to=OTHER.thumbprint()) is DpopFlaw.BINDING


def test_at_the_token_endpoint_there_is_no_token_yet() -> None:
    assert isinstance(judge(made(without("ath")), access_token=b""), Proof)


def test_a_clock_may_differ_by_a_minute() -> None:
    for iat in (NOW - 60, NOW + 60, NOW + 0.5):
        assert isinstance(judge(made({**CLAIMS, "iat": iat})), Proof)


@given(st.one_of(st.binary(max_size=60), st.tuples(st.integers(0, 10_000), st.integers(0, 255))))
def test_no_other_bytes_are_a_proof_and_none_raise(change: bytes | tuple[int, int]) -> None:
    if isinstance(change, tuple):
        at = change[0] % len(GOOD)
        proof = GOOD[:at] + bytes([change[1]]) + GOOD[at + 1 :]
    else:
        proof = change
    read = judge(proof)
    if isinstance(read, Proof):
        assert read == judge(GOOD)  # the last bits of a base64 text mean nothing


GOOD = made()


# ---- nonces


class Moment:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def test_a_nonce_is_good_for_two_slots() -> None:
    moment = Moment()
    nonces = Nonces(lambda: (b"s" * 32,), moment)
    nonce = nonces.current()
    assert len(nonce) == 24
    for later in (0, 29, 30, 59):
        moment.now = NOW + later
        assert nonces.accepts(nonce)
    moment.now = NOW + 61
    assert not nonces.accepts(nonce)
    assert nonces.current() != nonce


def test_nodes_of_one_secret_know_each_others_nonces() -> None:
    moment = Moment()
    one, other = Nonces(lambda: (b"s" * 32,), moment), Nonces(lambda: (b"t" * 32, b"s" * 32), moment)
    assert other.accepts(one.current())
    assert not one.accepts(other.current())


@pytest.mark.parametrize("nonce", ["", "x", "\udc80", "A" * 24, "A" * 5000])
def test_nonces_that_nobody_gave_out(nonce: str) -> None:
    assert not Nonces(lambda: (b"s" * 32,), Moment()).accepts(nonce)


def test_a_proof_with_a_nonce() -> None:
    nonces = Nonces(lambda: (b"s" * 32,), Moment())
    good = made({**CLAIMS, "nonce": nonces.current()})
    assert isinstance(judge(good, nonces=nonces, must_have_nonce=True), Proof)
    assert judge(made(), nonces=nonces, must_have_nonce=True) is DpopFlaw.NONCE
    assert judge(made({**CLAIMS, "nonce": "old"}), nonces=nonces) is DpopFlaw.NONCE
    assert isinstance(judge(made(), nonces=nonces), Proof)
    assert isinstance(judge(made({**CLAIMS, "nonce": "of another's"})), Proof)  # where none are given out


def test_targets_have_one_form() -> None:
    assert target_of("https://A.example:443?x") == "https://a.example/"
    assert target_of("https://a.example/%7Eb") == "https://a.example/%7Eb"
