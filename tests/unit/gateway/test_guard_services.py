"""Services at providers: asked with the provider's own credentials, which who asks never sees."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import monotonic
from urllib.parse import parse_qs

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.fixtures.api import Api, Asked, Said, serving_api
from tests.fixtures.guard_services import GuardServices, guard_services

from tollhouse.config.parse import parse
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.holders import Holders
from tollhouse.gateway.assembly import Assembly, Fixtures
from tollhouse.gateway.guard_services import GuardServices as Services
from tollhouse.gateway.keep import Keep
from tollhouse.gateway.model_routes import KeptModels, ModelRoutes
from tollhouse.gateway.operate import Operations
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.base import Service
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

KEY, SECRET = "AKIDEXAMPLE000000000", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


class Desk:
    """A configuration that is being built. services: what policies get."""

    def __init__(self, text: str) -> None:
        self.clock = Clock()
        self.timer = Timer(self.clock)
        self.client = Client(self.clock)
        self.keep = Keep()
        families = Families(Metrics())
        state = MemoryState(self.clock)
        self.starts: list[object] = []
        fixtures = Fixtures(self.clock, families, self.client, state, Operations(families.metrics))
        config = parse(text, "t.yaml", {}).config
        assembly = Assembly(fixtures, config, self.keep.tenure(), [], Catalogue.load)
        ModelRoutes(assembly, KeptModels(Holders(self.clock)))
        services = assembly.parts("mcp").services
        assert isinstance(services, Services)
        self.services = services
        for start in assembly.starts:
            start()

    async def close(self) -> None:
        await self.keep.close()
        await self.client.close()
        self.timer.stop()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving_api() as api:
        yield api


@pytest.fixture
async def guards() -> AsyncIterator[GuardServices]:
    async with guard_services() as services:
        yield services


def desk(text: str) -> Desk:
    made = Desk(text)
    made.timer.start()
    return made


async def ask(service: Service, target: bytes = b"/moderations", body: bytes = b'{"input":["x"]}') -> tuple[int, bytes]:
    status, _, said = await service.post(target, body, deadline=monotonic() + 5.0, limit=1 << 16)
    return status, said


async def test_beside_the_models_with_the_providers_keys_in_turn(api: Api) -> None:
    api.answer = lambda asked: Said(401 if asked.headers["authorization"] == "Bearer first" else 200, {"ok": True})
    at = desk(f"providers: {{o: {{kind: openai, base_url: '{api.url}/v1', api_keys: [first, second]}}}}\nmodels: []")
    try:
        service = at.services("o", ("openai",))
        assert await ask(service) == (200, b'{"ok": true}')
        assert [asked.headers["authorization"] for asked in api.asked] == ["Bearer first", "Bearer second"]
        assert api.asked[1].target == "/v1/moderations"
        assert api.asked[1].headers["content-type"] == "application/json"
        assert api.asked[1].body == b'{"input":["x"]}'
        await ask(service)
        assert api.asked[2].headers["authorization"] == "Bearer second"
    finally:
        await at.close()


async def test_at_bedrock_each_question_is_signed(guards: GuardServices) -> None:
    auth = f"{{kind: aws, access_key_id: {KEY}, secret_access_key: {SECRET}}}"
    provider = f"{{kind: bedrock, region: eu-central-1, base_url: '{guards.url}', auth: {auth}}}"
    at = desk(f"providers: {{b: {provider}}}")
    try:
        service = at.services("b", ("bedrock",))
        target = b"/guardrail/arn%3Aaws%3Abedrock/version/1/apply"
        body = b'{"source":"INPUT","content":[{"text":{"text":"fine"}}]}'
        status, _ = await ask(service, target, body)
        assert status == 200
        asked = guards.asked[0]
        # botocore signs the same request to the same signature.
        request = AWSRequest("POST", guards.url + target.decode(), {"content-type": "application/json"}, body)
        request.context["timestamp"] = asked.headers["x-amz-date"]
        signer = SigV4Auth(Credentials(KEY, SECRET), "bedrock", "eu-central-1")
        request.headers["host"] = asked.headers["host"]
        request.headers["x-amz-date"] = asked.headers["x-amz-date"]
        canonical = signer.canonical_request(request)
        signature = signer.signature(signer.string_to_sign(request, canonical), request)
        assert asked.headers["authorization"].endswith(f"Signature={signature}")
        assert hashlib.sha256(asked.raw).hexdigest() in canonical
        assert asked.headers["x-amz-date"].startswith(datetime.now(UTC).strftime("%Y%m"))
    finally:
        await at.close()


async def test_elsewhere_with_an_access_token_that_is_fetched_once(api: Api, guards: GuardServices) -> None:
    def token(asked: Asked) -> Said:
        assert parse_qs(asked.body.decode())["client_secret"] == ["s~cret"]
        return Said(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": "entra-token"})

    api.answer = token
    auth = f"{{kind: entra, tenant: acme, client_id: app, client_secret: s~cret, authority: '{api.url}'}}"
    at = desk(f"providers: {{a: {{kind: azure, base_url: 'http://127.0.0.1:9', auth: {auth}}}}}")
    try:
        service = at.services("a", ("azure",), guards.url + "/base")
        for _ in range(2):
            body = b'{"text":"to kill"}'
            status, said = await ask(service, b"/contentsafety/text:analyze?api-version=1", body)
            assert (status, b'"severity": 4' in said) == (200, True)
        assert guards.asked[0].headers["authorization"] == "Bearer entra-token"
        assert guards.asked[0].target == "/base/contentsafety/text:analyze?api-version=1"
        assert guards.connections == 1
        assert len(api.asked) == 1
        again = at.services("a", ("azure",), guards.url + "/base")
        await ask(again, b"/contentsafety/text:analyze?api-version=1", b'{"text":"x"}')
        assert guards.connections == 1
    finally:
        await at.close()


async def test_a_service_that_takes_too_long_or_says_too_much(guards: GuardServices) -> None:
    at = desk(f"providers: {{o: {{kind: openai, base_url: '{guards.url}', api_key: k}}}}")
    try:
        service = at.services("o", ("openai",))
        guards.fails = "big"
        with pytest.raises(Failure) as failure:
            await ask(service)
        assert failure.value.status == 502
        guards.fails = "hang"
        with pytest.raises(Failure):
            await service.post(b"/moderations", b"{}", deadline=monotonic() + 0.2, limit=1 << 16)
        with pytest.raises(Failure):
            await service.post(b"/moderations", b"{}", deadline=monotonic() - 1.0, limit=1 << 16)
    finally:
        await at.close()


@pytest.mark.parametrize(
    "asked, wrong",
    [
        (("x", ("openai",)), "there is no provider 'x'"),
        (("o", ("bedrock",)), "'o' is of the kind openai; one of bedrock is needed"),
        (("a", ("azure",), "http://127.0.0.1:9"), "set `auth`"),
    ],
)
async def test_what_cannot_be_asked(asked: tuple[str, tuple[str, ...]], wrong: str) -> None:
    at = desk(
        "providers: {o: {kind: openai, base_url: 'http://127.0.0.1:9/v1', api_key: k},"
        " a: {kind: azure, base_url: 'http://127.0.0.1:9', api_key: k}}"
    )
    try:
        with pytest.raises(ValueError, match=wrong):
            at.services(*asked)
    finally:
        await at.close()
