"""What identity costs in process: checking tokens, making them, one for each tool call, and deciding on a call.

    python bench/identity.py [--rounds 15]

Everything is measured in turns, one batch of each after the other, so that whatever else the machine does meets all of
them; printed is the median of the batches in microseconds of CPU time, and its ratio to what cannot be saved: the
signature (`cryptography` alone), its check, or both. What is promised stands beside it.
"""

import argparse
import asyncio
import base64
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_private_key
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from machine import PROXY_CORE, Program, free_port
from tollhouse.backends.exchange import Elsewhere, ElsewhereSettings
from tollhouse.core.call import Call, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.handler import compose
from tollhouse.core.http import Headers, Request
from tollhouse.core.identity import Target
from tollhouse.core.reply import Reply
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.spec import KeysSpec
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.authenticate.jwt import Issuers
from tollhouse.policies.authorize import AUTHORIZE, GuardSpec
from tollhouse.policies.base import Layer, OwnIssuer, Parts
from tollhouse.policies.exchange import exchange
from tollhouse.policies.exchange_spec import ExchangeSpec
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations
from tollhouse.wire.dpop import Proof, access_token_hash, read_proof
from tollhouse.wire.jose import Flaw, Token, parse, verify
from tollhouse.wire.jwt import Signer, generate, jwk_of, to_base64url

ISSUER = "https://auth.example.com"
RESOURCE = "https://gw.example.com/mcp"
NEVER = 4_000_000_000
SHOP = "https://shop.example.com/mcp"
SECRET = "0123456789abcdef0123456789abcdef"
REPLY = Reply(200, [], b"")
RULE = "mcp.arguments.amount > 100"
BOTH = f'mcp.tool.name == "buy" && {RULE}'
NAMES = 'mcp.tool.name == "sell" && principal.user != "ada"'
POLICY = """
package tollhouse

default allow := false

allow if {
	some role in ["dev", "admin"]
	input.mcp.tool.name in data.roles[role]
	input.mcp.arguments.amount < 100
}
"""
OVER_HTTP = 400.0
"""Microseconds of both sides together, promised for an exchange over HTTP."""

CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null}}
issuer:
  url: http://127.0.0.1:{port}
  resources: [{{uri: {resource}}}]
  clients:
    - {{id: robot, secret: {secret}, grants: [client_credentials], scopes: [mcp]}}
    - id: gateway
      secret: {secret}
      grants: [token_exchange]
      serves: ["{resource}"]
      token_exchange: {{targets: [{{audience: "{shop}", scopes: {{read: [mcp]}}}}]}}
"""


class Case(NamedTuple):
    """against: the names of the cases that its ratio is to. most, ratio: what is promised; 0 for nothing."""

    name: str
    run: Callable[[], object]
    calls: int
    against: tuple[str, ...] = ()
    most: float = 0.0
    ratio: float = 0.0


def cases() -> list[Case]:
    """All of them, checked once to do what they say."""
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    keys = SigningKeys(state.values, KeysSpec())
    asyncio.run(keys.load())
    asyncio.run(revocations.revoke("jti", "another", NEVER))
    mint = Mint(ISSUER, keys)
    said: dict[str, Any] = {"sub": "ada", "aud": RESOURCE, "client_id": "agent-1", "scopes": ("mcp",), "ttl": 600}
    token = mint.access(**said).token

    private = load_der_private_key(generate("ES256"), None)
    assert isinstance(private, EllipticCurvePrivateKey)
    public: EllipticCurvePublicKey = private.public_key()
    algorithm = ECDSA(SHA256())
    signed = token[: token.rindex(b".")]
    signature = private.sign(signed, algorithm)

    parts = Parts(
        clock,
        Families(Metrics()),
        state.counter,
        Client(clock),
        lambda _, make, close=None: make(),
        resource=RESOURCE,
        revocations=revocations,
    )
    own = OwnIssuer(ISSUER, keys.verifying, ("ES256",), keys.keys)
    issuers, others = Issuers((), parts, own=own), Issuers((), parts, own=own)

    def new_token() -> Principal:
        """As the gateway does it: digest, form, claims, key, signature, revocation, principal, remembered."""
        others._seen._entries.clear()
        found = drive(others.verify(token, sha256(token).digest()))
        assert isinstance(found, Principal)
        return found

    principal = drive(issuers.verify(token, sha256(token).digest()))

    def known_token() -> None:
        assert issuers.find(sha256(token).digest()) is principal

    digest = sha256(token).digest()

    def known_digest() -> None:
        assert issuers.find(digest) is principal

    def signature_alone() -> None:
        parsed = parse(token)
        assert isinstance(parsed, Token)
        assert verify(parsed, keys.verifying()) is None

    oracle = KeySet.import_key_set(msgspec.json.decode(keys.public()))
    text = token.decode()
    target = Target(RESOURCE, ("read",), 5.0, True, "search")
    signing = ECKey.generate_key("P-256")
    claims = parse(mint.access(**said).token)
    assert not isinstance(claims, Flaw)
    header = {"alg": "ES256", "typ": "at+jwt"}
    proof = proof_for(token)

    def dpop() -> None:
        read = read_proof(proof, method="POST", url=RESOURCE, now=time.time(), access_token=token, window=1e6)
        assert isinstance(read, Proof)

    return [
        Case("sign, alone", lambda: private.sign(signed, algorithm), 200),
        Case("verify, alone", lambda: public.verify(signature, signed, algorithm), 200),
        Case("verify: known token, with its digest", known_token, 2000, most=3.0),
        Case("verify: known token, digest at hand", known_digest, 2000, most=3.0),
        Case("verify: new token, whole", new_token, 200, ("verify, alone",), ratio=1.5),
        Case("verify: form and signature only", signature_alone, 200, ("verify, alone",)),
        Case("verify: joserfc, without claims", lambda: jwt.decode(text, oracle), 100, ("verify, alone",)),
        Case("verify: DPoP proof", dpop, 200, ("verify, alone",)),
        Case("mint: access token", lambda: mint.access(**said), 200, ("sign, alone",)),
        Case("mint: joserfc", lambda: jwt.encode(header, claims.claims, signing), 100, ("sign, alone",)),
        Case("exchange: a token for one call", lambda: mint.exchanged(principal, target), 200, ("sign, alone",), 120.0),
        Case(
            "exchange and check of the new token",
            lambda: (mint.exchanged(principal, target), new_token()),
            100,
            ("sign, alone", "verify, alone"),
            ratio=1.5,
        ),
        Case("exchange: policy, a new token", exchanged(parts, mint, principal, "never"), 200, ("sign, alone",), 120.0),
        Case("exchange: policy, a remembered one", exchanged(parts, mint, principal, "half_life"), 2000, (), 8.0),
        Case("revocation: asked of a principal", lambda: revocations.revoked(principal), 5000),
        Case(
            "authorize: a CEL rule that is asked", authorized(parts, principal, rules=[{"deny": RULE}]), 1000, (), 5.0
        ),
        Case("authorize: one that names two things", authorized(parts, principal, rules=[{"deny": BOTH}]), 1000),
        Case("authorize: one that is remembered", authorized(parts, principal, rules=[{"deny": NAMES}]), 1000, (), 5.0),
        *rego(parts, principal),
    ]


def rego(parts: Parts, principal: Principal) -> list[Case]:
    """Where the extra is there."""
    if find_spec("regopy") is None:
        return []
    with tempfile.TemporaryDirectory(prefix="tollhouse-bench-") as where:
        (Path(where) / "policy.rego").write_text(POLICY)
        (Path(where) / "roles.json").write_text('{"roles": {"dev": ["search"], "admin": ["search", "buy"]}}')
        settings = {"file": f"{where}/policy.rego", "data": f"{where}/roles.json"}
        run = authorized(parts, principal, rego=settings)
    return [Case("authorize: a policy in Rego", run, 100, (), 150.0)]


def authorized(parts: Parts, principal: Principal, **spec: Any) -> Callable[[], object]:
    """One call that is decided on."""
    policy = AUTHORIZE.make((Layer("top", "", GuardSpec.model_validate(spec)),), replace(parts, entrance="mcp"))
    assert policy is not None
    request = Request(b"POST", b"/mcp", Headers(()), peer="127.0.0.1")
    request.context.principal = principal
    params = {"name": msgspec.Raw(b'"buy"'), "arguments": msgspec.Raw(b'{"amount":7,"to":"bob@example.com"}')}
    call = ToolCall(request, request.context, server="shop", method="tools/call", name="buy", params=params)

    async def answer(asked: Call) -> Reply:
        return REPLY

    handler = compose((policy,), answer)
    return lambda: drive(handler(call))


class Own:
    """Who makes tokens in this process."""

    generation = object()
    identity = None

    def __init__(self, mint: Mint) -> None:
        self._mint = mint

    def of(self, who: Any) -> Mint:
        return self._mint


def exchanged(parts: Parts, mint: Mint, principal: Principal, reuse: str) -> Callable[[], object]:
    """One call through the policy, to a server that answers at once."""
    whole = replace(parts, upstream="https://shop.example.com/mcp", exchangers=Own(mint), entrance="mcp")
    spec = ExchangeSpec.model_validate({"ttl": "1h", "reuse": reuse, "scopes": {"shop": ["mcp"], "more": ["more"]}})
    made = exchange((Layer("top", "", spec),), whole)
    assert made is not None
    request = Request(b"POST", b"/mcp", Headers(()), peer="127.0.0.1")
    request.context.principal = principal
    call = ToolCall(request, request.context, server="shop", method="tools/call", name="buy", params={})

    async def answer(asked: Call) -> Reply:
        assert asked.credential
        return REPLY

    return lambda: drive(made.handle(call, answer))


def over_http(calls: int) -> float:
    """Microseconds of CPU time of one exchange with our auth provider over HTTP: its process and this one."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tollhouse-bench-") as where:
        config = Path(where) / "tollhouse.yaml"
        config.write_text(CONFIG.format(port=port, secret=SECRET, resource=RESOURCE, shop=SHOP))
        command = [sys.executable, "-m", "tollhouse.cli", "serve", str(config)]
        with Program(command, core=PROXY_CORE, log=Path(where) / "log") as issuer:
            issuer.wait_until_it_listens(port)
            return asyncio.run(_over_http(f"http://127.0.0.1:{port}", issuer, calls))


async def _over_http(url: str, issuer: Program, calls: int) -> float:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client = Client(clock)
    form = urlencode({"grant_type": "client_credentials", "resource": RESOURCE, "scope": "mcp"}).encode()
    basic = b"Basic " + base64.b64encode(f"robot:{SECRET}".encode())
    headers = ((b"authorization", basic), (b"content-type", b"application/x-www-form-urlencoded"))
    given = await client.fetch(f"{url}/oauth/token", method="POST", headers=headers, body=form, guarded=False)
    token = msgspec.json.decode(given.body)["access_token"].encode()
    principal = Principal("jwt:robot", source="jwt", issuer=url, subject="robot", client="robot", token=token)
    settings = ElsewhereSettings(url, "rfc8693", f"{url}/oauth/token", "gateway", SECRET)
    elsewhere = Elsewhere(settings, client)
    target = Target(SHOP, ("read",), 5.0, True)
    for _ in range(200):
        await elsewhere.exchanged(principal, target)
    before, began = issuer.cpu_seconds(), time.process_time()
    for _ in range(calls):
        await elsewhere.exchanged(principal, target)
    spent = time.process_time() - began + issuer.cpu_seconds() - before
    await elsewhere.close()
    await client.close()
    timer.stop()
    return spent / calls * 1e6


def drive(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing: a loop is no part of what is measured."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def proof_for(token: bytes) -> bytes:
    """A DPoP proof that comes with `token`."""
    signer = Signer("ES256", generate("ES256"))
    head = {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(signer.public)}
    ath = access_token_hash(token)
    said = {"jti": "one", "htm": "POST", "htu": RESOURCE, "iat": int(time.time()), "ath": ath}
    signed = to_base64url(msgspec.json.encode(head)) + b"." + to_base64url(msgspec.json.encode(said))
    return signed + b"." + to_base64url(signer.sign(signed))


def measured(every: list[Case], rounds: int) -> dict[str, float]:
    """Microseconds of CPU time of each case."""
    times: dict[str, list[float]] = {case.name: [] for case in every}
    for _ in range(rounds):
        for case in every:
            run = case.run
            began = time.process_time_ns()
            for _ in range(case.calls):
                run()
            times[case.name].append((time.process_time_ns() - began) / case.calls / 1000.0)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> int:
    """Print the table: 1 when a promise is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gate", action="store_true", help="exit status 1 when a promise is missed")
    options = parser.parse_args()
    every = cases()
    found = measured(every, options.rounds)
    missed = 0
    print(f"{'':40}{'µs':>8}{'ratio':>8}  promised")
    for case in every:
        cost = found[case.name]
        ratio = cost / sum(found[name] for name in case.against) if case.against else 0.0
        promised = [f"{case.most:g} µs"] if case.most else []
        promised += [f"{case.ratio:g} x"] if case.ratio else []
        is_missed = (case.most and cost > case.most) or (case.ratio and ratio > case.ratio)
        missed += bool(is_missed)
        shown = f"{ratio:8.2f}" if ratio else " " * 8
        print(f"{case.name:40}{cost:8.2f}{shown}  {', '.join(promised)}{'  MISSED' if is_missed else ''}")
    cost = over_http(options.rounds * 200)
    is_missed = cost > OVER_HTTP
    missed += is_missed
    shown = f"{OVER_HTTP:g} µs{'  MISSED' if is_missed else ''}"
    print(f"{'exchange: over HTTP, both sides':40}{cost:8.2f}{' ' * 8}  {shown}")
    return 1 if missed and options.gate else 0


if __name__ == "__main__":
    sys.exit(main())
