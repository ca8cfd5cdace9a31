"""The admin listener: what is handed to the API, and what is said where keys could be read on their way."""

import logging
from pathlib import Path

import pytest

from tollhouse.config.parse import parse
from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.gateway.listeners import Certificates, name_of, sockets_at
from tollhouse.gateway.premises import Premises, admin_listener
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio


async def nothing(_: Request) -> Response:
    return Response(204, [])


@pytest.mark.parametrize(
    ("admin", "warned"), [("127.0.0.1:0", False), ("{address: '0.0.0.0:0', hosts: [ops.example.com]}", True)]
)
async def test_without_tls_for_others_it_is_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, admin: str, warned: bool
) -> None:
    config = parse(f"server: {{admin: {admin}}}\n", str(tmp_path / "t.yaml"), {}).config
    spec = config.server.admin
    assert spec is not None
    sockets = sockets_at(spec.address, "server.admin")
    given: list[Premises] = []

    def api(premises: Premises):  # type: ignore[no-untyped-def]
        given.append(premises)
        return nothing

    try:
        clock = Clock()
        state = MemoryState(clock)
        premises = Premises(
            spec,
            name_of(spec.address, sockets),
            lambda: config,
            state,
            Revocations(state, clock),
            lambda: None,
            lambda: None,
        )
        with caplog.at_level(logging.WARNING):
            listener = admin_listener(api, premises, sockets, clock, Certificates())
    finally:
        for sock in sockets:
            sock.close()
    assert given == [premises]
    assert (listener.server.name, listener.server.scheme) == (premises.name, "http")
    assert ("can be read on their way" in caplog.text) is warned
