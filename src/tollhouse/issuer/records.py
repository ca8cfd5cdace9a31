"""What the auth provider keeps in the state: one Struct a kind of record.

Rule: records are frozen; a change is `msgspec.structs.replace` and a swap. Every field that was added later has a
default, and members that are not known are passed over, so that workers of two releases share one state. Times are unix
seconds. What a client or browser holds as a secret (codes, cookies, request_uris, device codes) is the record's id,
hashed by `store.table`, and stands in no record.
"""

from typing import Any, Literal

import msgspec

__all__ = [
    "Agreed",
    "Allowance",
    "Code",
    "Consent",
    "Device",
    "Family",
    "Interaction",
    "KeySet",
    "Pushed",
    "Registration",
    "Replay",
    "Session",
    "SharedSecret",
    "StoredKey",
    "UpstreamLogin",
    "UserInfo",
]


class UserInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a user, besides the `sub`. claims: what else tokens and userinfo say, by claim."""

    name: str = ""
    email: str = ""
    email_verified: bool = False
    groups: tuple[str, ...] = ()
    org: str = ""
    claims: dict[str, Any] = {}


class Code(msgspec.Struct, frozen=True, omit_defaults=True):
    """An authorization code (RFC 6749 section 4.1). challenge: PKCE S256. redeemed: the family it became, once it was
    used; a tombstone that shows who presents it again. upstream: as the session's. issued: when it was made."""

    client_id: str
    redirect_uri: str
    challenge: str
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    sub: str
    user: UserInfo
    auth_time: int
    acr: str = ""
    amr: tuple[str, ...] = ()
    sid: str = ""
    nonce: str = ""
    dpop_jkt: str = ""
    redeemed: str = ""
    upstream: str = ""
    issued: float = 0.0


class Family(msgspec.Struct, frozen=True, omit_defaults=True):
    """All refresh tokens that come from one grant, and the grant. generation: number of the one that is good now; until
    `grace_until` the one before it gets the same successor. sid: "" where it outlives the session. jkt: thumbprint of
    the DPoP key (or certificate) that the tokens are bound to. upstream: the provider that vouched for the user."""

    client_id: str
    sub: str
    user: UserInfo
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    generation: int
    auth_time: int
    acr: str = ""
    amr: tuple[str, ...] = ()
    sid: str = ""
    jkt: str = ""
    began: float = 0.0
    grace_until: float = 0.0
    upstream: str = ""


class Session(msgspec.Struct, frozen=True, omit_defaults=True):
    """A browser's login. browser: SHA-256 of the cookie that binds it to one. sid: what tokens call it. upstream: the
    provider it was made at, "" for a local user. password: a digest of the hash that it was made with.
    clients: that got a code in it, and are to be told when it ends."""

    sub: str
    user: UserInfo
    auth_time: int
    acr: str = ""
    amr: tuple[str, ...] = ()
    sid: str = ""
    upstream: str = ""
    began: float = 0.0
    seen: float = 0.0
    browser: str = ""
    password: str = ""
    clients: tuple[str, ...] = ()


class UpstreamLogin(msgspec.Struct, frozen=True, omit_defaults=True):
    """A login that is under way at an upstream provider: what its answer must fit. verifier: of PKCE."""

    upstream: str
    state: str
    nonce: str
    verifier: str
    began: float = 0.0


class Interaction(msgspec.Struct, frozen=True, omit_defaults=True):
    """An authorization request that was found good, while the browser logs in and consents. browser: SHA-256 of the
    cookie that binds it to one browser. then: where the browser goes once somebody is logged in; for other places than
    `authorize` there is no client. device: the user code that it then shows. subject: who must log in (id_token_hint),
    "" for anybody. logged_in: somebody has said, within it, as whom they go on. link: as opened, for `account`."""

    client_id: str
    redirect_uri: str
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    challenge: str
    state: str | None = None
    response_mode: Literal["query", "form_post"] = "query"
    nonce: str = ""
    prompt: tuple[str, ...] = ()
    max_age: int | None = None
    login_hint: str = ""
    dpop_jkt: str = ""
    browser: str = ""
    began: float = 0.0
    login: UpstreamLogin | None = None
    logged_in: bool = False
    device: str = ""
    then: Literal["authorize", "device", "grants", "account"] = "authorize"
    subject: str = ""
    link: str = ""


class Agreed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a user has allowed a client that is answered at one host."""

    redirect_host: str
    resource: str
    scopes: tuple[str, ...]
    at: float = 0.0


class Consent(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that one user has allowed one client."""

    entries: tuple[Agreed, ...] = ()
    client_id: str = ""


class Allowance(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which clients one user has a Consent for: to list them."""

    clients: tuple[str, ...] = ()


class Pushed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pushed authorization request (RFC 9126). params: as they were sent, in their order."""

    params: tuple[tuple[str, str], ...]
    client_id: str
    dpop_jkt: str = ""


class Device(msgspec.Struct, frozen=True, omit_defaults=True):
    """A device authorization (RFC 8628). interval: seconds between two polls; polled: the last one. secret: SHA-256, in
    hex, of what the device proves itself with. redeemed: the family it became. upstream: as the session's that let it
    in; issued: when that was."""

    user_code: str
    client_id: str
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    status: Literal["pending", "allowed", "denied", "redeemed"] = "pending"
    sub: str = ""
    user: UserInfo = UserInfo()
    interval: int = 5
    polled: float = 0.0
    auth_time: int = 0
    acr: str = ""
    amr: tuple[str, ...] = ()
    sid: str = ""
    dpop_jkt: str = ""
    expires: float = 0.0
    redeemed: str = ""
    secret: str = ""
    upstream: str = ""
    issued: float = 0.0


class Registration(msgspec.Struct, frozen=True, omit_defaults=True):
    """A client that registered itself (RFC 7591). metadata: as it was answered, without its secret; secret_hash:
    SHA-256 of that, "" for a public client."""

    metadata: dict[str, Any]
    secret_hash: str = ""
    at: float = 0.0


class Replay(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that may be used once was used: that it is there says all."""


class StoredKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A signing key and its times; what it is at a moment follows from them (`issuer.schedule`). private: PKCS #8 in
    DER. It is published from `publish_at`, signs from `active_at` to `retire_at`, and verifies until `gone_at`."""

    kid: str
    alg: str
    private: bytes
    publish_at: float
    active_at: float
    retire_at: float
    gone_at: float

    def __repr__(self) -> str:
        return f"<StoredKey {self.alg} {self.kid}>"


class SharedSecret(msgspec.Struct, frozen=True, omit_defaults=True):
    """Random bytes that all nodes have. It makes from `active_at` on, and verifies always."""

    value: bytes
    active_at: float

    def __repr__(self) -> str:
        return "<SharedSecret>"


class KeySet(msgspec.Struct, frozen=True, omit_defaults=True):
    """All keys of the issuer. version: grows by one with each change. at: when it was written. secrets: the newest
    first."""

    version: int = 0
    at: float = 0.0
    keys: tuple[StoredKey, ...] = ()
    secrets: tuple[SharedSecret, ...] = ()
