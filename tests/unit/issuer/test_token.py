"""The token endpoint: what is done before anything is granted has a bound."""

import secrets
from time import monotonic

import msgspec
import pytest
from tests.fixtures.issuer import API, CLIENTS, Node, challenge_of, dpop_proof, issuing, new_key

pytestmark = pytest.mark.anyio

KEY = new_key()
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"


async def in_vain(node: Node, client: str = "", **form: str) -> int:
    """A proof, and a grant that is none."""
    proof = {"dpop": dpop_proof(KEY, node, "token")}
    sent = {"grant_type": "refresh_token", "refresh_token": "x", **form}
    return (await node.token(client, proof, **sent)).status_code


async def test_who_shows_proofs_in_vain_waits() -> None:
    """Each is remembered for two minutes, on all nodes; and a public client proves nothing before."""
    async with issuing(clients=CLIENTS) as node:
        began, count = monotonic(), 0
        while (status := await in_vain(node, client_id="native")) == 400:
            count += 1
            assert count <= 301 + 5 * (monotonic() - began)
        assert (status, count >= 300) == (429, True)
        assert await in_vain(node, "app") == 400  # it has proved who it is
        assert (await node.token(grant_type="refresh_token", refresh_token="x", client_id="native")).status_code == 400
        node.wait(61)
        verifier = secrets.token_urlsafe(32)
        code = await node.code(
            verifier, client_id="native", redirect_uri="http://127.0.0.1/cb", challenge=challenge_of(verifier)
        )
        answer = await node.token(
            "",
            {"dpop": dpop_proof(KEY, node, "token")},
            grant_type="authorization_code",
            client_id="native",
            code=code,
            code_verifier=verifier,
        )
        assert (answer.status_code, answer.json()["token_type"]) == (200, "DPoP")


async def test_devices_that_wait_show_none_in_vain() -> None:
    device = {"id": "tv", "grants": ["device_code"]}
    async with issuing(clients=[*CLIENTS, device]) as node:
        begun = (await node.post("device", {"client_id": "tv", "scope": "read", "resource": API})).json()
        code, _, _ = begun["device_code"].partition(".")
        form = {"grant_type": DEVICE, "client_id": "tv", "device_code": begun["device_code"]}
        devices, polls = node.parts.tables.devices, 0
        began = monotonic()
        while polls < 320 + 5 * (monotonic() - began):
            held = await devices.get(code)
            assert held is not None
            await devices.swap(held, msgspec.structs.replace(held.value, polled=0.0), 600.0)  # as if it were another
            proof = {"dpop": dpop_proof(KEY, node, "token")}
            assert (await node.token("", proof, **form)).json()["error"] == "authorization_pending"
            polls += 1


async def test_what_is_granted_is_no_proof_in_vain() -> None:
    async with issuing(clients=CLIENTS) as node:
        for _ in range(320):
            verifier = secrets.token_urlsafe(32)
            code = await node.code(verifier, client_id="native", redirect_uri="http://127.0.0.1/cb")
            proof = {"dpop": dpop_proof(KEY, node, "token")}
            answer = await node.redeem(code, verifier, "", client_id="native", headers=proof)
            assert answer.status_code == 200, answer.text
