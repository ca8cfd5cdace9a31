"""How a process gets its addresses: alone, together with others, and not at all."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tollhouse.config.load import load_config
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.listeners import limits_of
from tollhouse.gateway.serve import Worker
from tollhouse.gateway.workers import reserve
from tollhouse.net.listen import Address, bind

pytestmark = pytest.mark.anyio


def config(where: Path, server: str) -> Path:
    path = where / "a.yaml"
    path.write_text(f"server: {server}\nroutes: [{{name: a, path: /, to: http://127.0.0.1:9}}]\n")
    return path


def test_addresses_are_held_for_all_workers(tmp_path: Path) -> None:
    loaded = load_config(
        config(tmp_path, "{listen: ['127.0.0.1:0'], metrics: '127.0.0.1:0', admin: '127.0.0.1:0', workers: 2}")
    )
    with ExitStack() as stack:
        addresses, metrics, admin = reserve(loaded.config, stack)
        assert metrics is not None
        assert admin is not None
        assert len({*addresses, metrics, admin}) == 3
        for address in (*addresses, metrics, admin):
            assert not address.endswith(":0")
            # Every worker gets it, and a stranger does not.
            workers = [sock for _ in range(2) for sock in bind(Address.parse(address), shared=True)]
            for sock in workers:
                sock.listen()
            with pytest.raises(OSError, match="in use"):
                bind(Address.parse(address))
            for sock in workers:
                sock.close()
    for address in (*addresses, metrics):
        for sock in bind(Address.parse(address)):
            sock.close()


def test_an_address_in_use_is_told_with_its_setting_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:  # as another gateway has it
        port = taken.getsockname()[1]
        loaded = load_config(config(tmp_path, f"{{listen: '127.0.0.1:0', metrics: '127.0.0.1:{port}', workers: 2}}"))
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError) as refused, ExitStack() as stack:
            reserve(loaded.config, stack)
        assert len(os.listdir("/proc/self/fd")) == before
    (problem,) = refused.value.problems
    assert problem.path == "server.metrics"
    assert problem.message == f"cannot listen on 127.0.0.1:{port}: Address already in use"


async def test_a_worker_that_cannot_listen_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = config(tmp_path, f"{{listen: ['127.0.0.1:0', '127.0.0.1:{port}'], metrics: '127.0.0.1:0'}}")
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ConfigError, match="cannot listen"):
            await Worker(path, load_config(path)).run()
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_port_of_both_families_is_one_port() -> None:
    sockets = bind(Address("", 0))
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
    finally:
        for sock in sockets:
            sock.close()


def test_limits_are_those_of_the_configuration(tmp_path: Path) -> None:
    path = config(tmp_path, "{max_body: 1KiB, max_head: 2KiB, max_target: 1KiB, timeouts: {idle: 3s, head: 2s}}")
    limits = limits_of(load_config(path).config)
    assert (limits.body, limits.head, limits.target, limits.idle_timeout, limits.head_timeout) == (
        1024,
        2048,
        1024,
        3,
        2,
    )
