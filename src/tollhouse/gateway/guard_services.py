"""Services at configured providers, for policies that ask one: moderation beside models, a guardrail in a region.

Rule: a provider's credentials are the provider's own: they are renewed, rotated and started with it, and who asks never
sees them. At another address than the provider's only those are shown that are made for a whole cloud (access tokens).
"""

from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic

from tollhouse.backends.credential import proven
from tollhouse.backends.provider import Face, Provider
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.core.spec import Spec
from tollhouse.gateway.assembly import Assembly
from tollhouse.net.client import Exchange, Origin, Pool, Until
from tollhouse.policies.base import Service

__all__ = ["GuardServices"]

_JSON = b"content-type: application/json\r\n"
_LENGTH = b"content-length: %d\r\n"


class GuardServices:
    """As `policies.base.Services`. provider: makes the one of that name and Spec, or gives the one there is."""

    def __init__(self, assembly: Assembly, provider: Callable[[str, Spec], Provider]) -> None:
        self._assembly = assembly
        self._provider = provider

    def __call__(self, provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
        spec = self._assembly.config.providers.get(provider)
        if spec is None:
            raise ValueError(f"there is no provider {provider!r}")
        kind = getattr(spec, "kind", "")
        if kind not in kinds:
            raise ValueError(f"the provider {provider!r} is of the kind {kind}; one of {' or '.join(kinds)} is needed")
        face = next(iter(self._provider(provider, spec).all_faces()))
        if not url:
            return _Beside(face)
        if getattr(spec, "auth", None) is None:
            raise ValueError(f"the provider {provider!r} has an API key, which is for its models alone; set `auth`")
        origin, base = Origin.of(url, tls=face.pool.origin.tls, proxy=face.pool.origin.proxy)
        key = ("guard service", url, provider, spec.fingerprint(), connections)
        pool = self._assembly.tenure.get(
            key, partial(self._assembly.fixtures.client.pool, origin, connections), _retired
        )
        return _Elsewhere(face, pool, base.rstrip(b"/"))


class _Beside:
    """At the provider's own address."""

    def __init__(self, face: Face) -> None:
        self._face = face

    async def post(self, target: bytes, body: bytes, *, deadline: float, limit: int) -> tuple[int, Headers, bytes]:
        face = self._face

        async def ask(lines: bytes) -> Exchange:
            proof = face.proof(target, body, lines)
            head = face.native(b"POST", target, proof + _JSON + _LENGTH % len(body))
            return await _sent(face.pool, head, body, deadline)

        return await _answer(face, deadline, limit, ask)


class _Elsewhere:
    """At another address."""

    def __init__(self, face: Face, pool: Pool, base: bytes) -> None:
        self._face = face
        self._pool = pool
        self._base = base
        self._rest = b" HTTP/1.1\r\nhost: %b\r\naccept: application/json\r\n" % pool.origin.authority + _JSON

    async def post(self, target: bytes, body: bytes, *, deadline: float, limit: int) -> tuple[int, Headers, bytes]:
        async def ask(lines: bytes) -> Exchange:
            length = _LENGTH % len(body)
            head = b"POST %b%b%b%b%b\r\n" % (self._base, target, self._rest, lines, length)
            return await _sent(self._pool, head, body, deadline)

        return await _answer(self._face, deadline, limit, ask)


async def _sent(pool: Pool, head: bytes, body: bytes, deadline: float) -> Exchange:
    left = deadline - monotonic()
    if left <= 0.0:
        raise Failure(504, Reason.TIMEOUT, "no time is left to ask")
    return await pool.exchange(
        head,
        body,
        method=b"POST",
        until=Until.HEAD,
        deadline=deadline,
        first_byte=left,
        idle=left,
        connect=left,
        resend=True,
    )


async def _answer(
    face: Face, deadline: float, limit: int, ask: Callable[[bytes], Awaitable[Exchange]]
) -> tuple[int, Headers, bytes]:
    exchange = await proven(face.credential, deadline, ask)
    return exchange.status, exchange.headers, await exchange.read(limit)


async def _retired(pool: Pool) -> None:
    pool.retire()
