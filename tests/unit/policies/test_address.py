"""The client's address, and who may come in."""

import pytest
from tests.unit.policies.floor import layer, model, parts, request, respond

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Expression
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import compose
from tollhouse.policies.address import ADDRESS, Address, AddressSpec

pytestmark = pytest.mark.anyio


async def comes_in(spec: AddressSpec, peer: str) -> bool:
    handler = compose((Address(None, spec).handle,), respond)
    said = set()
    for _ in range(2):  # the second time from memory
        asked = request()
        asked.peer = peer
        try:
            await handler(asked)
            said.add(200)
        except Failure as failure:
            said.add(failure.status)
    [status] = said
    return status == 200


async def test_a_refusal_does_not_repeat_the_address() -> None:
    asked = request()
    with pytest.raises(Failure) as caught:
        await compose((Address(None, AddressSpec(deny=("10.0.0.0/8",))).handle,), respond)(asked)
    assert (caught.value.status, caught.value.reason) == (403, Reason.AUTHORIZATION)
    assert "10.0.0.7" not in caught.value.message
    assert "10.0.0.7" in caught.value.detail


@pytest.mark.parametrize(
    "allow, deny, peer, ok",
    [
        ([], ["10.0.0.0/8"], "10.1.2.3", False),
        ([], ["10.0.0.0/8"], "192.0.2.7", True),
        (["10.0.0.0/8"], [], "10.1.2.3", True),
        (["10.0.0.0/8"], [], "192.0.2.7", False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.2.3", False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.2.2.3", True),
        (["10.0.0.0/8"], [], "::ffff:10.1.2.3", True),
        (["2001:db8::/32"], [], "2001:db8::1", True),
        (["fe80::/10"], [], "fe80::1%eth0", True),
        (["10.0.0.0/8"], [], "", False),
        ([], ["10.0.0.0/8"], "unix:/x", False),
    ],
)
async def test_networks(allow: list[str], deny: list[str], peer: str, ok: bool) -> None:
    assert await comes_in(AddressSpec(allow=tuple(allow), deny=tuple(deny)), peer) is ok


async def test_behind_a_trusted_proxy_the_client_is_who_it_says() -> None:
    p = parts(forwarding=Forwarding(["10.0.0.0/8"]))
    policy = ADDRESS.make((), p)
    assert policy is not None
    asked = request(b"GET", b"/", (b"x-forwarded-for", b"192.0.2.7"))
    await compose((policy,), respond)(asked)
    assert asked.context.client == "192.0.2.7"
    call = model()
    call.context.client = "192.0.2.7"
    assert Expression("request.ip + source.address").text(call) == "192.0.2.7192.0.2.7"
    denies = ADDRESS.make((layer(AddressSpec(deny=("192.0.2.0/24",))),), p)
    assert denies is not None
    with pytest.raises(Failure):
        await compose((denies,), respond)(asked)


@pytest.mark.parametrize("forwarding", [None, Forwarding()])
def test_without_anything_to_do_it_is_not_there(forwarding: Forwarding | None) -> None:
    assert ADDRESS.make((), parts(forwarding=forwarding)) is None


def test_what_is_no_network() -> None:
    with pytest.raises(ValueError, match="not a network"):
        AddressSpec(allow=("10.0.0.1/8",))
