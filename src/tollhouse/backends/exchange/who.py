"""How we show an issuer elsewhere who asks: by a secret (RFC 6749 section 2.3.1), or by a statement signed with a key
of ours (`private_key_jwt`, RFC 7523 section 2.2).

Rule: a secret is sent to the token endpoint and nowhere else; a key is never sent at all, and what is signed with it is
for one server, for a minute, and for once.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from tollhouse.wire.jwt import Ids, Signer, signer_of
from tollhouse.wire.oauth import ASSERTION_TYPE, basic_credentials

__all__ = ["Proof", "by_key", "by_secret"]

Proof = Callable[[str, float], tuple[bytes, dict[str, str]]]
"""Header lines, and fields of the form, that say who we are: for a token endpoint, now (unix seconds)."""

_LIFE: Final = 60


def by_secret(client_id: str, secret: str, *, basic: bool) -> Proof:
    """basic: it goes in the Authorization header, else in the form."""
    lines, fields = b"", {"client_id": client_id, "client_secret": secret}
    if basic:
        lines, fields = b"authorization: %b\r\n" % basic_credentials(client_id, secret), {}
    return lambda _endpoint, _now: (lines, fields)


def by_key(client_id: str, key: bytes, kid: str, audience: str) -> Proof:
    """key: in PEM. kid: as the issuer knows it, "" for its thumbprint. audience: whom the statement is for, "" for the
    token endpoint. Raises ValueError for what is no key that we sign with."""
    signer: Signer = signer_of(key, kid)
    ids = Ids()

    def proof(endpoint: str, now: float) -> tuple[bytes, dict[str, str]]:
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": audience or endpoint,
            "jti": ids(),
            "iat": int(now),
            "exp": int(now) + _LIFE,
        }
        said = signer.token("JWT", msgspec.json.encode(claims)).decode("ascii")
        return b"", {"client_id": client_id, "client_assertion_type": ASSERTION_TYPE, "client_assertion": said}

    return proof
