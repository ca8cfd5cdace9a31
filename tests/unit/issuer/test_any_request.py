"""Whatever is sent to an endpoint, it is answered in the protocol's form, without what was sent."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.issuer import API, CLIENTS, MCP, SECRET, Node, basic, issuing

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.issuer.spec import GRANTS

MARK = "zqxj-what-was-sent"
NAMES = (
    "grant_type", "client_id", "client_secret", "code", "code_verifier", "redirect_uri", "refresh_token", "scope",
    "resource", "audience", "device_code", "subject_token", "subject_token_type", "actor_token", "actor_token_type",
    "requested_token_type", "requested_ttl", "assertion", "client_assertion", "client_assertion_type", "token",
    "token_type_hint", "response_type", "code_challenge", "code_challenge_method", "state", "x",
)  # fmt: skip
VALUES = (
    *GRANTS.values(), *(str(client["id"]) for client in CLIENTS), SECRET, API, MCP, f"{MCP}#add", "read", "openid", "",
    "dyn_x", "https://client.invalid/x", "thr_" + "A" * 22 + ".1." + "A" * 43, "BCDFGHJK." + "A" * 43,
    "urn:ietf:params:oauth:token-type:access_token", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.", "eyJhbGciOiJFUzI1NiJ9.e30.AAAA", "code", "S256", "A" * 43, "-1", "1e9",
    MARK, f"<script>{MARK}", f'"{MARK}\\',
)  # fmt: skip
ENDPOINTS = ("token", "introspect", "revoke", "device", "par", "register", "userinfo")
FORMS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.text(max_size=8)), max_size=10)


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[asyncio.Runner, Node]]:
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        clients = [*CLIENTS[:3], {**CLIENTS[3], "token_exchange": {"targets": [{"audience": f"{MCP}#*"}]}}]
        made = issuing(clients=clients, registration={"dynamic": "on", "rate": 100_000, "per_address": 10_000})
        yield runner, runner.run(stack.enter_async_context(made))
        runner.run(stack.aclose())


def ask(there: tuple[asyncio.Runner, Node], name: str, body: bytes, fields: list[tuple[bytes, bytes]]) -> Response:
    runner, node = there
    node.wait(60.0)  # who fails so often would wait
    address = next(one for one in node.issuer.addresses if one.path == f"/oauth/{name}")
    request = Request(b"POST", address.path.encode(), Headers(fields), body)

    async def answer() -> Response:
        try:
            return await address.handler(request)
        except Failure as failure:
            return address.render(failure, request)

    return runner.run(answer())


def check(response: Response) -> Any:
    assert response.status in (200, 201, 400, 401, 403, 413, 429), response
    headers = dict(response.headers)
    assert headers[b"cache-control"] == b"no-store"
    if not response.body:
        return None
    answer = json.loads(response.body)
    if response.status >= 400:
        assert set(answer) == {"error", "error_description"}
        assert MARK not in response.body.decode()
        if response.status == 401:
            assert headers[b"www-authenticate"]
    return answer


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(ENDPOINTS), FORMS, st.sampled_from(["", "app", "robot", "gateway", "nobody"]))
def test_any_form(there: tuple[asyncio.Runner, Node], name: str, form: list[tuple[str, str]], client: str) -> None:
    fields = [(b"content-type", b"application/x-www-form-urlencoded")]
    if client:
        fields.append((b"authorization", basic(client).encode()))
    check(ask(there, name, urlencode(form).encode("utf-8", "surrogatepass"), fields))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ENDPOINTS),
    st.binary(max_size=60),
    st.sampled_from([b"application/x-www-form-urlencoded", b"application/json", b"text/plain", b""]),
    st.binary(max_size=30).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
)
def test_any_bytes(there: tuple[asyncio.Runner, Node], name: str, body: bytes, kind: bytes, shown: bytes) -> None:
    check(ask(there, name, body, [(b"content-type", kind), (b"authorization", shown), (b"dpop", shown)]))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["redirect_uris", "client_name", "grant_types", "response_types", "token_endpoint_auth_method", "scope",
             "application_type", "jwks", "jwks_uri", "client_uri", "x"]
        ),
        st.sampled_from(
            ["none", MARK, ["http://127.0.0.1/cb"], ["authorization_code"], ["code"], [], None, 5, {}, "native"]
        )
        | st.text(max_size=5),
    )
)  # fmt: skip
def test_any_registration(there: tuple[asyncio.Runner, Node], metadata: dict[str, Any]) -> None:
    check(ask(there, "register", json.dumps(metadata).encode(), [(b"content-type", b"application/json")]))
