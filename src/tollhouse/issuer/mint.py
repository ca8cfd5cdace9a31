"""The tokens of the auth provider: access tokens (RFC 9068), id_tokens, and tokens for one call (RFC 8693).

Rule: who decides that a token may be made is elsewhere, except for what would make the token itself untrue: a chain of
actors that loses somebody, a life longer than its subject's. Claims stand in one order, registered ones cannot be
overridden, and a token is for exactly one audience.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from time import time
from typing import Any, NamedTuple

import msgspec

from tollhouse.core.call import Actor, Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import Target
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.records import UserInfo
from tollhouse.issuer.subject import federated, is_federated
from tollhouse.wire.jwt import Ids, Minter, half_hash

__all__ = ["MAX_ACTORS", "Mint", "Minted", "act_claim", "actors_of"]

MAX_ACTORS = 5
_MAX_CHAIN = 2048
"""Bytes of the claim `act`."""

_MAX_CLAIMS = 6 * 1024
"""Bytes of all claims: a token stands in a header field, which has 8 KiB."""

_PREPARED = 8192

_VOUCHED_FOR = frozenset(("mtls", "ext"))
"""Sources whose names others give than this configuration: who gives them must not be able to name our users."""

_RESERVED = frozenset((
    "iss", "sub", "aud", "client_id", "exp", "iat", "nbf", "jti", "scope", "auth_time", "acr", "amr", "sid", "gid",
    "act", "may_act", "cnf", "azp", "nonce", "at_hash", "c_hash", "typ", "events", "sub_id",
))  # fmt: skip
"""Claims with a meaning of their own, which no configuration and no user's data write."""

_encode = msgspec.json.Encoder().encode


class Minted(NamedTuple):
    """expires: unix seconds."""

    token: bytes
    jti: str
    expires: int


class _Prepared(NamedTuple):
    """What is the same in all tokens of one principal for one target. limit: unix seconds that none outlives. The
    principal is held so that its identity stays its own."""

    principal: Principal
    minter: Minter
    limit: float


class Mint:
    """issuer: its URL. client: `client_id` of tokens that the gateway makes for its own calls. same_subjects: other
    issuers whose users have the same `sub` in tokens of ours; those of all others are hashed with their issuer, so that
    nobody elsewhere can have the name of somebody here. trusted_may_act: issuers besides this one whose `may_act`
    counts. depth: actors in a chain, at most."""

    def __init__(
        self,
        issuer: str,
        keys: SigningKeys,
        now: Callable[[], float] = time,
        *,
        client: str = "tollhouse",
        same_subjects: Collection[str] = (),
        trusted_may_act: Collection[str] = (),
        depth: int = MAX_ACTORS,
    ) -> None:
        self.issuer = issuer
        self._keys = keys
        self._now = now
        self._client = client
        self._same_subjects = frozenset(same_subjects)
        self._trusted_may_act = frozenset(trusted_may_act)
        self._depth = depth
        self._ids = Ids()
        self._prepared: dict[tuple[int, Target], _Prepared] = {}

    # ---- tokens of the endpoints

    def access(
        self,
        *,
        sub: str,
        aud: str,
        client_id: str,
        scopes: Sequence[str],
        ttl: float,
        user: UserInfo | None = None,
        auth_time: int = 0,
        acr: str = "",
        amr: Sequence[str] = (),
        sid: str = "",
        gid: str = "",
        act: Mapping[str, Any] | None = None,
        may_act: Mapping[str, Any] | None = None,
        cnf: Mapping[str, str] | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> Minted:
        """An access token (RFC 9068 section 2). user: whose organisation and groups it says. claims: more of them, of
        which registered ones are left out. Raises Failure 503 when no key is active, 400 when it would be too large."""
        said: dict[str, Any] = {"iss": self.issuer, "sub": sub, "aud": aud, "client_id": client_id}
        if scopes:
            said["scope"] = " ".join(scopes)
        self._authenticated(said, auth_time, acr, amr, sid, gid)
        if user is not None:
            if user.org:
                said["org"] = user.org
            if user.groups:
                said["groups"] = user.groups
        said |= {name: value for name, value in (("act", act), ("may_act", may_act), ("cnf", cnf)) if value}
        return self._sign("at+jwt", said, claims, ttl)

    def id_token(
        self,
        *,
        sub: str,
        client_id: str,
        ttl: float,
        nonce: str = "",
        auth_time: int = 0,
        acr: str = "",
        amr: Sequence[str] = (),
        sid: str = "",
        access_token: bytes = b"",
        code: str = "",
        claims: Mapping[str, Any] | None = None,
        alg: str = "",
    ) -> Minted:
        """An id_token (OpenID Connect Core section 2): its `typ` and `aud` make sure that nobody takes it for an access
        token. claims: what the scopes release of the user. Raises as `access`."""
        said: dict[str, Any] = {"iss": self.issuer, "sub": sub, "aud": client_id, "azp": client_id}
        if nonce:
            said["nonce"] = nonce
        self._authenticated(said, auth_time, acr, amr, sid, "")
        named = self._keys.signer(alg).alg
        if access_token:
            said["at_hash"] = half_hash(named, access_token)
        if code:
            said["c_hash"] = half_hash(named, code.encode())
        return self._sign("JWT", said, claims, ttl, alg)

    def signed(self, typ: str, claims: Mapping[str, Any], ttl: float) -> Minted:
        """Any other statement of the issuer (a logout token, an identity header): `typ` keeps it from being taken for
        something else; `iss`, `iat`, `exp` and `jti` are added. Raises as `access`."""
        named = {name: value for name, value in claims.items() if name not in ("iss", "iat", "exp", "jti")}
        return self._sign(typ, {"iss": self.issuer, **named}, None, ttl)

    def _authenticated(
        self, said: dict[str, Any], auth_time: int, acr: str, amr: Sequence[str], sid: str, gid: str
    ) -> None:
        if auth_time:
            said["auth_time"] = int(auth_time)
        named = (("acr", acr), ("amr", list(amr)), ("sid", sid), ("gid", gid))
        said |= {name: value for name, value in named if value}

    def _sign(
        self, typ: str, said: dict[str, Any], more: Mapping[str, Any] | None, ttl: float, alg: str = ""
    ) -> Minted:
        if more:
            for name, value in more.items():
                if name not in _RESERVED and name not in said:
                    said[name] = value
        return self._finish(self._minter(typ, said), int(self._now()), ttl, alg)

    def _minter(self, typ: str, said: Mapping[str, Any]) -> Minter:
        try:
            minter = Minter(typ, said)
        except ValueError as error:
            raise _refused(400, str(error)) from None
        if minter.size > _MAX_CLAIMS:
            raise _refused(400, f"the token would be larger than {_MAX_CLAIMS} bytes: too many groups or claims")
        return minter

    def _finish(self, minter: Minter, iat: int, ttl: float, alg: str = "") -> Minted:
        jti, exp = self._ids(), iat + max(1, int(ttl))
        return Minted(minter.mint(self._keys.signer(alg), iat, exp, jti), jti, exp)

    # ---- a token for one call

    def identity(self, principal: Principal, audience: str, ttl: float) -> Minted:
        """Who a verified principal is, for a service that takes no access tokens: its type keeps it from being one.
        Ends with the subject. Raises Failure as `exchanged`."""
        said = {**self._subject(principal), "aud": audience}
        known = (("email", principal.email), ("org", principal.org), ("client_id", principal.client or principal.agent))
        said |= {name: value for name, value in known if value}
        if principal.groups:
            said["groups"] = list(principal.groups)
        if principal.scopes:
            said["scope"] = " ".join(sorted(principal.scopes))
        if chain := self._chain(principal, said["sub"], delegation=True):
            said["act"] = act_claim(chain)
        return self._stated("identity+jwt", said, principal, ttl)

    def vouched(self, principal: Principal, audience: str, ttl: float) -> Minted:
        """Our word for a verified principal who has shown no token, for the issuer `audience`: whom it is about, and by
        what he was known here. Ends with the subject. Raises Failure as `exchanged`."""
        said = {**self._subject(principal), "aud": audience, "client_id": self._client, "amr": [principal.source]}
        if principal.org:
            said["org"] = principal.org
        return self._stated("JWT", said, principal, ttl)

    def _stated(self, typ: str, said: Mapping[str, Any], principal: Principal, ttl: float) -> Minted:
        left = _limit(principal) - self._now()
        if left < 1.0:
            raise _expiring()
        return self.signed(typ, said, min(ttl, left))

    @property
    def version(self) -> int:
        """As a `core.identity.Exchanger`: of the keys that sign."""
        return self._keys.version

    def exchanged(self, principal: Principal, target: Target) -> Minted:
        """A token that stands for a verified principal at a target. The scopes are the target's: who asks has made sure
        that they are the principal's to have.

        Delegation names the agent as the outermost actor, with those that acted before inside; impersonation names
        nobody, and is refused where somebody would be hidden. The token ends with the target's ttl, or before it with
        the subject. Raises Failure: 401 where less than a second is left, or nobody is known; 403 where the agent may
        not act, or the chain is too long; 503 as `access`.
        """
        now = self._now()
        prepared = self._prepared.get((id(principal), target))
        if prepared is None:
            prepared = self._remembered(principal, target)
        return self._exchanged(prepared, target, now)

    def delegated(
        self,
        principal: Principal,
        target: Target,
        *,
        client: str,
        actor: Actor | None = None,
        cnf: Mapping[str, str] | None = None,
    ) -> Minted:
        """The same for who asks over HTTP: nothing is remembered. client: who asks. actor: who acts, where it is not
        the subject's client. cnf: the key that the token is bound to."""
        return self._exchanged(self._prepare(principal, target, client, actor, cnf), target, self._now())

    def _exchanged(self, prepared: "_Prepared", target: Target, now: float) -> Minted:
        left = prepared.limit - now
        if left < 1.0:
            raise _expiring()
        # In whole seconds: what begins a moment after iat must not end a moment after the subject.
        iat = int(now)
        exp = min(iat + max(1, int(target.ttl)), int(prepared.limit))
        jti = self._ids()
        return Minted(prepared.minter.mint(self._keys.signer(), iat, exp, jti), jti, exp)

    def _remembered(self, principal: Principal, target: Target) -> _Prepared:
        prepared = self._prepare(principal, target, self._client)
        if len(self._prepared) >= _PREPARED:
            for old in list(self._prepared)[: _PREPARED // 8]:
                del self._prepared[old]
        self._prepared[id(principal), target] = prepared
        return prepared

    def _prepare(
        self,
        principal: Principal,
        target: Target,
        client: str,
        actor: Actor | None = None,
        cnf: Mapping[str, str] | None = None,
    ) -> _Prepared:
        said: dict[str, Any] = {"iss": self.issuer, **self._subject(principal)}
        said["aud"] = target.audience
        said["client_id"] = client
        if target.scopes:
            said["scope"] = " ".join(target.scopes)
        claims = principal.claims
        if principal.issuer == self.issuer:
            for name in ("auth_time", "acr", "amr", "sid", "gid"):
                if name in claims:
                    said[name] = claims[name]
        elif principal.source == "key":
            said["amr"] = ["key"]
        if principal.org:
            said["org"] = principal.org
        if principal.groups:
            said["groups"] = principal.groups
        chain = self._chain(principal, said["sub"], target.delegation, actor)
        if chain:
            said["act"] = act_claim(chain)
        if cnf:
            said["cnf"] = cnf
        return _Prepared(principal, self._minter("at+jwt", said), _limit(principal))

    def _subject(self, principal: Principal) -> dict[str, Any]:
        """`sub`, and where it is no name of ours, whose it is (RFC 9493)."""
        subject, issuer = principal.subject, principal.issuer
        if issuer and subject:
            if issuer == self.issuer or issuer in self._same_subjects:
                return {"sub": subject}
            return {
                "sub": federated(issuer, subject),
                "sub_id": {"format": "iss_sub", "iss": issuer, "sub": subject},
            }
        if principal.source == "anonymous" or not principal.id:
            raise Failure(401, Reason.JWT_AUTH, "this call needs a caller who is known", code="invalid_token")
        name = principal.user or principal.id
        if principal.source in _VOUCHED_FOR or is_federated(name):
            return {"sub": federated(principal.source, name), "sub_id": {"format": "opaque", "id": name}}
        return {"sub": name}

    def _chain(self, principal: Principal, sub: str, delegation: bool, actor: Actor | None = None) -> tuple[Actor, ...]:
        """Who acts for the subject, outermost first."""
        claims = _claims(principal)
        allowed = claims.get("may_act")
        if not delegation:
            if principal.actors or allowed is not None or "act" in claims:
                raise _refused(403, "a token that names who acts for its user is not exchanged for one that does not")
            return ()
        agent = actor if actor is not None else self._agent(principal, sub)
        if allowed is not None:
            self._must_be(agent, allowed, principal.issuer)
        chain = principal.actors
        if not agent.sub or (agent.sub == principal.subject and not chain) or (agent.sub == sub and not chain):
            return self._bounded(chain)  # it acts for itself
        if chain and chain[0].sub == agent.sub and chain[0].iss in ("", agent.iss):
            return self._bounded(chain)
        return self._bounded((agent, *chain))

    def _agent(self, principal: Principal, sub: str) -> Actor:
        """Who acts, as the subject's own token or key has it."""
        name = principal.client or principal.agent
        if not name and principal.source == "key" and sub == principal.user:
            name = principal.id  # a key in somebody's name: who used it is said
        return Actor(principal.issuer or self.issuer, name)

    def _bounded(self, chain: tuple[Actor, ...]) -> tuple[Actor, ...]:
        if len(chain) > self._depth:
            raise _refused(403, f"more than {self._depth} would act for the user, one for the other")
        return chain

    def _must_be(self, agent: Actor, allowed: Any, issuer: str) -> None:
        """What a subject's token says of who may act for it counts (RFC 8693 section 4.4)."""
        ours = issuer == self.issuer
        if not ours and issuer not in self._trusted_may_act:
            raise _refused(403, "the token says who may act for its user, and its issuer is not trusted with that")
        if not isinstance(allowed, dict):
            raise _refused(403, "the token's claim `may_act` is not an object")
        named = allowed.get("iss", self.issuer if ours else None)
        if named != agent.iss or allowed.get("sub") != agent.sub or not agent.sub:
            raise _refused(403, "the token names another one who may act for its user")


def act_claim(chain: Sequence[Actor]) -> dict[str, Any]:
    """The claim `act` (RFC 8693 section 4.1) of a chain of at least one actor, outermost first. Raises Failure 403 when
    it is larger than 2 KiB."""
    act: dict[str, Any] = {}
    for actor in reversed(chain):
        said: dict[str, Any] = {"iss": actor.iss, "sub": actor.sub} if actor.iss else {"sub": actor.sub}
        act = {**said, "act": act} if act else said
    if len(_encode(act)) > _MAX_CHAIN:
        raise _refused(403, f"the names of those who act for the user take more than {_MAX_CHAIN} bytes")
    return act


def actors_of(claims: Mapping[str, Any], depth: int = 10) -> tuple[Actor, ...]:
    """The chain that verified claims name, outermost first; every other member is dropped. Raises ValueError when it is
    not of that form or longer than `depth`."""
    chain: list[Actor] = []
    act = claims.get("act")
    while act is not None:
        if not isinstance(act, dict) or len(chain) >= depth:
            raise ValueError(f"`act` is no chain of up to {depth} objects with `sub`")
        sub, iss = act.get("sub"), act.get("iss", "")
        if not isinstance(sub, str) or not isinstance(iss, str) or not 0 < len(sub) <= 256 or len(iss) > 2048:
            raise ValueError("`act` has a level without a `sub` of up to 256 characters")
        chain.append(Actor(iss, sub))
        act = act.get("act")
    return tuple(chain)


def _claims(principal: Principal) -> Mapping[str, Any]:
    """Of the token that was shown. What the configuration says about a key stands in the same place, and is none."""
    return {} if principal.source == "key" else principal.claims


def _limit(principal: Principal) -> float:
    """Unix seconds that nothing outlives which stands for him."""
    expires, limit = _claims(principal).get("exp"), principal.expires
    if isinstance(expires, int | float) and not isinstance(expires, bool):
        limit = min(limit, expires)  # without the leeway that the verifier allowed
    return min(limit, 1e12)


def _expiring() -> Failure:
    message = "the token that was sent is about to expire; get a new one and try again"
    return Failure(401, Reason.JWT_AUTH, message, code="invalid_token")


def _refused(status: int, message: str) -> Failure:
    reason = Reason.AUTHORIZATION if status == 403 else Reason.INVALID_REQUEST
    return Failure(status, reason, message, code="invalid_request" if status == 400 else "access_denied")
